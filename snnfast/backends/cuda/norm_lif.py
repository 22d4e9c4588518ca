"""Normalisation before a LIF layer in CUDA C++: what ``cuda`` hands over where there is one, and
the two passes that need no neuron. Structs are those of ``csrc/cuda/norm_lif_args.h``.
"""

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import (
    IO,
    Double,
    Float,
    Int,
    Kernel,
    Launch,
    Long,
    Pointer,
    Unsigned,
)
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import DWEIGHT, INV_STD, MEAN, MOMENT, SCALE, SUM, VAR, B, C, Channels

ANY_CHANNELS, ONE_CHANNEL, ROW_OF_CHANNELS = 0, 1, 2
_THREADS, _TOTAL_THREADS = 128, 256
_BLOCKS = 1024
"""As many as keep a GPU busy: beyond, a block takes several tiles and leaves no more numbers..."""
_PARTS = 2**18
"""...and before, where its channels are many: these in all, 1 MB, or _BLOCKS of each channel."""


class Tiles(NamedTuple):
    """The struct of that name."""

    channels: Long
    inner: Long
    tiles: Long
    blocks: Long
    slots: Int
    group: Int
    layout: Int
    channels_shift: Int = 0
    inner_shift: Int = 0
    channels_factor: Unsigned = 0
    inner_factor: Unsigned = 0
    unused: Int = 0


class NormArgs(NamedTuple):
    mean: Pointer
    scale: Pointer
    bias: Pointer
    a: Pointer
    b: Pointer
    c: Pointer
    residual: Pointer
    parts: Pointer
    residual_stride: Long
    at: Tiles


class MapArgs(NamedTuple):
    x: Pointer
    dx: Pointer
    dy: Pointer
    steps: Long
    neurons: Long
    x_stride: Long


class TotalArgs(NamedTuple):
    parts: Pointer
    y: Pointer
    first: Pointer
    second: Pointer
    count: Double
    tile: Long
    dtype: Int
    lanes: Int
    at: Tiles


class PreparedArgs(NamedTuple):
    inv_std: Pointer
    scale: Pointer
    weight: Pointer
    running_mean: Pointer
    running_var: Pointer
    momentum: Float
    unbias: Float
    eps: Float
    unused: Int = 0


class FinishedArgs(NamedTuple):
    scale: Pointer
    inv_std: Pointer
    dweight: Pointer
    b: Pointer
    c: Pointer
    count: Float
    unused: Int = 0


