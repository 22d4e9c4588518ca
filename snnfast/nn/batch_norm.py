"""Batch normalisation as modules: with a residual and spiking neurons, and for still images and
several processes."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from snnfast.nn.arguments import arguments_of
from snnfast.nn.neuron import LIF, BaseNeuron, Neuron
from snnfast.ops.norm import shared_batch_norm
from snnfast.ops.norm_lif import norm_lif
from snnfast.ops.norm_neuron import norm_neuron
from snnfast.ops.validation import check_bool, check_input, check_int, check_norm


def normalised(norm: nn.Module, op=norm_lif, **arguments):
    """``op`` with the parameters, statistics and mode of ``norm``, a module with the attributes of
    torch's BatchNorm. A call counts the batch, once it is through."""
    keep = not norm.training or norm.track_running_stats
    counted = norm.num_batches_tracked if norm.training and norm.track_running_stats else None
    momentum = norm.momentum
    if momentum is None:  # every batch counts the same
        momentum = 0.0 if counted is None else 1.0 / (float(counted) + 1)

    def run(*inputs, **named):
        result = op(
            *inputs,
            weight=norm.weight,
            bias=norm.bias,
            running_mean=norm.running_mean if keep else None,
            running_var=norm.running_var if keep else None,
            training=norm.training,
            momentum=momentum,
            eps=norm.eps,
            **arguments,
            **named,
        )
        if counted is not None:
            counted.add_(1)
        return result

    return run


class BatchNormNeuron(_NormBase):
    """Batch normalisation, a residual and any neuron in one pass over memory.

    Parameters and buffers are those of torch's BatchNorm by name, shape and dtype, so the
    state_dict of one loads into the other; those of the neuron lie under ``neuron.``.

    Args:
        num_features: C, the channels.
        neuron: a :class:`snnfast.nn.Neuron` of one input.
        eps, momentum, affine, track_running_stats: as in torch's BatchNorm.
        process_group: ranks of torch.distributed that share the statistics in training.

    The gradient takes one pass more than :class:`BatchNormLIF`'s: 3 values an element.

        >>> block = snnfast.nn.BatchNormNeuron(64, snnfast.nn.Neuron(adaptive_lif))
        >>> s = block(y, residual)            # [T, B, 64, H, W] each
    """

    def __init__(
        self,
        num_features: int,
        neuron: Neuron,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        process_group=None,
    ):
        who = type(self).__name__
        check_int(who, "num_features", num_features, 1)
        check_norm(who, 0.0 if momentum is None else momentum, eps)
        check_bool(who, "affine", affine)
        check_bool(who, "track_running_stats", track_running_stats)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self._check_neuron(neuron)
        self.neuron = neuron
        self.process_group = process_group

    def _check_neuron(self, neuron) -> None:
        if not isinstance(neuron, Neuron):
            kind = type(neuron).__name__
            raise TypeError(f"BatchNormNeuron: neuron must be a snnfast.nn.Neuron, got {kind}")
        inputs = len(neuron.neuron.inputs)
        if inputs != 1:
            raise ValueError(f"BatchNormNeuron: neuron must have one input, got {inputs}")

    def forward(
        self,
        y: Tensor,
        residual: Tensor | None = None,
        states=None,
        timesteps: int | None = None,
    ):
        """The neuron's outputs [T, B, C, ...] of y [T, B, C, ...] and a residual of y's shape; with
        ``timesteps``, y [B, C, ...] is static. ``states``: where to start, instead of at rest."""
        self._check_channels(y, timesteps)
        group = self.process_group if self.training else None
        op = partial(norm_neuron, self.neuron.neuron)
        op = normalised(self, op, residual=residual, process_group=group)
        return self.neuron._run(op, (y,), states, timesteps)

    def _check_channels(self, y: Tensor, timesteps: int | None) -> None:
        time = getattr(self.neuron, "time_axis", 0)
        check_input(type(self).__name__, "y", y)
        in_front = timesteps is None and time != "merged" and time % max(y.dim(), 1) < 2
        axis = 2 if in_front else 1
        if y.dim() <= axis or y.shape[axis] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: y must have {self.num_features} channels on axis {axis} "
                f"({'[T, B, C, ...], time first' if axis == 2 else '[B, C, ...]'}), "
                f"got shape {tuple(y.shape)}"
            )


