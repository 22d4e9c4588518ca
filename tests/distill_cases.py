"""What the distillation tests share: inputs, the objectives as the papers have them, and one check
of a call against the specification in float64.
"""

import functools
import inspect
import itertools
from typing import Any, NamedTuple

import torch
from bounds import assert_gradient

import snnfast

LOSSES = {
    "twkd": {},
    "twkd correct": {"self_target": "correct"},
    "tser": {},
    "tssd": {"student_steps": 2},
    "tssd means": {"student_steps": 1, "aux_per_step": False, "ce_steps": "both"},
}
"""One of each kind: the name of an objective first, then its options."""
OPTIONS = {
    "twkd": (
        {"alpha": 0.0, "beta": 2.0, "other": None},
        {"beta": 0.0, "temperature": 1.0, "scale_by_temperature": False},
        {"self_target": "correct", "skip_all_wrong": True, "target": "wrong"},
        {"self_target": "correct", "target": "wrong"},
        {"self_target": "correct", "target": "probabilities", "label_smoothing": 0.3},
        {"label_smoothing": 0.1, "ignored": 1},
    ),
    "tser": (
        {"convex": True, "alpha": 0.4, "ce_temperature": 2.0, "temperature": 3.0},
        {"convex": True, "alpha": 1.0, "entropy_temperature": 0.7},
        {"alpha": 0.0, "other": None, "lam": 1.5},
        {"ce_temperature": 4.0, "lam": 1.0},
        {"entropy_temperature": 1.0, "scale_by_temperature": False, "target": "probabilities"},
        {"label_smoothing": 1.0, "ignored": 1, "lam": 0.0},
    ),
    "tssd": (
        {"ce_steps": "student", "temperature": 1.0},
        {"ce_steps": "both", "scale_by_temperature": True, "label_smoothing": 0.2},
        {"alpha": 0.0, "beta": 0.0, "other": None},
        {"aux_per_step": False, "ignored": 1},
        {"target": "probabilities", "student_steps": 3, "ce_steps": "student"},
        {"aux_per_step": False, "temperature": 0.5, "target": "probabilities"},
    ),
}


TERMS = {"twkd": "ce kl self", "tser": "ce kl entropy", "tssd": "task temporal spatial"}


def function_of(loss):
    """The public function of one of LOSSES."""
    return getattr(snnfast, f"{loss.split()[0]}_loss")


def permuted(z, *order):
    """z with the same values, stored in another order of its axes."""
    return z.permute(order).contiguous().permute([order.index(d) for d in range(3)])


LAYOUTS = {
    "contiguous": lambda z: z,
    "batch first": lambda z: permuted(z, 1, 0, 2),
    "classes first": lambda z: permuted(z, 2, 0, 1),
    "reversed": lambda z: permuted(z, 2, 1, 0),
    "steps last": lambda z: permuted(z, 1, 2, 0),
    "padded": lambda z: torch.nn.functional.pad(z, (2, 1, 1, 0))[:, 1:, 2:-1],
    "every second class": lambda z: torch.stack([z, z], -1).flatten(2)[:, :, ::2],
    "static": lambda z: z[:1].expand_as(z),
    "one row": lambda z: z[:, :1].expand_as(z),
    "one class": lambda z: z[:, :, :1].expand_as(z),
}


FLOAT32 = 1e-6 / (2 * torch.finfo(torch.float32).eps)
"""Times a size: the scale at which assert_gradient allows 1e-6 of it."""
VALUES = {
    "random": lambda t: t,
    "ties": lambda t: t.round().clamp(-1, 1),
    # Means over time of quarters are exact in float32: differences are what counts.
    "quarters": lambda t: (4 * t).round().clamp(-4e4, 4e4) / 4,
    "quarters about 9900": lambda t: ((4 * t).round() / 4 + 9.9e3).clamp(max=1e4),
    "quarters about -9900": lambda t: ((4 * t).round() / 4 - 9.9e3).clamp(min=-1e4),
}


