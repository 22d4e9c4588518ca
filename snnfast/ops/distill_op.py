"""What the distillation losses are to a backend: the contract (schemas and fakes), the launch, and
the autograd.Functions, in that order.

Forward computes the gradient with respect to the logits as well, as if the loss were a sum over
steps and rows; backward multiplies it by what the mean and the rest of the network ask for. So
half-precision gradients are rounded where they are large, and a GradScaler's factor still saves
them.
"""

import functools
import math
from functools import partial
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor

from snnfast import reference
from snnfast.backends import checks, layout
from snnfast.backends import spec as specs
from snnfast.backends.spec import StepwiseLoss, TssdLoss
from snnfast.ops import allocate
from snnfast.ops.direct import is_direct
from snnfast.ops.select import by_name, implementation
from snnfast.ops.transforms import differentiable, wants_graph

_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define(
    "stepwise_loss(Tensor logits, Tensor target, Tensor? teacher_logits, str op, "
    f"{specs.CHOICES}, bool want_gradient, str backend) "
    "-> (Tensor loss, Tensor terms, Tensor unit, Tensor gradient)"
)
_library.define(
    "tssd_loss(Tensor logits, Tensor target, Tensor? aux_logits, str op, SymInt student_steps, "
    f"{specs.CHOICES}, bool want_gradient, bool want_aux_gradient, str backend) "
    "-> (Tensor loss, Tensor terms, Tensor unit, Tensor gradients)"
)
_library.define(
    "scale_gradient(Tensor gradient, Tensor grad_output, Tensor unit, str backend) -> Tensor"
)


