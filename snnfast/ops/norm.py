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
from snnfast.ops import allocate
from snnfast.ops import validation as check
from snnfast.ops.layer import TAGS, Call
from snnfast.ops.select import implementation, named
from snnfast.program.trace import outside_of_transforms

_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define(
    "norm_stats(Tensor y, Tensor? weight, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "float momentum, SymInt total, float eps, bool static, str backend) -> Tensor"
)
_library.define(
    "norm_prepare(Tensor mean, Tensor var, Tensor? weight, float eps, str backend) -> Tensor"
)
_library.define("norm_finish(Tensor sums, Tensor stats, SymInt count, str backend) -> Tensor")
_DY = "Tensor stats, Tensor totals, bool static, str backend"
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
def _channels(shape: torch.Size, strides: tuple[int, ...] | None, axis: int) -> specs.Channels:
    """Without ``strides``: contiguous."""
    if strides is None:
        return specs.Channels(shape[axis], math.prod(shape[axis + 1 :]))
    inner = layout.dense_strides(shape[axis - 1 :], strides[axis - 1 :])[1]
    return specs.Channels(shape[axis], inner)


def channels_of(y: Tensor, static: bool) -> specs.Channels:
    """Where the channels of y, whose steps are dense, lie."""
    axis = channel_axis(static)
    if y.dim() <= axis:
        _channel_axis_of(y, static)  # which refuses it
    return _channels(y.shape, None if y.is_contiguous() else y.stride(), axis)


def _empty_stats(y: Tensor, channels: int) -> Tensor:
    dtype = layout.state_dtype(y)
    # Without a keyword it takes half the time.
    own = y.dtype == dtype
    return y.new_empty(4, channels) if own else y.new_empty(4, channels, dtype=dtype)


def empty_totals(stats: Tensor) -> Tensor:
    checks.axes("stats", stats, 2, "[4, C]")
    return stats.new_empty(5, stats.shape[1])


def in_state_dtype(row: Tensor | None, y: Tensor) -> Tensor | None:
    """A weight or bias as kernels read it."""
    if row is None:
        return None
    dtype = layout.state_dtype(y)
    return (row if row.dtype == dtype else row.to(dtype)).contiguous()


def or_zeros(bias: Tensor | None, stats: Tensor) -> Tensor:
    """The bias that kernels read."""
    return torch.zeros_like(stats[0]) if bias is None else bias


@torch.library.register_fake("snnfast::norm_stats", lib=_library)
def _(y, weight, running_mean, running_var, momentum, total, eps, static, backend):
    return _empty_stats(y, y.shape[_channel_axis_of(y, static)])


@torch.library.register_fake("snnfast::norm_prepare", lib=_library)
def _(mean, var, weight, eps, backend):
    return _empty_stats(mean, mean.shape[0])


@torch.library.register_fake("snnfast::norm_finish", lib=_library)
def _(sums, stats, count, backend):
    return empty_totals(stats)


@torch.library.register_fake("snnfast::norm_dy", lib=_library)
def _(y, dx, stats, totals, static, backend):
    return torch.empty_like(dx)


@torch.library.register_fake("snnfast::norm_dy_", lib=_library)
def _(y, dx, stats, totals, static, backend):
    return None


def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, total
) -> None:
    """The running statistics take a share ``momentum`` of mean and of the unbiased variance, which
    is that of ``total`` values."""
    # As in torch's batch norm it is no change of version: whoever keeps them for backward, in an
    # evaluation before this step, is not refused.
    running_mean.data.lerp_(mean, momentum)
    running_var.data.lerp_(var * (total / (total - 1)), momentum)


def update_on_the_reference(op: str, y, running, momentum: float, total, static: bool) -> None:
    """The same of the batch y; under a transform of torch.func the change is made outside of it."""
    wide = y.detach().to(layout.state_dtype(y))
    mean, var = reference.channel_stats(wide, channel_axis(static))
    moved = [check.plain(t) for t in (*running, mean, var)]
    if any(t.dim() != 1 for t in moved):
        raise NotImplementedError(
            f"{op}: running_mean and running_var must be None in training where y or they are "
            "mapped (vmap), got tensors; torch's batch norm cannot update them there either"
        )
    with outside_of_transforms():
        update_running(*(t.detach() for t in moved), momentum, total)


def refuse_graph(op: str, group) -> None:
    """Statistics over ranks are none of the reference's, which has the gradients with a graph."""
    if group is not None:
        raise NotImplementedError(
            f"{op}: process_group must be None where create_graph=True, got one"
        )


