"""``twkd_loss``, ``tser_loss``, ``tssd_loss``: a distillation objective's value and gradient in one
launch.

The contract (schemas and fakes), the launch on a backend, the autograd.Functions, and the public
functions, in that order. Forward computes the gradient with respect to the logits as well, as if
the loss were a sum over steps and rows; backward multiplies it by what the mean and the rest of the
network ask for. So half-precision gradients are rounded where they are large, and a GradScaler's
factor still saves them.
"""

import functools
import inspect
import math

import torch
from torch import Tensor

from snnfast import reference_distill as reference
from snnfast.backends import spec as specs
from snnfast.ops import validation as check
from snnfast.ops.select import check_name, module, select

SELF_TARGETS = {"mean": specs.SELF_MEAN, "correct": specs.SELF_CORRECT}
CE_STEPS = {"all": (1.0, 0.0), "student": (0.0, 1.0), "both": (0.5, 0.5)}

_library = torch.library.Library("snnfast", "FRAGMENT")
# numbers and choices: the fields of StepwiseSpec and TssdSpec that are no sizes, in their order.
_library.define(
    "stepwise_loss(Tensor logits, Tensor target, Tensor? teacher_logits, str op, float[] numbers, "
    "int[] choices, bool want_gradient, str backend) "
    "-> (Tensor loss, Tensor terms, Tensor unit, Tensor gradient)"
)
_library.define(
    "tssd_loss(Tensor logits, Tensor target, Tensor? aux_logits, str op, SymInt student_steps, "
    "float[] numbers, int[] choices, bool want_gradient, bool want_aux_gradient, str backend) "
    "-> (Tensor loss, Tensor terms, Tensor unit, Tensor gradients)"
)
_library.define(
    "scale_gradient(Tensor gradient, Tensor grad_output, Tensor unit, str backend) -> Tensor"
)


