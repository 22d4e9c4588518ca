"""What ``fuse`` runs in place of a batch norm and a neuron, and when it may."""

import warnings
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn

from snnfast.nn._trace import has_hooks
from snnfast.nn.batch_norm import normalised
from snnfast.nn.neuron import IF, LIF, Neuron, ParametricLIF
from snnfast.nn.stateful import Stateful
from snnfast.ops.norm_lif import norm_lif
from snnfast.ops.norm_neuron import norm_neuron as norm_any
from snnfast.ops.validation import state_dtype

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NEURONS = (LIF, IF, ParametricLIF, Neuron)


def refusal(module: nn.Module, kinds: tuple) -> str | None:
    """Why the calls of a batch norm or a neuron must not be replaced."""
    name = type(module).__name__
    # The classes of the family are a Neuron each, and no more than that.
    family = isinstance(module, Neuron) and type(module).__module__.startswith("snnfast.")
    if type(module) not in kinds and not (family and Neuron in kinds):
        return f"{name} is not one of {', '.join(kind.__name__ for kind in kinds)}"
    if has_hooks(module):
        return f"{name} has hooks"
    if "forward" in vars(module):
        return f"{name} has a forward of its own"
    if isinstance(module, Neuron) and len(module.neuron.inputs) > 1:
        return f"{name} has {len(module.neuron.inputs)} inputs"
    if getattr(module, "time_axis", 0) != 0:
        return f"{name} has time_axis={module.time_axis!r}"
    if isinstance(module, Stateful):
        return f"{name} returns its state" if module.return_state else None
    if not module.eps > 0:
        return f"eps must be > 0, got {module.eps}"
    if module.momentum is not None and not 0 <= module.momentum <= 1:
        return f"momentum must be in 0..1, got {module.momentum}"
    return None


def _obstacle(norm, neuron, y, shaped, residual) -> str | None:
    """Why the fused op cannot take this call, or None."""
    why = refusal(norm, NORMS) or refusal(neuron, NEURONS)
    if why is not None:
        return why
    folded = shaped.dim() == y.dim() + 1 and shaped.shape[2:] == y.shape[1:]
    if not folded and shaped.shape != y.shape:
        return f"{list(y.shape)} -> {list(shaped.shape)} does more than split time from the batch"
    channels = (t.dim() for t in (*neuron.parameters(), *neuron.buffers()))
    if not folded and any(channels):
        return "a parameter per channel needs an axis for the batch"
    if y.numel() == 0:
        return "the input is empty"
    if norm.running_mean is not None and norm.running_mean.dtype != state_dtype(y):
        return f"running statistics must be {state_dtype(y)}, got {norm.running_mean.dtype}"
    if residual is not None:
        if not isinstance(residual, Tensor) or residual.dtype != y.dtype:
            return f"what is added must be a tensor of {y.dtype}"
        if residual.shape not in (y.shape, shaped.shape):
            return f"what is added must not be broadcast, got shape {list(residual.shape)}"
    return None


def _group(norm):
    """The ranks that share the statistics, by SyncBatchNorm's rule."""
    if isinstance(norm, nn.SyncBatchNorm) and norm.training:
        if dist.is_available() and dist.is_initialized():
            group = norm.process_group or dist.group.WORLD
            return group if dist.get_world_size(group) > 1 else None
    return None


def norm_neuron(norm, neuron, y: Tensor, shaped: Tensor, residual: Tensor | None):
    """neuron(norm(y) reshaped as ``shaped``, a reshape of y, + residual), fused where possible."""
    why = _obstacle(norm, neuron, y, shaped, residual)
    if why is not None:
        warnings.warn(f"fuse: a block runs unfused: {why}", stacklevel=2)
        x = norm(y)
        if residual is not None and residual.shape == x.shape:
            return neuron((x + residual).reshape(shaped.shape))
        x = x.reshape(shaped.shape)
        return neuron(x if residual is None else x + residual)
    norm._check_input_dim(y)
    # Without an axis for the batch, [T, C, ...], the op is given one.
    single = shaped.dim() == y.dim()
    form = (shaped.unsqueeze(1) if single else shaped).shape
    if residual is not None:
        residual = residual.reshape(form)
    arguments = {"residual": residual, "process_group": _group(norm)}
    any_kind = isinstance(neuron, Neuron)
    op = partial(norm_any, neuron.neuron) if any_kind else norm_lif
    op = normalised(norm, op, **arguments)
    state = "states" if any_kind else "v0"

    def run(x, *, return_state, **arguments):
        if single:
            arguments[state] = _each(lambda v: v.unsqueeze(0), arguments[state])
        result = op(x.reshape(form), return_state=return_state, **arguments)
        if not single:
            return result
        s, v = result if return_state else (result, None)
        s = _each(lambda t: t.squeeze(1), s)
        return (s, _each(lambda t: t.squeeze(0), v)) if return_state else s

    return neuron._run(run, (shaped,) if any_kind else shaped, None, None)


def _each(change, value):
    """``change`` of a tensor, or of each in a tuple; None stays."""
    if value is None:
        return None
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)
