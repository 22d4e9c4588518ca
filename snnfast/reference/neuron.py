"""Any neuron in plain PyTorch: its step, once per timestep; and the spike of such steps."""

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from snnfast import surrogate as surrogates
from snnfast.program.trace import recording


class _Fire(torch.autograd.Function):
    """S = 1 where x >= 0, with dS/dx = g(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, surrogate):
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.gradient(x), None


class _FireForward(_Fire):
    """The same in forward mode, too, which torch.compile does not take."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx, dx, _):
        (x,) = ctx.saved_tensors
        return dx * ctx.surrogate.gradient(x)


def fire(u: Tensor, surrogate: surrogates.Surrogate) -> Tensor:
    """The spike at u = H - theta; in the smooth twin the surrogate's primitive."""
    if not surrogate.spiking:
        return surrogate.primitive(u)
    function = _Fire if torch.compiler.is_compiling() else _FireForward
    return function.apply(u, surrogate)


class _Local(threading.local):
    def __init__(self):
        self.surrogate = surrogates.resolve("sigmoid")


_local = _Local()


@contextmanager
def _surrogate_of_spikes(surrogate: surrogates.Surrogate):
    before, _local.surrogate = _local.surrogate, surrogate
    try:
        yield
    finally:
        _local.surrogate = before


def spike(u: Tensor, levels: int = 1) -> Tensor:
    r"""The spikes of a step: 1 where u >= 0, else 0; the gradient is the surrogate's, g(u).

    With ``levels`` L an integer spike, how many of the thresholds 0, 1 .. L - 1 u has reached::

        S = sum_k [u >= k],   dS/du = sum_k g(u - k),   k = 0 .. L - 1

    ``spike(h - 0.5, levels=D)`` is clip(round(h), 0, D), the integer spike of Luo et al. 2024
    (arXiv 2407.20708); with the surrogate ``rect`` its gradient is 1 from h = 0 to D.

    Args:
        u: how far the potential is above its threshold, any shape, floating point.
        levels: >= 1.

    Within ``@snnfast.neuron`` the surrogate is that of the call, elsewhere the sigmoid.

    Raises:
        TypeError, ValueError: ``spike: <argument> must be ..., got ...``.
    """
    if not isinstance(u, Tensor) or not u.is_floating_point():
        got = u.dtype if isinstance(u, Tensor) else type(u).__name__
        raise TypeError(f"spike: u must be a floating point tensor, got {got}")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"spike: levels must be an int >= 1, got {levels!r}")
    recorder = recording()
    fires = recorder.spike if recorder else lambda u: fire(u, _local.surrogate)
    s = fires(u)
    for k in range(1, levels):
        s = s + fires(u - k)
    return s


def strict_spike(u: Tensor) -> Tensor:
    """1 where u > 0, not where u = 0; the gradient is g(u) of the surrogate everywhere. The smooth
    twin has no step, so nothing differs there."""
    s = spike(u)
    smooth = not recording() and not _local.surrogate.spiking
    return s if smooth else s - (u == 0).to(u.dtype)


def ternary_spike(u: Tensor, threshold: float = 1.0) -> Tensor:
    """1 where u >= threshold, -1 where u <= -threshold, else 0 (Guo et al. 2024, arXiv 2312.06372);
    the gradient is g(u - threshold) + g(-u - threshold)."""
    return spike(u - threshold) - spike(-u - threshold)


def neuron(
    step: Callable,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor],
    parameters: dict,
    *,
    outputs: int,
    surrogate: surrogates.Surrogate,
    timesteps: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs [T, ...] in x's dtype and the states [T + 1, ...], from those before t = 0 on.

    ``inputs`` are [T, ...], or [...] with ``timesteps``; ``parameters`` numbers, tensors [] or [C]
    and whatever else ``step`` takes by keyword. State is float32, or float64 for float64 input.
    """
    x = inputs[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps = x.shape[0] if timesteps is None else timesteps
    shape = x.shape[1:] if timesteps is None else x.shape
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.dim() == 1:
            parameters = parameters | {name: value.view(-1, *[1] * (len(shape) - 2))}
    every = [[] for _ in range(outputs)]
    passed = [[v] for v in states]
    # A static input is widened once, so that its gradient is summed over time in the state's dtype.
    static = None if timesteps is None else [x.to(dtype) for x in inputs]
    with _surrogate_of_spikes(surrogate):
        for t in range(steps):
            now = [x[t].to(dtype) for x in inputs] if static is None else static
            results = step(*now, *(v[-1] for v in passed), **parameters)
            results = results if isinstance(results, (tuple, list)) else (results,)
            for row, result in zip(every + passed, results, strict=True):
                row.append(_full(result, shape, now[0]))
    spikes = [torch.stack(row).to(x.dtype) if row else x.new_empty((0, *shape)) for row in every]
    return spikes, [torch.stack(row) for row in passed]


def _full(value, shape, like: Tensor) -> Tensor:
    """A result that is one number for all neurons, as a tensor."""
    if not isinstance(value, Tensor):
        value = torch.full((), float(value), dtype=like.dtype, device=like.device)
    return value if value.shape == shape else value.expand(shape)
