"""``spikingjelly.clock_driven.layer``: layers with a memory, and what calls the layers of
``torch.nn`` with several timesteps."""

from torch import Tensor, nn

from snnfast.interop.spikingjelly import peer, stepping
from snnfast.interop.spikingjelly.clock_driven import base
from snnfast.interop.spikingjelly.stepping import PrintShapeModule
from snnfast.interop.spikingjelly.stepping import (
    TemporalWiseAttention as MultiStepTemporalWiseAttention,
)

__all__ = [
    "ChannelsPool",
    "Dropout",
    "Dropout2d",
    "ElementWiseRecurrentContainer",
    "LinearRecurrentContainer",
    "MultiStepContainer",
    "MultiStepDropout",
    "MultiStepDropout2d",
    "MultiStepTemporalWiseAttention",
    "MultiStepThresholdDependentBatchNorm1d",
    "MultiStepThresholdDependentBatchNorm2d",
    "MultiStepThresholdDependentBatchNorm3d",
    "NeuNorm",
    "PrintShapeModule",
    "SeqToANNContainer",
    "SynapseFilter",
]


class _Step(base.MemoryModule):
    """One timestep a call."""

    def forward(self, x: Tensor):
        return self.single_step_forward(x)


class _Steps:
    """All timesteps a call."""

    def forward(self, x_seq: Tensor):
        return self.multi_step_forward(x_seq)


class Dropout(stepping.DropoutStep, _Step):
    __doc__ = stepping.DropoutStep.__doc__


class Dropout2d(stepping.Dropout2dStep, Dropout):
    __doc__ = stepping.DropoutStep.__doc__


class MultiStepDropout(_Steps, Dropout):
    """One mask for all timesteps of [T, N, ...], the same until ``reset``."""


class MultiStepDropout2d(_Steps, Dropout2d):
    """One mask for all timesteps of [T, N, C, H, W], the same until ``reset``."""

    def __init__(self, p: float = 0.5):
        super().__init__(p)


class NeuNorm(stepping.NeuNormStep, _Step):
    __doc__ = stepping.NeuNormStep.__doc__


class SynapseFilter(stepping.SynapseFilterStep, _Step):
    __doc__ = stepping.SynapseFilterStep.__doc__


class ElementWiseRecurrentContainer(stepping.ElementWiseRecurrentContainerStep, _Step):
    __doc__ = stepping.ElementWiseRecurrentContainerStep.__doc__


class LinearRecurrentContainer(stepping.LinearRecurrentContainerStep, _Step):
    __doc__ = stepping.LinearRecurrentContainerStep.__doc__


class MultiStepThresholdDependentBatchNorm1d(stepping.DependentNorm, nn.BatchNorm1d):
    pass


class MultiStepThresholdDependentBatchNorm2d(stepping.DependentNorm, nn.BatchNorm2d):
    pass


class MultiStepThresholdDependentBatchNorm3d(stepping.DependentNorm, nn.BatchNorm3d):
    pass


class MultiStepContainer(stepping.ContainerKeys):
    """Calls its content once a timestep of x [T, N, ...]."""

    def forward(self, x_seq: Tensor):
        return stepping.multi_step_forward(x_seq, super().forward)


class SeqToANNContainer(stepping.ContainerKeys):
    """Calls its content once, with x [T, N, ...] as a batch [T N, ...]."""

    def forward(self, x_seq: Tensor):
        return stepping.seq_to_ann_forward(x_seq, super().forward)


class ChannelsPool(nn.Module):
    """A pooling layer of one dimension over the channels of [N, C, ...]."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor):
        y = self.pool(x.flatten(2).permute(0, 2, 1)).permute(0, 2, 1)
        return y.reshape(x.shape[0], -1, *x.shape[2:])


__getattr__ = peer.names(__name__)