def problem(steps=5, batch=7, classes=6, seed=0, dtype=torch.float64, scale=3.0):
    """Logits [T, B, C] and auxiliary ones that require grad, labels [B], teacher logits [B, C]."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    z, w = normal(steps, batch, classes), normal(steps, batch, classes)
    y = torch.randint(0, classes, (batch,), generator=g)
    # Some rows are right at some steps, one at all of them, one at none.
    for b in range(0, batch, 2):
        z[b % steps, b, y[b]] = 4 * scale
    if batch > 2:
        z[:, 1, y[1]], z[:, 2, y[2]] = 4 * scale, -4 * scale
    return z.requires_grad_(), y, normal(batch, classes), w.requires_grad_()


def probabilities(batch, classes, seed=0, dtype=torch.float64):
    """Class probabilities [B, C] as Mixup makes them."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, classes, generator=g, dtype=torch.float64).softmax(-1).to(dtype)


def softmax(z, tau=1.0):
    e = ((z - z.max()) / tau).exp()
    return e / e.sum()


def log_softmax(z, tau=1.0):
    x = (z - z.max()) / tau
    return x - x.exp().sum().log()


def kl(p_logits, q_logits, tau):
    p = softmax(p_logits.detach(), tau)
    return (p * (log_softmax(p_logits.detach(), tau) - log_softmax(q_logits, tau))).sum()


def distribution(target, b, classes, smoothing):
    """Target distribution of row b, and its label."""
    if target.is_floating_point():
        y, label = target[b].double(), int(target[b].argmax())
    else:
        label = int(target[b])
        y = torch.zeros(classes, dtype=torch.float64)
        y[label] = 1
    return (1 - smoothing) * y + smoothing / classes, label


def _rows(z, target, ignore_index):
    soft = target.is_floating_point()
    return [b for b in range(z.shape[1]) if soft or int(target[b]) != ignore_index]


def _stepwise(z, target, teacher, *, alpha=0.2, beta=0.0, lam=0.0, temperature,
              ce_temperature=1.0, entropy_temperature=None, self_target="mean",
              scale_by_temperature=True, skip_all_wrong=False, convex=False, label_smoothing=0.0,
              ignore_index=-100):  # fmt: skip
    steps, _, classes = z.shape
    rows, tau = _rows(z, target, ignore_index), temperature
    scale = tau * tau if scale_by_temperature else 1.0
    total = 0.0
    for b in rows:
        y, label = distribution(target, b, classes, label_smoothing)
        if self_target == "mean":
            own, wanted = sum(z[t, b].detach() for t in range(steps)) / steps, True
        else:
            right = [z[t, b].detach() for t in range(steps) if int(z[t, b].argmax()) == label]
            wanted = bool(right) or not skip_all_wrong
            own = sum(right) / len(right) if right else torch.zeros(classes, dtype=z.dtype)
        for t in range(steps):
            ce = -(y * log_softmax(z[t, b], ce_temperature)).sum()
            total = total + (1 - alpha if convex else 1) * ce
            if alpha:
                total = total + alpha * scale * kl(teacher[b].double(), z[t, b], tau)
            if beta and wanted:
                total = total + beta * scale * kl(own, z[t, b], tau)
            if lam:
                q = softmax(z[t, b], entropy_temperature or tau)
                total = total + lam * (q * log_softmax(z[t, b], entropy_temperature or tau)).sum()
    return total / (steps * len(rows))


def _tssd(z, target, w, *, student_steps, alpha=1.0, beta=1.0, temperature=2.0, ce_steps="all",
          aux_per_step=True, scale_by_temperature=False, label_smoothing=0.0,
          ignore_index=-100):  # fmt: skip
    steps, _, classes = z.shape
    rows, tau = _rows(z, target, ignore_index), temperature
    scale = tau * tau if scale_by_temperature else 1.0
    shares = {"all": (1, 0), "student": (0, 1), "both": (0.5, 0.5)}[ce_steps]
    total = 0.0
    for b in rows:
        y, _ = distribution(target, b, classes, label_smoothing)
        mean = sum(z[t, b] for t in range(steps)) / steps
        student = sum(z[t, b] for t in range(student_steps)) / student_steps
        for share, logits in zip(shares, (mean, student), strict=True):
            total = total - share * (y * log_softmax(logits)).sum()
        total = total + alpha * scale * kl(mean, student, tau)
        if beta and aux_per_step:
            each = sum(kl(z[t, b], w[t, b], tau) for t in range(steps)) / steps
            total = total + beta * scale * each
        elif beta:
            aux = sum(w[t, b] for t in range(steps)) / steps
            total = total + beta * scale * kl(mean, aux, tau)
    return total / len(rows)