def may_wait(running, call: Call) -> bool:
    """Whether statistics need not be there before ``norm_lif_forward`` of a backend, which makes
    them on its way and updates ``running`` ones in their own memory."""
    beside = running is None or (running[0].is_contiguous() and running[1].is_contiguous())
    return call.direct and not call.layer.static and beside


def pending(y, weight, running, momentum, count, eps):
    """(rows ``stats`` that are not filled yet, the arguments that say how)."""
    unbias = 1.0 if running is None else count / (count - 1)
    rest = ((momentum, unbias, eps), (weight, *(running or (None, None))))
    return _empty_stats(y, y.shape[2]), rest


def _stats(y, weight, running_mean, running_var, momentum, total, eps, static, kernels):
    y = layout.with_dense_steps(y, channel_axis(static) - 1)
    where = channels_of(y, static)
    stats = _empty_stats(y, where.count)
    updates = running_mean is not None
    if updates and total < 2:
        raise ValueError(f"backend: total must be >= 2, got {total}")
    beside = updates and running_mean.is_contiguous() and running_var.is_contiguous()
    running = (running_mean, running_var) if beside else (None, None)
    unbias = total / (total - 1) if beside else 1.0
    sequence = y.unsqueeze(0) if static else y
    kernels.norm_stats(where, momentum, unbias, eps, sequence, stats, weight, *running)
    if updates and not beside:
        update_running(running_mean, running_var, *stats[:2], momentum, total)
    return stats


def _prepare(mean, var, weight, eps, kernels):
    checks.axes("mean", mean, 1, "[C]")
    stats = _empty_stats(mean, mean.shape[0])
    torch.stack((mean, var), out=stats[:2])
    kernels.norm_prepare(0.0, 1.0, eps, stats, weight)
    return stats


def _finish(sums, stats, count, kernels):
    totals = empty_totals(stats)
    checks.axes("sums", sums, 2, "[2, C]")
    totals[:2] = sums
    kernels.norm_finish(count, stats, totals)
    return totals


def _dy(y, dx, stats, totals, static, kernels, dy=None):
    dy = allocate.empty_like(dx) if dy is None else dy
    y = layout.with_dense_steps(y, channel_axis(static) - 1)
    where = channels_of(y, static)
    sequence = y.unsqueeze(0) if static else y
    kernels.norm_dy(where, sequence, dx, dy, stats, totals)
    return dy


def _dy_in_place(y, dx, stats, totals, static, kernels):
    _dy(y, dx, stats, totals, static, kernels, dy=dx)


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


def prepared(mean: Tensor, var: Tensor, weight: Tensor | None, eps: float, call: Call) -> Tensor:
    """The rows ``stats`` of given statistics."""
    tensors = [t if t is None else t.detach() for t in (mean, var, weight)]
    if call.direct:
        return _prepare(*tensors, eps, implementation(call.backend))
    return torch.ops.snnfast.norm_prepare.default(*tensors, eps, call.backend)


def statistics(y, weight, running, momentum, repeats, eps, count, group, call: Call):
    """The rows ``stats`` of this batch, over all ranks of ``group``, and the number of values in a
    channel, ``count`` here. ``running`` statistics, if any, move towards those of y shown
    ``repeats`` times."""
    alone = running if group is None and running is not None else (None, None)
    numbers = (momentum, count * repeats, eps, call.layer.static)
    if call.direct:
        stats = _stats(y, weight, *alone, *numbers, implementation(call.backend))
    else:
        weight = weight if weight is None else weight.detach()
        # No change of version, as in ``update_running``.
        alone = [t if t is None else t.data for t in alone]
        op = torch.ops.snnfast.norm_stats.default
        stats = op(y.detach(), weight, *alone, *numbers, call.backend)
    if group is None:
        return stats, count
    with torch.no_grad():
        mean, var, total = joined(*stats[:2], count, group)
        if running is not None:
            update_running(*running, mean, var, momentum, total * repeats)
    return prepared(mean, var, weight, eps, call), total


def over_ranks(stats: Tensor, totals: Tensor, count, group, backend: str) -> Tensor:
    """``totals`` for ``norm_dy``: ``count`` values of all ranks of ``group`` were normalised by
    their own statistics."""
    sums = totals[:2].clone()
    dist.all_reduce(sums, group=group)
    totals = torch.ops.snnfast.norm_finish.default(sums, stats, 1, backend)
    totals[specs.B :] /= count
    return totals


def dy(y, dx, stats, totals, static: bool, backend: str, in_place: bool) -> Tensor:
    """The gradient of y from that of X, which it replaces where ``in_place``."""
    arguments = (y, dx, stats, totals, static, backend)
    if not in_place:
        return torch.ops.snnfast.norm_dy.default(*arguments)
    torch.ops.snnfast.norm_dy_.default(*arguments)
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