def _allocate(logits: Tensor, terms: int, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """loss [], terms [n], unit [], and gradients of a ``shape``, (0,) where none are wanted."""
    checks.axes("logits", logits, 3, "[T, B, C]")
    new, dtype = logits.new_empty, layout.state_dtype(logits)
    if logits.dtype != dtype:
        new = partial(new, dtype=dtype)
    return new(()), new(terms), new(()), allocate.empty(logits, shape, logits.dtype)


def _allocate_stepwise(logits, want_gradient):
    return _allocate(logits, 4, logits.shape if want_gradient else (0,))


def _allocate_tssd(logits, want_gradient, want_aux_gradient):
    """Both gradients are one tensor [n, T, B, C], so that backward scales them in one call."""
    return _allocate(logits, 3, (want_gradient + want_aux_gradient, *logits.shape))


def _float16_scale(soft: bool, bound: float) -> float:
    """The power of two that brings gradients of at most ``bound`` near the largest float16."""
    # Class probabilities that add up to more than 1 make larger ones.
    room = 2.0**11 if soft else 2.0**15
    return 2.0 ** math.floor(math.log2(room / bound)) if bound > 0 else 1.0


def refuse_label(op: str, label: int | None, logits: Tensor, ignore_index: int) -> None:
    if label is not None:
        raise ValueError(
            f"{op}: target must be in 0..{logits.shape[-1] - 1} or ignore_index ({ignore_index}), "
            f"got {label}"
        )


@torch.library.register_fake("snnfast::stepwise_loss", lib=_library)
def _(logits, target, teacher_logits, op, choices, numbers, want_gradient, backend):
    return _allocate_stepwise(logits, want_gradient)


@torch.library.register_fake("snnfast::tssd_loss", lib=_library)
def _(logits, target, aux_logits, op, student_steps, choices, numbers, want_gradient,
      want_aux_gradient, backend):  # fmt: skip
    return _allocate_tssd(logits, want_gradient, want_aux_gradient)


@torch.library.register_fake("snnfast::scale_gradient", lib=_library)
def _(gradient, grad_output, unit, backend):
    return torch.empty_like(gradient)


@functools.lru_cache(256)
def _stepwise_in_float16(loss: StepwiseLoss, classes: int, soft: bool) -> StepwiseLoss:
    """The loss with the scale of its gradients."""
    # |q - y| <= 1 in every term, and |dH/dz| <= max q |ln q + H| < 1 + ln C.
    distilled = (loss.kl_weight + loss.self_weight) * loss.kl_scale / loss.temperature
    spread = loss.entropy_weight * (1 + math.log(classes)) / loss.entropy_temperature
    bound = loss.ce_weight / loss.ce_temperature + distilled - spread
    return loss._replace(gradient_scale=_float16_scale(soft, bound))


@functools.lru_cache(256)
def _tssd_in_float16(loss: TssdLoss, steps: int, soft: bool) -> TssdLoss:
    # A step's gradient is kept as T times its share of the mean's.
    sharpness = loss.kl_scale / loss.temperature
    of_student = loss.task_weight * loss.ce_student + loss.temporal_weight * sharpness
    bound = loss.task_weight * loss.ce_all + of_student * steps / loss.student_steps
    return loss._replace(
        gradient_scale=_float16_scale(soft, max(bound, loss.spatial_weight * sharpness))
    )


def _launch_stepwise(op, loss, logits, target, teacher_logits, want_gradient, backend):
    outputs = value, terms, unit, gradient = _allocate_stepwise(logits, want_gradient)
    if logits.dtype == torch.float16:
        loss = _stepwise_in_float16(loss, logits.shape[2], target.is_floating_point())
    label = implementation(backend).stepwise_loss(
        loss, logits, target.contiguous(), _contiguous(teacher_logits), value, terms, unit,
        gradient if want_gradient else None,
    )  # fmt: skip
    refuse_label(op, label, logits, loss.ignore_index)
    return outputs


def _launch_tssd(op, loss, logits, target, aux_logits, want_gradient, want_aux_gradient, backend):
    outputs = _allocate_tssd(logits, want_gradient, want_aux_gradient)
    value, terms, unit, gradients = outputs
    if logits.dtype == torch.float16:
        loss = _tssd_in_float16(loss, logits.shape[0], target.is_floating_point())
    label = implementation(backend).tssd_loss(
        loss, logits, target.contiguous(), aux_logits, value, terms, unit,
        gradients[0] if want_gradient else None, gradients[-1] if want_aux_gradient else None,
    )  # fmt: skip
    refuse_label(op, label, logits, loss.ignore_index)
    return outputs


def _run_stepwise(logits, target, teacher_logits, op, choices, numbers, want_gradient, backend):
    loss = StepwiseLoss.unpack(choices, numbers)
    return _launch_stepwise(op, loss, logits, target, teacher_logits, want_gradient, backend)


def _run_tssd(logits, target, aux_logits, op, student_steps, choices, numbers, want_gradient,
              want_aux_gradient, backend):  # fmt: skip
    loss = TssdLoss.unpack(choices, numbers, student_steps)
    return _launch_tssd(
        op, loss, logits, target, aux_logits, want_gradient, want_aux_gradient, backend
    )


def _run_scale(gradient, grad_output, unit, backend):
    scaled = allocate.empty_like(gradient)
    implementation(backend).scale_gradient(gradient, grad_output, unit, scaled)
    return scaled


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


for _device in ("CPU", "CUDA"):
    _library.impl("stepwise_loss", by_name(_run_stepwise), _device)
    _library.impl("tssd_loss", by_name(_run_tssd), _device)
    _library.impl("scale_gradient", by_name(_run_scale), _device)


class Call(NamedTuple):
    """What a loss is called with beside its tensors."""

    op: str
    loss: StepwiseLoss | TssdLoss
    backend: str
    direct: bool
    return_terms: bool


def stepwise(call: Call, logits, target, teacher_logits, want_gradient: bool):
    op, loss, backend, direct, _ = call
    if direct:
        return _launch_stepwise(op, loss, logits, target, teacher_logits, want_gradient, backend)
    run = torch.ops.snnfast.stepwise_loss.default
    return run(logits, target, teacher_logits, op, *loss.pack(), want_gradient, backend)


def tssd(call: Call, logits, target, aux_logits, *wanted: bool):
    op, loss, backend, direct, _ = call
    if direct:
        return _launch_tssd(op, loss, logits, target, aux_logits, *wanted, backend)
    run, steps = torch.ops.snnfast.tssd_loss.default, loss.student_steps
    return run(logits, target, aux_logits, op, steps, *loss.pack(), *wanted, backend)


class Lent(NamedTuple):
    """The arguments of a loss, not kept: what its kernel does not need again, a gradient with a
    graph does. Weak references, and the versions then."""

    tensors: tuple

    @staticmethod
    def of(*tensors: Tensor | None) -> "Lent | None":
        if torch.compiler.is_compiling():
            return None
        return Lent(tuple([t if t is None else (ref(t), t._version) for t in tensors]))

    def gradients(self, call: Call, function, wanted, dloss) -> list[Tensor | None]:
        """Those of ``function`` of the reference, with a graph."""
        given = []
        for lent in self.tensors:
            t = lent if lent is None else lent[0]()
            if lent is not None and (t is None or t._version != lent[1]):
                raise RuntimeError(
                    f"{call.op}: its arguments must be there, unchanged, where create_graph=True, "
                    "got one that is not; keep the logits in a variable, or use "
                    "backend='reference'"
                )
            given.append(t)
        run = lambda *tensors: function(*tensors, call.loss)[0]  # noqa: E731
        return differentiable(run, given, wanted, (dloss,))


class _Loss(torch.autograd.Function):
    """What both objectives share: keeps the gradients of the inputs, and backward scales them."""

    @staticmethod
    def keep(ctx, call: Call, outputs, lent: Lent | None):
        loss, terms, unit, gradients = outputs
        ctx.save_for_backward(unit, gradients)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.lent = call, lent
        if not call.return_terms:
            return loss
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def scaled(ctx, dloss) -> Tensor:
        unit, gradients = ctx.saved_tensors
        direct = ctx.call.direct and is_direct(dloss)
        run = _run_scale if direct else torch.ops.snnfast.scale_gradient.default
        return run(gradients, dloss, unit, ctx.call.backend)


class Stepwise(_Loss):
    @staticmethod
    def forward(ctx, logits, target, teacher_logits, call, lent):
        return _Loss.keep(ctx, call, stepwise(call, logits, target, teacher_logits, True), lent)

    @staticmethod
    def backward(ctx, dloss, *_):
        if dloss is not None and wants_graph():
            wanted = (True, False, False)
            return *ctx.lent.gradients(ctx.call, reference.stepwise_loss, wanted, dloss), None, None
        return None if dloss is None else _Loss.scaled(ctx, dloss), None, None, None, None


class Tssd(_Loss):
    @staticmethod
    def forward(ctx, logits, target, aux_logits, call, lent):
        ctx.wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        return _Loss.keep(ctx, call, tssd(call, logits, target, aux_logits, *ctx.wanted), lent)

    @staticmethod
    def backward(ctx, dloss, *_):
        if dloss is None:
            return None, None, None, None, None
        logits, aux = ctx.wanted
        if wants_graph():
            wanted = (logits, False, aux)
            return *ctx.lent.gradients(ctx.call, reference.tssd_loss, wanted, dloss), None, None
        gradients = _Loss.scaled(ctx, dloss)
        return gradients[0] if logits else None, None, gradients[-1] if aux else None, None, None
