"""``lif`` in plain PyTorch."""

import math

import torch
from torch import Tensor

from snnfast.reference.neuron import fire
from snnfast.surrogate import Surrogate


class _HardReset(torch.autograd.Function):
    """V = r where S else H, with dV/dH = 1 - S and dV/dS = r - H."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h, s, r):
        return torch.where(s > 0, torch.full_like(h, r), h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        h, s, ctx.r = inputs
        ctx.save_for_backward(h, s)
        ctx.save_for_forward(h, s)

    @staticmethod
    def backward(ctx, grad):
        h, s = ctx.saved_tensors
        return grad * (1 - s), grad * (ctx.r - h), None


class _HardResetForward(_HardReset):
    """The same in forward mode, too, which torch.compile does not take."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx, dh, ds, _):
        h, s = ctx.saved_tensors
        return dh * (1 - s) + ds * (ctx.r - h)


def charge(x: Tensor, v: Tensor, r: float, rate: Tensor | float, divide: bool, decay_input: bool):
    """H of one step. ``rate`` is tau where ``divide``, else 1/tau; tau = inf (a float) is IF."""
    if isinstance(rate, float) and rate == math.inf:
        return v + x
    if isinstance(rate, float):
        # tensor / python_scalar multiplies by the reciprocal on CUDA; a tensor divides everywhere.
        rate = torch.full((), rate, dtype=v.dtype, device=v.device)
    d = x - (v - r) if decay_input else v - r
    q = d / rate if divide else d * rate
    return v + q if decay_input else v - q + x


def reset(h: Tensor, s: Tensor, threshold, v_reset, detach_reset: bool = False) -> Tensor:
    """V after the spikes ``s``: ``v_reset`` (hard), where that is None H - threshold S (soft)."""
    s = s.detach() if detach_reset else s
    if v_reset is None:
        return h - s * threshold
    if isinstance(v_reset, Tensor) or v_reset:
        return s * v_reset + (1 - s) * h
    return (1 - s) * h


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
    hard_reset = _HardReset if torch.compiler.is_compiling() else _HardResetForward
    spikes, states = [], [v]
    # A static input is widened once, so that its gradient is summed over time in the state's dtype.
    static = None if timesteps is None else x.to(state)
    for t in range(steps):
        x_t = x[t].to(state) if static is None else static
        h = charge(x_t, v, r, rate, divide, decay_input)
        s = fire(h - v_threshold, surrogate)
        s_reset = s.detach() if detach_reset else s
        if v_reset is None:
            v = h - v_threshold * s_reset
        elif surrogate.spiking:
            v = hard_reset.apply(h, s_reset, r)
        else:
            v = (1 - s_reset) * h + s_reset * r
        spikes.append(s.to(x.dtype))
        states.append(v)
    s = torch.stack(spikes) if spikes else x.new_empty((0, *shape))
    return s, torch.stack(states)