WRITTEN = {
    "twkd": functools.partial(_stepwise, beta=0.5, temperature=3.0),
    "tser": functools.partial(_stepwise, lam=0.05, temperature=4.0),
    "tssd": functools.partial(_tssd, student_steps=2),
}
"""The losses of float64 logits, differentiable, with the public functions' options."""
PAPERS = [
    ("twkd", {}),
    ("twkd", {"self_target": "correct"}),
    ("twkd", {"self_target": "correct", "skip_all_wrong": True, "beta": 2.0}),
    ("twkd", {"scale_by_temperature": False, "temperature": 2.2}),
    ("twkd", {"temperature": 1.0, "label_smoothing": 0.2}),
    ("twkd", {"alpha": 0.0}),
    ("tser", {}),
    ("tser", {"convex": True, "alpha": 0.7}),
    ("tser", {"ce_temperature": 1.7, "entropy_temperature": 0.8, "lam": 0.6}),
    ("tser", {"ce_temperature": 4.0, "lam": 0.6}),
    ("tser", {"alpha": 0.0, "lam": 0.6}),
    ("tssd", {}),
    ("tssd", {"ce_steps": "student", "alpha": 0.4}),
    ("tssd", {"ce_steps": "both", "scale_by_temperature": True}),
    ("tssd", {"aux_per_step": False, "beta": 0.3}),
    ("tssd", {"beta": 0.0, "temperature": 1.5}),
]
"""Objectives and options to write out."""


class Result(NamedTuple):
    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]


def run(loss, z, target, other, scale=1.0, **options) -> Result:
    """One of LOSSES, or an objective by its name, and the gradients of ``scale`` times it."""
    options = LOSSES[loss] | options
    if "student_steps" in options:
        options["student_steps"] = min(options["student_steps"], len(z))
    leaves = {"logits": z.detach().requires_grad_()}
    if "student_steps" in options and other is not None:
        leaves["aux_logits"] = other = other.detach().requires_grad_()
    how = {"return_terms": True, **options}
    value, terms = function_of(loss)(leaves["logits"], target, other, **how)
    found = torch.autograd.grad(scale * value, list(leaves.values()), materialize_grads=True)
    return Result(value.detach(), terms, dict(zip(leaves, found)))


class Case(NamedTuple):
    """Inputs, options, and what the specification makes of them."""

    inputs: tuple[torch.Tensor | None, ...]
    layouts: tuple[str, str]
    options: dict[str, Any]
    tau: float
    own: Result
    """In the arithmetic of the dtype..."""
    exact: Result
    """...and in float64."""