def _allocate(logits: Tensor, terms: int, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """loss [], terms [n], unit [], and gradients of a ``shape``, (0,) where none are wanted."""
    dtype, device = check.state_dtype(logits), logits.device
    return (
        torch.empty((), dtype=dtype, device=device),
        torch.empty(terms, dtype=dtype, device=device),
        torch.empty((), dtype=dtype, device=device),
        torch.empty(shape, dtype=logits.dtype, device=device),
    )


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


def _refuse_label(op: str, label: int | None, logits: Tensor, ignore_index: int) -> None:
    if label is not None:
        raise ValueError(
            f"{op}: target must be in 0..{logits.shape[-1] - 1} or ignore_index ({ignore_index}), "
            f"got {label}"
        )


@torch.library.register_fake("snnfast::stepwise_loss", lib=_library)
def _(logits, target, teacher_logits, op, numbers, choices, want_gradient, backend):
    return _allocate_stepwise(logits, want_gradient)


@torch.library.register_fake("snnfast::tssd_loss", lib=_library)
def _(logits, target, aux_logits, op, student_steps, numbers, choices, want_gradient,
      want_aux_gradient, backend):  # fmt: skip
    return _allocate_tssd(logits, want_gradient, want_aux_gradient)


@torch.library.register_fake("snnfast::scale_gradient", lib=_library)
def _(gradient, grad_output, unit, backend):
    return torch.empty_like(gradient)


@functools.lru_cache(256)
def _stepwise_spec(numbers, choices, classes, half, soft) -> specs.StepwiseSpec:
    ce, kl, own, spread, tau_ce, tau, tau_h, kl_scale, smoothing = numbers
    self_target, skip_all_wrong, entropy, ignore_index = choices
    scale = 1.0
    if half:  # |q - y| <= 1 in every term, and |dH/dz| <= max q |ln q + H| < 1 + ln C
        bound = ce / tau_ce + (kl + own) * kl_scale / tau - spread * (1 + math.log(classes)) / tau_h
        scale = _float16_scale(soft, bound)
    return specs.StepwiseSpec(
        (ce, kl, own, spread), tau_ce, tau, tau_h, kl_scale, self_target, bool(skip_all_wrong),
        bool(entropy), smoothing, ignore_index, scale,
    )  # fmt: skip


@functools.lru_cache(256)
def _tssd_spec(numbers, choices, student_steps, steps, half, soft) -> specs.TssdSpec:
    task, temporal, spatial, ce_all, ce_student, tau, kl_scale, smoothing = numbers
    per_step, ignore_index = choices
    scale = 1.0
    if half:  # a step's gradient is kept as T times its share of the mean's
        sharpness = kl_scale / tau
        bound = task * ce_all + (task * ce_student + temporal * sharpness) * steps / student_steps
        scale = _float16_scale(soft, max(bound, spatial * sharpness))
    return specs.TssdSpec(
        (task, temporal, spatial), student_steps, ce_all, ce_student, bool(per_step), tau, kl_scale,
        smoothing, ignore_index, scale,
    )  # fmt: skip


def _kind(logits: Tensor, target: Tensor) -> tuple[bool, bool]:
    return logits.dtype == torch.float16, target.is_floating_point()


def _run_stepwise(logits, target, teacher_logits, op, numbers, choices, want_gradient, backend):
    outputs = loss, terms, unit, gradient = _allocate_stepwise(logits, want_gradient)
    kind = _kind(logits, target)
    spec = _stepwise_spec(tuple(numbers), tuple(choices), logits.shape[2], *kind)
    label = module(backend).stepwise_loss(
        spec, logits, target.contiguous(), _contiguous(teacher_logits), loss, terms, unit,
        gradient if want_gradient else None,
    )  # fmt: skip
    _refuse_label(op, label, logits, spec.ignore_index)
    return outputs


def _run_tssd(logits, target, aux_logits, op, student_steps, numbers, choices, want_gradient,
              want_aux_gradient, backend):  # fmt: skip
    outputs = _allocate_tssd(logits, want_gradient, want_aux_gradient)
    loss, terms, unit, gradients = outputs
    kind = _kind(logits, target)
    spec = _tssd_spec(tuple(numbers), tuple(choices), student_steps, logits.shape[0], *kind)
    label = module(backend).tssd_loss(
        spec, logits, target.contiguous(), aux_logits, loss, terms, unit,
        gradients[0] if want_gradient else None, gradients[-1] if want_aux_gradient else None,
    )  # fmt: skip
    _refuse_label(op, label, logits, spec.ignore_index)
    return outputs


def _run_scale(gradient, grad_output, unit, backend):
    scaled = torch.empty_like(gradient)
    module(backend).scale_gradient(gradient, grad_output, unit, scaled)
    return scaled


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


for _device in ("CPU", "CUDA"):
    _library.impl("stepwise_loss", _run_stepwise, _device)
    _library.impl("tssd_loss", _run_tssd, _device)
    _library.impl("scale_gradient", _run_scale, _device)


class _Loss(torch.autograd.Function):
    """What both objectives share: keeps the gradients of the inputs, and backward scales them."""

    @staticmethod
    def keep(ctx, op, outputs, backend):
        loss, terms, unit, gradients = outputs
        ctx.save_for_backward(unit, gradients)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.backend = op, backend
        return loss, terms

    @staticmethod
    def scaled(ctx, dloss) -> Tensor:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"{ctx.op}: gradients must be taken once, got create_graph=True; "
                "backend='reference' is differentiable twice"
            )
        unit, gradients = ctx.saved_tensors
        return torch.ops.snnfast.scale_gradient.default(gradients, dloss, unit, ctx.backend)


class _Stepwise(_Loss):
    @staticmethod
    def forward(ctx, logits, target, teacher_logits, options, backend):
        outputs = torch.ops.snnfast.stepwise_loss.default(
            logits, target, teacher_logits, *options, True, backend
        )
        return _Loss.keep(ctx, options[0], outputs, backend)

    @staticmethod
    def backward(ctx, dloss, _):
        return None if dloss is None else _Loss.scaled(ctx, dloss), None, None, None, None


