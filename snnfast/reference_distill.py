"""The distillation objectives in plain PyTorch: the specification that fused ops are held to.

Any device, any floating dtype; float64 logits are computed in float64, all others in float32.
Gradients come from autograd.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SELF_TARGETS = ("mean", "correct")


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
    return_terms: bool = False,
):
    """Temporal-wise logit distillation (Yu, Zhao et al., ICML 2025, arXiv 2501.15925).

    With the student's logits z_t [B, C] at each of T steps, the teacher's z^A [B, C] and
    q = softmax(./temperature)::

        L = mean_t CE(z_t, y) + alpha tau^2 mean_t KL(q(z^A) || q(z_t))
                              + beta  tau^2 mean_t KL(q(self) || q(z_t))

    Sums run over classes, means over the batch. ``self`` is the student's own target, detached:

    - ``"mean"`` (the paper): the mean of z_t over all steps;
    - ``"correct"`` (the authors' code): the mean over those steps whose argmax is the label; a row
      with no such step has zero target logits, which is the uniform distribution.

    Args:
        logits: [T, B, C], T and B at least 1.
        target: labels [B], int64.
        teacher_logits: [B, C], or None: then the second term is 0. Never gets a gradient.
        scale_by_temperature: the factors tau^2, which stand in the authors' code but not in the
            printed formula; False leaves them out.
        return_terms: also return {"ce", "kl", "self"}, detached and without alpha and beta, so that
            ce + alpha kl + beta self is the loss.

    Returns the loss, a scalar, or (loss, terms). Raises ValueError or TypeError on bad arguments.
    """
    _check(logits, target, teacher_logits, alpha, beta, temperature, self_target)
    z = logits if logits.dtype == torch.float64 else logits.float()
    steps = z.shape[0]
    scale = temperature**2 if scale_by_temperature else 1.0
    log_q = F.log_softmax(z / temperature, dim=-1)

    ce = F.cross_entropy(z.flatten(0, 1), target.repeat(steps))
    kl = z.new_zeros(())
    if teacher_logits is not None:
        kl = scale * _kl(teacher_logits.detach().to(z.dtype) / temperature, log_q)
    own = scale * _kl(_self_logits(z.detach(), target, self_target) / temperature, log_q)

    loss = ce + alpha * kl + beta * own
    if not return_terms:
        return loss
    return loss, {"ce": ce.detach(), "kl": kl.detach(), "self": own.detach()}


def _self_logits(z: Tensor, target: Tensor, self_target: str) -> Tensor:
    """The student's own target logits [B, C] from z [T, B, C]."""
    if self_target == "mean":
        return z.mean(0)
    right = (z.argmax(-1) == target).unsqueeze(-1)  # [T, B, 1]
    return torch.where(right, z, 0.0).sum(0) / right.sum(0).clamp(min=1)


def _kl(p_logits: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q_t): summed over C, averaged over T and B. p_logits [B, C], log_q [T, B, C]."""
    log_p = F.log_softmax(p_logits, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _check(logits, target, teacher_logits, alpha, beta, temperature, self_target):
    if not logits.is_floating_point():
        raise TypeError(f"twkd_loss: logits must be floating point, got {logits.dtype}")
    if logits.dim() != 3 or logits.numel() == 0:
        raise ValueError(
            f"twkd_loss: logits must be [T, B, C], none of them 0, got {list(logits.shape)}"
        )
    _, batch, classes = logits.shape
    if target.dtype != torch.int64:
        raise TypeError(f"twkd_loss: target must be int64 labels, got {target.dtype}")
    if target.shape != (batch,):
        raise ValueError(f"twkd_loss: target must be [{batch}], got {list(target.shape)}")
    if teacher_logits is not None:
        if not teacher_logits.is_floating_point():
            raise TypeError(
                f"twkd_loss: teacher_logits must be floating point, got {teacher_logits.dtype}"
            )
        if teacher_logits.shape != (batch, classes):
            raise ValueError(
                f"twkd_loss: teacher_logits must be [{batch}, {classes}], "
                f"got {list(teacher_logits.shape)}"
            )
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not math.isfinite(value):
            raise ValueError(f"twkd_loss: {name} must be finite, got {value}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"twkd_loss: temperature must be finite and > 0, got {temperature}")
    if self_target not in SELF_TARGETS:
        raise ValueError(
            f"twkd_loss: self_target must be one of {', '.join(SELF_TARGETS)}, got {self_target!r}"
        )
