"""The CUDA distillation losses without a GPU: the module on the host (_cuda_host.py), called
through the public functions and held to the float64 reference. A misaligned access, or one outside
the tensors, fails the launch.
"""

import math

import _cuda_host
import pytest
import torch
from distill_cases import probabilities, problem

import snnfast
from snnfast.backends.cuda import distill as backend
from snnfast.ops import distill as ops

EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The reference's tensors are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shim(monkeypatch):
    shim = _cuda_host.install(monkeypatch)
    # CPU tensors may go to the CUDA backend here, what else is asked for stays.
    monkeypatch.setattr(ops, "select", lambda op, asked, *how: asked)
    return shim


@pytest.fixture(params=["resident", "streaming"])
def layout(request, monkeypatch):
    """Rows in shared memory, or none of them."""
    if request.param == "streaming":
        monkeypatch.setattr(backend, "_RESIDENT_BYTES", 0)
    backend.plan.cache_clear()
    yield request.param
    backend.plan.cache_clear()


def objective(loss, z, target, other, how, name, scale=1.0):
    """Value, terms and the gradients of scale * loss with respect to z (and tssd's other)."""
    z = z.detach().requires_grad_()
    wanted = [z]
    if other is not None and loss is snnfast.tssd_loss:
        other = other.detach().requires_grad_()
        wanted.append(other)
    value, terms = loss(z, target, other, return_terms=True, backend=name, **how)
    found = torch.autograd.grad(value * scale, wanted, allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted)]
    return value.detach(), terms, found


def rows(shim):
    """The last launch over rows."""
    return next(each for each in reversed(shim.launches) if each.name.endswith("_rows"))


def wide(t):
    return t.double() if t is not None and t.is_floating_point() else t


def relative(ours, want):
    """Error of the norm against that of what is wanted."""
    return ((ours.double() - want).norm() / want.norm().clamp(min=1e-30)).item()


def check(loss, z, target, other=None, bound=1e-6, **how):
    """Against the reference on float64 copies of the same rounded inputs."""
    counted = z.shape[1]
    if not target.is_floating_point():
        counted = int((target != how.get("ignore_index", -100)).sum())
    # Gradients as those of a sum over steps and rows, away from float16's subnormals.
    scale = float(z.shape[0] * max(counted, 1))
    args = (wide(z), wide(target), wide(other), how, "reference", scale)
    value, terms, gradients = objective(loss, *args)
    ours = objective(loss, z, target, other, how, "cuda", scale)
    assert ours[0].dtype == torch.float32
    assert relative(ours[0], value) <= bound
    for key, term in terms.items():
        # Terms of tau^2 (ln p - ln q) lose what that factor takes.
        assert abs(ours[1][key] - term) <= bound * max(abs(term), 1), key
    for found, want in zip(ours[2], gradients):
        assert found.dtype == z.dtype and found.shape == z.shape
        if z.dtype == torch.float32:
            assert relative(found, want) <= bound
        else:
            error = (found.double() - want).abs()
            smallest = 2.0**-24 if z.dtype == torch.float16 else 0.0
            tail = 2e-7 * want.abs().max() + smallest
            assert (error <= 2 * EPSILON[z.dtype] * want.abs() + tail).all()
    return ours


def inputs(steps, batch, classes, dtype=torch.float32, seed=0, scale=3.0):
    z, y, teacher, w = problem(steps, batch, classes, seed, dtype, scale)
    return z.detach(), y, teacher, w.detach()


