"""One point of the LIF benchmark: data, reference, and the gate that a contender must pass. With
another subject it is one of any neuron's.

A contender's spikes are compared with the reference over all neurons and timesteps, its gradient
over the first and last rows of the batch (neurons are independent of one another, so a part of the
reference is the reference of that part).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import measure
import torch
from peers import HALF_STATE, Contender
from torch import Tensor

import snnfast
from snnfast import reference
from snnfast.backends.spec import LifLayer, segments
from snnfast.ops.layer import lif_layer
from snnfast.surrogate import ATan

SURROGATE = ATan(alpha=2.0)
NEURON = {
    "rate": 2.0,
    "divide": True,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "detach_reset": False,
    "surrogate": SURROGATE,
}
CHUNK = 1 << 21
"""Neuron-steps that the reference takes at once, and that gradients are compared on."""

GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Of the largest gradient: float32 rounding over 100 steps, or two roundings of the half dtype."""


@dataclass(frozen=True)
class Subject:
    """A neuron, as a benchmark looks at it."""

    name: str
    loop: Callable[[Tensor], Tensor]
    """x [T, ...] -> outputs [T, ...] by its definition, differentiable."""
    mean: float = 0.5
    std: float = 1.5
    """Of a normal input, of which it fires now and then."""
    analog: bool = False
    """Whether outputs are other than small whole numbers."""
    tolerance: float = 0.0
    """The share of our own outputs that may differ."""


LIF = Subject("lif", lambda x: reference.lif(x, **NEURON)[0])


def ours(backend: str) -> Contender:
    """snnfast.lif on one backend."""
    layer = partial(snnfast.lif, tau=2.0, surrogate=SURROGATE, backend=backend)
    return Contender(f"snnfast {backend}", "ours", layer)


@dataclass(kw_only=True)
class Verdict(measure.Verdict):
    spike_mismatches: int | None = None
    spikes_compared: int | None = None


class Case(measure.Case):
    """``shape`` is one timestep [B, ...]; ``sets`` inputs are made, to rotate among."""

    unit = "neuron_step"
    subject = LIF

    def __init__(self, shape, dtype: torch.dtype, steps: int, device: torch.device, sets: int = 1):
        super().__init__(shape, dtype, steps, device)

        def normal(mean, std):
            return self.normal((steps, *self.shape)).mul_(std).add_(mean).to(dtype)

        self.x = [normal(self.subject.mean, self.subject.std) for _ in range(sets)]
        self.ds = [normal(0.0, 1.0) for _ in range(sets)]
        self.sources = [(x,) for x in self.x]
        self.neurons = math.prod(self.shape)
        self.count = self.neurons * steps
        self.where = {
            "shape": measure.label(shape),
            "neurons": self.neurons,
            "dtype": measure.dtype_name(dtype),
            "steps": steps,
        }
        self.key = (self.subject.name, self.shape, dtype)
        """What is the same at every T."""
        per_row = self.count // self.shape[0]
        self._chunk = max(1, CHUNK // per_row)
        self.rows = self._ends(min(self.shape[0], self._chunk))
        self.spikes = self._reference_spikes()
        self.dx = self._reference_gradient()

    def layer(self) -> LifLayer:
        return lif_layer(self.steps, surrogate=SURROGATE)

    def borders(self) -> Tensor | None:
        """Room for V at the borders of segments, [segments - 1, ...] float32, for long T."""
        kept = segments(self.steps) - 1
        return torch.empty((kept, *self.shape), device=self.device) if kept else None

    def _ends(self, count: int) -> Tensor:
        first = (count + 1) // 2
        rows = [*range(first), *range(self.shape[0] - (count - first), self.shape[0])]
        return torch.tensor(rows, device=self.device)

    def _reference_spikes(self) -> Tensor:
        kept = self.dtype if self.subject.analog else torch.int8
        spikes = torch.empty(self.x[0].shape, dtype=kept, device=self.device)
        with torch.no_grad():
            for begin in range(0, self.shape[0], self._chunk):
                rows = slice(begin, begin + self._chunk)
                spikes[:, rows] = self.subject.loop(self.x[0][:, rows])
        return spikes

    def _reference_gradient(self) -> Tensor:
        x = self.x[0][:, self.rows].requires_grad_()
        s = self.subject.loop(x)
        (dx,) = torch.autograd.grad(s, x, self.ds[0][:, self.rows])
        return dx.float()

    def judge(self, s: Tensor, dx: Tensor, contender: Contender) -> Verdict:
        """Hold spikes and gradient of x[0], ds[0] to the reference or the contender's oracle."""
        if not contender.gated:
            return Verdict()
        if s.shape != self.x[0].shape:
            return Verdict(refused=f"spikes of shape {tuple(s.shape)}")
        if contender.oracle is None:
            wrong = _differ(s, self.spikes)
            compared = s.numel()
        else:
            with torch.no_grad():
                expected = contender.oracle(self.x[0][:, self.rows].float())
            wrong = _differ(s[:, self.rows], expected != 0)
            compared = expected.numel()
        verdict = Verdict(spike_mismatches=wrong, spikes_compared=compared)
        if wrong > contender.tolerance * compared:
            verdict.refused = f"{wrong} of {compared} spikes differ from the reference"
            return verdict
        error = self._gradient_error(s, dx, contender)
        if error is not None:
            verdict.gradient_error = error if math.isfinite(error) else None
            limit = GRADIENT_TOLERANCE[self.dtype]
            verdict.holds("gradient", error, limit, " of its largest value")
        return verdict

    def _gradient_error(self, s: Tensor, dx: Tensor, contender: Contender) -> float | None:
        """Largest error over the largest gradient; None where another spike makes another one."""
        dx = dx[:, self.rows].float()
        if contender.oracle is not None or contender.tolerance >= HALF_STATE:
            return 0.0 if bool(dx.isfinite().all()) and bool(dx.any()) else math.nan
        if _differ(s[:, self.rows], self.spikes[:, self.rows]):
            return None
        return float((dx - self.dx).abs().max() / self.dx.abs().max())


def _differ(s: Tensor, expected: Tensor) -> int:
    """How many elements of s are not exactly as expected; step by step, to spare memory."""
    return sum(int((a != b.to(a.dtype)).sum()) for a, b in zip(s, expected))
