"""``spikingjelly.activation_based.encoding``."""

from torch import Tensor, nn

from snnfast.interop.spikingjelly import coding, peer
from snnfast.interop.spikingjelly.activation_based import base

__all__ = [
    "LatencyEncoder",
    "PeriodicEncoder",
    "PoissonEncoder",
    "StatefulEncoder",
    "StatelessEncoder",
    "WeightedPhaseEncoder",
]


class StatelessEncoder(nn.Module, base.StepModule):
    """Define ``forward``."""

    def __init__(self, step_mode: str = "s"):
        super().__init__()
        self.step_mode = step_mode


class StatefulEncoder(coding.EncoderStep, base.MemoryModule):
    """Define ``single_step_encode(x)``, which makes ``self.spike`` [T, ...]."""

    def __init__(self, T: int, step_mode: str = "s"):
        super().__init__(T)
        self.step_mode = step_mode


class PeriodicEncoder(coding.PeriodicEncoderStep, StatefulEncoder):
    __doc__ = coding.PeriodicEncoderStep.__doc__

    def __init__(self, spike: Tensor, step_mode: str = "s"):
        super().__init__(spike)
        self.step_mode = step_mode


class LatencyEncoder(coding.LatencyEncoderStep, StatefulEncoder):
    __doc__ = coding.LatencyEncoderStep.__doc__

    def __init__(self, T: int, enc_function: str = "linear", step_mode: str = "s"):
        super().__init__(T, enc_function)
        self.step_mode = step_mode


class WeightedPhaseEncoder(coding.WeightedPhaseEncoderStep, StatefulEncoder):
    __doc__ = coding.WeightedPhaseEncoderStep.__doc__

    def __init__(self, K: int, step_mode: str = "s"):
        super().__init__(K)
        self.step_mode = step_mode


class PoissonEncoder(StatelessEncoder):
    """A spike with probability x."""

    def forward(self, x: Tensor):
        return coding.poisson(x)


__getattr__ = peer.names(__name__)
