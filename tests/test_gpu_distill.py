"""The distillation losses on a GPU: the Triton and CUDA kernels against the reference in float64.

make gpu
"""

import pytest
import torch
from distill_cases import probabilities, problem

from snnfast import tser_loss, tssd_loss, twkd_loss
from snnfast.ops.select import implementation

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    why_not = implementation(request.param).available()
    if why_not:
        pytest.skip(why_not)
    return request.param


def losses(z, y, teacher, w, **options):
    yield twkd_loss(z, y, teacher, **options)
    yield twkd_loss(z, y, teacher, self_target="correct", skip_all_wrong=True, **options)
    yield tser_loss(z, y, teacher, lam=0.3, entropy_temperature=1.5, **options)
    yield tssd_loss(z, y, w, student_steps=max(1, len(z) // 2), ce_steps="both", **options)
    yield tssd_loss(z, y, w, student_steps=1, aux_per_step=False, **options)


def on_device(shape, dtype, **kind):
    z, y, teacher, w = problem(*shape, **kind)
    tensors = (x.detach().to("cuda", dtype) for x in (z, teacher, w))
    z, teacher, w = tensors
    return z.requires_grad_(), y.cuda(), teacher, w.requires_grad_()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(4, 128, 10), (6, 128, 100), (4, 512, 1000), (10, 32, 10), (1, 1, 2), (9, 3, 33), (100, 2, 7),
     (3, 2, 5000), (2, 1, 21841)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
def test_losses_against_the_reference(backend, shape, dtype, kind):
    z, y, teacher, w = on_device(shape, dtype, scale=1.0)
    options = {"label_smoothing": 0.1}
    if kind == "ignored":
        y[::3] = -100
        if len(y) == 1:
            y[0] = 0
    elif kind == "probabilities":
        y = probabilities(shape[1], shape[2]).float().cuda()
    wide, wide_w = (x.detach().double().requires_grad_() for x in (z, w))
    right = losses(wide, y, teacher.double(), wide_w, backend="reference", **options)
    plain = losses(z, y, teacher, w, backend="reference", **options)
    ours = losses(z, y, teacher, w, backend=backend, **options)
    unit = {torch.float32: 5e-7, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    for loss, exact, torchs in zip(ours, right, plain, strict=True):
        own = relative(torchs.detach(), exact.detach())
        assert relative(loss.detach(), exact.detach()) <= max(1e-6, 2 * own)
        for leaf, other in ((z, wide), (w, wide_w)):
            (a,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
            (b,) = torch.autograd.grad(exact, other, retain_graph=True, allow_unused=True)
            (c,) = torch.autograd.grad(torchs, leaf, retain_graph=True, allow_unused=True)
            assert (a is None) == (b is None)
            if a is not None:
                assert relative(a, b) <= max(2 * unit, 2 * relative(c, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_twice(backend, dtype):
    for shape in ((4, 512, 1000), (6, 128, 100), (3, 2, 5000)):
        z, y, teacher, w = on_device(shape, dtype)
        runs = []
        for _ in range(2):
            each = list(losses(z, y, teacher, w, backend=backend))
            gradients = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in each]
            runs.append((each, gradients))
        for one, two in zip(*runs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_captured_in_a_graph(backend):
    z, y, teacher, w = on_device((4, 64, 100), torch.float32)

    def step():
        each = list(losses(z, y, teacher, w, backend=backend))
        return torch.stack([loss.detach() for loss in each]), torch.autograd.grad(sum(each), (z, w))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, gradients = step()
    with torch.no_grad():
        z.copy_(torch.randn_like(z))
    graph.replay()
    expected, other = step()
    assert torch.equal(values, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other, strict=True))


def test_a_label_that_is_no_class_makes_the_loss_nan(backend):
    z, y, teacher, w = on_device((4, 64, 10), torch.float32)
    y[3] = 10
    for loss in losses(z, y, teacher, w, backend=backend):
        assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient[:, 3].isnan().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_logits_give_a_non_finite_loss(backend, value):
    z, y, teacher, w = on_device((4, 64, 100), torch.float32)
    with torch.no_grad():
        z[3, 5, 7] = value
    assert not any(bool(x.isfinite()) for x in losses(z, y, teacher, w, backend=backend))


def test_two_launches_forward_and_one_backward(backend):
    from torch.profiler import ProfilerActivity, profile

    for steps in (1, 4, 40):
        z, y, teacher, _ = on_device((steps, 64, 100), torch.float32)
        twkd_loss(z, y, teacher, backend=backend).backward()
        z.grad = None
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as run:
            loss = twkd_loss(z, y, teacher, backend=backend)
            torch.cuda.synchronize()
        launches = sum(e.device_type == torch.autograd.DeviceType.CUDA for e in run.events())
        assert launches <= 2
        del loss
