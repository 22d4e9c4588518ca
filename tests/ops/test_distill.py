"""What ``twkd_loss``, ``tser_loss`` and ``tssd_loss`` must do on every backend: value, terms and
gradients are those of the specification in float64, to a rounding; in float64 they are the papers'
equations written out (tests/distill_cases.py)."""

import functools
import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, EVERY, HALF, HOST, INTERPRETED, REFERENCE, Backend, named
from distill_cases import (
    LAYOUTS,
    LOSSES,
    PAPERS,
    TERMS,
    WRITTEN,
    check,
    function_of,
    grouped,
    probabilities,
    problem,
    products,
    run,
    table,
)

import snnfast
from snnfast import distill, tser_loss, tssd_loss, twkd_loss
from snnfast.ops.distill import loss_options

EXACT = {"rtol": 1e-12, "atol": 1e-12}
T, B, C = 5, 7, 6


@contextmanager
def _streamed():
    from snnfast.backends.cuda import distill

    with HOST.entered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "_RESIDENT_BYTES", 0)
        distill.plan.cache_clear()
        yield
    distill.plan.cache_clear()


STREAMED = Backend(
    "cuda on the host, no row in shared memory", "cuda", slow=True, entered=_streamed
)
ALL = tuple(dict.fromkeys((*EVERY, HOST, STREAMED)))
QUICK = tuple(b for b in ALL if b is not INTERPRETED)
pytestmark = pytest.mark.backends(*ALL)
quick = pytest.mark.backends(*QUICK)
doubles = pytest.mark.backends(REFERENCE, *CPU)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(autouse=True)
def asked(backend):
    """What does not ask for a backend runs on this one."""
    with snnfast.backend(backend.name):
        yield backend


def few(backend, options) -> list:
    """All of them; the first where kernels are interpreted."""
    return list(options)[: 1 if backend is INTERPRETED else None]


# The specification.


@pytest.mark.parametrize("arguments", [*table()], ids=named)
def test_equals_the_specification(backend, arguments):
    check(backend, **arguments)


def check_all(backend, cases):
    for arguments in cases:
        try:
            check(backend, **arguments)
        except AssertionError as error:
            error.add_note(named(arguments))
            raise


OPTIONS = grouped(products())


@quick
@pytest.mark.parametrize("group", OPTIONS)
def test_options(backend, group):
    check_all(backend, OPTIONS[group])


SHAPES = [(1, 5, 2), (4, 5, 3), (9, 5, 10), (4, 5, 33), (100, 1, 10), (4, 5, 100), (4, 2, 1000),
          (4, 6, 10), (3, 4, 10), (3, 4, 33), (3, 5, 33), (5, 5, 6), (1, 3, 10)]  # fmt: skip
LARGE = [(4, 128, 10), (3, 33, 9), (6, 65, 100), (4, 32, 1000), (100, 2, 7), (2, 1, 21841),
         (1, 2, 2), (3, 5, 1000), (4, 1, 5000), (3, 2, 129), (3, 2, 257), (3, 2, 513), (4, 6, 1000),
         (4, 5, 1000), (5, 40, 6)]  # fmt: skip


@quick
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_shapes(backend, shape):
    kinds = [
        *({"loss": loss} for loss in LOSSES),
        {"loss": "tssd", "ce_steps": "both"},
        {"loss": "tssd means", "ce_steps": "all"},
    ]
    for i, dtype in enumerate(("float32", "float16", "bfloat16", "float64")):
        how = {"shape": shape, "dtype": dtype, "other": dtype}
        if dtype == "float64" and not backend.doubles:
            continue
        if shape in SHAPES:
            check_all(backend, [how | kind for kind in kinds])
        if shape in LARGE:
            kinds = backend.some(kinds, LARGE.index(shape) + i)
            check_all(backend, [how | {"label_smoothing": 0.1} | kind for kind in kinds])


@pytest.mark.backends(INTERPRETED)
@every_loss
def test_tiles_of_a_large_batch(backend, loss, monkeypatch):
    from snnfast.backends.triton import distill

    monkeypatch.setattr(distill, "_MANY", 0)
    distill.tile.cache_clear()
    check(backend, loss=loss, shape=(4, 70, 10))
    distill.tile.cache_clear()


