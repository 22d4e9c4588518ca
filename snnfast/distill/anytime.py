"""Every number of timesteps out of one pass."""

import torch
from torch import Tensor

from snnfast.ops import validation as check


def full_range(logits: Tensor, target: Tensor) -> Tensor:
    """Fraction right at every number of timesteps 1 .. T, float64 [T], out of one pass of T steps.

    The prediction after k steps is the argmax of the mean of the first k logits: for a static image
    and a network in evaluation mode these are the logits of a run of k steps.

    ``logits`` [T, B, C], ``target`` int64 [B]. Raises TypeError or ValueError on anything else.
    """
    check.check_sequence("full_range", logits)
    check.check_labels("full_range", target, logits)
    return (_running_mean(logits).argmax(-1) == target).double().mean(1)


def anytime(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Early exit: every sample's prediction at the first timestep that is confident enough.

    The confidence after k steps is the largest probability in the softmax of the mean of the first
    k logits. A sample stops at the first k where it is >= ``threshold``, and at T where it never
    is.

    Args:
        logits: [T, B, C], a floating dtype.
        threshold: a number in 0..1. 0 stops at the first step; 1 where the softmax rounds to 1.

    Returns (prediction int64 [B], steps int64 [B], from 1). Raises TypeError or ValueError.
    """
    check.check_sequence("anytime", logits)
    threshold = check.check_number("anytime", "threshold", threshold)
    if not 0 <= threshold <= 1:
        raise ValueError(f"anytime: threshold must be in 0..1, got {threshold}")
    confidence, prediction = _running_mean(logits).softmax(-1).max(-1)  # [T, B]
    confident = confidence >= threshold
    confident[-1] = True
    first = confident.int().argmax(0)  # of equal values the first
    return prediction.gather(0, first[None])[0], first + 1


def _running_mean(logits: Tensor) -> Tensor:
    """The mean of the first k logits for k = 1 .. T, float64 [T, B, C]."""
    steps = torch.arange(1, logits.shape[0] + 1, device=logits.device).view(-1, 1, 1)
    return logits.detach().double().cumsum(0) / steps
