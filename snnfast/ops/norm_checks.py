"""What a user can get wrong of a batch normalisation in front of neurons."""

import torch.distributed as dist
from torch import Tensor

from snnfast.ops import validation as arguments
from snnfast.ops.norm import channel_axis


def check(op, y, residual, weight, bias, running_mean, running_var, timesteps, training, momentum,
          eps, shared):  # fmt: skip
    """(whether the statistics are those of the batch, values of a channel, momentum, eps);
    ``shared``: over several ranks."""
    arguments.check_input(op, "y", y)
    static = timesteps is not None
    least = 2 if static else 3
    if static:
        arguments.check_int(op, "timesteps", timesteps, 1)
    if y.dim() < least or y.numel() == 0:
        form = "[B, C, ...]" if static else "[T, B, C, ...]"
        raise ValueError(f"{op}: y must be {form}, none of them 0, got {tuple(y.shape)}")
    channels = y.shape[channel_axis(static)]
    arguments.check_bool(op, "training", training)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must both be given, or neither")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_channels(op, name, tensor, y, channels, exact=False)
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor is not None:
            _check_channels(op, name, tensor, y, channels, exact=True)
    momentum, eps = arguments.check_norm(op, momentum, eps)
    if residual is not None:
        _check_residual(op, residual, y, static)
    use_batch = training or running_mean is None
    count = y.numel() // channels  # a static input has the statistics of one step
    if use_batch and not shared and count * (timesteps or 1) == 1:
        raise ValueError(
            f"{op}: y must have more than one value per channel in training, "
            f"got shape {tuple(y.shape)}"
        )
    return use_batch, count, momentum, eps


def check_group(op: str, group) -> None:
    """Ranks that share the statistics."""
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"{op}: process_group must be a group of torch.distributed or None, "
            f"got {arguments.type_name(group)}"
        )


def _check_channels(op: str, name: str, tensor, y: Tensor, channels: int, exact: bool) -> None:
    """A vector of one value per channel; ``exact``: in the state's dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor or None, got {arguments.type_name(tensor)}")
    wanted = arguments.state_dtype(y)
    if exact and tensor.dtype != wanted:
        raise TypeError(
            f"{op}: {name} must be {str(wanted).removeprefix('torch.')} for "
            f"{arguments.type_name(y)} y, got {arguments.type_name(tensor)}"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {arguments.type_name(tensor)}")
    if tensor.shape != (channels,):
        raise ValueError(
            f"{op}: {name} must have shape ({channels},), one value for each channel of y, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != y.device:
        raise ValueError(f"{op}: {name} must be on y's device {y.device}, got {tensor.device}")


def _check_residual(op: str, residual, y: Tensor, static: bool) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(
            f"{op}: residual must be a tensor or None, got {arguments.type_name(residual)}"
        )
    if static:
        raise ValueError(f"{op}: residual must be None where timesteps is given, got a tensor")
    if residual.dtype != y.dtype:
        raise TypeError(
            f"{op}: residual must be {arguments.type_name(y)} as y, "
            f"got {arguments.type_name(residual)}"
        )
    if residual.shape != y.shape:
        raise ValueError(
            f"{op}: residual must have y's shape {tuple(y.shape)}, got {tuple(residual.shape)}"
        )
    if residual.device != y.device:
        raise ValueError(f"{op}: residual must be on y's device {y.device}, got {residual.device}")
