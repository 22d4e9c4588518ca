"""BatchNorm around the LIF kernels through Triton: tiles along the channels, statistics, and the
second pass of backward. The neurons themselves are launched by ``triton``."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast.backends.spec import SEGMENT, Channels
from snnfast.backends.triton.launch import THREAD, WARPS, Call, Plan, on

_OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}
# A row of channels-last tiles is at most as many bytes: one cache line, and many rows a program, so
# that there is one partial sum for many neurons.
_LINE = 128
# Programs that the statistics are taken by, and steps times tiles that one reads at a time: 8 MB
# under way fill a GPU. A program leaves 16 bytes a channel, half a megabyte in all (of 64 channels
# side by side, or planes of 4 x 4), which is written and read once: more than 3 % of y each way
# only where y is smaller than 16 MB, which stays in the cache.
_STATS_PROGRAMS = 512
_LOADS = 8
# Channels last, a program of the first pass of backward adds up at most so many tiles, and leaves
# as many programs. Then its sums are half a megabyte for 64 channels, 0.4 % of what it reads of 32
# x 32 x 128 neurons, T = 4, in half precision; with a sum for every tile they were 3 %.
_SUM_TILES = 8
_SUM_PROGRAMS = 1024
# Channels side by side, a sector of the parts. Plans, whose constants are always the same dicts:
# few parts are added up by a kernel of their own, in the time of a launch.
_ADDED = 8
_PREPARE = {"BLOCK": 512, **_OPTIONS}
_FEW, _MANY = (
    {"CHANNELS": _ADDED, "BLOCK": block, **_OPTIONS, "num_warps": 2 * WARPS} for block in (128, 512)
)
# The second pass begins where the first one ended: what that read last is still in the L2 cache.
BACKWARDS = True


class Place(NamedTuple):
    """What the programs of a launch have of one timestep."""

    tile: Any
    """A kernels.norm_lif.Tile; None: any BLOCK neurons."""
    programs: int
    sizes: tuple
    """The kernel's rows, chunks, channels, and width in units of tile.align."""
    items: int = 1
    """Tiles of a program."""


