"""BatchNorm around the LIF kernels through Triton: tiles along the channels, statistics, and the
second pass of backward. The neurons themselves are launched by ``triton``."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast.backends.spec import SEGMENT, Finished, Norm, Prepared
from snnfast.backends.triton.launch import THREAD, WARPS, Call

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
    y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor, prepared: Prepared | None
) -> tuple[Call, Call]:
    """The two launches behind ``norm_stats``."""
    from snnfast.kernels.norm_statistics import norm_stats as kernel

    steps = y.shape[0]
    plan = _stats_plan(channels, inner, y.numel() // steps, steps, y.dtype)
    constants, programs, count, sizes = plan
    parts = torch.empty((4, channels, count), dtype=torch.float32, device=y.device)
    take = Call(kernel, programs, (y, parts, steps, y.stride(0), *sizes), constants)
    return take, prepare_call(mean, var, prepared, parts)


def prepare_call(
    mean: Tensor, var: Tensor, prepared: Prepared | None, parts: Tensor | None = None
) -> Call:
    """The launch that ends the statistics, or behind ``norm_prepare``."""
    from snnfast.kernels.norm_statistics import norm_prepare as kernel

    count = 0 if parts is None else parts.shape[2]
    numbers = (None,) * 5 + (0.0, 1.0, 0.0) if prepared is None else prepared
    arguments = (parts, mean, var, *numbers, count, mean.numel())
    return Call(kernel, mean.numel(), arguments, _PREPARE)


def finish_call(
    sums: Tensor, finished: Finished | None, parts: Tensor | None = None, drate=None
) -> Call:
    """The launch that ends the sums of the first pass of backward, or behind ``norm_finish``."""
    from snnfast.kernels.norm_statistics import norm_finish as kernel

    channels = sums.shape[1]
    outer, chunks = (1, 1) if parts is None else (parts.shape[1], parts.shape[3])
    tensors, count = (None,) * 6, 0
    if finished is not None:
        scale, inv_std, count, *outputs = finished
        tensors = (scale, inv_std, *outputs)
    constants = _FEW if outer * chunks <= _FEW["BLOCK"] else _MANY
    arguments = (parts, sums, drate, *tensors, float(count), outer * chunks, channels, chunks)
    return Call(kernel, -(-channels // _ADDED), arguments, constants)


def norm_stats(
    y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor,
    prepared: Prepared | None = None,
) -> None:  # fmt: skip
    for call in stats_calls(y, channels, inner, mean, var, prepared):
        call.launch(y.device)


def norm_prepare(mean: Tensor, var: Tensor, prepared: Prepared) -> None:
    prepare_call(mean, var, prepared).launch(mean.device)


def norm_finish(sums: Tensor, finished: Finished) -> None:
    finish_call(sums, finished).launch(sums.device)


@functools.lru_cache(maxsize=1024)
def _dy_plan(tile, steps: int, backwards: bool) -> dict:
    """Constants of ``norm_dy``."""
    return {"TILE": tile, "BACKWARDS": backwards, **_steps(steps), **_OPTIONS}


def norm_dy_call(y, dx, norm: Norm, a, b, c, dy) -> Call:
    """The launch behind ``norm_dy``."""
    from snnfast.kernels.norm_lif import norm_dy as kernel

    steps = y.shape[0]
    tile, programs, places, _ = lay(norm.channels, norm.inner, y.numel() // steps, y.dtype)
    strides = (y.stride(0), dx.stride(0), dy.stride(0))
    arguments = (y, dx, dy, norm.mean, a, b, c, steps, *strides, *places)
    return Call(kernel, programs, arguments, _dy_plan(tile, steps, BACKWARDS))


def norm_dy(y: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor) -> None:
    norm_dy_call(y, dx, norm, a, b, c, dy).launch(y.device)