@functools.lru_cache(maxsize=64)
def case(loss, shape, dtype="float32", layout="contiguous", other_layout=None, scale=2.0, seed=0,
         target="labels", target_dtype="float32", other="float32", values="random", ignored=0,
         **options) -> Case:  # fmt: skip
    """``loss``: of LOSSES; ``other``: the dtype of the teacher's logits, which are the dtype of the
    logits for TSSD, or None: there are none; ``values``: of VALUES; ``ignored``: so many
    of the first rows are."""
    steps, batch, classes = shape
    options, dtype = LOSSES[loss] | options, getattr(torch, dtype)
    z, y, teacher, w = problem(steps, batch, classes, seed, scale=scale)
    z, w, teacher = (VALUES[values](t.detach()) for t in (z, w, teacher))
    layouts = layout, other_layout or layout
    z, w = (LAYOUTS[name](t.to(dtype)) for name, t in zip(layouts, (z, w)))
    if target == "first":  # right at some step
        y = z[0].argmax(-1)
    elif target == "wrong":
        y = z.sum(0, dtype=torch.float64).argmin(-1)
    elif target == "probabilities":  # that need not add up to 1
        y = probabilities(batch, classes) * torch.linspace(0.5, 3, batch)[:, None]
        y = y.to(getattr(torch, target_dtype))
    if ignored:
        y[:ignored] = options.get("ignore_index", -100)
    if other is not None:
        other = w if "student_steps" in options else teacher.to(getattr(torch, other))
    # The gradients of a sum over steps and rows, away from float16's subnormals.
    options["scale"] = float(steps * max(batch - ignored, 1))

    def specified(wide):
        z_, y_, other_ = (wide(t) for t in (z, y, other))
        return run(loss, z_, y_, other_, **options, backend="reference")

    def cast(to, t):
        return t.to(to) if t is not None and t.is_floating_point() else t

    own, exact = (
        specified(functools.partial(cast, to))
        for to in (torch.promote_types(dtype, torch.float32), torch.float64)
    )
    default = inspect.signature(function_of(loss)).parameters["temperature"].default
    tau = options.get("temperature", default)
    return Case((z, y, other), layouts, {"loss": loss, **options}, tau, own, exact)


def check(backend, **arguments) -> Result:
    """One call on a backend, forward and backward, against the specification."""
    wanted = case(**arguments)
    z, target, other = (None if t is None else t.to(backend.device) for t in wanted.inputs)
    z = LAYOUTS[wanted.layouts[0]](z)
    if "student_steps" in wanted.options and other is not None:
        other = LAYOUTS[wanted.layouts[1]](other)
    ours = run(z=z, target=target, other=other, backend=backend.name, **wanted.options)
    own, exact = wanted.own, wanted.exact
    assert ours.loss.dtype == torch.promote_types(z.dtype, torch.float32)
    assert ours.terms.keys() == exact.terms.keys()
    # A KL is a difference of logarithms, each off by a rounding, times the temperature squared.
    scale = FLOAT32 * sum(term.abs().item() for term in exact.terms.values()) + wanted.tau**2 / 2
    torchs = own if backend.name == "reference" else exact
    assert_gradient("loss", ours.loss, torchs.loss, exact.loss, scale)
    for name, term in ours.terms.items():
        assert_gradient(name, term, torchs.terms[name], exact.terms[name], scale)
    for name, gradient in ours.gradients.items():
        assert gradient.dtype == z.dtype and gradient.shape == z.shape
        torchs, wide = own.gradients[name].double(), exact.gradients[name]
        if z.dtype == torch.float32:
            error, norm = (gradient.cpu() - wide).norm(), wide.norm()
            assert error <= max(1e-6 * norm, 2 * (torchs - wide).norm()), name
        else:
            scale, roundings = FLOAT32 * wide.abs().max().item(), backend.roundings(z.dtype)
            assert_gradient(name, gradient, torchs, wide, scale, roundings=roundings)
    return ours


