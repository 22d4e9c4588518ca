"""``spikingjelly.clock_driven.encoding``."""

from torch import Tensor, nn

from snnfast.interop.spikingjelly import coding, peer
from snnfast.interop.spikingjelly.clock_driven import base

__all__ = [
    "LatencyEncoder",
    "PeriodicEncoder",
    "PoissonEncoder",
    "StatefulEncoder",
    "StatelessEncoder",
    "WeightedPhaseEncoder",
]


class StatelessEncoder(nn.Module):
    """Define ``forward``."""


class StatefulEncoder(coding.EncoderStep, base.MemoryModule):
    """Define ``encode(x)``, which makes ``self.spike`` [T, ...]."""

    def forward(self, x: Tensor | None = None):
        if self.spike is None:
            self.encode(x)
        return self.single_step_forward(x)

    def encode(self, x: Tensor) -> None:
        self.single_step_encode(x)


class PeriodicEncoder(coding.PeriodicEncoderStep, StatefulEncoder):
    __doc__ = coding.PeriodicEncoderStep.__doc__


class LatencyEncoder(coding.LatencyEncoderStep, StatefulEncoder):
    __doc__ = coding.LatencyEncoderStep.__doc__


class WeightedPhaseEncoder(coding.WeightedPhaseEncoderStep, StatefulEncoder):
    __doc__ = coding.WeightedPhaseEncoderStep.__doc__


class PoissonEncoder(StatelessEncoder):
    """A spike with probability x."""

    def forward(self, x: Tensor):
        return coding.poisson(x)


__getattr__ = peer.names(__name__)
