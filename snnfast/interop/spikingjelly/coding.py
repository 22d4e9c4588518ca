"""Encoders, for both namespaces: from values in [0, 1] to spikes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class EncoderStep:
    """Gives the timesteps of its ``spike`` [T, ...] one after the other, again and again; they are
    made of the input of the first call after ``reset``."""

    def __init__(self, T: int):
        super().__init__()
        if isinstance(T, bool) or not isinstance(T, int) or T < 1:
            raise ValueError(f"{type(self).__name__}: T must be an int >= 1, got {T!r}")
        self.T = T
        self.register_memory("spike", None)
        self.register_memory("t", 0)

    def extra_repr(self):
        return f"T={self.T}"

    def single_step_forward(self, x: Tensor | None = None):
        if self.spike is None:
            self.single_step_encode(x)
        t, self.t = self.t, (self.t + 1) % self.T
        return self.spike[t]

    def single_step_encode(self, x: Tensor) -> None:
        """Make ``self.spike`` [T, ...] of x [...]."""
        raise NotImplementedError(f"{type(self).__name__} must define how it encodes")


class PeriodicEncoderStep(EncoderStep):
    """Repeats ``spike`` [T, ...]."""

    def __init__(self, spike: Tensor):
        super().__init__(spike.shape[0])
        self.single_step_encode(spike)
        self.set_reset_value("spike", spike)

    def single_step_encode(self, spike: Tensor) -> None:
        self.spike = spike
        self.T = spike.shape[0]


class LatencyEncoderStep(EncoderStep):
    """One spike, the earlier the larger the value: at (T - 1)(1 - x) ("linear"), or at
    T - 1 - ln(alpha x + 1) with alpha = exp(T - 1) - 1 ("log"), rounded."""

    def __init__(self, T: int, enc_function: str = "linear"):
        super().__init__(T)
        if enc_function not in ("linear", "log"):
            who = type(self).__name__
            raise ValueError(f"{who}: enc_function must be 'linear' or 'log', got {enc_function!r}")
        self.enc_function = enc_function
        if enc_function == "log":
            self.alpha = math.exp(T - 1.0) - 1.0

    def single_step_encode(self, x: Tensor) -> None:
        if self.enc_function == "log":
            when = self.T - 1.0 - torch.log(self.alpha * x + 1.0)
        else:
            when = (self.T - 1.0) * (1.0 - x)
        self.spike = F.one_hot(when.round().long(), self.T).to(x).movedim(-1, 0)


class WeightedPhaseEncoderStep(EncoderStep):
    """The K binary digits of x in [0, 1 - 2^-K], the largest first (Kim et al. 2018)."""

    def __init__(self, K: int):
        super().__init__(K)

    def single_step_encode(self, x: Tensor) -> None:
        largest = 1 - 2**-self.T
        if not ((x >= 0) & (x <= largest)).all():
            who = type(self).__name__
            raise ValueError(f"{who}: x must be in [0, {largest}], got {x.min()} to {x.max()}")
        rest, digits = x.clone(), []
        for k in range(1, self.T + 1):
            digits.append((rest >= 2.0**-k).to(torch.get_default_dtype()))
            rest = rest - digits[-1] * 2.0**-k
        self.spike = torch.stack(digits)


def poisson(x: Tensor) -> Tensor:
    """A spike with probability x."""
    return torch.rand_like(x).le(x).to(x)