def table():
    """Arguments of ``check``, for every backend."""
    shapes = ((1, 1, 2), (1, 1, 1), (2, 5, 3), (4, 9, 10), (3, 2, 33), (6, 2, 100), (4, 2, 1000),
              (8, 1, 100), (9, 2, 33), (17, 1, 10), (2, 1, 5000), (9, 1, 2100), (5, 1, 4096),
              (9, 1, 4100))  # fmt: skip
    halves = itertools.cycle(("bfloat16", "float16"))
    for loss, shape in itertools.product(LOSSES, shapes):
        yield dict(loss=loss, shape=shape)
        if shape[2] in (10, 33):
            yield dict(loss=loss, shape=shape, dtype=next(halves))
    for loss, changes in OPTIONS.items():
        for shape in ((4, 4, 10), (9, 4, 20)):
            for change in changes:
                yield dict(loss=loss, shape=shape, **change)
        for change in changes[2:5]:
            yield dict(loss=loss, shape=(2, 2, 4100), **change)
    for loss in LOSSES:
        for dtype in ("float32", "bfloat16", "float16"):
            yield dict(loss=loss, shape=(4, 6, 12), dtype=dtype, other="float16",
                       target="probabilities", target_dtype="float16")  # fmt: skip
        for layout in ("batch first", "classes first", "padded", "static"):
            yield dict(loss=loss, shape=(4, 3, 12), layout=layout)
        yield dict(loss=loss, shape=(4, 3, 12), values="ties")
        yield dict(loss=loss, shape=(2, 1, 4100), layout="classes first")
        yield dict(loss=loss, shape=(2, 1, 4100), values="ties")
        yield dict(loss=loss, shape=(4, 3, 100), scale=1e4)
        yield dict(loss=loss, shape=(2, 1, 4100), scale=1e4)
    for loss, steps in (("twkd", 1), ("tssd", 2)):
        yield dict(loss=loss, shape=(100, 1, 3))
        yield dict(loss=loss, shape=(steps, 1, 21841))


def products():
    """More arguments of ``check``, for backends that are quick."""
    for scaled, self_target, skip in itertools.product(
        (True, False), ("mean", "correct"), (False, True)
    ):
        how = dict(loss="twkd", shape=(4, 7, 33), self_target=self_target, skip_all_wrong=skip,
                   scale_by_temperature=scaled)  # fmt: skip
        for target in ("labels", "probabilities", "first"):
            yield how | dict(target=target, alpha=0.4, beta=0.6)
        for other in ("float32", "bfloat16", "float16"):
            yield how | dict(other=other, temperature=1.0, alpha=0.4, beta=0.6)
        yield how | dict(other=None, alpha=0.0)
        yield how | dict(label_smoothing=0.1)
        yield how | dict(label_smoothing=0.1, target="probabilities", target_dtype="float16")
    temperatures = ((1, 1, None), (1, 4, None), (2, 4, 1), (4, 4, 3))
    for convex, (ce, tau, entropy) in itertools.product((False, True), temperatures):
        how = dict(loss="tser", shape=(4, 5, 33), convex=convex, temperature=tau, ce_temperature=ce,
                   entropy_temperature=entropy)  # fmt: skip
        for lam, (alpha, other) in itertools.product(
            (0.0, 0.3), ((0.4, "float32"), (0.0, None), (1.0, "float32"))
        ):
            yield how | dict(other=other, alpha=alpha, lam=lam)
        yield how | dict(label_smoothing=0.2)
        yield how | dict(scale_by_temperature=False, target="probabilities", target_dtype="float16")
    for per_step, ce_steps in itertools.product((True, False), ("all", "student", "both")):
        how = dict(loss="tssd", shape=(5, 4, 33), ce_steps=ce_steps, aux_per_step=per_step)
        for student_steps in (1, 3, 5):
            yield how | dict(student_steps=student_steps, other=None, beta=0.0)
            for scaled, target in itertools.product((False, True), ("labels", "probabilities")):
                yield how | dict(student_steps=student_steps, target=target, temperature=2.5,
                                 target_dtype="bfloat16", scale_by_temperature=scaled)  # fmt: skip
        yield how | dict(label_smoothing=0.1)
    for layout, dtype in itertools.product(LAYOUTS, ("float32", "float16", "bfloat16")):
        how = dict(shape=(4, 5, 33), dtype=dtype)
        yield how | dict(loss="twkd correct", layout=layout)
        yield how | dict(loss="tssd", layout=layout, other_layout="contiguous", student_steps=3)
        yield how | dict(loss="tssd", other_layout=layout, student_steps=3)


def grouped(cases) -> dict[str, list]:
    """By what they are about, so that a test has many."""
    found = {}
    for each in cases:
        names = ("loss", "self_target", "convex", "ce_steps", "layout", "other_layout")
        found.setdefault(" ".join(str(each[name]) for name in names if name in each), []).append(
            each
        )
    return found