TWKD = {"alpha": 0.3, "beta": 0.7, "temperature": 3.0}
TSER = {"alpha": 0.3, "lam": 0.1, "temperature": 4.0}
SHAPES = [(1, 5, 2), (4, 5, 3), (9, 5, 10), (4, 5, 33), (100, 1, 10), (4, 5, 100), (4, 2, 1000)]


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("steps,batch,classes", SHAPES)
def test_shapes(shim, layout, steps, batch, classes, dtype):
    z, y, teacher, w = inputs(steps, batch, classes, dtype)
    check(snnfast.twkd_loss, z, y, teacher, **TWKD)
    assert rows(shim).choices[1] == (layout == "resident")
    check(snnfast.tser_loss, z, y, teacher, **TSER)
    check(snnfast.tssd_loss, z, y, w, student_steps=(steps + 1) // 2, ce_steps="both")
    assert rows(shim).choices[1] == (layout == "resident")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_classes(shim, dtype):
    """Rows that shared memory does not hold: 80 KB of logits."""
    z, y, teacher, w = inputs(4, 1, 5000, dtype)
    check(snnfast.twkd_loss, z, y, teacher, **TWKD)
    assert not rows(shim).choices[1] and rows(shim).threads == 256
    check(snnfast.tssd_loss, z, y, w, student_steps=2)
    assert not rows(shim).choices[1]


@pytest.mark.parametrize("classes,threads", [(128, 32), (129, 64), (257, 128), (513, 256)])
def test_blocks(shim, classes, threads):
    """Every number of warps that a sum crosses."""
    z, y, teacher, w = inputs(3, 2, classes)
    check(snnfast.tser_loss, z, y, teacher, **TSER)
    assert rows(shim).threads == threads
    check(snnfast.tssd_loss, z, y, w, student_steps=1)


@pytest.mark.parametrize("skip", [False, True], ids=["uniform", "skip"])
@pytest.mark.parametrize("self_target", ["mean", "correct"])
@pytest.mark.parametrize("scaled", [True, False], ids=["tau2", "plain"])
def test_twkd_options(shim, layout, scaled, self_target, skip):
    z, y, teacher, _ = inputs(4, 7, 33)
    how = {"self_target": self_target, "skip_all_wrong": skip, "scale_by_temperature": scaled}
    soft = probabilities(7, 33, dtype=torch.float32)
    weights = {"alpha": 0.4, "beta": 0.6}
    for target in (y, soft, z[0].argmax(-1), 3 * soft):
        check(snnfast.twkd_loss, z, target, teacher, **weights, **how)
    for taught in (teacher, teacher.bfloat16(), teacher.half()):
        check(snnfast.twkd_loss, z, y, taught, temperature=1.0, **weights, **how)
    check(snnfast.twkd_loss, z, y, alpha=0.0, **how)
    check(snnfast.twkd_loss, z, y, teacher, label_smoothing=0.1, **how)
    check(snnfast.twkd_loss, z, soft.half(), teacher, label_smoothing=0.1, **how)


@pytest.mark.parametrize("convex", [False, True], ids=["sum", "convex"])
@pytest.mark.parametrize("tau_ce,tau,tau_h", [(1, 1, None), (1, 4, None), (2, 4, 1), (4, 4, 3)])
def test_tser_options(shim, layout, tau_ce, tau, tau_h, convex):
    z, y, teacher, _ = inputs(4, 5, 33)
    how = {"temperature": tau, "ce_temperature": tau_ce, "entropy_temperature": tau_h}
    for lam in (0.0, 0.3):
        for alpha, taught in ((0.4, teacher), (0.0, None), (1.0, teacher)):
            check(snnfast.tser_loss, z, y, taught, alpha=alpha, lam=lam, convex=convex, **how)
    check(snnfast.tser_loss, z, y, teacher, label_smoothing=0.2, convex=convex, **how)
    soft = probabilities(5, 33, dtype=torch.float16)
    check(snnfast.tser_loss, z, soft, teacher, scale_by_temperature=False, convex=convex, **how)


@pytest.mark.parametrize("per_step", [True, False], ids=["steps", "mean"])
@pytest.mark.parametrize("ce_steps", ["all", "student", "both"])
def test_tssd_options(shim, layout, ce_steps, per_step):
    z, y, _, w = inputs(5, 4, 33)
    how = {"ce_steps": ce_steps, "aux_per_step": per_step}
    for student_steps in (1, 3, 5):
        for scaled in (False, True):
            for target in (y, probabilities(4, 33, dtype=torch.bfloat16)):
                check(snnfast.tssd_loss, z, target, w, student_steps=student_steps,
                      scale_by_temperature=scaled, temperature=2.5, **how)  # fmt: skip
        check(snnfast.tssd_loss, z, y, student_steps=student_steps, beta=0.0, **how)
    check(snnfast.tssd_loss, z, y, w, student_steps=2, label_smoothing=0.1, **how)
    only_aux = objective(snnfast.tssd_loss, z, y, w, {"student_steps": 2, **how}, "cuda")[2][1]
    w.requires_grad_()
    snnfast.tssd_loss(z, y, w, student_steps=2, backend="cuda", **how).backward()
    torch.testing.assert_close(w.grad, only_aux, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_ignored_rows(shim, layout, dtype):
    """They take no part, NaN or not, and their gradients are 0."""
    z, y, teacher, w = inputs(4, 6, 10, dtype)
    y[1], y[4] = 7, 7
    for loss, other, how in (
        (snnfast.twkd_loss, teacher, TWKD | {"self_target": "correct"}),
        (snnfast.tser_loss, teacher, TSER),
        (snnfast.tssd_loss, w, {"student_steps": 3}),
    ):
        how = how | {"ignore_index": 7}
        plain = check(loss, z, y, other, **how)
        broken = z.clone()
        broken[:, y == 7] = math.nan
        ours = objective(loss, broken, y, other, how, "cuda", 4.0 * int((y != 7).sum()))
        assert torch.equal(ours[0], plain[0])
        for found, before in zip(ours[2], plain[2]):
            assert torch.equal(found, before) and (found[:, y == 7] == 0).all()
        none = torch.full_like(y, 7)
        value, terms, gradients = objective(loss, z, none, other, how, "cuda")
        assert value.isnan() and all(term.isnan() for term in terms.values())
        assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_strides(shim, layout, dtype):
    """Any strides, read in place; also the auxiliary logits'."""
    z, y, teacher, w = inputs(4, 5, 33, dtype)
    ways = (
        lambda t: t.permute(1, 0, 2).contiguous().permute(1, 0, 2),
        lambda t: t.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        lambda t: torch.stack([t, t], -1).flatten(2)[:, :, ::2],
        lambda t: t[:1].expand_as(t),
        lambda t: t[:, :1].expand_as(t),
        lambda t: t[:, :, :1].expand_as(t),
        lambda t: torch.cat([t, t], 2)[:, :, 3:36],
    )
    for way in ways:
        check(snnfast.twkd_loss, way(z), y, teacher, **TWKD, self_target="correct")
        check(snnfast.tssd_loss, way(z), y, w, student_steps=3)
        check(snnfast.tssd_loss, z, y, way(w), student_steps=3)


def test_large_logits(shim, layout):
    """Up to +-1e4, and one class ahead of all: no overflow, no lost digits."""
    for scale, offset in ((1e2, 0.0), (3e3, 0.0), (3.0, 9.9e3), (3.0, -9.9e3), (50.0, 5e3)):
        # Quarters, so that means over time are exact in float32: differences are what counts.
        some, y, *more = inputs(4, 5, 100, scale=scale)
        z, teacher, w = (((4 * t).round() / 4 + offset).clamp(-1e4, 1e4) for t in (some, *more))
        check(snnfast.twkd_loss, z, y, teacher, **TWKD)
        check(snnfast.tser_loss, z, y, teacher, **TSER)
        check(snnfast.tssd_loss, z, y, w, student_steps=2)
    z, y, teacher, w = inputs(4, 5, 1000)
    z = (4 * z).round() / 4
    z[:, 0, 3], z[1, 1] = 1e4, -1e4
    check(snnfast.twkd_loss, z, y, teacher, **TWKD)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_not_finite(shim, layout, value):
    """One logit that is not finite: neither is the loss."""
    z, y, teacher, w = inputs(3, 5, 33)
    z[1, 2, 3], y[2] = value, 7
    for loss, other, how in (
        (snnfast.twkd_loss, teacher, TWKD),
        (snnfast.twkd_loss, teacher, TWKD | {"self_target": "correct"}),
        (snnfast.twkd_loss, None, {"alpha": 0.0, "beta": 0.0}),
        (snnfast.tser_loss, teacher, TSER),
        (snnfast.tssd_loss, w, {"student_steps": 2}),
        (snnfast.tssd_loss, None, {"student_steps": 3, "alpha": 0.0, "beta": 0.0}),
    ):
        assert not objective(loss, z, y, other, how, "cuda")[0].isfinite()
    z = torch.full_like(z, value)
    assert not objective(snnfast.twkd_loss, z, y, teacher, TWKD, "cuda")[0].isfinite()
    z, _, _, _ = inputs(3, 5, 33)
    for other in (teacher, w):
        other.view(-1)[9] = value
    assert not objective(snnfast.twkd_loss, z, y, teacher, TWKD, "cuda")[0].isfinite()
    how = {"student_steps": 2}
    assert not objective(snnfast.tssd_loss, z, y, w, how, "cuda")[0].isfinite()


@pytest.mark.parametrize("label", [-1, 10, 2**40, -(2**63)])
def test_a_label_that_is_no_class(shim, layout, label):
    """No error can be raised from a GPU: the loss and the row's gradient are NaN."""
    z, y, teacher, w = inputs(3, 4, 10)
    y[1] = label
    others = torch.tensor([0, 2, 3])
    for loss, other, how in (
        (snnfast.twkd_loss, teacher, TWKD | {"self_target": "correct"}),
        (snnfast.tser_loss, teacher, TSER),
        (snnfast.tssd_loss, w, {"student_steps": 2}),
    ):
        value, _, gradients = objective(loss, z, y, other, how, "cuda")
        assert value.isnan() and gradients[0][:, 1].isnan().all()
        assert gradients[0][:, others].isfinite().all()


def test_equal_distributions_are_exactly_apart_by_nothing(shim, layout):
    for steps, classes in ((1, 10), (4, 33), (7, 257)):
        z, y, _, _ = inputs(steps, 3, classes)
        how = {"student_steps": steps, "temperature": 3.0}
        terms = objective(snnfast.tssd_loss, z, y, z, how, "cuda")[1]
        assert terms["temporal"] == 0 and terms["spatial"] == 0
        one = z[:1]
        for self_target in ("mean", "correct"):
            how = TWKD | {"self_target": self_target}
            target = one[0].argmax(-1)
            terms = objective(snnfast.twkd_loss, one, target, one[0], how, "cuda")[1]
            assert terms["kl"] == 0 and terms["self"] == 0


def test_relations(shim, layout):
    """tser with lam = 0 is twkd with beta = 0; where all steps are right both targets agree."""
    z, y, teacher, _ = inputs(4, 5, 33)
    twkd = objective(snnfast.twkd_loss, z, y, teacher, TWKD | {"beta": 0.0}, "cuda")
    how = {"alpha": 0.3, "lam": 0.0, "temperature": 3.0}
    tser = objective(snnfast.tser_loss, z, y, teacher, how, "cuda")
    torch.testing.assert_close(tser[0], twkd[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(tser[2][0], twkd[2][0], rtol=1e-6, atol=1e-9)
    z[:, torch.arange(5), y] = 15.0
    mean, correct = (
        objective(snnfast.twkd_loss, z, y, teacher, TWKD | {"self_target": name}, "cuda")
        for name in ("mean", "correct")
    )
    torch.testing.assert_close(mean[0], correct[0], rtol=1e-6, atol=0)


def test_ties_go_to_the_first_class(shim, layout):
    z, y, teacher, _ = inputs(3, 4, 70)
    z[:] = z.round()
    z[0, :, 40], z[0, :, 65], z[1, :, 65] = 20.0, 20.0, 20.0
    for label in (40, 65):
        check(snnfast.twkd_loss, z, torch.full_like(y, label), teacher, self_target="correct")
        soft = torch.full((4, 70), 1 / 80)
        soft[:, label] = soft[:, 69] = 0.1
        check(snnfast.twkd_loss, z, soft, teacher, self_target="correct")


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("steps,classes", [(1, 10), (4, 10), (20, 33), (4, 1000)])
def test_logits_are_read_once_and_gradients_written_once(shim, steps, classes, dtype):
    z, y, teacher, w = inputs(steps, 3, classes, dtype)
    z.requires_grad_()
    size = 3 * classes * z.element_size()
    soft = probabilities(3, classes, dtype=dtype)
    snnfast.twkd_loss(z, soft, teacher, backend="cuda")
    assert rows(shim).choices[1] and len(shim.launches) == 2
    assert rows(shim).bytes == {"logits": steps * size, "gradient": steps * size, "other": size,
                          "probabilities": size, "parts": 48}  # fmt: skip
    snnfast.tser_loss(z, y, teacher, backend="cuda")
    assert rows(shim).bytes["logits"] == rows(shim).bytes["gradient"] == steps * size
    z.detach_()
    loss = snnfast.tssd_loss(z, y, w.requires_grad_(), student_steps=1, backend="cuda")
    assert (
        rows(shim).bytes["logits"]
        == rows(shim).bytes["other"]
        == rows(shim).bytes["aux_gradient"]
        == steps * size
    )
    assert "gradient" not in rows(shim).bytes and len(shim.launches) == 6
    loss.backward()
    assert len(shim.launches) == 7


def test_without_gradients(shim, layout):
    """Nothing but the loss and its terms is written; they are the same."""
    z, y, teacher, w = inputs(3, 4, 33)
    for loss, other, how in (
        (snnfast.twkd_loss, teacher, TWKD),
        (snnfast.tssd_loss, w, {"student_steps": 2}),
    ):
        value = objective(loss, z, y, other, how, "cuda")[0]
        assert torch.equal(loss(z, y, other, backend="cuda", **how), value)
        assert "gradient" not in rows(shim).bytes and "aux_gradient" not in rows(shim).bytes


def test_the_order_of_threads_does_not_matter(shim, layout):
    """No barrier is missing: the last warp and the last thread first give the same bits."""
    z, y, teacher, w = inputs(3, 3, 600)
    cases = (
        (snnfast.twkd_loss, teacher, TWKD | {"self_target": "correct"}),
        (snnfast.tser_loss, teacher, TSER),
        (snnfast.tssd_loss, w, {"student_steps": 2}),
    )
    for loss, other, how in cases:
        forwards = objective(loss, z, y, other, how, "cuda")
        shim.library.shim_backwards(1)
        try:
            backwards = objective(loss, z, y, other, how, "cuda")
        finally:
            shim.library.shim_backwards(0)
        assert torch.equal(forwards[0], backwards[0])
        assert all(torch.equal(a, b) for a, b in zip(forwards[2], backwards[2]))


def test_rows_keep_vectors_of_their_own(shim, monkeypatch):
    """The workspace of streamed rows: blocks that run at once share none of it."""
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 0)
    backend.plan.cache_clear()
    kept, run = [], backend._Rows.run
    monkeypatch.setattr(
        backend._Rows, "run", lambda rows, *args: (kept.append(rows.kept), run(rows, *args))
    )
    z, y, teacher, w = inputs(4, 5, 70)
    snnfast.twkd_loss(z, y, teacher, backend="cuda")
    torch.testing.assert_close(kept[0], z.mean(0)[:, None])
    snnfast.tssd_loss(z, y, w, student_steps=2, aux_per_step=False, backend="cuda")
    means = torch.stack([z.mean(0), z[:2].mean(0), w.mean(0)], 1)
    torch.testing.assert_close(kept[1], means)
    backend.plan.cache_clear()


def test_many_rows_add_up(shim):
    """The finish: 4099 rows, some of which do not count."""
    z, y, _, _ = inputs(1, 4099, 2)
    y[::7] = -100
    check(snnfast.twkd_loss, z, y, alpha=0.0, beta=0.0)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_scale(shim, dtype):
    """16 bytes at a time, and the rest; in fp32, rounded once."""
    for n in (1, 7, 8, 4096, 5003):
        storage = torch.randn(n + 1).to(dtype)
        for gradient in (storage[:n], storage[1:]):
            factor, unit = torch.tensor(65536.0), torch.tensor(1 / 3000)
            scaled = torch.full((n,), math.nan, dtype=dtype)
            backend.scale_gradient(gradient, factor, unit, scaled)
            want = (gradient.float() * (factor * unit)).to(dtype)
            assert torch.equal(scaled, want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_small_gradients_survive_in_half_precision(shim, dtype):
    """With a loss scale of 2^16 no more entries vanish than float32 has under half the smallest."""
    z, y, teacher, _ = inputs(2, 4, 1000, dtype)
    how, scale = TWKD | {"alpha": 0.0}, 2.0**16
    exact = objective(snnfast.twkd_loss, z.double(), y, teacher.double(), how, "reference", scale)
    ours = objective(snnfast.twkd_loss, z, y, teacher, how, "cuda", scale)
    want = exact[2][0]
    smallest = 2.0**-24 if dtype == torch.float16 else 2.0**-133
    lost = (ours[2][0] == 0) & (want.abs() > smallest)
    assert not lost.any()


def test_a_failed_launch_raises(shim):
    z, y, _, _ = inputs(2, 2, 4)
    shim.allows = False
    with pytest.raises(RuntimeError, match="distill: the CUDA launch failed: an illegal memory"):
        snnfast.twkd_loss(z, y, alpha=0.0, backend="cuda")
    with pytest.raises(RuntimeError, match="distill: the CUDA launch failed: an illegal memory"):
        backend.scale_gradient(z, torch.tensor(1.0), torch.tensor(1.0), torch.empty_like(z))


def test_the_shim_notices_threads_that_part(shim):
    assert shim.library.shim_notices_divergence()


def test_compiled_at_first_use(shim, layout, monkeypatch):
    """Without snnfast._cuda: one kernel an objective, dtype and layout by NVRTC."""

    built = _cuda_host.without_module(shim, monkeypatch)
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (10, 33):
            z, y, teacher, w = inputs(4, 3, classes, dtype)
            check(snnfast.twkd_loss, z, y, teacher, **TWKD)
            check(snnfast.tser_loss, z, y, teacher, **TSER)
            check(snnfast.tssd_loss, z, y, w, student_steps=2)
    assert len(built) == 1 + 2 * 3  # finish; two objectives and the scaling a dtype
