"""What only a device can show: the Triton and CUDA kernels against the reference, on the GPU.

make gpu
"""

import functools
import itertools

import pytest
import torch
from lif_cases import RESETS, SURROGATES, TAUS, assert_two_roundings, grads, off_threshold

import snnfast
from snnfast import reference
from snnfast.ops.select import implementation

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    why_not = implementation(request.param).available()
    if why_not:
        pytest.skip(why_not)
    return request.param


def on_cpu(x, *args, **layer):
    """The same call on the CPU's reference, results moved back."""
    return snnfast.lif(x.cpu(), *(a.cpu() for a in args), **layer, backend="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 9, 20, 100])
@pytest.mark.parametrize("count", [1, 7, 1023, 4096, 40_000])
def test_spikes_and_states_equal_the_reference(backend, dtype, steps, count):
    for tau, v_reset, decay_input in itertools.product(TAUS, RESETS, (True, False)):
        x = (torch.randn(steps, count, device="cuda") * 1.5).to(dtype)
        layer = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input, "return_state": "all"}
        s, v = snnfast.lif(x, **layer, backend=backend)
        expected_s, expected_v = on_cpu(x, **layer)
        assert torch.equal(s.cpu(), expected_s), layer
        assert torch.equal(v.cpu(), expected_v), layer


def test_no_spike_differs_over_1e8_neuron_steps(backend):
    for tau in TAUS:
        x = torch.randn(4, 5_000_000, device="cuda") * 1.5
        s = snnfast.lif(x, tau=tau, backend=backend)
        assert torch.equal(s.cpu(), on_cpu(x, tau=tau)), tau


def test_the_reference_gives_the_same_spikes_on_the_device(backend):
    x = torch.randn(6, 1_000_000, device="cuda") * 1.5
    for tau in TAUS:
        ours = snnfast.lif(x, tau=tau, backend=backend)
        assert torch.equal(ours, snnfast.lif(x, tau=tau, backend="reference")), tau


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [4, 11])
def test_gradients_in_float32(backend, surrogate, steps):
    for v_reset, detach, tau in itertools.product(RESETS, (True, False), (1.7, 2.0)):
        x = off_threshold(steps, 2003, tau=tau, v_reset=v_reset)
        ds, v0 = torch.randn_like(x), torch.zeros(2003) + (v_reset or 0.0)
        layer = {"tau": tau, "v_reset": v_reset, "detach_reset": detach, "surrogate": surrogate}

        ours = functools.partial(snnfast.lif, **layer, backend=backend)
        plain = functools.partial(snnfast.lif, **layer, backend="reference")
        ours = grads(ours, (x.cuda(), v0.cuda()), (ds.cuda(),))
        exact = grads(plain, (x.double(), v0.double()), (ds.double(),))
        for a, b in zip(ours, exact):
            # The approximate reciprocal and exponential of the device add some 2 ulp.
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_in_half_precision(backend, dtype, surrogate):
    x = off_threshold(10, 4001, margin=0.05).to(dtype)
    ds = torch.randn(x.shape).to(dtype)
    (dx,) = grads(
        lambda x: snnfast.lif(x, surrogate=surrogate, backend=backend), (x.cuda(),), (ds.cuda(),)
    )
    (exact,) = grads(
        lambda x: snnfast.lif(x, surrogate=surrogate, backend="reference"),
        (x.double(),),
        (ds.double(),),
    )
    assert_two_roundings(dx.cpu(), exact)


@pytest.mark.parametrize("kind", ["tau", "inv_tau"])
@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_learnable_time_constant_and_states(backend, kind, channels, layout):
    x = torch.randn(40, 5, 6, 7, device="cuda").to(memory_format=layout).unflatten(0, (10, 4))
    rate = 1.2 + torch.rand(() if channels is None else (channels,), device="cuda")
    rate = rate if kind == "tau" else 1 / rate
    v0 = torch.randn_like(x[0])
    ds, dv = torch.randn_like(x), torch.randn_like(x)

    def run(name):
        def call(x, v0, rate):
            return snnfast.lif(x, v0, **{kind: rate}, return_state="all", backend=name)

        return call

    for a, b in zip(run(backend)(x, v0, rate), run("reference")(x, v0, rate)):
        assert torch.equal(a, b)
    ours = [grads(run(backend), (x, v0, rate), (ds, dv)) for _ in range(2)]
    assert all(map(torch.equal, *ours))  # the same bits every time
    for a, b in zip(ours[0], grads(run("reference"), (x, v0, rate), (ds, dv))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_static_input(backend):
    x = torch.randn(3, 1001, device="cuda")
    s = snnfast.lif(x, timesteps=12, backend=backend)
    assert torch.equal(s.cpu(), on_cpu(x, timesteps=12))
    ds = torch.randn_like(s)
    run = lambda name: grads(lambda x: snnfast.lif(x, timesteps=12, backend=name), (x,), (ds,))[0]  # noqa: E731
    torch.testing.assert_close(run(backend), run("reference"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates_alone(backend, surrogate):
    h = torch.cat([torch.linspace(-6, 6, 9001), torch.tensor([1e30, -1e30])])
    x = (h + 1).cuda().unsqueeze(0)  # one step of IF from rest: H = x
    run = lambda x: snnfast.lif(x, tau=float("inf"), surrogate=surrogate, backend=backend)  # noqa: E731
    (g,) = grads(run, (x,), (torch.ones_like(x),))
    expected = snnfast.surrogate.resolve(surrogate).gradient((x.cpu() - 1).double())
    torch.testing.assert_close(g.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_exact_division_in_the_kernel(backend):
    x = torch.randn(1, 20_000_000, device="cuda") * torch.logspace(-6, 6, 20_000_000, device="cuda")
    for tau in (1.0000001, 1.1, 1.7, 3.0, 5.0, 99.9):
        _, v = snnfast.lif(x, tau=tau, v_threshold=1e30, return_state=True, backend=backend)
        rate = torch.tensor(tau, device="cuda")
        assert torch.equal(v, reference.charge(x[0], torch.zeros_like(v), 0.0, rate, True, True))


def test_kept_for_backward(backend):
    for steps, dtype in itertools.product((4, 8, 16), (torch.float32, torch.bfloat16)):
        x = torch.randn(steps, 1 << 20, device="cuda", dtype=dtype, requires_grad=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        s = snnfast.lif(x, backend=backend)
        extra = torch.cuda.memory_allocated() - before - s.numel() * s.element_size()
        assert extra <= (0 if steps <= 8 else x.numel() * 4 // 8) + 4096


def test_captured_in_a_graph(backend):
    x = torch.randn(4, 4096, device="cuda")
    snnfast.lif(x, backend=backend)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s = snnfast.lif(x, backend=backend)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(s.cpu(), on_cpu(x))


def test_errors_name_what_to_do(backend):
    with pytest.raises(ValueError, match="runs on CUDA tensors, got cpu"):
        snnfast.lif(torch.randn(2, 3), backend=backend)
    with pytest.raises(ValueError, match="device cuda:0, got cpu"):
        snnfast.lif(torch.randn(2, 3, device="cuda"), torch.zeros(3), backend=backend)
    assert snnfast.explain(snnfast.lif, torch.randn(2, 3, device="cuda"))[0][1] == "triton"
