"""The distillation objectives in plain PyTorch: the specification that fused ops are held to.

Any device, any floating dtype; float64 logits are computed in float64, all others in float32.
Gradients come from autograd. ``snnfast.ops.distill`` checks the arguments and documents them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SELF_NONE, SELF_MEAN, SELF_CORRECT = 0, 1, 2


def stepwise_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None,
    spec,
    detach_self_target: bool = True,
) -> tuple[Tensor, Tensor]:
    """Per step: cross-entropy, KL to the teacher, KL to the own target, entropy (TWKD, TSER).

    ``spec`` has the fields of ``snnfast.backends.spec.StepwiseLoss``. Returns the loss and the four
    terms, detached.
    """
    y, label, valid = _labels(target, logits, spec.label_smoothing, spec.ignore_index)
    z = _computed(logits, valid)
    log_q = F.log_softmax(z / spec.temperature, -1)  # [T, B, C]

    ce = -(y * F.log_softmax(z / spec.ce_temperature, -1)).sum(-1)  # [T, B]
    kl = own = spread = torch.zeros_like(ce)
    if teacher_logits is not None:
        teacher = _computed(teacher_logits.detach().to(z.dtype), valid)
        kl = spec.kl_scale * _kl(F.log_softmax(teacher / spec.temperature, -1), log_q)
    if spec.self_target != SELF_NONE:
        own_logits, has_target = _own_target(z, label, spec.self_target)
        if detach_self_target:
            own_logits = own_logits.detach()
        own = spec.kl_scale * _kl(F.log_softmax(own_logits / spec.temperature, -1), log_q)
        if spec.skip_all_wrong:
            own = torch.where(has_target, own, 0.0)
    if spec.entropy:
        log_q = F.log_softmax(z / spec.entropy_temperature, -1)
        spread = -(log_q.exp() * log_q).sum(-1)

    return _weighted(spec.weights, [_mean(rows.mean(0), valid) for rows in (ce, kl, own, spread)])


def tssd_loss(
    logits: Tensor, target: Tensor, aux_logits: Tensor | None, spec
) -> tuple[Tensor, Tensor]:
    """Temporal-spatial self-distillation. Returns the loss and its three terms, detached.

    ``spec`` has the fields of ``snnfast.backends.spec.TssdLoss``.
    """
    y, _, valid = _labels(target, logits, spec.label_smoothing, spec.ignore_index)
    z = _computed(logits, valid)
    mean, student = z.mean(0), z[: spec.student_steps].mean(0)  # [B, C]

    task = spatial = z.new_zeros(z.shape[1])  # [B]
    for weight, logits_of_steps in ((spec.ce_all, mean), (spec.ce_student, student)):
        if weight:
            task = task - weight * (y * F.log_softmax(logits_of_steps, -1)).sum(-1)
    log_p = F.log_softmax(mean.detach() / spec.temperature, -1)
    apart = spec.kl_scale * _kl(log_p, F.log_softmax(student / spec.temperature, -1))
    if aux_logits is not None:
        w = _computed(aux_logits, valid)
        p, q = (z, w) if spec.per_step else (z.mean(0, True), w.mean(0, True))
        log_p = F.log_softmax(p.detach() / spec.temperature, -1)
        spatial = spec.kl_scale * _kl(log_p, F.log_softmax(q / spec.temperature, -1)).mean(0)

    return _weighted(spec.weights, [_mean(rows, valid) for rows in (task, apart, spatial)])


def _labels(target, logits, smoothing, ignore_index) -> tuple[Tensor, Tensor, Tensor]:
    """The target distribution y [B, C], its label [B], and which rows count [B]. A label that is no
    class makes its row NaN."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    classes = logits.shape[-1]
    if target.is_floating_point():
        y, label = target.detach().to(dtype), target.argmax(-1)
        valid = torch.ones_like(label, dtype=torch.bool)
    else:
        y = (torch.arange(classes, device=target.device) == target[:, None]).to(dtype)
        label, valid = target, target != ignore_index
        known = ((target >= 0) & (target < classes)) | ~valid
        y = torch.where(known[:, None], y, torch.nan)
    return y * (1 - smoothing) + smoothing / classes, label, valid


def _computed(logits: Tensor, valid: Tensor) -> Tensor:
    """``logits`` in the dtype that is computed in, 0 in rows that do not count."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    return torch.where(valid[:, None], z, 0.0)


def _own_target(z: Tensor, label: Tensor, self_target: int) -> tuple[Tensor, Tensor]:
    """The student's own target logits [B, C], and whether a step is right [B]."""
    right = (z.argmax(-1) == label)[:, :, None]  # [T, B, 1]
    if self_target == SELF_MEAN:
        return z.mean(0), right.new_ones(z.shape[1])
    count = right.sum(0)
    return torch.where(right, z, 0.0).sum(0) / count.clamp(min=1), count[:, 0] > 0


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), summed over classes. [..., C], broadcast against each other."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _mean(rows: Tensor, valid: Tensor) -> Tensor:
    """The mean of rows [B] over those that count; NaN where none does, as torch has it."""
    return torch.where(valid, rows, 0.0).sum() / valid.sum()


def _weighted(weights, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, of the terms with a weight, and all terms."""
    loss = sum(w * term for w, term in zip(weights, terms, strict=True) if w != 0)
    return loss, torch.stack([term.detach() for term in terms])