@quick
@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits(backend, loss):
    """Up to 1e4, and one class ahead of all: no overflow, no lost digits."""
    shape = (4, 5, 100)
    for scale in (50.0, 1e2, 3e3):
        check(backend, loss=loss, shape=shape, values="quarters", scale=scale)
    for values in ("quarters about 9900", "quarters about -9900"):
        check(backend, loss=loss, shape=shape, values=values, scale=3.0)
    check(backend, loss=loss, shape=(4, 6, 1000), values="quarters", scale=2e3)


# The papers' equations, and exact relations.


def assert_same(one, other, *inputs, **tolerance):
    """Values and gradients."""
    values = [
        (loss.detach(), *torch.autograd.grad(loss, inputs, retain_graph=True))
        for loss in (one, other)
    ]
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, **(tolerance or EXACT))


@doubles
@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize(("loss", "options"), PAPERS, ids=str)
def test_is_the_papers(backend, loss, options, kind):
    z, y, teacher, w = problem(seed=2)
    others = {"label_smoothing": 0.1}
    if kind == "probabilities":
        y, others = probabilities(B, C), {}
    elif kind == "ignored":
        y[::3], others = 3, {"ignore_index": 3}
    options = others | ({"student_steps": 2} if loss == "tssd" else {}) | options
    other = w if loss == "tssd" else teacher
    expected = WRITTEN[loss](z, y, other, **options)
    unused = options.get("beta" if loss == "tssd" else "alpha") == 0.0
    ours = function_of(loss)(z, y, None if unused else other, **options)
    assert_same(ours, expected, *((z, w) if loss == "tssd" and not unused else (z,)))


def jensen_gap(z, temperature):
    """tau^2 mean_B [ mean_t LSE(z_t / tau) - LSE(zbar / tau) ], gradient through zbar, too."""
    per_step = torch.logsumexp(z / temperature, -1).mean(0)
    return temperature**2 * (per_step - torch.logsumexp(z.mean(0) / temperature, -1)).mean()


def classic_kl(teacher, student, temperature):
    """tau^2 KL(teacher || student) of [B, C] logits, as Hinton et al. have it."""
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


@doubles
@pytest.mark.parametrize("tau", [1.0, 3.0, 2.7])
def test_jensen_identities(backend, tau):
    """Each temporal-wise term is its classical form on the mean logits plus a Jensen gap. Autograd
    runs through the mean there and not in the loss: detaching the own target changes nothing."""
    z, y, teacher, _ = problem()
    ce = F.cross_entropy(z.mean(0), y) + jensen_gap(z, 1.0)
    kl = classic_kl(teacher, z.mean(0), tau) + jensen_gap(z, tau)
    for alpha, beta in ((0, 0), (1, 0), (0, 1), (0.2, 0.5)):
        ours = twkd_loss(z, y, teacher, alpha=alpha, beta=beta, temperature=tau)
        assert_same(ours, ce + alpha * kl + beta * jensen_gap(z, tau), z)


@doubles
def test_what_the_terms_are_in_torch(backend):
    z, y, teacher, _ = problem()
    per_step = functools.partial(F.cross_entropy, z.flatten(0, 1), y.repeat(T))
    smoothed = {"label_smoothing": 0.1}
    assert_same(distill.temporal_cross_entropy(z, y, **smoothed), per_step(**smoothed), z)
    mean = F.cross_entropy(z.mean(0), y, **smoothed)
    assert_same(distill.mean_cross_entropy(z, y, **smoothed), mean, z)
    # -lam H(q) = lam KL(q || uniform) - lam ln C
    q = F.softmax(z / 2.5, -1)
    entropy = 0.3 * ((q * (q * C).log()).sum(-1).mean() - math.log(C))
    assert_same(tser_loss(z, y, alpha=0, lam=0.3, temperature=2.5), per_step() + entropy, z)
    # A term without weight is reported and changes nothing.
    loss, terms = twkd_loss(z, y, teacher, alpha=0, beta=0, return_terms=True)
    assert terms["kl"] > 0 and terms["self"] > 0
    assert_same(loss, per_step(), z)
    assert twkd_loss(z, y, teacher * math.inf, alpha=0, return_terms=True)[0].isfinite()
    # One step is classical distillation, and its own target.
    loss, terms = twkd_loss(z[:1], y, teacher, beta=9.0, return_terms=True)
    assert_same(loss, F.cross_entropy(z[0], y) + 0.2 * classic_kl(teacher, z[0], 3.0), z)
    assert terms["self"] == 0


