"""What ``fuse`` runs in place of a batch norm and a neuron, and when it may."""

import warnings

import torch.distributed as dist
from torch import Tensor, nn

from snnfast.nn._trace import has_hooks
from snnfast.nn.batch_norm import normalised
from snnfast.nn.neuron import IF, LIF, BaseNeuron, ParametricLIF
from snnfast.ops.validation import state_dtype

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NEURONS = (LIF, IF, ParametricLIF)


def refusal(module: nn.Module, kinds: tuple) -> str | None:
    """Why the calls of a batch norm or a neuron must not be replaced."""
    name = type(module).__name__
    if type(module) not in kinds:
        return f"{name} is not one of {', '.join(kind.__name__ for kind in kinds)}"
    if has_hooks(module):
        return f"{name} has hooks"
    if "forward" in vars(module):
        return f"{name} has a forward of its own"
    if isinstance(module, BaseNeuron):
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
    if not folded and isinstance(neuron, ParametricLIF) and neuron.w.dim() == 1:
        return "one tau per channel needs an axis for the batch"
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
    op = normalised(norm, residual=residual, process_group=_group(norm))

    def run(x, *, v0, return_state, **arguments):
        v0 = v0.unsqueeze(0) if single and v0 is not None else v0
        result = op(x.reshape(form), v0=v0, return_state=return_state, **arguments)
        if not single:
            return result
        return (result[0].squeeze(1), result[1].squeeze(0)) if return_state else result.squeeze(1)

    return neuron._run(run, shaped, None, None)