class _Tssd(_Loss):
    @staticmethod
    def forward(ctx, logits, target, aux_logits, options, backend):
        ctx.wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        outputs = torch.ops.snnfast.tssd_loss.default(
            logits, target, aux_logits, *options, *ctx.wanted, backend
        )
        return _Loss.keep(ctx, options[0], outputs, backend)

    @staticmethod
    def backward(ctx, dloss, _):
        if dloss is None:
            return None, None, None, None, None
        gradients, (logits, aux) = _Loss.scaled(ctx, dloss), ctx.wanted
        return gradients[0] if logits else None, None, gradients[-1] if aux else None, None, None


def _memoized(function):
    """Arguments that were checked once are good for good; under torch.compile they are traced."""
    cached = functools.lru_cache(256, typed=True)(function)

    @functools.wraps(function)
    def call(*args):
        if torch.compiler.is_compiling():
            return function(*args)
        try:
            return cached(*args)
        except TypeError:  # one of them is not hashable, or of a wrong type
            return function(*args)

    return call


def _check_common(op, label_smoothing, ignore_index, **flags) -> float:
    """The options that all objectives have; returns the label smoothing."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"{op}: ignore_index must be an int, got {check.type_name(ignore_index)}")
    for name, value in flags.items():
        check.check_bool(op, name, value)
    smoothing = check.check_number(op, "label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be in 0..1, got {smoothing}")
    return smoothing


def _weight(op: str, name: str, value) -> float:
    value = check.check_number(op, name, value)
    if not value >= 0:
        raise ValueError(f"{op}: {name} must be >= 0, got {value}")
    return value


def _check_problem(op: str, logits, target, ignore_index: int) -> None:
    check.check_input(op, "logits", logits)
    check.refuse_transforms(op, logits)
    if logits.dim() != 3 or logits.numel() == 0:
        raise ValueError(
            f"{op}: logits must be [T, B, C], none of them 0, got {tuple(logits.shape)}"
        )
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor, got {check.type_name(target)}")
    _, batch, classes = logits.shape
    if target.dtype == torch.int64:
        if target.shape != (batch,):
            hint = "; logits are [T, B, C], time first" if target.shape == logits.shape[:1] else ""
            raise ValueError(
                f"{op}: target must have shape ({batch},), got {tuple(target.shape)}{hint}"
            )
        if target.device != logits.device:
            raise ValueError(
                f"{op}: target must be on logits' device {logits.device}, got {target.device}"
            )
        return
    if target.dtype not in check.IO_DTYPES:
        raise TypeError(
            f"{op}: target must be int64 labels or floating-point class probabilities, "
            f"got {check.type_name(target)}"
        )
    check.check_logits(op, "target", target, logits, (batch, classes))
    if target.requires_grad:
        raise ValueError(f"{op}: target must not require gradient; pass target.detach()")
    if ignore_index >= 0:
        raise ValueError(
            f"{op}: ignore_index must be negative with class probabilities, got {ignore_index}"
        )


def _refuse_labels_on_cpu(op: str, target: Tensor, logits: Tensor, ignore_index: int) -> None:
    """What kernels do on the way, for the reference; a GPU's labels would have to be fetched."""
    if target.dtype == torch.int64 and target.device.type == "cpu":
        wrong = ((target < 0) | (target >= logits.shape[-1])) & (target != ignore_index)
        if bool(wrong.any()):
            _refuse_label(op, int(target[wrong][0]), logits, ignore_index)