@doubles
def test_rows_without_a_right_step_are_drawn_to_the_uniform_distribution(backend):
    """KL(uniform || q) = mean over classes of -ln q, less ln C."""
    z, y, teacher, _ = problem(seed=3)
    with torch.no_grad():
        z.scatter_(2, y.expand(T, B).unsqueeze(-1), -20.0)
    options = {"alpha": 0.0, "self_target": "correct", "temperature": 2.0, "return_terms": True}
    _, terms = twkd_loss(z, y, **options)
    uniform = 4.0 * (-F.log_softmax(z / 2.0, -1).mean(-1) - math.log(C)).mean()
    torch.testing.assert_close(terms["self"], uniform.detach(), **EXACT)
    loss, terms = twkd_loss(z, y, skip_all_wrong=True, **options)
    assert terms["self"] == 0
    assert_same(loss, F.cross_entropy(z.flatten(0, 1), y.repeat(T)), z)
    with torch.no_grad():
        z.scatter_(2, y.expand(T, B).unsqueeze(-1), 20.0)
    right = twkd_loss(z, y, teacher, self_target="correct")
    assert_same(right, twkd_loss(z, y, teacher), z)
    z = torch.zeros(1, 2, 4, dtype=torch.float64)
    z[0, :, 1:3] = 1.0
    # Row 0 is right and is its own target; row 1 is not and is drawn to the uniform one.
    _, terms = twkd_loss(z, torch.tensor([1, 2]), **options)
    uniform = 4 * (-F.log_softmax(z[0, 1] / 2, -1).mean() - math.log(4)) / 2
    torch.testing.assert_close(terms["self"], uniform, **EXACT)


@doubles
@every_loss
def test_terms_add_up(backend, loss):
    z, y, *others = problem()
    other = others["student_steps" in LOSSES[loss]].detach()
    scaled, plain = (
        run(loss, z, y, other, scale_by_temperature=on, temperature=3.0) for on in (True, False)
    )
    weights = [w for w in loss_options(function_of(loss), **LOSSES[loss]).weights if w]
    for result in scaled, plain:
        assert " ".join(result.terms) == TERMS[loss.split()[0]]
        assert all(not term.requires_grad and term > 0 for term in result.terms.values())
        total = sum(weight * term for weight, term in zip(weights, result.terms.values()))
        torch.testing.assert_close(result.loss, total, **EXACT)
    for name, term in scaled.terms.items():
        factor = 1 if name in ("ce", "entropy", "task") else 9
        torch.testing.assert_close(term, factor * plain.terms[name], **EXACT)


@doubles
@every_loss
def test_gradcheck(backend, loss):
    """Of what is differentiated: not of the targets that the objectives detach."""
    z, y, teacher, w = problem(3, 4, 5)
    how = LOSSES[loss] | {"label_smoothing": 0.1, "temperature": 1.5}
    if loss[:4] == "tssd":
        f = functools.partial(tssd_loss, **how)
        torch.autograd.gradcheck(lambda w: f(z.detach(), y, w), w)
        torch.autograd.gradcheck(lambda z: f(z, y, alpha=0.0, beta=0.0), z)
    else:
        f = twkd_loss if loss[:4] == "twkd" else tser_loss
        how |= {"beta": 0.0} if loss == "twkd correct" else {}
        torch.autograd.gradcheck(lambda z: f(z, y, teacher, **how), z)


# What holds to the last bit.


def inputs(backend, loss, shape, dtype=torch.float32, scale=2.0):
    z, y, *others = problem(*shape, dtype=dtype, scale=scale)
    found = z, y, others["student_steps" in LOSSES[loss]]
    return [t.detach().to(backend.device) for t in found]


def bits(result):
    return [result.loss, *result.terms.values(), *result.gradients.values()]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


