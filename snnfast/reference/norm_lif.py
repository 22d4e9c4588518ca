"""``norm_lif`` in plain PyTorch."""

import torch
from torch import Tensor

from snnfast.reference.lif import lif


def channel_stats(y: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of y over all axes but ``axis``."""
    axes = [d for d in range(y.dim()) if d != axis]
    var, mean = torch.var_mean(y, axes, correction=0)
    return mean, var


def inverse_std(var: Tensor, eps: float) -> Tensor:
    """1 / sqrt(var + eps), root and quotient both rounded as IEEE has it: torch's float32 sqrt is
    approximate on a CPU, and its rsqrt on CUDA."""
    return 1 / (var + eps).double().sqrt().to(var.dtype)


def normalise(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, axis: int) -> Tensor:
    """(y - mean) scale + bias, everything but y [C] along ``axis``; unfused, as the kernels do."""
    shape = [-1 if d == axis else 1 for d in range(y.dim())]
    mean, scale, bias = (p.view(shape) for p in (mean, scale, bias))
    return (y - mean) * scale + bias


def norm_lif(
    y: Tensor,
    residual: Tensor | None,
    v0: Tensor | None,
    *,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    timesteps: int | None,
    **neuron,
) -> tuple[Tensor, Tensor]:
    """BatchNorm, then the residual, then :func:`lif`; batch statistics where ``mean`` is None.

    ``y`` is [T, B, C, ...], or [B, C, ...] with ``timesteps``. All in the state's dtype; returns
    the spikes in y's dtype and the states, as ``lif`` does.
    """
    state = torch.float64 if y.dtype == torch.float64 else torch.float32
    axis = 2 if timesteps is None else 1
    wide = y.to(state)
    if mean is None:
        mean, var = channel_stats(wide, axis)
    x = normalise(wide, mean, weight * inverse_std(var, eps), bias, axis)
    if residual is not None:
        x = x + residual.to(state)
    s, states = lif(x, v0, timesteps=timesteps, **neuron)
    return s.to(y.dtype), states
