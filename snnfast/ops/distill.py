"""``twkd_loss``, ``tser_loss``, ``tssd_loss``: the public functions, and what is checked of their
arguments."""

import inspect
from typing import Any

import torch
from torch import Tensor

from snnfast import reference
from snnfast.backends import spec as specs
from snnfast.backends.spec import StepwiseLoss, TssdLoss
from snnfast.ops import validation as check
from snnfast.ops.direct import applied, is_direct
from snnfast.ops.distill_op import Call, Lent, Stepwise, Tssd, refuse_label, stepwise, tssd
from snnfast.ops.select import check_name, select

SELF_TARGETS = {"mean": specs.SELF_MEAN, "correct": specs.SELF_CORRECT}
CE_STEPS = {"all": (1.0, 0.0), "student": (0.0, 1.0), "both": (0.5, 0.5)}


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
    check.check_sequence(op, logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor, got {check.type_name(target)}")
    if target.dtype == torch.int64:
        return check.check_labels(op, target, logits)
    if target.dtype not in check.IO_DTYPES:
        raise TypeError(
            f"{op}: target must be int64 labels or floating-point class probabilities, "
            f"got {check.type_name(target)}"
        )
    check.check_logits(op, "target", target, logits, logits.shape[1:])
    if target.requires_grad:
        raise ValueError(f"{op}: target must not require gradient; pass target.detach()")
    if ignore_index >= 0:
        raise ValueError(
            f"{op}: ignore_index must be negative with class probabilities, got {ignore_index}"
        )


def _refuse_labels_on_cpu(op: str, target: Tensor, logits: Tensor, ignore_index: int) -> None:
    """What kernels do on the way, for the reference."""
    target = check.to_look_at(target)
    if target is not None and target.dtype == torch.int64:
        wrong = ((target < 0) | (target >= logits.shape[-1])) & (target != ignore_index)
        if bool(wrong.any()):
            refuse_label(op, int(target[wrong][0]), logits, ignore_index)


def _returned(found, names: tuple[str, ...], return_terms: bool):
    """The loss; or with its terms, of those that a kernel fills: one for every name or ""."""
    if not return_terms:
        return found if isinstance(found, Tensor) else found[0]
    loss, terms = found[:2]
    return loss, {name: t for name, t in zip(names, terms.unbind(), strict=True) if name}


def _stepwise_options(
    op, *, weights, temperatures, self_target, skip_all_wrong, entropy, scale_by_temperature,
    label_smoothing, ignore_index, return_terms,
) -> StepwiseLoss:  # fmt: skip
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
    choices = (own, skip_all_wrong, entropy, ignore_index)
    return StepwiseLoss(*choices, *weights, *temperatures, kl_scale, smoothing)


def _stepwise(op, options, names, logits, target, teacher_logits, return_terms, backend):
    """TWKD and TSER, whose options are checked."""
    _check_problem(op, logits, target, options.ignore_index)
    given = (logits, target, teacher_logits)
    if teacher_logits is not None:
        shape = logits.shape[1:]
        check.check_logits(op, "teacher_logits", teacher_logits, logits, shape)
        if options.kl_weight == 0 and not return_terms:
            teacher_logits = None
        elif teacher_logits.requires_grad:
            teacher_logits = teacher_logits.detach()
    elif options.kl_weight != 0:
        raise ValueError(f"{op}: teacher_logits must be given where alpha is not 0, got None")
    seen = check.transformed(logits)
    name = select(op, backend, logits.device.type, logits.dtype, False, transformed=seen)
    direct = is_direct(logits, target, teacher_logits)
    call = Call(op, options, name, direct, return_terms)

    if name == "reference":
        _refuse_labels_on_cpu(op, target, logits, options.ignore_index)
        found = reference.stepwise_loss(logits, target, teacher_logits, options)
    elif torch.is_grad_enabled() and logits.requires_grad:
        lent = Lent.of(*given)
        found = applied(Stepwise, direct, logits, target, teacher_logits, call, lent)
    else:
        found = stepwise(call, logits, target, teacher_logits, False)
    return _returned(found, names, return_terms)


@check.memoized
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
) -> Tensor | Any:
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
    gradient in the logits' dtype and shape. Under a transform of ``torch.func``, in forward mode
    and for gradients with a graph (``create_graph=True``) it is the reference that computes; for
    the latter logits, target and teacher_logits must still be alive. Non-finite logits give a
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
    return _stepwise(
        "twkd_loss", options, names, logits, target, teacher_logits, return_terms, backend
    )


@check.memoized
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
) -> Tensor | Any:
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
    return _stepwise(
        "tser_loss", options, names, logits, target, teacher_logits, return_terms, backend
    )


@check.memoized
def _tssd_options(alpha, beta, temperature, ce_steps, aux_per_step, scale_by_temperature,
                  label_smoothing, ignore_index, return_terms):  # fmt: skip
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
    numbers = (*weights, *CE_STEPS[ce_steps], tau, kl_scale, smoothing)
    return TssdLoss(aux_per_step, ignore_index, *numbers)


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
) -> Tensor | Any:
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
    op = "tssd_loss"
    options = _tssd_options(
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
        if aux_logits.dtype != logits.dtype:
            raise TypeError(
                f"{op}: aux_logits must be {check.type_name(logits)} as the logits, "
                f"got {check.type_name(aux_logits)}"
            )
    elif beta != 0:
        raise ValueError(f"{op}: aux_logits must be given where beta is not 0, got None")
    seen = check.transformed(logits, aux_logits)
    name = select(op, backend, logits.device.type, logits.dtype, False, transformed=seen)
    direct = is_direct(logits, target, aux_logits)
    call = Call(op, options._replace(student_steps=student_steps), name, direct, return_terms)

    aux_requires_grad = aux_logits is not None and aux_logits.requires_grad
    if name == "reference":
        _refuse_labels_on_cpu(op, target, logits, ignore_index)
        found = reference.tssd_loss(logits, target, aux_logits, call.loss)
    elif torch.is_grad_enabled() and (logits.requires_grad or aux_requires_grad):
        lent = Lent.of(logits, target, aux_logits)
        found = applied(Tssd, direct, logits, target, aux_logits, call, lent)
    else:
        found = tssd(call, logits, target, aux_logits, False, False)
    return _returned(found, ("task", "temporal", "spatial"), return_terms)


def loss_options(loss, **options) -> StepwiseLoss | TssdLoss:
    """What ``loss``, one of the three functions, makes of its keyword arguments; refused is what it
    can refuse before it sees a tensor."""
    checked = {
        twkd_loss: _twkd_options, tser_loss: _tser_options, tssd_loss: _tssd_options,
    }[loss]  # fmt: skip
    parameters = inspect.signature(loss).parameters.values()
    given = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | options
    value = checked(*(given[name] for name in inspect.signature(checked).parameters))
    if given["backend"] is not None:
        check_name(given["backend"], loss.__name__)
    if "student_steps" not in given:
        return value
    check.check_int(loss.__name__, "student_steps", given["student_steps"], 1)
    return value._replace(student_steps=given["student_steps"])


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