SPECIAL = [(4, 3, 10), (1, 2, 4100), (9, 2, 10)]
special = pytest.mark.parametrize("shape", SPECIAL, ids=str)


@every_loss
@special
def test_non_finite_logits_give_a_non_finite_loss(backend, loss, shape):
    z, y, other = inputs(backend, loss, shape)
    for bad in (math.nan, math.inf, -math.inf):
        for t in {0, shape[0] - 1}:
            broken = z.clone()
            broken[t, -1, 1] = bad
            assert not run(loss, broken, y, other).loss.isfinite(), f"{bad} at step {t}"
        if shape == SPECIAL[0]:
            broken = other.clone()
            broken.view(-1)[1] = bad
            assert not run(loss, z, y, broken).loss.isfinite()
            assert not run(loss, torch.full_like(z, bad), y, other).loss.isfinite()


def _teacher(z, y, other):
    other.view(-1)[1] = math.nan


def _late_steps(z, y, other):
    z[2:, 0, 1] = math.inf


def _sum_of_steps(z, y, other):
    z[:, 0, y[0]] = 2e38


def _probabilities(z, y, other):
    return probabilities(*z.shape[1:], dtype=z.dtype).to(z).fill_diagonal_(math.inf)


WEIGHTLESS = [
    ("twkd", {"alpha": 0.0}, "kl", _teacher),
    ("tser", {"alpha": 0.0}, "kl", _teacher),
    ("twkd", {"alpha": 0.0, "beta": 0.0}, "self", _sum_of_steps),
    ("tser", {"convex": True, "alpha": 1.0}, "ce", _probabilities),
    ("tssd", {"beta": 0.0}, "spatial", _teacher),
    ("tssd means", {"beta": 0.0}, "spatial", _teacher),
    ("tssd", {"ce_steps": "student", "alpha": 0.0, "beta": 0.0}, "temporal", _late_steps),
]


@special
@pytest.mark.parametrize(("loss", "options", "term", "broken"), WEIGHTLESS)
def test_a_term_of_no_weight_pulls_nothing_though_it_is_no_number(
    backend, loss, options, term, broken, shape
):
    z, y, other = inputs(backend, loss, (max(shape[0], 3), *shape[1:]))
    y = broken(z, y, other) if broken is _probabilities else y
    plain = run(loss, z, y, other, **options)
    if broken is not _probabilities:
        broken(z, y, other)
    result = run(loss, z, y, other, **options)
    assert not result.terms[term].isfinite()
    assert result.loss.isfinite() and result.gradients["logits"].any()
    for gradient in result.gradients.values():
        assert gradient.isfinite().all()
    if "aux_logits" in result.gradients:
        assert not result.gradients["aux_logits"].any()
    if broken is not _sum_of_steps:
        assert_equal(bits(plain)[:1], bits(result)[:1])
        torch.testing.assert_close(plain.gradients, result.gradients, rtol=0, atol=0)


@every_loss
@special
def test_a_label_that_is_no_class(backend, loss, shape):
    """It raises where labels are at hand; a GPU's row is NaN, and with it the loss."""
    z, y, other = inputs(backend, loss, shape)
    for wrong in (-1, shape[2], 2**40, -(2**63)) if shape[2] == 10 else (shape[2],):
        y[-1] = wrong
        if backend.name in ("reference", "cpu"):
            with pytest.raises(ValueError, match=f"target must be in 0..{shape[2] - 1} .*{wrong}"):
                run(loss, z, y, other)
            continue
        result = run(loss, z, y, other)
        assert result.loss.isnan()
        gradient = result.gradients["logits"]
        assert gradient[:, -1].isnan().all() and gradient[:, :-1].isfinite().all()


