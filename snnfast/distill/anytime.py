"""Every number of timesteps out of one pass."""

import torch
from torch import Tensor


def full_range(logits: Tensor, target: Tensor) -> Tensor:
    """Fraction right at every number of timesteps 1 .. T, float64 [T], out of one pass of T steps.

    The prediction after k steps is the argmax of the mean of the first k logits: for a static image
    and a network in evaluation mode these are the logits of a run of k steps.

    ``logits`` [T, B, C], ``target`` int64 [B].
    """
    if logits.dim() != 3:
        raise ValueError(f"full_range: logits must be [T, B, C], got {list(logits.shape)}")
    if target.shape != logits.shape[1:2]:
        raise ValueError(
            f"full_range: target must be [{logits.shape[1]}], got {list(target.shape)}"
        )
    steps = torch.arange(1, logits.shape[0] + 1, device=logits.device).view(-1, 1, 1)
    mean = logits.double().cumsum(0) / steps
    return (mean.argmax(-1) == target).double().mean(1)
