"""One point of the distillation benchmark: the objective, its data, the eager compositions, and the
gate that a contender must pass.

The compositions are what one writes in PyTorch from the papers' equations: one call for all steps,
one softmax for all terms that share it, weights and means folded into one factor. ``log_target`` is
the faster form of F.kl_div here, eager and compiled. Half-precision logits are computed in float32,
as autocast does it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import measure
import torch
import torch.nn.functional as F
from lif_case import GRADIENT_TOLERANCE
from torch import Tensor

import snnfast
from snnfast.backends.spec import StepwiseLoss, TssdLoss
from snnfast.ops.distill import loss_options

EAGER, LOOP, COMPILED = "eager", "eager step by step", "torch.compile"

VALUE_TOLERANCE = 1e-5
"""Relative to the norm, as is GRADIENT_TOLERANCE here."""


def twkd(z, target, teacher, *, alpha, beta, temperature, self_target):
    """Eager TWKD. z [T, B, C], target [B], teacher [B, C]."""
    z, teacher = z.float(), teacher.float()
    steps, batch, _ = z.shape
    own = z.detach()
    if self_target == "correct":
        right = (own.argmax(-1) == target).unsqueeze(-1)  # [T, B, 1]
        own = (own * right).sum(0) / right.sum(0).clamp(min=1)
    else:
        own = own.mean(0)
    log_q = F.log_softmax(z / temperature, -1)
    scale = temperature**2 / (steps * batch)
    loss = F.cross_entropy(z.flatten(0, 1), target.repeat(steps))
    loss = loss + alpha * scale * _kl(teacher, log_q, temperature)
    return loss + beta * scale * _kl(own, log_q, temperature)


def tser(z, target, teacher, *, alpha, lam, temperature):
    """Eager TSER, the entropy at the temperature of the KL term. Shapes as in ``twkd``."""
    z, teacher = z.float(), teacher.float()
    steps, batch, _ = z.shape
    log_q = F.log_softmax(z / temperature, -1)
    loss = F.cross_entropy(z.flatten(0, 1), target.repeat(steps))
    scale = alpha * temperature**2 / (steps * batch)
    loss = loss + scale * _kl(teacher, log_q, temperature)
    return loss + lam / (steps * batch) * (log_q.exp() * log_q).sum()


def tssd(z, target, w, *, alpha, beta, temperature, student_steps):
    """Eager TSSD, cross-entropy of all steps, auxiliary logits w [T, B, C] step by step."""
    z, w = z.float(), w.float()
    steps, batch, _ = z.shape
    mean, student = z.mean(0), z[:student_steps].mean(0)
    loss = F.cross_entropy(mean, target)
    log_q = F.log_softmax(student / temperature, -1)
    loss = loss + alpha / batch * _kl(mean.detach(), log_q, temperature)
    log_q = F.log_softmax(w / temperature, -1)
    return loss + beta / (steps * batch) * _kl(z.detach(), log_q, temperature)


def step_by_step(z, target, third, *, alpha, temperature, beta=0.0, lam=0.0, self_target=None,
                 student_steps=None):  # fmt: skip
    """Any of the three with a loop over timesteps around the usual [B, C] losses, as the papers'
    code and most training scripts have it."""
    z, third = z.float(), third.float()
    steps = len(z)

    def distill(teacher, student):
        p, log_q = F.softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
        return F.kl_div(log_q, p, reduction="batchmean")

    if student_steps is not None:
        loss = F.cross_entropy(z.mean(0), target)
        loss = loss + alpha * distill(z.mean(0).detach(), z[:student_steps].mean(0))
        return loss + beta / steps * sum(distill(z[t].detach(), third[t]) for t in range(steps))
    own = z.detach().mean(0)
    if self_target == "correct":
        right = [(z[t].detach().argmax(-1) == target).unsqueeze(-1) for t in range(steps)]
        own = sum(z[t].detach() * right[t] for t in range(steps)) / sum(right).clamp(min=1)
    loss = 0.0
    for t in range(steps):
        loss = loss + F.cross_entropy(z[t], target)
        loss = loss + alpha * temperature**2 * distill(third, z[t])
        if beta:
            loss = loss + beta * temperature**2 * distill(own, z[t])
        if lam:
            q = F.softmax(z[t] / temperature, -1)
            loss = loss + lam * (q * q.log()).sum(-1).mean()
    return loss / steps


def _kl(teacher: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(teacher / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


@dataclass(frozen=True)
class Objective:
    """One objective with its weights, as our op, as the eager composition, and as one launch."""

    name: str
    op: str
    """The public function; its third argument is the teacher's or the auxiliary logits."""
    options: dict
    composition: Callable[..., Tensor]

    @property
    def auxiliary(self) -> bool:
        """Whether the third argument is [T, B, C] and takes a gradient, too."""
        return self.op == "tssd_loss"

    def arguments(self, steps: int) -> dict:
        students = {"student_steps": max(1, steps // 2)} if self.auxiliary else {}
        return self.options | students

    def ours(self, steps: int, backend: str) -> Callable[..., Tensor]:
        return partial(getattr(snnfast, self.op), **self.arguments(steps), backend=backend)

    def eager(self, steps: int) -> Callable[..., Tensor]:
        return partial(self.composition, **self.arguments(steps))

    def loop(self, steps: int) -> Callable[..., Tensor]:
        return partial(step_by_step, **self.arguments(steps))

    def loss(self, steps: int) -> StepwiseLoss | TssdLoss:
        """What a backend is handed for these arguments."""
        return loss_options(getattr(snnfast, self.op), **self.arguments(steps))


_TWKD = {"alpha": 0.2, "beta": 0.5, "temperature": 3.0}
OBJECTIVES = [
    Objective("TWKD", "twkd_loss", _TWKD | {"self_target": "mean"}, twkd),
    Objective("TWKD correct", "twkd_loss", _TWKD | {"self_target": "correct"}, twkd),
    Objective("TSER", "tser_loss", {"alpha": 0.2, "lam": 0.05, "temperature": 4.0}, tser),
    Objective("TSSD", "tssd_loss", {"alpha": 1.0, "beta": 1.0, "temperature": 2.0}, tssd),
]


@dataclass
class Contender(measure.Contender):
    """A loss to time: ``loss(z, target, third) -> []``, differentiable."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(kw_only=True)
class Verdict(measure.Verdict):
    value_error: float | None = None


class Case(measure.Case):
    """``shape`` is (T, B, C); ``sets`` inputs are made, to rotate among. About half of the steps
    put the label first."""

    unit = "logit"

    def __init__(
        self,
        objective: Objective,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        sets: int = 1,
    ):
        super().__init__(shape, dtype, shape[0], device)
        self.objective, (_, batch, classes), normal = objective, shape, self.normal
        self.target = torch.randint(classes, (batch,), device=device, generator=self.generator)
        label = self.target[None, :, None].expand(self.steps, batch, 1)

        def student() -> Tensor:
            z = 2.0 * normal(shape)
            right = z.amax(-1, keepdim=True) + normal((self.steps, batch, 1))
            return z.scatter_(-1, label, right).to(dtype)

        teacher = (3.0 * normal((batch, classes))).to(dtype)
        count = 2 if objective.auxiliary else 1
        self.sources = self.inputs = [tuple(student() for _ in range(count)) for _ in range(sets)]
        """Of each set the tensors that take a gradient: (z,) or (z, w)."""
        self.third = [inputs[1] if objective.auxiliary else teacher for inputs in self.inputs]
        self.count = count * math.prod(shape)
        self.where = {
            "objective": objective.name,
            "shape": measure.label(shape),
            "steps": self.steps,
            "batch": batch,
            "classes": classes,
            "logits": self.count,
            "dtype": measure.dtype_name(dtype),
        }
        self._value, self._gradients = self._reference()

    def evaluate(self, loss: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
        """``loss`` of the first set, with ``tensors`` in place of those that take a gradient."""
        return loss(tensors[0], self.target, tensors[1] if len(tensors) > 1 else self.third[0])

    def _reference(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Value and gradients of the first set in float64, from the specification."""
        leaves = tuple(z.double().requires_grad_() for z in self.inputs[0])
        third = leaves[1] if self.objective.auxiliary else self.third[0].double()
        value = self.objective.ours(self.steps, "reference")(leaves[0], self.target, third)
        return value.detach(), torch.autograd.grad(value, leaves)

    def judge(self, value: Tensor, gradients: tuple[Tensor | None, ...]) -> Verdict:
        """Hold the loss and the gradients of the first set to the float64 reference."""
        if value.shape != ():
            return Verdict(refused=f"a loss of shape {tuple(value.shape)}")
        for z, gradient in zip(self.inputs[0], gradients, strict=True):
            if gradient is None or gradient.shape != z.shape:
                found = None if gradient is None else tuple(gradient.shape)
                return Verdict(refused=f"gradient of shape {found}, not {tuple(z.shape)}")
        errors = [_error(value, self._value)]
        errors.append(max(map(_error, gradients, self._gradients), key=_nan_last))
        value, gradient = (error if math.isfinite(error) else None for error in errors)
        verdict = Verdict(value_error=value, gradient_error=gradient)
        if verdict.holds("value", errors[0], VALUE_TOLERANCE, " of its norm"):
            verdict.holds("gradient", errors[1], GRADIENT_TOLERANCE[self.dtype], " of its norm")
        return verdict


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm())


def _nan_last(error: float) -> float:
    return math.inf if math.isnan(error) else error
