"""The normalisation of ``norm_lif``: statistics, the numbers per channel that follow from them, and
the second pass of backward. The arithmetic of a batch norm stands here, once.

The contract (schemas and fakes), the launches, and what joins ranks, in that order; at the end the
batch norm without a neuron, for several ranks.
"""

import functools
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from snnfast import reference
from snnfast.backends import checks, layout
from snnfast.backends import spec as specs
from snnfast.ops.layer import TAGS, Call
from snnfast.ops.select import implementation, named

_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define(
    "norm_stats(Tensor y, Tensor? weight, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "float momentum, SymInt total, float eps, bool static, str backend) "
    "-> (Tensor mean, Tensor var, Tensor inv_std, Tensor scale)"
)
_library.define(
    "norm_prepare(Tensor mean, Tensor var, Tensor? weight, float eps, str backend) "
    "-> (Tensor inv_std, Tensor scale)"
)
_library.define(
    "norm_finish(Tensor sums, Tensor scale, Tensor inv_std, SymInt count, str backend) "
    "-> (Tensor dweight, Tensor dbias, Tensor b, Tensor c)"
)
_DY = "Tensor mean, Tensor a, Tensor b, Tensor c, bool static, str backend"
_library.define(f"norm_dy(Tensor y, Tensor dx, {_DY}) -> Tensor", tags=TAGS)
_library.define(f"norm_dy_(Tensor y, Tensor(a!) dx, {_DY}) -> ()", tags=TAGS)


def channel_axis(static: bool) -> int:
    """That of C in [T, B, C, ...], or in [B, C, ...] where static."""
    return 1 if static else 2


def _channel_axis_of(y: Tensor, static: bool) -> int:
    """The same, which y must have."""
    checks.axes("y", y, channel_axis(static) + 1, "[..., B, C, ...]")
    return channel_axis(static)


@functools.lru_cache(1024)
def _channels(shape: torch.Size, strides: tuple[int, ...] | None, axis: int) -> tuple[int, int]:
    """Without ``strides``: contiguous."""
    if strides is None:
        return shape[axis], math.prod(shape[axis + 1 :])
    return shape[axis], layout.dense_strides(shape[axis - 1 :], strides[axis - 1 :])[1]


def channels_of(y: Tensor, static: bool) -> tuple[int, int]:
    """Where the channels of y, whose steps are dense, lie: their number and ``inner``."""
    axis = _channel_axis_of(y, static)
    return _channels(y.shape, None if y.is_contiguous() else y.stride(), axis)


def with_channels(y: Tensor, static: bool) -> tuple[Tensor, int, int]:
    """y as [T, ...] with dense steps, and where its channels lie."""
    y = layout.with_dense_steps(y, channel_axis(static) - 1)
    return (y.unsqueeze(0) if static else y), *channels_of(y, static)


def _empty_stats(y: Tensor, static: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mean, var, inv_std, scale."""
    mean = y.new_empty(y.shape[_channel_axis_of(y, static)], dtype=layout.state_dtype(y))
    return mean, torch.empty_like(mean), torch.empty_like(mean), torch.empty_like(mean)


def empty_finished(scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dweight, dbias, b, c."""
    return tuple(torch.empty_like(scale) for _ in range(4))


@torch.library.register_fake("snnfast::norm_stats", lib=_library)
def _(y, weight, running_mean, running_var, momentum, total, eps, static, backend):
    return _empty_stats(y, static)


@torch.library.register_fake("snnfast::norm_prepare", lib=_library)
def _(mean, var, weight, eps, backend):
    return torch.empty_like(mean), torch.empty_like(mean)


@torch.library.register_fake("snnfast::norm_finish", lib=_library)
def _(sums, scale, inv_std, count, backend):
    return empty_finished(scale)


@torch.library.register_fake("snnfast::norm_dy", lib=_library)
def _(y, dx, mean, a, b, c, static, backend):
    return torch.empty_like(dx)


@torch.library.register_fake("snnfast::norm_dy_", lib=_library)
def _(y, dx, mean, a, b, c, static, backend):
    return None


def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, total
) -> None:
    """The running statistics take a share ``momentum`` of mean and of the unbiased variance, which
    is that of ``total`` values."""
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (total / (total - 1)), momentum)


def _stats(y, weight, running_mean, running_var, momentum, total, eps, static, kernels):
    results = mean, var, inv_std, scale = _empty_stats(y, static)
    updates = running_mean is not None
    if updates and total < 2:
        raise ValueError(f"backend: total must be >= 2, got {total}")
    beside = updates and running_mean.is_contiguous() and running_var.is_contiguous()
    running = (running_mean, running_var) if beside else (None, None)
    unbias = total / (total - 1) if beside else 1.0
    prepared = specs.Prepared(inv_std, scale, weight, *running, momentum, unbias, eps)
    kernels.norm_stats(*with_channels(y, static), mean, var, prepared)
    if updates and not beside:
        update_running(running_mean, running_var, mean, var, momentum, total)
    return results


def _prepare(mean, var, weight, eps, kernels):
    inv_std, scale = torch.empty_like(mean), torch.empty_like(mean)
    prepared = specs.Prepared(inv_std, scale, weight, None, None, 0.0, 1.0, eps)
    kernels.norm_prepare(mean, var, prepared)
    return inv_std, scale


def _finish(sums, scale, inv_std, count, kernels):
    results = empty_finished(scale)
    finished = specs.Finished(scale, inv_std, count, *results)
    kernels.norm_finish(sums, finished)
    return results


