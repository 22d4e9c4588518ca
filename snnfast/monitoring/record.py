"""What is added up of one layer of neurons: no activation, but for those that are asked for."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfast.ops.spikes import pack_spikes, unpack_spikes


class Moments:
    """Mean and deviation per timestep of numbers [T, ...], over calls whose T may differ."""

    def __init__(self):
        self._sums = None  # float64 [3, T]: how many, their sum, and that of their squares
        self.last_alone = False  # whether of some calls the last timestep alone was seen

    def add(self, values: Tensor, at: int = 0) -> None:
        """``at``: the timestep of the first."""
        values = values.detach()
        rows = values.flatten(1) if values.dim() > 1 else values[:, None]
        if not rows.numel():
            return
        rows = rows if rows.dtype == torch.float64 else rows.float()
        variance, mean = (m.double() for m in torch.var_mean(rows, 1, correction=0))
        count = torch.full_like(mean, rows.shape[1])
        sums = torch.stack([count, mean * count, (variance + mean**2) * count])
        self._sums = _added(self._sums, F.pad(sums, (at, 0)))

    @property
    def mean(self) -> Tensor | None:
        """float64 [T], NaN at timesteps that were not seen; None where nothing was seen."""
        return None if self._sums is None else self._sums[1] / self._sums[0]

    @property
    def std(self) -> Tensor | None:
        """float64 [T], of all numbers of a timestep, as ``mean``."""
        if self._sums is None:
            return None
        count, total, squares = self._sums
        return (squares / count - (total / count) ** 2).clamp(min=0).sqrt()

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and deviation over all timesteps that were seen; NaN where nothing was."""
        if self._sums is None:
            return math.nan, math.nan
        count, total, squares = self._sums.sum(1).tolist()
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0))


def _added(so_far: Tensor | None, new: Tensor) -> Tensor:
    """Sums [..., T], of which the shorter gets zeros behind it."""
    if so_far is None:
        return new
    longer, shorter = (so_far, new) if so_far.shape[-1] >= new.shape[-1] else (new, so_far)
    longer = longer.clone()
    longer[..., : shorter.shape[-1]] += shorter.to(longer.device)
    return longer


@dataclass
class LayerRecord:
    """One layer of neurons over all calls that were recorded."""

    name: str
    kind: str
    """Its class."""
    calls: int = 0
    v: Moments = field(default_factory=Moments)
    """The potential behind each step, of the calls that are sampled."""
    gradient: Moments = field(default_factory=Moments)
    """Of the loss with respect to the spikes, of the calls that are sampled."""
    threshold: float | None = None
    spikes: list[tuple] | None = None
    """Kept of the last call: bits, shape and dtype of [T, ...], or of one timestep each."""
    potential: Tensor | None = None
    """Kept of the last call: [T, ...]."""
    _rates: Tensor | None = None  # float64 [2, T]: chances and spikes
    _fired: Tensor | None = None  # per neuron, of so many chances
    _chances: int = 0

    def clear(self) -> None:
        """As before the first call."""
        self.__init__(self.name, self.kind)

    def add_spikes(self, s: Tensor, signed: bool, at: int = 0) -> None:
        """s [T, B, ...], or [T, N] where a call has no batch, from timestep ``at`` on. One pass
        reads it."""
        s = s.detach()
        s = s.abs() if signed else s
        wide = torch.float64 if s.dtype == torch.float64 else torch.float32
        samples = s.shape[1] if s.dim() > 2 else 1
        fired = s.sum(1, dtype=wide) if s.dim() > 2 else s.to(wide)  # [T, neurons]
        self.calls += at == 0
        if not fired.numel() or not samples:
            return
        spikes = fired.flatten(1).sum(1, dtype=torch.float64) if fired.dim() > 1 else fired.double()
        chances = torch.full_like(spikes, samples * fired[0].numel())
        self._rates = _added(self._rates, F.pad(torch.stack([chances, spikes]), (at, 0)))
        neurons, count = fired.sum(0, dtype=torch.float64), len(s) * samples
        if self._fired is None:
            self._fired, self._chances = neurons, count
        elif self._fired.shape == neurons.shape:
            self._fired, self._chances = self._fired + neurons, self._chances + count
        else:  # inputs of several sizes: which neuron is which cannot be said
            self._fired = neurons.new_zeros(0)

    def keep_spikes(self, s: Tensor, at: int = 0) -> None:
        self.spikes = self.spikes if at else []
        self.spikes.append((pack_spikes(s.detach()), s.shape, s.dtype))

    def kept_spikes(self) -> Tensor:
        return torch.cat([unpack_spikes(*steps) for steps in self.spikes])

    @property
    def rate(self) -> Tensor:
        """Spikes per neuron at each timestep, float64 [T] (the mean of what the layer puts out;
        where that may be negative or graded, of its magnitude)."""
        return torch.zeros(0) if self._rates is None else self._rates[1] / self._rates[0]

    @property
    def mean_rate(self) -> float:
        if self._rates is None:
            return math.nan
        chances, spikes = self._rates.sum(1)
        return float(spikes / chances)

    @property
    def dead(self) -> float:
        """The share of neurons (of one sample) that never fired; NaN where inputs had several
        sizes."""
        return self._share(lambda fired: fired == 0)

    @property
    def saturated(self) -> float:
        """The share of neurons that fired at every step of every sample."""
        return self._share(lambda fired: fired >= self._chances)

    def _share(self, which) -> float:
        if self._fired is None or not self._fired.numel():
            return math.nan
        return float(which(self._fired).double().mean())