def tiles(neurons: int, lanes: int, channels: int, inner: int, aligned: bool, width: int) -> Tiles:
    """How the neurons of a launch fall into blocks, which leave ``width`` numbers of a channel.

    ``aligned``: vectors of channels lie at a multiple of 16 bytes.
    """
    tile = _THREADS * lanes
    count = blocks = -(-neurons // tile)
    if tile % inner == 0 or inner % tile == 0:
        slots = max(1, tile // inner)
    else:
        slots = 1 - (1 - tile) // inner
    slots = min(slots, channels)
    most = min(_BLOCKS, max(_BLOCKS, _PARTS // slots) // width) if width else count
    if count > most:
        # Tiles that many apart hold the same channels.
        period = channels * inner // gcd(channels * inner, tile)
        rounds = count // most
        blocks = min(count, -(-count // rounds // period) * period)
    group = 1
    while group < 32 and 2 * group * slots <= _THREADS:
        group *= 2
    layout = ANY_CHANNELS
    if inner % lanes == 0:
        layout = ONE_CHANNEL
    elif inner == 1 and channels % lanes == 0 and aligned:
        layout = ROW_OF_CHANNELS
    (of_channels, channels_shift), (of_inner, inner_shift) = _divisor(channels), _divisor(inner)
    factors = (channels_shift, inner_shift, of_channels, of_inner)
    return Tiles(channels, inner, count, blocks, slots, group, layout, *factors)


def _divisor(by: int) -> tuple[int, int]:
    """The factor and the shift with which kernels divide what is below 2^31."""
    if by >= 2**31:
        return 0, 31
    shift = (by - 1).bit_length()
    return (2**32 * (2**shift - by)) // by + 1, shift


def shared_bytes(kind: str, lanes: int) -> int:
    """Shared memory of a block, as csrc/cuda/norm_lif.cu has it."""
    numbers = {"backward": 6 * lanes, "stats": 3 * lanes + 1}.get(kind, 0)
    return 4 * _THREADS * numbers


class Plan(NamedTuple):
    """What a launch with channels has besides its addresses."""

    rest: bytes
    """Of NormArgs."""
    at: Tiles
    parts: tuple[int, int, int]
    """The shape of what blocks leave; its last is 0 where they leave nothing."""


@lru_cache(maxsize=1024)
def plan(
    neurons: int,
    lanes: int,
    channels: int,
    inner: int,
    aligned: bool,
    width: int,
    residual_stride: int = 0,
) -> Plan:
    at = tiles(neurons, lanes, channels, inner, aligned, width)
    rest = driver.behind(NormArgs, residual_stride, at)
    return Plan(rest, at, (at.blocks, at.slots, width))


class Total(NamedTuple):
    """The launch that ends a reduction."""

    launch: Launch
    rest: bytes
    """Of TotalArgs."""


@lru_cache(maxsize=1024)
def _total(name: str, at: Tiles, count: int = 1, tile: int = 0, dtype: int = 0) -> Total:
    """``at`` without tiles: the two vectors are given."""
    # As many side by side as a line of the parts holds.
    lanes = _TOTAL_THREADS if not at.tiles else 8 if at.inner == 1 else 1
    follows = {"norm_prepare": "PreparedArgs", "norm_finish": "FinishedArgs"}[name]
    shared = 3 * 8 * _TOTAL_THREADS if at.tiles else 0
    blocks, names = -(-at.channels // lanes), (f"-DSNN_NORM_TOTALS={follows}",)
    kernel = Kernel("norm_lif", names, blocks, _TOTAL_THREADS, shared)
    rest = driver.behind(TotalArgs, count, tile, dtype, lanes, at)
    return Total(Launch("norm_lif", name, (), kernel), rest)


def _rows(tensor: Tensor | None, *which: int) -> list[int]:
    """The addresses of those rows [channels]."""
    if tensor is None:
        return [0] * len(which)
    at, size = driver.pointer(tensor), 4 * tensor.shape[1]
    return [at + size * row for row in which]


def _run_finish(total: Total, count: int, stats: Tensor, totals: Tensor, parts=None) -> None:
    pointers = [driver.pointer(parts), 0, *_rows(totals, SUM, MOMENT)]
    follows = [*_rows(stats, SCALE, INV_STD), *_rows(totals, DWEIGHT, B, C)]
    follows = driver.addressed(follows, _numbers(FinishedArgs, count, 0))
    driver.run(total.launch, stats, driver.addressed(pointers, total.rest), follows)


def _run_prepare(total: Total, numbers: tuple, stats: Tensor, given, parts=None, y=None) -> None:
    """``given``: weight and running statistics; ``numbers``: momentum, unbias, eps."""
    pointers = [driver.pointer(parts), driver.pointer(y), *_rows(stats, MEAN, VAR)]
    follows = [*_rows(stats, INV_STD, SCALE), *map(driver.pointer, given)]
    follows = driver.addressed(follows, _numbers(PreparedArgs, *numbers, 0))
    driver.run(total.launch, stats, driver.addressed(pointers, total.rest), follows)


_numbers = lru_cache(maxsize=256)(driver.behind)


def _given(name: str, channels: int) -> Total:
    return _total(name, Tiles(channels, 1, 0, 0, 0, 0, ANY_CHANNELS))


def norm_prepare(momentum: float, unbias: float, eps: float, stats, *given):
    total, numbers = _given("norm_prepare", stats.shape[1]), (momentum, unbias, eps)
    return lambda stats, *given: _run_prepare(total, numbers, stats, given)


def norm_finish(count: int, stats, totals):
    total = _given("norm_finish", stats.shape[1])
    return lambda stats, totals: _run_finish(total, count, stats, totals)


def rows(stats: Tensor | None, bias: Tensor | None = None, totals: Tensor | None = None) -> list:
    """The addresses of the vectors of channels: mean, scale, bias, a, b and c."""
    mean, scale = _rows(stats, MEAN, SCALE)
    a = 0 if totals is None else scale
    return [mean, scale, driver.pointer(bias), a, *_rows(totals, B, C)]


def arguments(
    plan: Plan, rows: list[int], like: Tensor, residual: Tensor | None = None
) -> tuple[bytes, Tensor | None]:
    """NormArgs, and the parts that the launch fills."""
    parts = None
    if plan.parts[2]:
        parts = torch.empty(plan.parts, dtype=torch.float32, device=like.device)
    pointers = [*rows, driver.pointer(residual), driver.pointer(parts)]
    return driver.addressed(pointers, plan.rest), parts


def add_up(
    plan: Plan, lanes: int, parts: Tensor, count: int, stats: Tensor, totals: Tensor
) -> None:
    """The parts of the first pass of backward into ``totals``, and what follows from them."""
    total = _total("norm_finish", plan.at, tile=_THREADS * lanes)
    _run_finish(total, count, stats, totals, parts)


class _Map(NamedTuple):
    """A pass without a neuron, but for its addresses."""

    launch: Launch
    rest: bytes
    """Of MapArgs."""
    plan: Plan
    total: Total | None


@lru_cache(maxsize=1024)
def _map(
    kind: str,
    dtype: torch.dtype,
    steps: int,
    neurons: int,
    stride: int,
    channels: int,
    inner: int,
    aligned: bool,
    aligned_rows: bool,
) -> _Map:
    lanes = 16 // dtype.itemsize
    vector = aligned and (neurons | stride) % lanes == 0
    lanes = lanes if vector else 1
    stats = kind == "stats"
    own = plan(neurons, lanes, channels, inner, aligned_rows, 4 if stats else 0)
    names = (f"-DSNN_NORM_{kind.upper()}", f"-DSNN_IO={IO[dtype]}", f"-DSNN_LANES={lanes}")
    kernel = Kernel("norm_lif", names, own.at.blocks, _THREADS, shared_bytes(kind, lanes))
    launch = Launch("norm_lif", f"norm_{kind}", (DTYPES[dtype], vector), kernel)
    total = None
    if stats:
        sizes = (steps * neurons // channels, _THREADS * lanes, DTYPES[dtype])
        total = _total("norm_prepare", own.at, *sizes)
    return _Map(launch, driver.behind(MapArgs, steps, neurons, stride), own, total)


def _run_map(kind: str, sizes: tuple, x, dx, dy, stats: Tensor, totals: Tensor | None = None):
    """Launches the pass over x; returns it and the parts that it leaves."""
    pointers, at_rows = [driver.pointer(t) for t in (x, dx, dy)], rows(stats, None, totals)
    found = _map(kind, x.dtype, *sizes, driver.aligned(*pointers), driver.aligned(*at_rows))
    args, parts = arguments(found.plan, at_rows, x)
    driver.run(found.launch, x, driver.addressed(pointers, found.rest), args)
    return found, parts


def _sizes(x: Tensor, steps: int, where: Channels) -> tuple:
    """steps, neurons, stride, channels, inner."""
    return steps, x[0].numel(), x.stride(0) if steps > 1 else 0, *where


def norm_stats(where: Channels, momentum: float, unbias: float, eps: float, y, stats, *given):
    sizes, numbers = _sizes(y, y.shape[0], where), (momentum, unbias, eps)

    def launch(y, stats, *given):
        found, parts = _run_map("stats", sizes, y, None, None, stats)
        _run_prepare(found.total, numbers, stats, given, parts, y)

    return launch


def norm_dy(where: Channels, y, dx, dy, stats, totals):
    sizes = _sizes(y, 1 if dx.dim() < y.dim() else y.shape[0], where)
    return lambda *tensors: _run_map("dy", sizes, *tensors)