def _dy(y, dx, mean, a, b, c, static, kernels, dy=None):
    sequence, channels, inner = with_channels(y, static)
    dy = torch.empty_like(dx) if dy is None else dy
    norm = specs.Norm(mean, a, c, channels, inner)
    steps = (dx[None], dy[None]) if static else (dx, dy)
    kernels.norm_dy(sequence, steps[0], norm, a, b, c, steps[1])
    return dy


def _dy_in_place(y, dx, mean, a, b, c, static, kernels):
    _dy(y, dx, mean, a, b, c, static, kernels, dy=dx)


def _behind_dispatcher(function):
    """``function`` with the name of a backend, its last argument, for the backend."""
    return lambda x, *rest: function(x, *rest[:-1], named(rest[-1], x))


for _device in ("CPU", "CUDA"):
    _library.impl("norm_stats", _behind_dispatcher(_stats), _device)
    _library.impl("norm_prepare", _behind_dispatcher(_prepare), _device)
    _library.impl("norm_finish", _behind_dispatcher(_finish), _device)
    _library.impl("norm_dy", _behind_dispatcher(_dy), _device)
    _library.impl("norm_dy_", _behind_dispatcher(_dy_in_place), _device)


def joined(mean: Tensor, var: Tensor, count: int, group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over all ranks of ``group``, whose counts may differ."""
    own = torch.cat([mean.double(), var.double(), mean.new_full((1,), count, dtype=torch.float64)])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    parts, channels = torch.stack(parts), mean.shape[0]
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum()
    joined = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - joined).square())).sum(0) / total
    return joined.to(mean.dtype), spread.to(mean.dtype), total.to(mean.dtype)


def prepared(mean: Tensor, var: Tensor, weight: Tensor | None, eps: float, call: Call):
    """inv_std and scale of given statistics."""
    if call.direct:
        return _prepare(mean, var, weight, eps, implementation(call.backend).unchecked)
    return torch.ops.snnfast.norm_prepare.default(mean, var, weight, eps, call.backend)


def statistics(y, weight, running, momentum, repeats, eps, static, group, call: Call):
    """mean, inv_std and scale of this batch, over all ranks of ``group``, and the number of values
    in a channel. ``running`` statistics, if any, move towards those of y shown ``repeats`` times.
    """
    count = y.numel() // y.shape[channel_axis(static)]
    alone = running if group is None else None
    arguments = (y, weight, *(alone or (None, None)), momentum, count * repeats, eps, static)
    if call.direct:
        mean, var, *rest = _stats(*arguments, implementation(call.backend).unchecked)
    else:
        mean, var, *rest = torch.ops.snnfast.norm_stats.default(*arguments, call.backend)
    if group is None:
        return mean, *rest, count
    mean, var, total = joined(mean, var, count, group)
    if running is not None:
        update_running(*running, mean, var, momentum, total * repeats)
    return mean, *prepared(mean, var, weight, eps, call), total


def over_ranks(sums: Tensor, scale: Tensor, inv_std: Tensor, count, group, backend: str):
    """b and c of ``norm_dy``: ``count`` values of all ranks of ``group`` were normalised by their
    own statistics."""
    dist.all_reduce(sums, group=group)
    _, _, b, c = torch.ops.snnfast.norm_finish.default(sums, scale, inv_std, 1, backend)
    return b / count, c / count


def dy(y, dx, mean, a, b, c, static: bool, backend: str, in_place: bool, direct: bool):
    """The gradient of y from that of X, which it replaces where ``in_place``."""
    tensors, rest = (y, dx, mean, a, b, c), (static, backend)
    if direct:
        kernels = implementation(backend).unchecked
        return _dy(*tensors, static, kernels, dx if in_place else None)
    if not in_place:
        return torch.ops.snnfast.norm_dy.default(*tensors, *rest)
    torch.ops.snnfast.norm_dy_.default(*tensors, *rest)
    return dx


class _SharedBatchNorm(torch.autograd.Function):
    """(x - mean) * weight / sqrt(var + eps) + bias, where mean and var are the statistics of
    ``count`` values a channel over all ranks of ``group``."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, count, eps, group):
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, var = ctx.saved_tensors
        # As if the statistics were constants; what flows through them is in the sums of all ranks.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums, group=ctx.group)
        inv_std = reference.inverse_std(var, ctx.eps)
        slope = weight * inv_std * inv_std * sums[0] / ctx.count
        shift = weight * inv_std * sums[1] / ctx.count - mean * slope
        through = torch.addcmul(shift.view(-1, 1, 1), x, slope.view(-1, 1, 1))
        return dx - through.to(dx.dtype), dweight, dbias, *[None] * 5


def shared_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, *,
    momentum: float, eps: float, repeats: int, group,
) -> Tensor:  # fmt: skip
    """torch's batch norm of x [N, C, H, W] in training, its statistics those of all ranks of
    ``group``, whose N may differ. x stands for ``repeats`` equal timesteps, which the unbiased
    running variance counts."""
    with torch.no_grad():
        mean, var = reference.channel_stats(x.detach().to(running_mean.dtype), 1)
        mean, var, count = joined(mean, var, x.numel() // x.shape[1], group)
        update_running(running_mean, running_var, mean, var, momentum, repeats * count)
    return _SharedBatchNorm.apply(x, weight, bias, mean, var, count, eps, group)
