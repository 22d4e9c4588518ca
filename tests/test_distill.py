"""The distillation objectives through the public functions: identities in float64, the papers'
equations written out, half precision, options, bad input. The reference and the C++ backend."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from distill_cases import probabilities, problem, stepwise, tssd

import snnfast
from snnfast import distill, tser_loss, tssd_loss, twkd_loss
from snnfast.reference import stepwise_loss

EXACT = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = ("reference", "cpu")
T, B, C = 5, 7, 6


@pytest.fixture(params=["reference", "cpu", "cpu-baseline"])
def backend(request):
    """The reference, and the kernels of the instruction sets that are built."""
    from snnfast import _C

    _C.use_baseline(request.param == "cpu-baseline")
    with snnfast.backend(request.param.split("-")[0]):
        yield request.param.split("-")[0]
    _C.use_baseline(False)


def value_and_gradients(loss, *inputs, retain=True):
    return loss.detach(), *torch.autograd.grad(loss, inputs, retain_graph=retain)


def assert_same(one, other, *inputs, retain=True, **tolerance):
    ours = value_and_gradients(one, *inputs, retain=retain)
    theirs = value_and_gradients(other, *inputs, retain=retain)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, **(tolerance or EXACT))


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# Exact relations.


def jensen_gap(z, temperature):
    """tau^2 mean_B [ mean_t LSE(z_t / tau) - LSE(zbar / tau) ], gradient through zbar, too."""
    per_step = torch.logsumexp(z / temperature, -1).mean(0)
    return temperature**2 * (per_step - torch.logsumexp(z.mean(0) / temperature, -1)).mean()


def classic_kl(teacher, student, temperature):
    """tau^2 KL(teacher || student) of [B, C] logits, as Hinton et al. have it."""
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0, 2.7])
def test_jensen_identities_of_each_term(backend, temperature):
    """Each temporal-wise term is its classical form on the mean logits plus a Jensen gap."""
    z, y, teacher, _ = problem()
    loss = functools.partial(twkd_loss, z, y, temperature=temperature)
    ce = F.cross_entropy(z.mean(0), y) + jensen_gap(z, 1.0)
    kl = classic_kl(teacher, z.mean(0), temperature) + jensen_gap(z, temperature)
    assert_same(loss(alpha=0, beta=0), ce, z)
    assert_same(loss(teacher, alpha=1, beta=0), ce + kl, z)
    # Autograd runs through zbar on the right and not on the left: detaching changes nothing.
    assert_same(loss(alpha=0, beta=1), ce + jensen_gap(z, temperature), z)


def test_jensen_identity_of_the_whole_loss(backend):
    z, y, teacher, _ = problem(seed=1)
    alpha, beta, tau = 0.2, 0.5, 3.0
    mean = z.mean(0)
    right = F.cross_entropy(mean, y) + alpha * classic_kl(teacher, mean, tau)
    right = right + jensen_gap(z, 1.0) + (alpha + beta) * jensen_gap(z, tau)
    assert_same(twkd_loss(z, y, teacher), right, z)


def test_detaching_the_mean_target_changes_nothing():
    z, y, _, _ = problem()
    from snnfast.ops.distill import _twkd_options

    loss = _twkd_options(0.0, 1.0, 2.0, "mean", True, False, 0.0, -100, False)
    attached, _ = stepwise_loss(z, y, None, loss, detach_self_target=False)
    detached, _ = stepwise_loss(z, y, None, loss)
    assert_same(detached, attached, z)


def test_entropy_is_divergence_from_uniform(backend):
    """-lam H(q) = lam KL(q || uniform) - lam ln C."""
    z, y, _, _ = problem()
    lam, tau = 0.3, 2.5
    q = F.softmax(z / tau, -1)
    divergence = (q * (q * C).log()).sum(-1).mean()
    right = F.cross_entropy(z.flatten(0, 1), y.repeat(T)) + lam * divergence - lam * math.log(C)
    assert_same(tser_loss(z, y, alpha=0, lam=lam, temperature=tau), right, z)


def test_one_step_is_classical_distillation(backend):
    z, y, teacher, _ = problem(steps=1)
    right = F.cross_entropy(z[0], y) + 0.2 * classic_kl(teacher, z[0], 3.0)
    loss, terms = twkd_loss(z, y, teacher, beta=9.0, return_terms=True)
    assert_same(loss, right, z)
    assert terms["self"] == 0


def test_tser_without_entropy_is_twkd_without_own_target(backend):
    z, y, teacher, _ = problem()
    options = {"alpha": 0.3, "temperature": 2.5, "label_smoothing": 0.1}
    one = tser_loss(z, y, teacher, lam=0.0, **options)
    assert_same(one, twkd_loss(z, y, teacher, beta=0.0, **options), z)


def test_tssd_of_all_steps_has_no_temporal_term(backend):
    for dtype in (torch.float64, torch.float32):
        z, y, _, w = problem(batch=40, dtype=dtype)
        loss, terms = tssd_loss(z, y, w, student_steps=T, beta=0.0, return_terms=True)
        assert terms["temporal"] == 0
        plain = F.cross_entropy(z.mean(0), y)
        assert_same(
            loss, plain, z, **({} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6})
        )


def test_cross_entropies(backend):
    z, y, _, _ = problem()
    per_step = F.cross_entropy(z.flatten(0, 1), y.repeat(T), label_smoothing=0.1)
    assert_same(distill.temporal_cross_entropy(z, y, label_smoothing=0.1), per_step, z)
    mean = F.cross_entropy(z.mean(0), y, label_smoothing=0.1)
    assert_same(distill.mean_cross_entropy(z, y, label_smoothing=0.1), mean, z)
    plain = tssd_loss(z, y, student_steps=2, alpha=0.0, beta=0.0)
    assert_same(plain, F.cross_entropy(z.mean(0), y), z)


def test_rows_without_a_right_step_are_drawn_to_the_uniform_distribution(backend):
    """KL(uniform || q) = mean over classes of -ln q, less ln C."""
    z, y, _, _ = problem(seed=3)
    with torch.no_grad():
        z.scatter_(2, y.expand(T, B).unsqueeze(-1), -20.0)
    options = {"alpha": 0.0, "self_target": "correct", "temperature": 2.0, "return_terms": True}
    _, terms = twkd_loss(z, y, **options)
    expected = 4.0 * (-F.log_softmax(z / 2.0, -1).mean(-1) - math.log(C)).mean()
    torch.testing.assert_close(terms["self"], expected.detach(), **EXACT)
    loss, terms = twkd_loss(z, y, skip_all_wrong=True, **options)
    assert terms["self"] == 0
    assert_same(loss, F.cross_entropy(z.flatten(0, 1), y.repeat(T)), z)


def test_the_mean_of_right_steps_is_the_mean_when_all_are_right(backend):
    z, y, teacher, _ = problem()
    with torch.no_grad():
        z.scatter_(2, y.expand(T, B).unsqueeze(-1), 20.0)
    assert_same(twkd_loss(z, y, teacher, self_target="correct"), twkd_loss(z, y, teacher), z)


def test_the_first_of_equal_logits_counts(backend):
    z = torch.zeros(1, 2, 4, dtype=torch.float64)
    z[0, :, 1:3] = 1.0
    own = twkd_loss(z, torch.tensor([1, 2]), alpha=0.0, self_target="correct", return_terms=True)[1]
    # Row 0 is right and is its own target; row 1 is not and is drawn to the uniform one.
    uniform = 9 * (-F.log_softmax(z[0, 1] / 3, -1).mean() - math.log(4)) / 2
    torch.testing.assert_close(own["self"], uniform, **EXACT)


# The papers' equations, written out.

STEPWISE = {
    "twkd": ({}, {"alpha": 0.2, "beta": 0.5}),
    "correct": ({"self_target": "correct"}, {"alpha": 0.2, "beta": 0.5, "self_target": "correct"}),
    "skip": (
        {"self_target": "correct", "skip_all_wrong": True, "beta": 2.0},
        {"alpha": 0.2, "beta": 2.0, "self_target": "correct", "skip_all_wrong": True},
    ),
    "unscaled": (
        {"scale_by_temperature": False, "temperature": 2.2},
        {"alpha": 0.2, "beta": 0.5, "tau": 2.2, "scaled": False},
    ),
    "cold": (
        {"temperature": 1.0, "label_smoothing": 0.2},
        {"alpha": 0.2, "beta": 0.5, "tau": 1.0, "smoothing": 0.2},
    ),
    "no teacher": ({"alpha": 0.0}, {"beta": 0.5}),
}
TSER = {
    "tser": ({}, {"alpha": 0.2, "lam": 0.05, "tau": 4.0}),
    "convex": (
        {"convex": True, "alpha": 0.7},
        {"alpha": 0.7, "lam": 0.05, "tau": 4.0, "convex": True},
    ),
    "temperatures": (
        {"ce_temperature": 1.7, "entropy_temperature": 0.8, "lam": 0.6},
        {"alpha": 0.2, "lam": 0.6, "tau": 4.0, "tau_ce": 1.7, "tau_h": 0.8},
    ),
    "one temperature": (
        {"ce_temperature": 4.0, "lam": 0.6},
        {"alpha": 0.2, "lam": 0.6, "tau": 4.0, "tau_ce": 4.0},
    ),
    "entropy alone": ({"alpha": 0.0, "lam": 0.6}, {"lam": 0.6, "tau": 4.0}),
}
TSSD = {
    "tssd": ({}, {}),
    "student": ({"ce_steps": "student", "alpha": 0.4}, {"ce_steps": "student", "alpha": 0.4}),
    "both": (
        {"ce_steps": "both", "scale_by_temperature": True},
        {"ce_steps": "both", "scaled": True},
    ),
    "means": ({"aux_per_step": False, "beta": 0.3}, {"per_step": False, "beta": 0.3}),
    "no aux": ({"beta": 0.0, "temperature": 1.5}, {"beta": 0.0, "tau": 1.5}),
}


def targets(kind, y, classes):
    """(target, options of ours, options of the written-out form)."""
    if kind == "probabilities":
        return probabilities(len(y), classes, dtype=torch.float64), {}, {}
    if kind == "ignored":
        y = y.clone()
        y[::3] = 3 if classes > 3 else 0
        index = int(y[0])
        return y, {"ignore_index": index}, {"ignore_index": index}
    return y, {"label_smoothing": 0.1}, {"smoothing": 0.1}


@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("case", [*STEPWISE, *TSER])
def test_stepwise_objectives_are_the_papers(backend, case, kind):
    z, y, teacher, _ = problem(seed=2)
    target, ours, theirs = targets(kind, y, C)
    fused, (options, written) = (
        (twkd_loss, STEPWISE[case]) if case in STEPWISE else (tser_loss, TSER[case])
    )
    taught = None if options.get("alpha") == 0.0 else teacher
    expected = stepwise(z, target, teacher, **{**theirs, **written})
    assert_same(fused(z, target, taught, **{**ours, **options}), expected, z)


@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("case", TSSD)
def test_tssd_is_the_papers(backend, case, kind):
    z, y, _, w = problem(seed=2)
    target, ours, theirs = targets(kind, y, C)
    options, written = TSSD[case]
    aux, inputs = (w, (z, w)) if options.get("beta") != 0.0 else (None, (z,))
    expected = tssd(z, target, w, student_steps=2, **theirs, **written)
    fused = tssd_loss(z, target, aux, student_steps=2, **ours, **options)
    assert_same(fused, expected, *inputs)


def losses(z, y, teacher, w, **options):
    """One loss of each kind."""
    yield twkd_loss(z, y, teacher, **options)
    yield twkd_loss(z, y, teacher, self_target="correct", temperature=2.7, **options)
    yield tser_loss(z, y, teacher, entropy_temperature=1.5, **options)
    yield tssd_loss(z, y, w, student_steps=max(1, len(z) // 2), ce_steps="both", **options)
    yield tssd_loss(z, y, w, student_steps=1, aux_per_step=False, **options)


SHAPES = [
    (1, 2, 2), (4, 128, 10), (3, 33, 9), (6, 65, 100), (4, 32, 1000), (100, 2, 7), (2, 1, 21841)
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_float64_to_rounding(backend, shape):
    z, y, teacher, w = problem(*shape, dtype=torch.float32, scale=1.0)
    wide, wide_w = (x.detach().double().requires_grad_() for x in (z, w))
    right = losses(wide, y, teacher.double(), wide_w, backend="reference", label_smoothing=0.1)
    fused = losses(z, y, teacher, w, label_smoothing=0.1)
    plain = losses(z, y, teacher, w, backend="reference", label_smoothing=0.1)
    for loss, exact, torchs in zip(fused, right, plain, strict=True):
        assert loss.dtype == torch.float32
        assert relative(loss.detach(), exact.detach()) <= 1e-6
        gradients = [
            torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
            for value, inputs in ((loss, (z, w)), (exact, (wide, wide_w)), (torchs, (z, w)))
        ]
        for a, b, c in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None:  # differences of like probabilities lose digits in torch as well
                assert relative(a, b) <= max(1e-6, 2 * relative(c, b) * (shape[2] != 1000))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 128, 10), (3, 5, 1000)], ids=str)
def test_half_precision_logits_are_computed_in_float32(backend, dtype, shape):
    z, y, teacher, w = (x.detach() for x in problem(*shape))
    low, low_w = (x.to(dtype).requires_grad_() for x in (z, w))
    wide, wide_w = (x.detach().double().requires_grad_() for x in (low, low_w))
    teacher = teacher.to(dtype)
    unit = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    pairs = zip(
        losses(low, y, teacher, low_w), losses(wide, y, teacher.double(), wide_w), strict=True
    )
    for fused, right in pairs:
        assert fused.dtype == torch.float32 and relative(fused.detach(), right.detach()) <= 1e-6
        got = torch.autograd.grad(fused, (low, low_w), allow_unused=True)
        expected = torch.autograd.grad(right, (wide, wide_w), allow_unused=True)
        for a, b in zip(got, expected, strict=True):
            if a is not None:
                assert a.dtype == dtype
                # Two roundings, each of a unit, or of the smallest number where that is coarser.
                limit = 2 * unit * b.abs() + torch.finfo(dtype).smallest_normal * 2 * unit
                assert bool(((a.double() - b).abs() <= limit + 1e-6 * b.abs().max()).all())


def test_small_float16_gradients_survive_a_gradient_scaler(backend):
    """No more entries vanish than in the composition in PyTorch, under a loss scale of 2^16."""
    g = torch.Generator().manual_seed(0)
    z = (2 * torch.randn(4, 512, 1000, generator=g)).half().requires_grad_()
    y = torch.randint(0, 1000, (512,), generator=g)
    teacher = (2 * torch.randn(512, 1000, generator=g)).half()

    def eager():
        log_q = F.log_softmax(z.float() / 3, -1)
        ce = F.cross_entropy(z.float().flatten(0, 1), y.repeat(4))
        kl = F.softmax(teacher.float() / 3, -1)
        own = F.softmax(z.detach().float().mean(0) / 3, -1)
        return ce - 9 * ((0.2 * kl + 0.5 * own) * log_q).sum(-1).mean()

    (ours,) = torch.autograd.grad(2.0**16 * twkd_loss(z, y, teacher), z)
    (theirs,) = torch.autograd.grad(2.0**16 * eager(), z)
    assert int((ours == 0).sum()) <= int((theirs == 0).sum())
    assert bool(ours.isfinite().all()) and relative(ours, theirs) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_1e4_are_finite_and_right(backend, dtype):
    z, y, teacher, w = problem(4, 6, 1000, scale=2e3)
    z, w = (x.detach().clamp(-1e4, 1e4).to(dtype).requires_grad_() for x in (z, w))
    wide, wide_w = (x.detach().double().requires_grad_() for x in (z, w))
    teacher = teacher.clamp(-1e4, 1e4).to(dtype)
    right = losses(wide, y, teacher.double(), wide_w, backend="reference")
    for fused, expected in zip(losses(z, y, teacher, w), right, strict=True):
        assert relative(fused.detach(), expected.detach()) <= 1e-6
        (a,) = torch.autograd.grad(fused, z)
        (b,) = torch.autograd.grad(expected, wide)
        assert bool(a.isfinite().all())
        if backend != "reference":  # differences are taken before they are scaled
            assert relative(a, b) <= 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_give_a_non_finite_loss(backend, value):
    for at in ((0, 0, 0), (2, 6, 3), (4, 3, 5)):
        z, y, teacher, w = problem()
        z, w = z.detach(), w.detach()
        z[at] = value
        assert not any(
            bool(loss.isfinite()) for loss in losses(z.float(), y, teacher.float(), w.float())
        )
        taught = teacher.clone()
        taught[at[1:]] = value
        z, *_ = problem()
        assert not bool(twkd_loss(z, y, taught).isfinite())


@pytest.mark.parametrize("shape", [(4, 40, 10), (3, 5, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(backend, shape, dtype):
    z, y, teacher, w = (x.detach() for x in problem(*shape))
    z, w, teacher = (x.to(dtype) for x in (z, w, teacher))
    expected = [loss.item() for loss in losses(z, y, teacher, w)]
    for order in ((1, 0, 2), (2, 1, 0), (1, 2, 0)):
        back = [order.index(i) for i in range(3)]
        moved, moved_w = (x.permute(order).contiguous().permute(back) for x in (z, w))
        other = teacher.t().contiguous().t()
        leaf = moved.requires_grad_()
        for fused, value in zip(losses(leaf, y, other, moved_w), expected, strict=True):
            assert fused.item() == value
            (gradient,) = torch.autograd.grad(fused, leaf)
            assert gradient.shape == z.shape
    still = z[:1].expand_as(z)
    assert twkd_loss(still, y, teacher).item() == twkd_loss(still.contiguous(), y, teacher).item()


def test_a_teacher_of_another_precision(backend):
    z, y, teacher, _ = problem()
    low, half = z.detach().float(), teacher.to(torch.bfloat16)
    expected = twkd_loss(low, y, half.float())
    torch.testing.assert_close(twkd_loss(low, y, half), expected, rtol=0, atol=0)
    soft = probabilities(B, C).to(torch.bfloat16)
    expected = twkd_loss(low, soft.float(), half)
    torch.testing.assert_close(twkd_loss(low, soft, half), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", range(5))
def test_gradcheck(backend, kind):
    """Of what is differentiated: not of the targets that the objectives detach."""
    z, y, teacher, w = problem(3, 4, 5)

    def loss(z, w):
        if kind == 0:
            return twkd_loss(z, y, teacher, label_smoothing=0.1)
        if kind == 1:
            return tser_loss(z, y, teacher, entropy_temperature=1.5, lam=0.7)
        if kind == 2:
            return tssd_loss(z, y, w, student_steps=2, alpha=0.0, beta=0.0, ce_steps="both")
        return tssd_loss(z, y, w, student_steps=2, aux_per_step=kind == 3)

    torch.autograd.gradcheck(loss, (z, w.detach()) if kind < 3 else (z.detach(), w))


def test_terms_add_up_and_are_detached(backend):
    z, y, teacher, w = problem()
    cases = [
        (twkd_loss(z, y, teacher, return_terms=True), {"ce": 1, "kl": 0.2, "self": 0.5}),
        (tser_loss(z, y, teacher, return_terms=True), {"ce": 1, "kl": 0.2, "entropy": -0.05}),
        (
            tssd_loss(z, y, w, student_steps=2, alpha=0.3, return_terms=True),
            {"task": 1, "temporal": 0.3, "spatial": 1},
        ),
    ]
    for (loss, terms), weights in cases:
        assert list(terms) == list(weights)
        assert all(not term.requires_grad and term > 0 for term in terms.values())
        total = sum(weight * terms[name] for name, weight in weights.items())
        torch.testing.assert_close(loss.detach(), total, **EXACT)


def test_a_term_without_weight_is_reported_and_changes_nothing(backend):
    z, y, teacher, _ = problem()
    broken = teacher * math.inf
    loss, terms = twkd_loss(z, y, teacher, alpha=0, beta=0, return_terms=True)
    assert terms["kl"] > 0 and terms["self"] > 0
    assert_same(loss, F.cross_entropy(z.flatten(0, 1), y.repeat(T)), z)
    assert bool(twkd_loss(z, y, broken, alpha=0, return_terms=True)[0].isfinite())


def test_temperature_squared_is_optional(backend):
    z, y, teacher, _ = problem()
    _, scaled = twkd_loss(z, y, teacher, return_terms=True)
    _, plain = twkd_loss(z, y, teacher, scale_by_temperature=False, return_terms=True)
    for name, factor in (("ce", 1), ("kl", 9), ("self", 9)):
        torch.testing.assert_close(scaled[name], factor * plain[name], **EXACT)


def test_ignored_rows_are_out_whatever_they_hold(backend):
    z, y, teacher, w = problem()
    y[2], y[5] = -100, -100
    keep = [b for b in range(B) if b not in (2, 5)]
    expected = list(losses(z[:, keep], y[keep], teacher[keep], w[:, keep]))
    bad = z.detach().clone()
    bad[:, 2] = math.nan
    bad.requires_grad_()
    for fused, right in zip(losses(bad, y, teacher, w), expected, strict=True):
        torch.testing.assert_close(fused, right, **EXACT)
        (ours,) = torch.autograd.grad(fused, bad)
        (theirs,) = torch.autograd.grad(right, z, retain_graph=True)
        torch.testing.assert_close(ours[:, keep], theirs[:, keep], **EXACT)
        assert not ours[:, [2, 5]].any()


def test_all_rows_ignored_is_nan_with_no_gradient_as_in_torch(backend):
    z, y, teacher, w = problem()
    y[:] = -100
    assert F.cross_entropy(z[0], y).isnan()
    for fused in losses(z, y, teacher, w):
        assert fused.isnan()
        assert not torch.autograd.grad(fused, z)[0].any()


def test_teacher_gets_no_gradient_and_must_be_there_for_its_weight(backend):
    z, y, teacher, _ = problem()
    twkd_loss(z, y, teacher.requires_grad_()).backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match="twkd_loss: teacher_logits must be given"):
        twkd_loss(z, y)
    with pytest.raises(ValueError, match="tser_loss: teacher_logits must be given"):
        tser_loss(z, y)
    with pytest.raises(ValueError, match="tssd_loss: aux_logits must be given"):
        tssd_loss(z, y, student_steps=2)


def test_only_auxiliary_logits_require_grad(backend):
    z, y, _, w = problem()
    loss = tssd_loss(z.detach(), y, w, student_steps=2)
    (ours,) = torch.autograd.grad(loss, w)
    (both,) = torch.autograd.grad(tssd_loss(z, y, w, student_steps=2), w)
    assert torch.equal(ours, both)
    assert not tssd_loss(z.detach(), y, w.detach(), student_steps=2).requires_grad


def test_same_bits_on_any_number_of_threads():
    z, y, teacher, w = problem(4, 300, 50, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([value_and_gradients(loss, z) for loss in losses(z, y, teacher.float(), w)])
    torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_are_taken_once():
    z, y, teacher, _ = problem()
    loss = twkd_loss(z, y, teacher)
    with pytest.raises(RuntimeError, match="twkd_loss: gradients must be taken once"):
        torch.autograd.grad(loss, z, create_graph=True)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, z)[0])
    twice = twkd_loss(z, y, teacher, backend="reference")
    assert torch.autograd.grad(twice, z, create_graph=True)[0].requires_grad


def test_the_loss_may_be_scaled_and_added():
    z, y, teacher, _ = problem()
    (one,) = torch.autograd.grad(twkd_loss(z, y, teacher), z)
    (many,) = torch.autograd.grad(-3 * twkd_loss(z, y, teacher) + 7, z)
    torch.testing.assert_close(many, -3 * one, **EXACT)


# The op and the modules.


@pytest.mark.unpoisoned
def test_opcheck():
    z, y, teacher, w = problem(dtype=torch.float32)
    z, w = z.detach(), w.detach()
    from snnfast.ops.distill import _tssd_options, _twkd_options

    op = torch.library.opcheck
    loss = _twkd_options(0.2, 0.5, 3.0, "mean", True, False, 0.0, -100, True)
    options = ("twkd_loss", *loss.pack())
    stepwise_op = torch.ops.snnfast.stepwise_loss.default
    op(stepwise_op, (z, y, teacher.float(), *options, True, "cpu"))
    op(stepwise_op, (z, y, teacher.float(), *options, False, "cpu"))
    loss = _tssd_options(1.0, 1.0, 2.0, "all", True, False, 0.0, -100, True)
    options = ("tssd_loss", 2, *loss.pack())
    op(torch.ops.snnfast.tssd_loss.default, (z, y, w, *options, True, True, "cpu"))
    unit = torch.ones(())
    op(torch.ops.snnfast.scale_gradient.default, (z, unit, unit, "cpu"))


@pytest.mark.unpoisoned
@pytest.mark.parametrize("kind", range(5))
def test_compiles_without_a_graph_break(kind):
    def f(z, y, teacher, w):
        return list(losses(z, y, teacher, w, label_smoothing=0.1))[kind]

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 9, 6), (5, 7, 12)):
        z, y, teacher, w = problem(*shape, dtype=torch.float32)
        inputs = (z, y, teacher.float(), w)
        wanted = (z, w) if kind > 2 else (z,)
        assert_same(compiled(*inputs), f(*inputs), *wanted, retain=False, rtol=0, atol=0)


@pytest.mark.unpoisoned
def test_weights_may_be_inputs_of_a_compiled_function():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(z, y, teacher, alpha, tau):
        return twkd_loss(z, y, teacher, alpha=alpha, temperature=tau)

    z, y, teacher, _ = problem()
    for alpha, tau in ((0.2, 3.0), (0.3, 2.5), (0.7, 1.25)):
        expected = twkd_loss(z, y, teacher, alpha=alpha, temperature=tau)
        assert_same(f(z, y, teacher, alpha, tau), expected, z, retain=False)


@pytest.mark.unpoisoned
def test_two_op_calls_and_one_gradient_are_all():
    """Registered calls, and bytes kept per float32 logit, whatever T."""
    from torch.profiler import ProfilerActivity, profile

    for steps in (1, 4, 40):
        z, y, teacher, _ = problem(steps, 64, 100, dtype=torch.float32)
        saved = []

        def pack(tensor, saved=saved):
            saved.append(tensor.numel() * tensor.element_size())
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with profile(activities=[ProfilerActivity.CPU]) as run, hooks:
            twkd_loss(z, y, teacher.float()).backward()
        calls = [e.name for e in run.events() if e.name.startswith("snnfast::")]
        assert calls == ["snnfast::stepwise_loss", "snnfast::scale_gradient"]
        assert sum(saved) <= 4 * z.numel() + 8


@pytest.mark.parametrize("name", ["TWKD", "TSER", "TSSD"])
def test_modules_are_their_functions(name):
    z, y, teacher, w = problem()
    function = {"TWKD": twkd_loss, "TSER": tser_loss, "TSSD": tssd_loss}[name]
    options = {"alpha": 0.4, "temperature": 2.5, "label_smoothing": 0.1}
    if name == "TSSD":
        options |= {"student_steps": 2, "ce_steps": "both"}
    criterion = getattr(distill, name)(**options)
    other = w if name == "TSSD" else teacher
    assert criterion(z, y, other) == function(z, y, other, **options)
    loss, terms = criterion(z, y, other, return_terms=True)
    assert loss == function(z, y, other, **options) and len(terms) == 3
    assert "temperature=2.5" in repr(criterion)
    criterion.alpha = 0.0
    assert criterion(z, y, other) != loss
    with pytest.raises(TypeError, match="gamma"):
        getattr(distill, name)(**options, gamma=1.0)


def test_defaults_are_the_papers():
    assert (distill.TWKD().alpha, distill.TWKD().beta, distill.TWKD().temperature) == (
        0.2,
        0.5,
        3.0,
    )
    assert (distill.TSER().alpha, distill.TSER().lam, distill.TSER().temperature) == (
        0.2,
        0.05,
        4.0,
    )
    module = distill.TSSD(student_steps=2)
    assert (module.alpha, module.beta, module.temperature) == (1.0, 1.0, 2.0)
    assert not module.scale_by_temperature and module.ce_steps == "all" and module.aux_per_step
    with pytest.raises(TypeError, match="student_steps"):
        distill.TSSD()


BAD = [
    ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
    ({"logits": torch.zeros(2, 3, 4).long()}, TypeError, "logits must be float32.*got int64"),
    ({"logits": torch.zeros(3, 4)}, ValueError, r"logits must be \[T, B, C\].*\(3, 4\)"),
    ({"logits": torch.zeros(0, 3, 4)}, ValueError, r"logits must be \[T, B, C\], none of them 0"),
    (
        {"logits": torch.zeros(2, 0, 4), "target": torch.zeros(0).long()},
        ValueError,
        r"logits must be \[T, B, C\]",
    ),
    ({"target": [0, 1, 2]}, TypeError, "target must be a tensor"),
    ({"target": torch.zeros(3).int()}, TypeError, "target must be int64 labels or.*got int32"),
    ({"target": torch.zeros(3)}, ValueError, r"target must have shape \(3, 4\)"),
    ({"target": torch.zeros(2).long()}, ValueError, r"target must have shape \(3,\), got \(2,\)"),
    ({"target": torch.tensor([0, 4, 0])}, ValueError, r"target must be in 0..3 or ignore_index.*4"),
    ({"target": torch.tensor([0, -1, 0])}, ValueError, "target must be in 0..3.*got -1"),
    ({"target": torch.zeros(3, 4, requires_grad=True)}, ValueError, "target must not require grad"),
    ({"target": torch.zeros(3, 4), "ignore_index": 1}, ValueError, "ignore_index must be negative"),
    ({"alpha": -0.1}, ValueError, "alpha must be >= 0, got -0.1"),
    ({"alpha": math.nan}, ValueError, "alpha must be finite"),
    ({"alpha": "1"}, TypeError, "alpha must be a number, got str"),
    ({"alpha": torch.tensor(1.0)}, TypeError, "alpha must be a number, got float32"),
    ({"temperature": 0.0}, ValueError, "temperature must be > 0"),
    ({"temperature": math.inf}, ValueError, "temperature must be finite"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing must be in 0..1"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an int"),
    ({"return_terms": 1}, TypeError, "return_terms must be True or False"),
    ({"scale_by_temperature": None}, TypeError, "scale_by_temperature must be True or False"),
    ({"backend": "cuda"}, ValueError, "backend 'cuda' cannot be used"),
]
TWKD_BAD = [
    ({"other": torch.zeros(3, 5)}, ValueError, r"teacher_logits must have shape \(3, 4\)"),
    ({"other": torch.zeros(3, 4).long()}, TypeError, "teacher_logits must be float32"),
    ({"other": torch.zeros(3, 4).double()}, TypeError, "teacher_logits must be.*got float64"),
    ({"beta": -1}, ValueError, "beta must be >= 0"),
    ({"self_target": "median"}, ValueError, "self_target must be one of mean, correct"),
    ({"skip_all_wrong": 0}, TypeError, "skip_all_wrong must be True or False"),
]
TSER_BAD = [
    ({"other": None}, ValueError, "teacher_logits must be given"),
    ({"lam": -1.0}, ValueError, "lam must be >= 0"),
    ({"ce_temperature": -1.0}, ValueError, "ce_temperature must be > 0"),
    ({"entropy_temperature": 0}, ValueError, "entropy_temperature must be > 0"),
    ({"convex": True, "alpha": 1.5}, ValueError, "alpha must be <= 1 where convex"),
]
TSSD_BAD = [
    ({"other": torch.zeros(3, 3, 4)}, ValueError, r"aux_logits must have shape \(2, 3, 4\)"),
    ({"other": torch.zeros(2, 3, 4).half()}, TypeError, "aux_logits must be float32 as the logits"),
    ({"student_steps": 0}, ValueError, "student_steps must be >= 1, got 0"),
    ({"student_steps": 3}, ValueError, "student_steps must be in 1..T = 2, got 3"),
    ({"student_steps": 1.0}, TypeError, "student_steps must be an int"),
    ({"ce_steps": "most"}, ValueError, "ce_steps must be one of all, student, both"),
    ({"aux_per_step": 1}, TypeError, "aux_per_step must be True or False"),
]
CALLS = {"twkd_loss": (twkd_loss, TWKD_BAD), "tser_loss": (tser_loss, TSER_BAD),
         "tssd_loss": (tssd_loss, TSSD_BAD)}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [(name, *bad) for name, (_, own) in CALLS.items() for bad in [*BAD, *own]],
)
def test_bad_arguments_are_refused(name, change, error, message):
    other = torch.zeros(2, 3, 4) if name == "tssd_loss" else torch.zeros(3, 4)
    arguments = {"logits": torch.zeros(2, 3, 4), "target": torch.zeros(3).long(), "other": other}
    arguments |= {"student_steps": 1} if name == "tssd_loss" else {}
    arguments |= change
    positional = [arguments.pop(key) for key in ("logits", "target", "other")]
    for asked in {"backend": change["backend"]} if "backend" in change else BACKENDS:
        with pytest.raises(error, match=f"{name}: {message}"):
            CALLS[name][0](*positional, **{**arguments, "backend": change.get("backend", asked)})


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (name, *bad)
        for name, (_, own) in CALLS.items()
        for bad in [*BAD, *own]
        if not bad[0].keys() & {"logits", "target", "other"}
        and bad[0] not in ({"backend": "cuda"}, {"student_steps": 3})
    ]
    + [(name, {"backend": "cupy"}, ValueError, "backend must be one of auto") for name in CALLS]
    + [("twkd_loss", {"self_target": []}, ValueError, "self_target must be one of mean, correct")],
)
def test_criteria_refuse_them_at_construction(name, change, error, message):
    arguments = {"student_steps": 1} if name == "tssd_loss" else {}
    with pytest.raises(error, match=f"{name}: {message}"):
        getattr(distill, name.removesuffix("_loss").upper())(**arguments | change)


def test_criteria_name_an_unknown_argument():
    with pytest.raises(TypeError, match=r"^TWKD: got an unexpected keyword argument 'tau'"):
        distill.TWKD(tau=2.0)
    with pytest.raises(TypeError, match=r"^TSSD: missing a required .*'student_steps'"):
        distill.TSSD()


def test_batch_first_logits_are_refused_where_the_target_shows_it():
    z, y, _, _ = problem()
    assert z.shape[0] != z.shape[1]
    with pytest.raises(ValueError, match=r"logits are \[T, B, C\], time first"):
        twkd_loss(z.transpose(0, 1), y, alpha=0.0)


# What is judged by.


def test_full_range_is_the_accuracy_of_every_prefix():
    z, y, _, _ = problem(seed=4)
    z = z.detach()
    expected = [(z[:k].mean(0).argmax(-1) == y).double().mean().item() for k in range(1, T + 1)]
    assert distill.full_range(z, y).tolist() == expected
    assert len(set(expected)) > 1
    with pytest.raises(ValueError, match=r"full_range: logits must be \[T, B, C\]"):
        distill.full_range(z[0], y)
    with pytest.raises(ValueError, match=r"full_range: target must have shape \(7,\)"):
        distill.full_range(z, y[:3])
    with pytest.raises(TypeError, match="full_range: target must be int64"):
        distill.full_range(z, y.float())


def test_anytime_stops_at_the_first_confident_step():
    z = problem(steps=6, batch=50, scale=1.0)[0].detach()
    for threshold in (0.0, 0.3, 0.6, 0.9, 1.0):
        prediction, steps = distill.anytime(z, threshold)
        for b in range(50):
            for k in range(1, 7):
                q = torch.softmax(z[:k, b].mean(0), -1)
                if q.max() >= threshold or k == 6:
                    break
            assert (int(steps[b]), int(prediction[b])) == (k, int(q.argmax()))
    assert prediction.dtype == steps.dtype == torch.int64
    assert 1 < distill.anytime(z, 0.6)[1].double().mean() < 6
    assert distill.anytime(z, 0.0)[1].eq(1).all() and distill.anytime(z, 1.0)[1].eq(6).all()
    for threshold, error in ((1.5, ValueError), (math.nan, ValueError), ("high", TypeError)):
        with pytest.raises(error, match="anytime: threshold must be"):
            distill.anytime(z, threshold)
    with pytest.raises(ValueError, match=r"anytime: logits must be \[T, B, C\]"):
        distill.anytime(z[0], 0.5)