def _named(terms: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The terms that an objective has, of those that a kernel fills: one for every name or ""."""
    return {name: term for name, term in zip(names, terms.unbind(), strict=True) if name}


def _stepwise_options(
    op, *, weights, temperatures, self_target, skip_all_wrong, entropy, scale_by_temperature,
    label_smoothing, ignore_index, return_terms,
):  # fmt: skip
    """What the op takes beside tensors: its name, numbers and choices."""
    smoothing = _check_common(
        op, label_smoothing, ignore_index, scale_by_temperature=scale_by_temperature,
        return_terms=return_terms, skip_all_wrong=skip_all_wrong,
    )  # fmt: skip
    tau = temperatures[1]
    kl_scale = tau * tau if scale_by_temperature else 1.0
    own = SELF_TARGETS.get(self_target, specs.SELF_NONE)
    if weights[2] == 0 and not return_terms:
        own = specs.SELF_NONE
    entropy = entropy and (weights[3] != 0 or return_terms)
    numbers = [*weights, *temperatures, kl_scale, smoothing]
    return op, numbers, [own, int(skip_all_wrong), int(entropy), ignore_index]


def _stepwise(options, names, logits, target, teacher_logits, return_terms, backend):
    """TWKD and TSER, whose options are checked."""
    op, numbers, choices = options
    alpha, ignore_index = numbers[1], choices[3]
    _check_problem(op, logits, target, ignore_index)
    if teacher_logits is not None:
        shape = logits.shape[1:]
        check.check_logits(op, "teacher_logits", teacher_logits, logits, shape)
        if alpha == 0 and not return_terms:
            teacher_logits = None
    elif alpha != 0:
        raise ValueError(f"{op}: teacher_logits must be given where alpha is not 0, got None")
    name = select(op, backend, logits.device.type, logits.dtype, False)

    if name == "reference":
        _refuse_labels_on_cpu(op, target, logits, ignore_index)
        spec = _stepwise_spec.__wrapped__(numbers, choices, logits.shape[2], False, False)
        loss, terms = reference.stepwise_loss(logits, target, teacher_logits, spec)
    elif torch.is_grad_enabled() and logits.requires_grad:
        loss, terms = _Stepwise.apply(logits, target, teacher_logits, options, name)
    else:
        loss, terms, _, _ = torch.ops.snnfast.stepwise_loss.default(
            logits, target, teacher_logits, *options, False, name
        )
    return (loss, _named(terms, names)) if return_terms else loss


@_memoized
def _twkd_options(alpha, beta, temperature, self_target, scale_by_temperature, skip_all_wrong,
                  label_smoothing, ignore_index, return_terms):  # fmt: skip
    op = "twkd_loss"
    if self_target not in tuple(SELF_TARGETS):  # what is not hashable, too
        raise ValueError(
            f"{op}: self_target must be one of {', '.join(SELF_TARGETS)}, got {self_target!r}"
        )
    return _stepwise_options(
        op, weights=(1.0, _weight(op, "alpha", alpha), _weight(op, "beta", beta), 0.0),
        temperatures=(1.0, check.check_positive(op, "temperature", temperature), 1.0),
        scale_by_temperature=scale_by_temperature, self_target=self_target,
        skip_all_wrong=skip_all_wrong, entropy=False, label_smoothing=label_smoothing,
        ignore_index=ignore_index, return_terms=return_terms,
    )  # fmt: skip


def twkd_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.5,
    temperature: float = 3.0,
    self_target: str = "mean",
    scale_by_temperature: bool = True,
    skip_all_wrong: bool = False,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    return_terms: bool = False,
    backend: str | None = None,
):
    r"""Temporal-wise logit distillation (Yu, Zhao et al., ICML 2025, arXiv 2501.15925).

    With the student's logits z_t [B, C] at each of T steps, the teacher's z^A [B, C],
    tau = ``temperature`` and q = softmax(./tau)::

        L = mean_t CE(z_t, y) + alpha tau^2 mean_t KL(q(z^A) || q(z_t))
                              + beta  tau^2 mean_t KL(q(self) || q(z_t))

    Sums run over classes, means over the rows of the batch. ``self`` is the student's own target,
    detached: the mean of z_t over all steps (``"mean"``, the paper), or over those steps whose
    largest logit is the label's (``"correct"``, the authors' code; the first of equal logits
    counts). A row with no such step has zero target logits, which is the uniform distribution.

    Args:
        logits: [T, B, C], time first, T, B and C at least 1; float32, float16, bfloat16, or float64
            (reference and cpu). Any strides, read once without a copy. [B, T, C] is refused by the
            target's shape, but not where B = T: pass ``logits.transpose(0, 1)`` then as well.
        target: labels int64 [B], or class probabilities [B, C] of a floating dtype (Mixup, CutMix),
            whose label for ``"correct"`` is the largest. Without gradient.
        teacher_logits: [B, C], a floating dtype; may be None where ``alpha`` is 0. No gradient.
        alpha, beta: weights >= 0 of the teacher's and of the own target.
        temperature: tau > 0. The cross-entropy is at 1.
        scale_by_temperature: the factors tau^2, which stand in the authors' code but not in the
            printed formula; False leaves them out.
        skip_all_wrong: with ``"correct"``, rows with no right step have an own term of 0 instead.
        label_smoothing: in 0..1, as in torch's cross_entropy.
        ignore_index: rows with this label are out of every term and of the divisor.
        return_terms: also return {"ce", "kl", "self"}, detached, with tau^2 and without alpha and
            beta: the loss is ce + alpha kl + beta self.
        backend: auto, reference, cpu, triton or cuda; see ``snnfast.backend``.

    Returns the loss, a scalar (float64 for float64 logits, else float32), or (loss, terms).

    Arithmetic is float32 (float64 for float64) whatever the logits' dtype. Kept for backward: one
    gradient in the logits' dtype and shape. Differentiable once. Non-finite logits give a
    non-finite loss; so does a batch in which every row is ignored, as in torch.

    Raises:
        TypeError, ValueError: ``twkd_loss: <argument> must be ..., got ...``. A label that is no
            class raises on the CPU; on a GPU its row, and so the loss and its gradient, is NaN.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> loss = snnfast.twkd_loss(student(images), target, teacher(images))
    """
    options = _twkd_options(
        alpha, beta, temperature, self_target, scale_by_temperature, skip_all_wrong,
        label_smoothing, ignore_index, return_terms,
    )  # fmt: skip
    names = ("ce", "kl", "self", "")
    return _stepwise(options, names, logits, target, teacher_logits, return_terms, backend)


@_memoized
def _tser_options(alpha, lam, temperature, ce_temperature, entropy_temperature, convex,
                  scale_by_temperature, label_smoothing, ignore_index, return_terms):  # fmt: skip
    op = "tser_loss"
    alpha, lam = _weight(op, "alpha", alpha), _weight(op, "lam", lam)
    check.check_bool(op, "convex", convex)
    if convex and alpha > 1:
        raise ValueError(f"{op}: alpha must be <= 1 where convex, got {alpha}")
    tau = check.check_positive(op, "temperature", temperature)
    tau_h = tau
    if entropy_temperature is not None:
        tau_h = check.check_positive(op, "entropy_temperature", entropy_temperature)
    return _stepwise_options(
        op, weights=(1 - alpha if convex else 1.0, alpha, 0.0, -lam),
        temperatures=(check.check_positive(op, "ce_temperature", ce_temperature), tau, tau_h),
        scale_by_temperature=scale_by_temperature, self_target=None, skip_all_wrong=False,
        entropy=True, label_smoothing=label_smoothing, ignore_index=ignore_index,
        return_terms=return_terms,
    )  # fmt: skip


def tser_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    alpha: float = 0.2,
    lam: float = 0.05,
    temperature: float = 4.0,
    ce_temperature: float = 1.0,
    entropy_temperature: float | None = None,
    convex: bool = False,
    scale_by_temperature: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    return_terms: bool = False,
    backend: str | None = None,
):
    r"""Temporal separation with entropy regularisation (Yu et al., CVPR 2025, arXiv 2503.03144).

    With the student's logits z_t [B, C] at each of T steps and the teacher's z^A [B, C]::

        L = mean_t CE(z_t / tau_CE, y) + alpha tau^2 mean_t KL(q(z^A) || q(z_t))
                                       - lam mean_t H(softmax(z_t / tau_H)),   q = softmax(./tau)

    H is the entropy in nats. It is maximised: the student does not take over the errors of a
    confident teacher. The paper's weights and temperature were not found: alpha, lam, tau, and
    tau_H = tau are reasoned reconstructions (tau in 2..6 is reported to be stable).

    Args:
        alpha, lam: weights >= 0 of the teacher's term and of the entropy.
        temperature: tau > 0. ce_temperature: tau_CE > 0. entropy_temperature: tau_H > 0, or None
            for tau.
        convex: (1 - alpha) CE + alpha tau^2 KL - lam H; alpha is at most 1 then.
        return_terms: also return {"ce", "kl", "entropy"}, detached, with tau^2 and without weights:
            the loss is ce + alpha kl - lam entropy.

    All else, and what is returned and raised, as in :func:`twkd_loss`; with lam = 0 the loss is
    that of ``twkd_loss`` with beta = 0.
    """
    options = _tser_options(
        alpha, lam, temperature, ce_temperature, entropy_temperature, convex, scale_by_temperature,
        label_smoothing, ignore_index, return_terms,
    )  # fmt: skip
    names = ("ce", "kl", "", "entropy")
    return _stepwise(options, names, logits, target, teacher_logits, return_terms, backend)


@_memoized
def _tssd_options(alpha, beta, temperature, ce_steps, aux_per_step, scale_by_temperature,
                  label_smoothing, ignore_index, return_terms):  # fmt: skip
    """The op's name, numbers and choices."""
    op = "tssd_loss"
    if ce_steps not in tuple(CE_STEPS):
        raise ValueError(f"{op}: ce_steps must be one of {', '.join(CE_STEPS)}, got {ce_steps!r}")
    smoothing = _check_common(
        op, label_smoothing, ignore_index, aux_per_step=aux_per_step,
        scale_by_temperature=scale_by_temperature, return_terms=return_terms,
    )  # fmt: skip
    tau = check.check_positive(op, "temperature", temperature)
    weights = (1.0, _weight(op, "alpha", alpha), _weight(op, "beta", beta))
    kl_scale = tau * tau if scale_by_temperature else 1.0
    numbers = [*weights, *CE_STEPS[ce_steps], tau, kl_scale, smoothing]
    return op, numbers, [int(aux_per_step), ignore_index]