@special
@every_loss
def test_ignored_rows_are_out_whatever_they_hold(backend, loss, shape):
    for dtype in few(backend, (torch.float32, *HALF)):
        z, y, other = inputs(backend, loss, shape, dtype)
        y[0], y[1:] = 1, 0
        plain = run(loss, z, y, other, ignore_index=1)
        z[:, 0] = other[..., 0, :] = math.nan
        result = run(loss, z, y, other, ignore_index=1)
        assert_equal(bits(plain), bits(result))
        for gradient in result.gradients.values():
            assert gradient[:, 1:].any() and not gradient[:, 0].any()
        kept = run(loss, z[:, 1:], y[1:], other[..., 1:, :])
        torch.testing.assert_close(result.loss, kept.loss, rtol=1e-6, atol=0)
        result = run(loss, z, torch.ones_like(y), other, ignore_index=1)  # as cross_entropy has it
        assert result.loss.isnan() and all(term.isnan() for term in result.terms.values())
        assert not any(gradient.any() for gradient in result.gradients.values())


@pytest.mark.parametrize("shape", [(4, 6, 10), (9, 3, 33), (2, 1, 4100), (7, 3, 257)], ids=str)
def test_equal_distributions_are_apart_by_nothing(backend, shape):
    z, y, teacher = inputs(backend, "twkd", shape)
    exact = {} if backend.name == "reference" else {"rtol": 0, "atol": 0}  # autograd adds zeros up
    how = {"student_steps": shape[0], "temperature": 3.0}
    result = run("tssd", z, y, z, **how)
    assert result.terms["temporal"] == 0 and result.terms["spatial"] == 0
    without = run("tssd", z, y, z, alpha=0.0, **how)
    torch.testing.assert_close(result.gradients, without.gradients, **exact)
    z, teacher = z[:1], z[0]
    without = run("twkd", z, y, None, alpha=0.0, beta=0.0)
    for target in (y, teacher.argmax(-1)):
        for self_target in ("mean", "correct") if target is not y else ("mean",):
            result = run("twkd", z, target, teacher, self_target=self_target)
            assert result.terms["kl"] == 0 and result.terms["self"] == 0
            if target is y:
                torch.testing.assert_close(result.gradients, without.gradients, **exact)


@pytest.mark.parametrize("shape", [(4, 6, 10), (9, 3, 33), (2, 1, 4100)], ids=str)
def test_tser_without_entropy_is_twkd_without_own_target(backend, shape):
    z, y, teacher = inputs(backend, "twkd", shape)
    how = {"alpha": 0.3, "temperature": 2.0, "label_smoothing": 0.1}
    one = run("twkd", z, y, teacher, beta=0.0, **how)
    two = run("tser", z, y, teacher, lam=0.0, **how)
    tolerance = {"rtol": 1e-6, "atol": 1e-9} if backend.name == "cuda" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(one.loss, two.loss, **tolerance)
    torch.testing.assert_close(one.gradients, two.gradients, **tolerance)


def test_the_first_of_equal_logits_counts(backend):
    z, y, teacher = inputs(backend, "twkd", (3, 4, 70))
    z = z.round()
    z[0, :, 40] = z[0, :, 65] = z[1, :, 65] = 20.0
    soft = torch.full((4, 70), 1 / 80, device=backend.device)
    for label in (40, 65):
        one = soft.clone()
        one[:, label] = one[:, 69] = 0.1
        for target in (torch.full_like(y, label), one):
            ours = run("twkd correct", z, target, teacher).terms["self"]
            target = target.double() if target.is_floating_point() else target
            how = {"backend": "reference"}
            exact = run("twkd correct", z.double(), target, teacher.double(), **how)
            torch.testing.assert_close(ours.double(), exact.terms["self"], rtol=1e-6, atol=0)


@every_loss
def test_gradients_only_where_they_are_wanted(backend, loss):
    z, y, other = inputs(backend, loss, (5, 4, 33))
    function = functools.partial(function_of(loss), **LOSSES[loss])
    both = run(loss, z, y, other)
    value = function(z, y, other)
    assert torch.equal(value, both.loss) and not value.requires_grad
    z_, other_ = (t.detach().requires_grad_() for t in (z, other))
    value = function(z, y, other_)
    assert value.requires_grad == ("aux_logits" in both.gradients)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, other_)
        assert torch.equal(gradient, both.gradients["aux_logits"])
    for how in few(backend, ({"ce_steps": steps} for steps in ("all", "student", "both"))):
        if value.requires_grad:
            wanted = torch.autograd.grad(function(z_, y, other_, **how), other_)
            assert_equal(torch.autograd.grad(function(z, y, other_, **how), other_), wanted)
    value = function(z_, y, other)
    (gradient,) = torch.autograd.grad(-3 * value + 7, z_, retain_graph=True)
    torch.testing.assert_close(gradient, -3 * both.gradients["logits"])
    function(z_, y, other_).backward()
    assert (other_.grad is None) == ("aux_logits" not in both.gradients)
    again = torch.autograd.grad(value, z_, create_graph=True)[0]
    assert again.requires_grad
    torch.testing.assert_close(again.detach(), both.gradients["logits"])
    assert torch.equal(torch.autograd.grad(value, z_)[0], both.gradients["logits"])


