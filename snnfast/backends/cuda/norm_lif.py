"""Normalisation before a LIF layer in CUDA C++: what ``cuda`` hands over where there is one, and
the two passes that need no neuron. Structs are those of ``csrc/cuda/norm_lif_args.h``.
"""

from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.channels import norm_prepare
from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import IO, Double, Int, Kernel, Long, Pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Norm, Prepared

ANY_CHANNELS, ONE_CHANNEL, ROW_OF_CHANNELS = 0, 1, 2
_THREADS, _TOTAL_THREADS = 128, 256
_BLOCKS = 1024
"""As many as keep a GPU busy: beyond, a block takes several tiles and leaves no more numbers."""


class Tiles(NamedTuple):
    """The struct of that name."""

    channels: Long
    inner: Long
    tiles: Long
    blocks: Long
    slots: Int
    group: Int
    layout: Int
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


@lru_cache(maxsize=256)
def tiles(neurons: int, lanes: int, channels: int, inner: int, aligned: bool, sums: bool) -> Tiles:
    """How the neurons of a launch fall into blocks; ``sums``: whether blocks add up channels.

    ``aligned``: vectors of channels lie at a multiple of 16 bytes.
    """
    tile = _THREADS * lanes
    count = blocks = -(-neurons // tile)
    if sums and count > _BLOCKS:
        # Tiles that many apart hold the same channels.
        period = channels * inner // gcd(channels * inner, tile)
        rounds = count // _BLOCKS
        blocks = min(count, -(-count // rounds // period) * period)
    if tile % inner == 0 or inner % tile == 0:
        slots = max(1, tile // inner)
    else:
        slots = 1 - (1 - tile) // inner
    slots = min(slots, channels)
    group = 1
    while group < 32 and 2 * group * slots <= _THREADS:
        group *= 2
    layout = ANY_CHANNELS
    if inner % lanes == 0:
        layout = ONE_CHANNEL
    elif inner == 1 and channels % lanes == 0 and aligned:
        layout = ROW_OF_CHANNELS
    return Tiles(channels, inner, count, blocks, slots, group, layout)


def shared_bytes(kind: str, lanes: int) -> int:
    """Shared memory of a block, as csrc/cuda/norm_lif.cu has it."""
    numbers = {"backward": 6 * lanes, "stats": 3 * lanes + 1}.get(kind, 0)
    return 4 * _THREADS * numbers


class Launch:
    """One launch over the neurons of x, and that of the totals where it has any."""

    def __init__(
        self,
        kind: str,
        x: Tensor,
        neurons: int,
        vector: bool,
        norm: Norm,
        residual: Tensor | None = None,
        **abc: Tensor,
    ):
        self.kind, self.x, self.vector = kind, x, vector
        self.lanes = 16 // x.element_size() if vector else 1
        rows = (norm.mean, norm.scale, norm.bias, *(abc.get(name) for name in "abc"))
        pointers = [driver.pointer(t) for t in rows]
        aligned = all(p % 16 == 0 for p in pointers)
        sums = kind == "stats" or (kind == "backward" and not abc)
        self.at = tiles(neurons, self.lanes, norm.channels, norm.inner, aligned, sums)
        self.parts = None
        if sums:
            shape = (self.at.blocks, self.at.slots, 2 if kind == "backward" else 4)
            self.parts = torch.empty(shape, dtype=torch.float32, device=x.device)
        stride = 0 if residual is None or residual.shape[0] == 1 else residual.stride(0)
        pointers += [driver.pointer(residual), driver.pointer(self.parts)]
        self.args = driver.packed(NormArgs(*pointers, stride, self.at))

    def run(self, name: str, names: Callable[[], tuple[str, ...]], *args: bytes) -> None:
        """``names``: the -D options of the kernel, besides its kind."""

        def kernel() -> Kernel:
            options = (f"-DSNN_NORM_{self.kind.upper()}", *names())
            shared = shared_bytes(self.kind, self.lanes)
            return Kernel("norm_lif", options, self.at.blocks, _THREADS, shared)

        choices = (DTYPES[self.x.dtype], self.vector)
        driver.run("norm_lif", self.x, name, choices, kernel, *args, self.args)

    def total(self, first: int, second: int, y: Tensor | None = None, count: int = 1) -> None:
        """Adds up ``parts``: to two vectors [channels], of statistics where y is given."""
        pointers = (driver.pointer(self.parts), driver.pointer(y), first, second)
        lanes = 32 if self.at.inner == 1 else 1  # side by side, as the channels are
        tile = _THREADS * self.lanes
        args = TotalArgs(*pointers, count, tile, DTYPES[self.x.dtype], lanes, self.at)

        def kernel() -> Kernel:
            blocks = -(-self.at.channels // lanes)
            names = ("-DSNN_NORM_TOTALS",)
            return Kernel("norm_lif", names, blocks, _TOTAL_THREADS, 8 * _TOTAL_THREADS)

        driver.run("norm_lif", self.x, "norm_totals", (), kernel, driver.packed(args))


def _map_names(launch: Launch) -> tuple[str, ...]:
    return f"-DSNN_IO={IO[launch.x.dtype]}", f"-DSNN_LANES={launch.lanes}"


def _vector(y: Tensor, neurons: int, stride: int, *tensors: Tensor) -> bool:
    lanes = 16 // y.element_size()
    return (neurons | stride) % lanes == 0 and all(t.data_ptr() % 16 == 0 for t in (y, *tensors))


def _time_stride(t: Tensor) -> int:
    return t.stride(0) if t.shape[0] > 1 else 0


def norm_stats(
    y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor,
    prepared: Prepared | None = None,
) -> None:  # fmt: skip
    steps, neurons, stride = y.shape[0], y.numel() // y.shape[0], _time_stride(y)
    vector = _vector(y, neurons, stride)
    launch = Launch("stats", y, neurons, vector, Norm(mean, mean, var, channels, inner))
    args = driver.packed(MapArgs(driver.pointer(y), 0, 0, steps, neurons, stride))
    launch.run("norm_stats", lambda: _map_names(launch), args)
    launch.total(driver.pointer(mean), driver.pointer(var), y, y.numel() // channels)
    if prepared is not None:
        norm_prepare(mean, var, prepared)


def norm_dy(x: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor) -> None:
    steps, neurons, stride = x.shape[0], x.numel() // x.shape[0], _time_stride(x)
    vector = _vector(x, neurons, stride, dx, dy)
    launch = Launch("dy", x, neurons, vector, norm, a=a, b=b, c=c)
    pointers = [driver.pointer(t) for t in (x, dx, dy)]
    args = driver.packed(MapArgs(*pointers, steps, neurons, stride))
    launch.run("norm_dy", lambda: _map_names(launch), args)
