"""One point of the block benchmark: data, the contenders, and the gate that they must pass.

A contender is a ``part``, BatchNorm + [residual +] LIF as a module, ``part(y, residual=None) -> s``
on [T, B, C, H, W]; the blocks put torch's convolutions around it. The gate judges every part by its
own inputs, those that reached it inside a block, too: a spike that differs there changes all that
comes after it, and is no error there. The reference is snnfast.reference in float64, on some
channels: no channel depends on another.

A spike may differ from the reference's only on the threshold: where a neuron's spikes differ for
the first time, H - theta must be within the rounding of what the contender holds H in.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import measure
import torch
from lif_case import GRADIENT_TOLERANCE, NEURON, SURROGATE
from peers import time_loop
from torch import Tensor, nn

import snnfast
from snnfast import reference
from snnfast.nn.over_time import over_time

CHUNK = 1 << 18
"""Elements that the gate looks at: whole channels, one at least."""

FLOAT_BAND = 1e-5
BANDS = {torch.float32: FLOAT_BAND, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
"""|H - theta| at a spike that may differ, by the dtype that X or V is rounded to: statistics summed
in another order in float32, or two roundings of values up to 8 in the half dtypes."""

FLIPS = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""The share of spikes that may differ."""

HALF_GRADIENT = 0.5
"""Error of the gradient's norm where X or V is in half precision: another X, another surrogate."""

SUMS = 1e-4
"""Of the largest: gradients of weight and bias, which are sums over a channel, and statistics."""


class Fused(nn.BatchNorm2d):
    """snnfast.norm_lif on one backend."""

    def __init__(self, channels: int, backend: str):
        super().__init__(channels)
        self.backend = backend

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        self.num_batches_tracked.add_(1)
        return snnfast.norm_lif(
            y,
            residual,
            weight=self.weight,
            bias=self.bias,
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            tau=NEURON["rate"],
            surrogate=SURROGATE,
            backend=self.backend,
        )


class Unfused(nn.BatchNorm2d):
    """torch's BatchNorm2d with time folded into the batch, a sum, and ``neuron(x) -> s``."""

    def __init__(self, channels: int, neuron: Callable[[Tensor], Tensor]):
        super().__init__(channels)
        self.neuron = neuron

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        n = over_time(super().forward, y)
        return self.neuron(n if residual is None else n + residual)


def compiled(channels: int) -> nn.Module:
    """BatchNorm2d and the loop over time through inductor, for exactly one shape. (Statistics
    written out by hand, in one or two passes, came out slower than its own of BatchNorm2d.)"""
    return torch.compile(Unfused(channels, time_loop), dynamic=False, fullgraph=True)


@dataclass
class Contender(measure.Contender):
    """``build(channels)`` makes a part; blocks of one contender share nothing but their class."""

    build: Callable[[int], nn.Module]
    half: bool = True
    """Whether X or V is rounded to the I/O dtype."""
    context: Callable = nullcontext
    """Around the forward."""


def ours(backend: str) -> Contender:
    return Contender(f"snnfast {backend}", "ours", partial(Fused, backend=backend), half=False)


def ours_packed(backend: str) -> Contender:
    found = ours(backend)
    found.name, found.context = f"{found.name}, packed", snnfast.packed_spikes
    return found


def unfused(backend: str) -> Contender:
    neuron = partial(snnfast.lif, tau=NEURON["rate"], surrogate=SURROGATE, backend=backend)
    name = f"BatchNorm2d + snnfast.lif {backend}"
    return Contender(name, "peer", partial(Unfused, neuron=neuron))


@dataclass(kw_only=True)
class Verdict(measure.Verdict):
    spikes_compared: int = 0
    spike_flips: int = 0
    flip_margin: float | None = None
    """The largest |H - theta| at the first flip of a neuron. (The gradient's error is that of the
    largest gradient, on channels without flips.)"""

    def join(self, other: "Verdict") -> None:
        """Take in what the gate found of another part of the same block."""
        self.spikes_compared += other.spikes_compared
        self.spike_flips += other.spike_flips
        self.flip_margin = _larger(self.flip_margin, other.flip_margin)
        self.gradient_error = _larger(self.gradient_error, other.gradient_error)
        self.refused = self.refused or other.refused


def _larger(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)


