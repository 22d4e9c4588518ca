"""Every op in plain PyTorch: the specification that all backends are held to.

Runs on any device and in float64, needs torch only, and gets its gradients from autograd (not from
a hand-written adjoint), so that the kernels' adjoints are checked against something independent.
Slow and memory-hungry by design.
"""

import math

import torch
from torch import Tensor

from snnfast.surrogate import Surrogate


class _Fire(torch.autograd.Function):
    """S = 1 where x >= 0, with dS/dx = g(x)."""

    @staticmethod
    def forward(ctx, x, surrogate):
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.gradient(x), None


class _HardReset(torch.autograd.Function):
    """V = r where S else H, with dV/dH = 1 - S and dV/dS = r - H."""

    @staticmethod
    def forward(ctx, h, s, r):
        ctx.save_for_backward(h, s)
        ctx.r = r
        return torch.where(s > 0, torch.full_like(h, r), h)

    @staticmethod
    def backward(ctx, grad):
        h, s = ctx.saved_tensors
        return grad * (1 - s), grad * (ctx.r - h), None


def charge(x: Tensor, v: Tensor, r: float, rate: Tensor | float, divide: bool, decay_input: bool):
    """H of one step. ``rate`` is tau where ``divide``, else 1/tau; tau = inf (a float) is IF."""
    if isinstance(rate, float) and math.isinf(rate):
        return v + x
    if isinstance(rate, float):
        # tensor / python_scalar multiplies by the reciprocal on CUDA; a tensor divides everywhere.
        rate = torch.full((), rate, dtype=v.dtype, device=v.device)
    d = x - (v - r) if decay_input else v - r
    q = d / rate if divide else d * rate
    return v + q if decay_input else v - q + x


def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    rate: Tensor | float,
    divide: bool,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: Surrogate,
    timesteps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes [T, ...] in x's dtype and the states [T + 1, ...], from V before t = 0 on.

    ``x`` is [T, ...], or [B, ...] with ``timesteps``; ``rate`` is a float, or a tensor [] or [C].
    State is float32, or float64 for float64 ``x``.
    """
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps = x.shape[0] if timesteps is None else timesteps
    shape = x.shape[1:] if timesteps is None else x.shape
    if isinstance(rate, Tensor) and rate.dim() == 1:
        rate = rate.view(-1, *[1] * (len(shape) - 2))
    r = 0.0 if v_reset is None else v_reset
    v = torch.full(shape, r, dtype=state, device=x.device) if v0 is None else v0
    spikes, states = [], [v]
    for t in range(steps):
        x_t = (x if timesteps is not None else x[t]).to(state)
        h = charge(x_t, v, r, rate, divide, decay_input)
        u = h - v_threshold
        s = _Fire.apply(u, surrogate) if surrogate.spiking else surrogate.primitive(u)
        s_reset = s.detach() if detach_reset else s
        if v_reset is None:
            v = h - v_threshold * s_reset
        elif surrogate.spiking:
            v = _HardReset.apply(h, s_reset, r)
        else:
            v = (1 - s_reset) * h + s_reset * r
        spikes.append(s.to(x.dtype))
        states.append(v)
    s = torch.stack(spikes) if spikes else x.new_empty((0, *shape))
    return s, torch.stack(states)


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