@quick
@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 40, 10), (3, 5, 100)], ids=str)
def test_any_strides_and_dtypes_give_the_same_bits(backend, loss, shape, dtype):
    z, y, other = inputs(backend, loss, shape, dtype)
    expected = bits(run(loss, z, y, other))
    for layout in ("batch first", "reversed", "steps last", "padded"):
        moved = LAYOUTS[layout](z)
        if other.dim() == 3:
            assert_equal(bits(run(loss, moved, y, LAYOUTS[layout](other))), expected)
        else:
            assert_equal(bits(run(loss, moved, y, other.t().contiguous().t())), expected)
    if other.dim() == 2:
        soft = probabilities(shape[1], shape[2]).to(backend.device, torch.bfloat16)
        low = other.bfloat16()
        assert_equal(bits(run(loss, z, soft, low)), bits(run(loss, z, soft.float(), low.float())))


@pytest.mark.backends(*(b for b in ALL if b is not REFERENCE))
@every_loss
def test_the_same_bits_every_time(backend, loss):
    """Whatever the number of threads."""
    shape = (4, 9, 50) if backend.slow else (4, 300, 50)
    z, y, other = inputs(backend, loss, shape)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(bits(run(loss, z, y, other)))
    torch.set_num_threads(threads)
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_small_gradients_survive_a_gradient_scaler(backend, dtype):
    """Under a loss scale of 2^16 none vanishes that the dtype could hold."""
    shape = (2, 4, 1000) if backend.slow else (4, 512, 1000)
    z, y, teacher = inputs(backend, "twkd", shape, dtype)
    exact = run("twkd", z.double(), y, teacher.double(), 2.0**16, backend="reference")
    ours = run("twkd", z, y, teacher, 2.0**16).gradients["logits"]
    exact, smallest = exact.gradients["logits"], torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert ours.isfinite().all() and not ((ours == 0) & (exact.abs() > smallest)).any()
    assert (ours.double() - exact).norm() <= 2e-3 * exact.norm() * (8 if dtype == HALF[1] else 1)


@pytest.mark.backends(INTERPRETED, *(b for b in ALL if b.device == "cuda" and b.name == "triton"))
@pytest.mark.parametrize("programs", [1, 129, 2500])
def test_sums_of_programs(backend, programs):
    """Triton's last kernel alone: four terms, one without weight and NaN."""
    from snnfast.backends.triton import distill as kernels

    parts = torch.rand(programs, 8, dtype=torch.float64)
    parts[:, 4] = torch.randint(0, 64, (programs,))
    parts[0, 4] = 2.0**24
    parts[0, 2] = math.nan
    loss, terms, unit = (torch.empty(n, device=backend.device) for n in ((), 4, ()))
    lines, factors, weights = (
        parts.float().to(backend.device),
        (1, 9, 3, 0.5),
        (1.0, 0.5, 0.0, -2.0),
    )
    kernels.finish_call(lines, loss, terms, unit, factors, weights, 0.25).launch(loss.device)
    n = parts[:, 4].sum()
    exact = parts.sum(0)[:4] * torch.tensor(factors) * math.log(2) / n
    close = functools.partial(torch.testing.assert_close, check_dtype=False, check_device=False)
    close(terms, exact, rtol=1e-6, atol=0, equal_nan=True)
    close(loss, exact[0] + 0.5 * exact[1] - 2 * exact[3], rtol=1e-6, atol=0)
    close(unit, 0.25 / n, rtol=3e-7, atol=0)
