"""``spikingjelly.activation_based.layer``: the layers of ``torch.nn`` with a ``step_mode``, behind
their own arguments, and layers with a memory."""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.interop.spikingjelly import peer, stepping
from snnfast.interop.spikingjelly.activation_based import base, functional
from snnfast.interop.spikingjelly.stepping import seq_to_ann_forward


class _StepMode:
    """A layer that takes a ``step_mode`` behind its own arguments, of which there are ``_own``."""

    _own: int

    def __init__(self, *args, step_mode: str = "s", **kwargs):
        if len(args) > self._own:
            *args, step_mode = args
        super().__init__(*args, **kwargs)
        self.step_mode = step_mode

    def extra_repr(self):
        return ", ".join(filter(None, (super().extra_repr(), f"step_mode={self.step_mode}")))


def _layer(cls: type[nn.Module], *axes: int):
    """``cls`` over time: in step mode "m" x [T, N, ...] is a batch [T N, ...]. ``axes``: how many
    such an x may have, where a wrong number must not pass for another shape."""
    names = list(inspect.signature(cls).parameters)
    own = names.index("device") if "device" in names else len(names)

    class Layer(_StepMode, cls, base.StepModule):
        _own = own

        def forward(self, x: Tensor):
            if self.step_mode == "s" or cls is nn.Linear:  # which takes any number of axes
                return super().forward(x)
            if axes and x.dim() not in axes:
                many = " or ".join(map(str, axes))
                raise ValueError(
                    f"{type(self).__name__}: x must have {many} axes, [T, N, C, ...], in step mode "
                    f"'m', got {list(x.shape)}"
                )
            return seq_to_ann_forward(x, super().forward)

    return _named(Layer, cls.__name__, cls.__doc__)


def _memory(step: type):
    """One of ``stepping``'s layers with a memory, behind its own arguments a ``step_mode``."""

    class Layer(_StepMode, step, base.MemoryModule):
        _own = len(inspect.signature(step).parameters)

    return _named(Layer, step.__name__.removesuffix("Step"), step.__doc__)


def _named(cls: type, name: str, doc: str | None) -> type:
    cls.__name__ = cls.__qualname__ = name
    cls.__module__, cls.__doc__ = __name__, doc
    return cls


Conv1d, Conv2d, Conv3d = _layer(nn.Conv1d, 4), _layer(nn.Conv2d, 5), _layer(nn.Conv3d, 6)
ConvTranspose1d = _layer(nn.ConvTranspose1d, 4)
ConvTranspose2d = _layer(nn.ConvTranspose2d, 5)
ConvTranspose3d = _layer(nn.ConvTranspose3d, 6)
BatchNorm1d = _layer(nn.BatchNorm1d, 3, 4)
BatchNorm2d, BatchNorm3d = _layer(nn.BatchNorm2d, 5), _layer(nn.BatchNorm3d, 6)
GroupNorm, Flatten, Linear = _layer(nn.GroupNorm), _layer(nn.Flatten), _layer(nn.Linear)
MaxPool1d, MaxPool2d = _layer(nn.MaxPool1d, 4), _layer(nn.MaxPool2d, 5)
MaxPool3d = _layer(nn.MaxPool3d, 6)
AvgPool1d, AvgPool2d = _layer(nn.AvgPool1d, 4), _layer(nn.AvgPool2d, 5)
AvgPool3d = _layer(nn.AvgPool3d, 6)
AdaptiveAvgPool1d = _layer(nn.AdaptiveAvgPool1d, 4)
AdaptiveAvgPool2d = _layer(nn.AdaptiveAvgPool2d, 5)
AdaptiveAvgPool3d = _layer(nn.AdaptiveAvgPool3d, 6)

