"""From values to spikes: how an image or a signal is shown to a spiking network, time first.

A static image needs no encoder: hand it to the first layer as it is (direct encoding, the network's
first convolution and neurons are the encoder), with ``timesteps=T`` read once.
"""

import math

import torch
from torch import Tensor


def rate(x: Tensor, timesteps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Poisson (rate) coding: a spike in every timestep with probability ``x``.

    P(S_t = 1) = x, independently over time (Bernoulli trials, the discrete Poisson process of
    SpikingJelly's PoissonEncoder and snnTorch's spikegen.rate).

    ``x`` [...], floating point in 0..1, of which nothing is differentiated; ``generator`` lies on
    its device. Returns spikes [T, ...] in x's dtype. Raises TypeError, or ValueError for a value
    outside of 0..1 (checked on the CPU alone).
    """
    timesteps = _steps("rate", timesteps)
    x = _unit_range("rate", x)
    # In float32: a float16 draw has 2^11 values, and 0 among them often enough to be seen.
    drawn = torch.rand((timesteps, *x.shape), generator=generator, device=x.device)
    return (drawn < x.to(drawn.dtype)).to(x.dtype)


def latency(x: Tensor, timesteps: int, *, function: str = "linear", tau: float = 1.0) -> Tensor:
    """Latency (time to first spike) coding: one spike, the earlier the larger ``x``.

    Timestep of the spike, rounded to the nearest (halves to even)::

        linear   t = (T - 1) (1 - x)
        log      t = (T - 1) - ln(1 + a x), a so that x = 1 spikes at 0, as SpikingJelly's
                 LatencyEncoder
        rc       t = tau ln(u / (u - 1)), u = max(x, eps) / eps: when a leaky integrator driven by x
                 reaches eps = 0.01 (snnTorch's spikegen.latency), at most T - 1

    ``x`` [...], floating point in 0..1; ``tau`` in timesteps, of "rc" alone. Returns spikes
    [T, ...] in x's dtype, exactly one per element. Raises TypeError or ValueError.
    """
    timesteps = _steps("latency", timesteps)
    x = _unit_range("latency", x)
    last, value = timesteps - 1, x.double()
    if function == "linear":
        at = last * (1 - value)
    elif function == "log":
        at = last - torch.log1p(value * math.expm1(last))
    elif function == "rc":
        ratio = value.clamp(min=0.01) / 0.01
        at = _positive("latency", "tau", tau) * torch.log(ratio / (ratio - 1))
    else:
        raise ValueError(f"latency: function must be linear, log or rc, got {function!r}")
    at = at.clamp(0, last).round().long()
    return torch.zeros((timesteps, *x.shape), dtype=x.dtype, device=x.device).scatter_(
        0, at[None], 1
    )


def delta(x: Tensor, threshold: float, *, off_spikes: bool = False) -> Tensor:
    """Delta modulation: a spike where a signal has changed by ``threshold`` since the last step.

    S_t = 1 where x_t - x_{t-1} >= threshold, with x_{-1} = 0; with ``off_spikes`` also -1 where it
    is <= -threshold (snnTorch's spikegen.delta, which starts from x_0 instead: shift by it for
    that).

    ``x`` [T, ...], floating point. Returns spikes in x's shape and dtype. Raises TypeError or
    ValueError.
    """
    _floating("delta", x)
    if x.dim() == 0:
        raise ValueError("delta: x must be [T, ...], got a tensor without dimensions")
    threshold = _positive("delta", "threshold", threshold)
    change = torch.diff(x, dim=0, prepend=torch.zeros_like(x[:1]))
    spikes = (change >= threshold).to(x.dtype)
    return spikes - (change <= -threshold).to(x.dtype) if off_spikes else spikes


def direct(x: Tensor, timesteps: int) -> Tensor:
    """Direct (constant current) coding: ``x`` at every timestep.

    ``x`` [...]. Returns a view [T, ...] with a time stride of 0, which ``snnfast.lif`` reads
    without a copy. Raises TypeError or ValueError.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"direct: x must be a tensor, got {type(x).__name__}")
    return x.expand(_steps("direct", timesteps), *x.shape)


def _steps(name: str, timesteps: int) -> int:
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"{name}: timesteps must be an int, got {type(timesteps).__name__}")
    if timesteps < 1:
        raise ValueError(f"{name}: timesteps must be >= 1, got {timesteps}")
    return timesteps


def _positive(name: str, argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {argument} must be > 0 and finite, got {value}")
    return value


def _floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}".replace("torch.", ""))


def _unit_range(name: str, x: Tensor) -> Tensor:
    _floating(name, x)
    x = x.detach()
    # NaN is in no range. On a GPU the answer would have to be waited for.
    if x.device.type == "cpu" and x.numel() and not ((x >= 0) & (x <= 1)).all():
        low, high = x.min().item(), x.max().item()
        raise ValueError(f"{name}: x must be in 0..1, got {low:.4g} to {high:.4g}")
    return x