def tssd_loss(
    logits: Tensor,
    target: Tensor,
    aux_logits: Tensor | None = None,
    *,
    student_steps: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 2.0,
    ce_steps: str = "all",
    aux_per_step: bool = True,
    scale_by_temperature: bool = False,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    return_terms: bool = False,
    backend: str | None = None,
):
    r"""Temporal-spatial self-distillation (Zuo, Ding et al. 2024, arXiv 2406.07862).

    One run of T steps is the teacher of its own first T_s = ``student_steps``, and its logits z_t
    teach the logits w_t of a weak classifier on an intermediate stage. With q = softmax(./tau)::

        L = CE + alpha KL(q(mean of all z_t) || q(mean of the first T_s z_t))
               + beta mean_t KL(q(z_t) || q(w_t))

    Both teachers (the left sides) are detached. The cross-entropy is that of the mean of all z_t
    (``ce_steps="all"``), of the first T_s (``"student"``), or the mean of the two (``"both"``).
    That it is of all steps, tau, the weights and the missing tau^2 are reasoned reconstructions
    from later work of the same group.

    Args:
        aux_logits: w_t [T, B, C] in the logits' dtype, may require gradient, which comes from the
            third term alone; may be None where ``beta`` is 0.
        student_steps: T_s in 1..T. T_s = T makes the second term 0.
        aux_per_step: False compares the means over all steps instead, KL(q(mean z_t) || q(mean
            w_t)).
        scale_by_temperature: multiply both KL terms by tau^2.
        return_terms: also return {"task", "temporal", "spatial"}, detached and without weights: the
            loss is task + alpha temporal + beta spatial.

    All else, and what is returned and raised, as in :func:`twkd_loss`. ``aux_logits`` keeps one
    gradient of its own for backward.
    """
    op, numbers, choices = _tssd_options(
        alpha, beta, temperature, ce_steps, aux_per_step, scale_by_temperature, label_smoothing,
        ignore_index, return_terms,
    )  # fmt: skip
    _check_problem(op, logits, target, ignore_index)
    check.check_int(op, "student_steps", student_steps, 1)
    if student_steps > logits.shape[0]:
        raise ValueError(
            f"{op}: student_steps must be in 1..T = {logits.shape[0]}, got {student_steps}"
        )
    if aux_logits is not None:
        check.check_logits(op, "aux_logits", aux_logits, logits, logits.shape)
        check.refuse_transforms(op, aux_logits)
        if aux_logits.dtype != logits.dtype:
            raise TypeError(
                f"{op}: aux_logits must be {check.type_name(logits)} as the logits, "
                f"got {check.type_name(aux_logits)}"
            )
    elif beta != 0:
        raise ValueError(f"{op}: aux_logits must be given where beta is not 0, got None")
    name = select(op, backend, logits.device.type, logits.dtype, False)

    options = (op, student_steps, numbers, choices)
    aux_requires_grad = aux_logits is not None and aux_logits.requires_grad
    if name == "reference":
        _refuse_labels_on_cpu(op, target, logits, ignore_index)
        sizes = (student_steps, logits.shape[0])
        spec = _tssd_spec.__wrapped__(numbers, choices, *sizes, False, False)
        loss, terms = reference.tssd_loss(logits, target, aux_logits, spec)
    elif torch.is_grad_enabled() and (logits.requires_grad or aux_requires_grad):
        loss, terms = _Tssd.apply(logits, target, aux_logits, options, name)
    else:
        loss, terms, *_ = torch.ops.snnfast.tssd_loss.default(
            logits, target, aux_logits, *options, False, False, name
        )
    return (loss, _named(terms, ("task", "temporal", "spatial"))) if return_terms else loss