def _pow2(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def _columns(width: int, most: int) -> int:
    """Columns of a tile: the widest that leaves at most a seventh of its lanes idle on rows of
    ``width`` neurons, else the one that leaves the fewest."""
    widest = min(_pow2(width), most)
    choices = [widest >> i for i in range(widest.bit_length()) if widest >> i >= min(16, widest)]
    padded = {cols: -(-width // cols) * cols for cols in choices}
    fitting = [cols for cols in choices if padded[cols] * 6 <= width * 7]
    return fitting[0] if fitting else min(choices, key=lambda cols: padded[cols])


@functools.lru_cache(maxsize=1024)
def lay(
    channels: int,
    inner: int,
    n: int,
    dtype: torch.dtype,
    rates: bool = False,
    neurons: int | None = None,
) -> Place:
    """Tiles over n neurons, neuron i of channel (i // inner) % channels. ``rates``: the neuron's
    rate is one per channel; ``neurons``: of a thread, where it is not what 16 bytes hold."""
    from snnfast.kernels.norm_lif import Tile

    block, itemsize = (neurons or THREAD[dtype]) * 32 * WARPS, dtype.itemsize
    last = inner == 1 and channels > 1
    if channels == 1:
        inner = n
    width = channels if last else inner
    cols = _columns(width, _LINE // itemsize if last else block)
    chunks = -(-width // cols)
    rows = n // channels if last else n // inner * chunks
    align = min(width & -width, 16 // itemsize)
    tile = Tile(block // cols, cols, last, not last and chunks > 1, align, rates)
    programs = -(-rows // tile.rows) * (chunks if last else 1)
    return Place(tile, programs, (rows, chunks, channels, width // align))


def adding_up(place: Place) -> Place:
    """The same tiles for a kernel that adds up: several a program where channels are last."""
    rows, chunks, *_ = place.sizes
    if not place.tile.last:
        return place
    blocks = -(-rows // place.tile.rows)
    items = min(_SUM_TILES, max(1, place.programs // _SUM_PROGRAMS))
    groups = -(-blocks // items)
    return place._replace(programs=groups * chunks, items=-(-blocks // groups))


def partial_sums(place: Place, count: int, device) -> Tensor:
    """Where backward puts ``count`` sums over each channel, one float32 a row or, where channels
    are last, one a program: [count, parts, C, chunks]. Of planes of 4 x 4, T = 4, in half
    precision, two are 3 % of what the first pass reads; of 32 x 32, 0.1 %.
    """
    rows, chunks, channels, _ = place.sizes
    if place.tile.last:
        shape = (count, place.programs // chunks, channels, 1)
    else:
        shape = (count, rows // (channels * chunks), channels, chunks)
    return torch.empty(shape, dtype=torch.float32, device=device)


def _steps(steps: int) -> dict:
    """How a kernel walks the timesteps."""
    unrolled = min(SEGMENT, steps)
    return {"STEPS": unrolled, "LONG": steps > SEGMENT, "WHOLE": steps % unrolled == 0}


@functools.lru_cache(maxsize=1024)
def _stats_plan(
    channels: int, inner: int, n: int, steps: int, dtype: torch.dtype
) -> tuple[dict, int, int, tuple]:
    """Constants, programs, parts of a channel, and the sizes that ``norm_stats`` takes."""
    tile, _, (rows, chunks, channels, width), _ = lay(channels, inner, n, dtype)
    if tile.last:
        items, across = -(-rows // tile.rows), chunks
    else:
        items, rows = rows // (channels * chunks), channels * chunks
        across = -(-rows // tile.rows)
    walk = _steps(steps)
    at_once = max(1, _LOADS // walk["STEPS"])
    groups = max(1, min(_STATS_PROGRAMS // across, items // at_once))
    per = -(-items // groups)
    per = -(-per // at_once) * at_once
    groups = -(-items // per)
    even = items % at_once == 0 and (not tile.last or rows % tile.rows == 0)
    constants = {"TILE": tile, "EVEN": even, "ITEMS": at_once, **walk, **_OPTIONS}
    count = groups if tile.last else groups * chunks
    return constants, groups * across, count, (items, per, groups, rows, chunks, channels, width)


def stats_calls(
    where: Channels, momentum: float, unbias: float, eps: float, y: Tensor, stats: Tensor,
    weight=None, running_mean=None, running_var=None,
) -> tuple[Call, Call]:  # fmt: skip
    """The two launches behind ``norm_stats``."""
    from snnfast.kernels.norm_statistics import norm_stats as kernel

    steps = y.shape[0]
    plan = _stats_plan(*where, y.numel() // steps, steps, y.dtype)
    constants, programs, count, sizes = plan
    parts = torch.empty((4, where.count, count), dtype=torch.float32, device=y.device)
    take = Call(kernel, programs, (y, parts, steps, y.stride(0), *sizes), constants)
    given = (stats, weight, running_mean, running_var)
    return take, prepare_call(momentum, unbias, eps, *given, parts)


def prepare_call(
    momentum: float, unbias: float, eps: float, stats: Tensor, weight=None, running_mean=None,
    running_var=None, parts: Tensor | None = None,
) -> Call:  # fmt: skip
    """The launch that ends the statistics, or behind ``norm_prepare``."""
    from snnfast.kernels.norm_statistics import norm_prepare as kernel

    count, channels = 0 if parts is None else parts.shape[2], stats.shape[1]
    tensors = (parts, stats, weight, running_mean, running_var)
    return Call(kernel, channels, (*tensors, momentum, unbias, eps, count, channels), _PREPARE)


def finish_call(
    count: int, stats: Tensor, totals: Tensor, parts: Tensor | None = None, drate=None
) -> Call:
    """The launch that ends the sums of the first pass of backward, or behind ``norm_finish``."""
    from snnfast.kernels.norm_statistics import norm_finish as kernel

    channels = stats.shape[1]
    outer, chunks = (1, 1) if parts is None else (parts.shape[1], parts.shape[3])
    constants = _FEW if outer * chunks <= _FEW["BLOCK"] else _MANY
    numbers = (float(count), outer * chunks, channels, chunks)
    return Call(kernel, -(-channels // _ADDED), (parts, drate, stats, totals, *numbers), constants)


def norm_stats(where: Channels, momentum: float, unbias: float, eps: float, y, stats, *given):
    calls = stats_calls(where, momentum, unbias, eps, y, stats, *given)
    shape, device, (take, end) = calls[0].arguments[1].shape, y.device, map(Plan, calls)

    def launch(y, stats, *given):
        parts = stats.new_empty(*shape)
        take.launch(device, y, parts)
        end.launch(device, parts, stats, *given)

    return on(device, launch)


def norm_prepare(momentum: float, unbias: float, eps: float, stats, *given):
    plan, device = Plan(prepare_call(momentum, unbias, eps, stats, *given)), stats.device
    return on(device, lambda *tensors: plan.launch(device, None, *tensors))


def norm_finish(count: int, stats, totals):
    plan, device = Plan(finish_call(count, stats, totals)), stats.device
    return on(device, lambda *tensors: plan.launch(device, None, None, *tensors))


@functools.lru_cache(maxsize=1024)
def _dy_plan(tile, steps: int, backwards: bool) -> dict:
    """Constants of ``norm_dy``."""
    return {"TILE": tile, "BACKWARDS": backwards, **_steps(steps), **_OPTIONS}


def norm_dy_call(where: Channels, y, dx, dy, stats, totals) -> Call:
    """The launch behind ``norm_dy``."""
    from snnfast.kernels.norm_lif import norm_dy as kernel

    n, once = y.numel() // y.shape[0], dx.dim() < y.dim()
    steps = 1 if once else y.shape[0]
    tile, programs, places, _ = lay(*where, n, y.dtype)
    strides = (y.stride(0), *((0, 0) if once else (dx.stride(0), dy.stride(0))))
    arguments = (y, dx, dy, stats, totals, steps, *strides, *places)
    return Call(kernel, programs, arguments, _dy_plan(tile, steps, BACKWARDS))


def norm_dy(where: Channels, y, dx, dy, stats, totals):
    plan, device = Plan(norm_dy_call(where, y, dx, dy, stats, totals)), y.device
    return on(device, lambda *tensors: plan.launch(device, *tensors))