class BatchNormLIF(BatchNormNeuron):
    """Batch normalisation, a residual and LIF in one pass over memory; see ``snnfast.norm_lif``.

    Parameters and buffers are those of torch's BatchNorm by name, shape and dtype (``weight``,
    ``bias``, ``running_mean``, ``running_var``, ``num_batches_tracked``), so the state_dict of one
    loads into the other.

    Args:
        num_features: C, the channels.
        eps, momentum, affine, track_running_stats: as in torch's BatchNorm; ``momentum=None``
            averages all batches alike.
        neuron: a neuron of snnfast.nn in place of the arguments below: ``ParametricLIF(...)`` for a
            learnable tau, whose key is then ``neuron.w``.
        process_group: ranks of torch.distributed that share the statistics in training. None:
            every rank has its own.
        the others: those of ``snnfast.nn.LIF``. As attributes they are those of ``neuron``.

    Statistics and state are float32 for float16 and bfloat16 input, so do not cast this module to
    half precision: autocast casts the convolution before it, which is enough.

    Example:
        >>> block = snnfast.nn.BatchNormLIF(64, surrogate="atan")
        >>> s = block(y, residual)            # [T, B, 64, H, W] each
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        neuron: nn.Module | None = None,
        process_group=None,
        **arguments,
    ):
        if neuron is None:
            neuron = LIF(**arguments)
        elif arguments:
            raise ValueError(
                "BatchNormLIF: the neuron's arguments must not be given beside neuron, got "
                f"{', '.join(arguments)}"
            )
        super().__init__(
            num_features, neuron, eps, momentum, affine, track_running_stats,
            process_group=process_group,
        )  # fmt: skip

    def _check_neuron(self, neuron) -> None:
        if not isinstance(neuron, BaseNeuron):
            kind = type(neuron).__name__
            raise TypeError(f"BatchNormLIF: neuron must be LIF, IF or ParametricLIF, got {kind}")

    def forward(
        self,
        y: Tensor,
        residual: Tensor | None = None,
        v0: Tensor | None = None,
        timesteps: int | None = None,
    ):
        """Spikes [T, B, C, ...] of y [T, B, C, ...] and a residual of y's shape: the first axis is
        time, and one call runs all steps from rest (step by step: ``snnfast.streaming``).

        With ``timesteps``, y [B, C, ...] is static and shown that often. Returns (s, v) where
        ``return_state`` is set. ``v0``: the state to start from. Raises what ``snnfast.norm_lif``
        does."""
        self._check_channels(y, timesteps)
        group = self.process_group if self.training else None
        op = normalised(self, residual=residual, process_group=group)
        return self.neuron._run(op, y, v0, timesteps)


def _of_neuron(name: str) -> property:
    """An attribute that is the neuron's, to read and to set."""

    def write(self, value):
        if not hasattr(self.neuron, name):
            raise AttributeError(f"{type(self.neuron).__name__} has no {name}")
        setattr(self.neuron, name, value)

    return property(lambda self: getattr(self.neuron, name), write)


for _name in arguments_of(LIF):
    setattr(BatchNormLIF, _name, _of_neuron(_name))


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, state_dict and all, for static images and for several processes.

    Args:
        num_features, eps, momentum: as in torch.
        process_group: ranks of torch.distributed that share the statistics in training, forward and
            backward, on any backend (torch's SyncBatchNorm refuses a CPU); each may have another
            number of samples. None: every rank has its own.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, process_group=None
    ):
        super().__init__(num_features, eps, momentum)
        self.process_group = process_group

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """y [N, C, H, W] of x [N, C, H, W]. ``repeats`` equal timesteps that x stands for: mean and
        variance are those of x, but the unbiased running variance, which divides by n - 1, counts
        n = repeats * N * H * W."""
        if not self.training or (repeats == 1 and self.process_group is None):
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        n = x.numel() // x.shape[1]
        if self.process_group is not None:
            return shared_batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                momentum=self.momentum, eps=self.eps, repeats=repeats, group=self.process_group,
            )  # fmt: skip
        # On copies: what autograd keeps of this call must not be written to afterwards.
        mean, var = self.running_mean.clone(), self.running_var.clone()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        factor = repeats * (n - 1) / (repeats * n - 1)
        with torch.no_grad():
            kept = (1 - self.momentum) * self.running_var
            self.running_mean.copy_(mean)
            self.running_var.copy_(kept + (var - kept) * factor)
        return y
