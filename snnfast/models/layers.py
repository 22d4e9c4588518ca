"""What spiking models share: time folded into the batch, and the stem that runs once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer without a time axis to x [T, B, ...]: one call on [T * B, ...], T-major."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def timesteps_of(x: Tensor, timesteps: int | None, default: int) -> tuple[bool, int]:
    """(static, T) of a spiking model's input: an image [B, C, H, W] or a sequence [T, B, C, H, W].

    Raises ValueError for other shapes and for a ``timesteps`` that contradicts the sequence.
    """
    if x.dim() == 4:
        steps = default if timesteps is None else timesteps
        if steps < 1:
            raise ValueError(f"model: timesteps must be >= 1, got {steps}")
        return True, steps
    if x.dim() != 5:
        raise ValueError(f"model: x must be [B, C, H, W] or [T, B, C, H, W], got {list(x.shape)}")
    if timesteps not in (None, x.shape[0]):
        raise ValueError(
            f"model: timesteps must be None or the sequence's {x.shape[0]}, got {timesteps}"
        )
    return False, x.shape[0]


class StemBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d for a static image that stands for ``repeats`` equal timesteps.

    Mean and variance are those of one image batch; only the unbiased running variance, which
    divides by n - 1, must count n = repeats * B * H * W, as if the image had been repeated.
    """

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        if not self.training or repeats == 1:
            return super().forward(x)
        # On copies: what autograd keeps of this call must not be written to afterwards.
        mean, var = self.running_mean.clone(), self.running_var.clone()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        n = x.numel() // x.shape[1]
        factor = repeats * (n - 1) / (repeats * n - 1)
        with torch.no_grad():
            kept = (1 - self.momentum) * self.running_var
            self.running_mean.copy_(mean)
            self.running_var.copy_(kept + (var - kept) * factor)
            self.num_batches_tracked += 1
        return y