def check_options(loss, options: dict) -> None:
    """What ``loss``, one of the three functions, refuses of all its keyword arguments before it
    sees a tensor."""
    check_numbers = {
        twkd_loss: _twkd_options, tser_loss: _tser_options, tssd_loss: _tssd_options,
    }[loss]  # fmt: skip
    check_numbers(*(options[name] for name in inspect.signature(check_numbers).parameters))
    if "student_steps" in options:
        check.check_int(loss.__name__, "student_steps", options["student_steps"], 1)
    if options["backend"] is not None:
        check_name(options["backend"], loss.__name__)


def temporal_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    """mean_t CE(z_t, y): every step's logits are held to the label (temporal efficient training,
    Deng et al., ICLR 2022, arXiv 2202.11946, without its regulariser).

    Arguments as in :func:`twkd_loss`, which this is with alpha = beta = 0.
    """
    return twkd_loss(
        logits, target, alpha=0.0, beta=0.0, label_smoothing=label_smoothing,
        ignore_index=ignore_index, backend=backend,
    )  # fmt: skip


def mean_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    """CE(mean_t z_t, y): the usual objective of a spiking classifier.

    Arguments as in :func:`tssd_loss`, which this is with alpha = beta = 0.
    """
    return tssd_loss(
        logits, target, student_steps=1, alpha=0.0, beta=0.0, label_smoothing=label_smoothing,
        ignore_index=ignore_index, backend=backend,
    )  # fmt: skip