Dropout = _memory(stepping.DropoutStep)
NeuNorm = _memory(stepping.NeuNormStep)
SynapseFilter = _memory(stepping.SynapseFilterStep)
ElementWiseRecurrentContainer = _memory(stepping.ElementWiseRecurrentContainerStep)
LinearRecurrentContainer = _memory(stepping.LinearRecurrentContainerStep)
PrintShapeModule, TemporalWiseAttention = stepping.PrintShapeModule, stepping.TemporalWiseAttention


class Dropout2d(stepping.Dropout2dStep, Dropout):
    def __init__(self, p: float = 0.2, step_mode: str = "s"):
        Dropout.__init__(self, p, step_mode)


class ThresholdDependentBatchNorm1d(stepping.DependentNorm, nn.BatchNorm1d, base.MultiStepModule):
    pass


class ThresholdDependentBatchNorm2d(stepping.DependentNorm, nn.BatchNorm2d, base.MultiStepModule):
    pass


class ThresholdDependentBatchNorm3d(stepping.DependentNorm, nn.BatchNorm3d, base.MultiStepModule):
    pass


class MultiStepContainer(stepping.ContainerKeys, base.MultiStepModule):
    """Calls its content once a timestep of x [T, N, ...]."""

    def __init__(self, *args):
        super().__init__(*args)
        stepping.refuse_all_steps(self, *self)

    def forward(self, x_seq: Tensor):
        return stepping.multi_step_forward(x_seq, super().forward)


class SeqToANNContainer(stepping.ContainerKeys, base.MultiStepModule):
    """Calls its content once, with x [T, N, ...] as a batch [T N, ...]."""

    def __init__(self, *args):
        super().__init__(*args)
        stepping.refuse_all_steps(self, *self)

    def forward(self, x_seq: Tensor):
        return seq_to_ann_forward(x_seq, super().forward)


class StepModeContainer(stepping.ContainerKeys, base.StepModule):
    """In step mode "m" its content is called once a timestep where ``stateful``, else once."""

    def __init__(self, stateful: bool, *args):
        super().__init__(*args)
        self.stateful = stateful
        stepping.refuse_all_steps(self, *self)
        self.step_mode = "s"

    def forward(self, x: Tensor):
        if self.step_mode == "s":
            return super().forward(x)
        call = stepping.multi_step_forward if self.stateful else seq_to_ann_forward
        return call(x, super().forward)


class VotingLayer(nn.Module, base.StepModule):
    """The mean of every ``voting_size`` outputs of [N, classes voting_size]."""

    def __init__(self, voting_size: int = 10, step_mode: str = "s"):
        super().__init__()
        self.voting_size = voting_size
        self.step_mode = step_mode

    def single_step_forward(self, x: Tensor):
        return F.avg_pool1d(x.unsqueeze(1), self.voting_size, self.voting_size).squeeze(1)

    def forward(self, x: Tensor):
        if self.step_mode == "s":
            return self.single_step_forward(x)
        return seq_to_ann_forward(x, self.single_step_forward)

    def extra_repr(self):
        return f"voting_size={self.voting_size}, step_mode={self.step_mode}"


class Delay(base.MemoryModule):
    """y_t = x_{t - delay_steps}, and 0 before."""

    def __init__(self, delay_steps: int, step_mode: str = "s"):
        super().__init__()
        if isinstance(delay_steps, bool) or not isinstance(delay_steps, int) or delay_steps < 0:
            raise ValueError(f"Delay: delay_steps must be an int >= 0, got {delay_steps!r}")
        self._delay_steps = delay_steps
        self.step_mode = step_mode
        self.register_memory("queue", [])

    @property
    def delay_steps(self) -> int:
        return self._delay_steps

    def single_step_forward(self, x: Tensor):
        self.queue.append(x)
        return self.queue.pop(0) if len(self.queue) > self.delay_steps else torch.zeros_like(x)

    def multi_step_forward(self, x_seq: Tensor):
        return functional.delay(x_seq, self.delay_steps)


__getattr__ = peer.names(__name__)