class Case(measure.Case):
    """``shape`` is C x H x W; ``sets`` inputs are made, to rotate among."""

    unit = "element"

    def __init__(self, shape, batch: int, steps: int, dtype, device: torch.device, sets: int = 1):
        super().__init__((steps, batch, *shape), dtype, steps, device)
        self.channels, self.height, self.width = shape
        self.batch, self.count, normal = batch, math.prod(self.shape), self.normal
        self.where = {
            "shape": measure.label(shape),
            "batch": batch,
            "elements": self.count,
            "dtype": measure.dtype_name(dtype),
            "steps": steps,
        }
        per_channel = (self.channels, 1, 1)
        mean, std = 0.3 * normal(per_channel), 1 + 0.2 * normal(per_channel)
        self.weight = 1 + 0.2 * normal(self.channels)
        self.bias = 0.3 + 0.2 * normal(self.channels)
        self.y = [normal(self.shape).mul_(std).add_(mean).to(dtype) for _ in range(sets)]
        """As a convolution gives it: every channel with a mean and spread of its own."""
        self.sources = [(y,) for y in self.y]
        self.ds = [normal(self.shape).to(dtype) for _ in range(sets)]
        self.spikes = [spikes_like(normal(self.shape).to(dtype)) for _ in range(sets)]
        """The block's input and residual: made by our own op, so that they can be kept as bits."""

    def part(self, contender: Contender) -> nn.Module:
        """A new part of the contender, with the case's weight and bias."""
        part = contender.build(self.channels).to(self.device)
        with torch.no_grad():
            part.weight.copy_(self.weight)
            part.bias.copy_(self.bias)
        return part

    def conv(self) -> nn.Conv2d:
        conv = nn.Conv2d(self.channels, self.channels, 3, padding=1, bias=False)
        return conv.to(self.device, self.dtype)

    def chosen(self) -> Tensor:
        """Channels that the gate looks at, the first and the last among them."""
        count = min(self.channels, max(1, CHUNK * self.channels // self.count))
        if count == 1:
            return torch.tensor([self.channels - 1], device=self.device)
        picks = torch.linspace(0, self.channels - 1, count, dtype=torch.float64)
        return picks.round().long().to(self.device)


def spikes_like(x: Tensor) -> Tensor:
    """Spikes of about one in seven, that require gradient."""
    with torch.no_grad():
        s = snnfast.lif(x + 0.3)
    return s.requires_grad_()


class Block(nn.Module):
    """conv3x3 - BN - LIF, and with a second pair of them the residual block
    conv - BN - LIF - conv - BN - add - LIF. Input and output are spikes [T, B, C, H, W]."""

    def __init__(self, convs: list[nn.Conv2d], parts: list[nn.Module]):
        super().__init__()
        self.convs, self.parts = nn.ModuleList(convs), nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        s = self.parts[0](over_time(self.convs[0], x))
        if len(self.parts) == 1:
            return s
        return self.parts[1](over_time(self.convs[1], s), x)


class Recorder(nn.Module):
    """A part that notes what reaches and leaves it, forward and backward."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        self.before = (self.part.running_mean.clone(), self.part.running_var.clone())
        if residual is not None:  # a name of its own: the gradient of this use alone
            residual = residual.view_as(residual)
        s = self.part(y, residual)
        self.seen = {"y": y.detach(), "residual": _detached(residual), "s": s.detach()}
        for name, tensor in (("dy", y), ("dr", residual), ("ds", s)):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(partial(self.seen.__setitem__, name))
        return s

    def judge(self, case: Case, contender: Contender, dweight: Tensor, dbias: Tensor) -> Verdict:
        """Hold the last pass to the reference. Call it after backward."""
        part, seen, k = self.part, self.seen, case.chosen()
        s = seen["s"]
        if s.shape != case.shape or s.dtype != case.dtype:
            return Verdict(refused=f"spikes {tuple(s.shape)} {s.dtype}")
        expected = _reference(seen, k, part)
        verdict, clean = _spikes(s[:, :, k], expected["margin"], case, contender)
        if verdict.refused:
            return verdict
        if not bool(((s == 0) | (s == 1)).all()):
            verdict.refused = "spikes other than 0 and 1"
            return verdict
        half = contender.half and case.dtype != torch.float32
        limit = HALF_GRADIENT if half else GRADIENT_TOLERANCE[case.dtype]
        found = {"dy": seen["dy"][:, :, k]}
        if "dr" in seen:
            found["dr"] = seen["dr"][:, :, k]
        for name in ("dy", "dr"):
            if name in seen and not bool(seen[name].isfinite().all()):
                verdict.refused = f"{name} is not finite"
                return verdict
        for name, tensor in found.items():
            if half:
                error = _norm_error(tensor, expected[name])
            elif not bool(clean.any()):
                continue
            else:
                error = _largest_error(tensor[:, :, clean], expected[name][:, :, clean])
                verdict.gradient_error = _larger(verdict.gradient_error, error)
            if not verdict.holds(name, error, limit):
                return verdict
        sums = {"dweight": dweight[k], "dbias": dbias[k]}
        limit = HALF_GRADIENT if half else max(SUMS, GRADIENT_TOLERANCE[case.dtype])
        for name, tensor in sums.items():
            if not half and not bool(clean.any()):
                continue
            keep = torch.ones_like(clean) if half else clean
            # The terms of such a sum cancel: its rounding is that of their root-mean-square sum.
            scale = expected["sum_scale"]
            error = float((tensor.double() - expected[name])[keep].abs().max()) / scale
            if not verdict.holds(name, error, limit):
                return verdict
        for name, old in zip(("mean", "var"), self.before):
            now = getattr(part, f"running_{name}").detach()
            new = torch.lerp(old[k].double(), expected[name], part.momentum)
            verdict.holds(f"running_{name}", float((now[k] - new).abs().max()), SUMS)
        return verdict


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _reference(seen: dict, k: Tensor, part: nn.Module) -> dict:
    """Margins, gradients and statistics of the channels k, in float64."""
    y = seen["y"][:, :, k].double().requires_grad_()
    residual = seen["residual"]
    if residual is not None:
        residual = residual[:, :, k].double().requires_grad_()
    weight, bias = (p.detach()[k].double().requires_grad_() for p in (part.weight, part.bias))
    affine = {"weight": weight, "bias": bias, "eps": part.eps}
    s, states = reference.norm_lif(
        y, residual, None, **affine, mean=None, var=None, timesteps=None, **NEURON
    )
    ds = seen["ds"][:, :, k].double()
    names = ["dy", "dweight", "dbias"] + (["dr"] if residual is not None else [])
    inputs = [y, weight, bias] + ([residual] if residual is not None else [])
    found = dict(zip(names, torch.autograd.grad(s, inputs, ds)))
    with torch.no_grad():
        mean, var = reference.channel_stats(y, 2)
        x = reference.normalise(y, mean, weight * torch.rsqrt(var + part.eps), bias, 2)
        if residual is not None:
            x = x + residual
        rate, divide, decay = (NEURON[key] for key in ("rate", "divide", "decay_input"))
        h = reference.charge(x, states[:-1], NEURON["v_reset"], rate, divide, decay)
        n = y.numel() / y.shape[2]
        found |= {"margin": h - NEURON["v_threshold"], "mean": mean, "var": var * (n / (n - 1))}
        found["sum_scale"] = float(ds.norm() / math.sqrt(y.shape[2]))
    return found


def _spikes(s: Tensor, margin: Tensor, case: Case, contender: Contender) -> tuple[Verdict, Tensor]:
    """The verdict on the spikes, and which channels have none that differs."""
    wrong = (s != 0) != (margin >= 0)
    flips = int(wrong.sum())
    verdict = Verdict(spikes_compared=s.numel(), spike_flips=flips)
    clean = ~wrong.any(0).any(0).flatten(1).any(1)
    if not flips:
        return verdict, clean
    first = wrong & (wrong.cumsum(0) == 1)
    verdict.flip_margin = float(margin[first].abs().max())
    dtype = case.dtype if contender.half else torch.float32
    band, share = BANDS[dtype], FLIPS[dtype]
    if not verdict.flip_margin <= band:
        verdict.refused = (
            f"a spike differs {verdict.flip_margin:.1e} off the threshold (band {band:.1e})"
        )
    elif flips > share * s.numel():
        verdict.refused = f"{flips} of {s.numel()} spikes differ"
    return verdict, clean


def _largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def _norm_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())
