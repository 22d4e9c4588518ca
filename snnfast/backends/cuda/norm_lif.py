"""Normalisation before a LIF layer in CUDA C++: what ``cuda`` hands over where there is one, and
the two passes that need no neuron. Structs are those of ``csrc/cuda/norm_args.h``.
"""

import struct
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import DTYPES, IO, check_status, launch_compiled, pointer
from snnfast.backends.spec import Norm

_NORM = struct.Struct("=8Qq2i4q4i")
_MAP = struct.Struct("=3Q3q")
_TOTAL = struct.Struct("=4Qdq2i4q4i")

ANY_CHANNELS, ONE_CHANNEL, ROW_OF_CHANNELS = 0, 1, 2
_THREADS, _TOTAL_THREADS = 128, 256
_BLOCKS = 1024
"""As many as keep a GPU busy: beyond, a block takes several tiles and leaves no more numbers."""


class Tiles(NamedTuple):
    """The struct of that name."""

    channels: int
    inner: int
    tiles: int
    blocks: int
    slots: int
    group: int
    layout: int
    unused: int = 0


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
    """Shared memory of a block, as csrc/cuda/norm_launch.cuh has it."""
    numbers = {"backward": 6 * lanes, "stats": 3 * lanes + 1}.get(kind, 0)
    return 4 * _THREADS * numbers


class Launch:
    """One launch over the neurons of x, and that of the totals where it has any."""

    def __init__(self, kind: str, x: Tensor, neurons: int, vector: bool, norm: Norm, **more):
        self.kind, self.x, self.vector = kind, x, vector
        self.lanes = 16 // x.element_size() if vector else 1
        rows = (norm.mean, norm.scale, norm.bias, *(more.get(name) for name in "abc"))
        pointers = [pointer(t) for t in rows]
        aligned = all(p % 16 == 0 for p in pointers)
        sums = kind == "stats" or (kind == "backward" and "a" not in more)
        self.at = tiles(neurons, self.lanes, norm.channels, norm.inner, aligned, sums)
        self.parts = None
        if sums:
            shape = (self.at.blocks, self.at.slots, 2 if kind == "backward" else 4)
            self.parts = torch.empty(shape, dtype=torch.float32, device=x.device)
        residual, layer = more.get("residual"), more.get("layer")
        stride = 0 if residual is None or residual.shape[0] == 1 else residual.stride(0)
        neuron = (layer.charge, layer.hard) if layer else (0, 0)
        pointers += [pointer(residual), pointer(self.parts)]
        self.args = _NORM.pack(*pointers, stride, *neuron, *self.at)

    def run(self, names: tuple[str, ...], *args: bytes, total: bytes = b"") -> None:
        """``names``: the -D options of the kernel, besides its kind."""
        dtype, (device, stream) = DTYPES.index(self.x.dtype), driver.place(self.x)
        module = driver.ahead_of_time()
        if module is not None:
            launch = getattr(module, f"norm_{self.kind}")
            status = launch(dtype, self.vector, device, stream, *args, self.args, total)
            check_status("norm_lif", module, status)
            return
        kernel = driver.compiled("norm", device, (f"-DSNN_NORM_{self.kind.upper()}", *names))
        shared = shared_bytes(self.kind, self.lanes)
        grid = (self.at.blocks, _THREADS)
        launch_compiled(
            "norm_lif", kernel, device, stream, grid, *args, self.args, shared_mem=shared
        )
        if total:
            kernel = driver.compiled("norm", device, ("-DSNN_NORM_TOTALS",))
            grid = (-(-self.at.channels // _total_lanes(self.at)), _TOTAL_THREADS)
            shared = 8 * _TOTAL_THREADS
            launch_compiled("norm_lif", kernel, device, stream, grid, total, shared_mem=shared)

    def total(self, first: int, second: int, y: Tensor | None = None, count: int = 1) -> bytes:
        """What adds up ``parts``: to two vectors [channels], of statistics where y is given."""
        pointers = (pointer(self.parts), pointer(y), first, second)
        tile, dtype = _THREADS * self.lanes, DTYPES.index(self.x.dtype)
        return _TOTAL.pack(*pointers, count, tile, dtype, _total_lanes(self.at), *self.at)


def _total_lanes(at: Tiles) -> int:
    """Channels that a block adds up side by side: those that lie so."""
    return 32 if at.inner == 1 else 1


def _map_names(launch: Launch) -> tuple[str, ...]:
    return f"-DSNN_IO={IO[DTYPES.index(launch.x.dtype)]}", f"-DSNN_LANES={launch.lanes}"


def _vector(y: Tensor, neurons: int, stride: int, *tensors: Tensor) -> bool:
    lanes = 16 // y.element_size()
    return (neurons | stride) % lanes == 0 and all(t.data_ptr() % 16 == 0 for t in (y, *tensors))


def _time_stride(t: Tensor) -> int:
    return t.stride(0) if t.shape[0] > 1 else 0


def norm_stats(y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor) -> None:
    steps, neurons, stride = y.shape[0], y.numel() // y.shape[0], _time_stride(y)
    vector = _vector(y, neurons, stride)
    launch = Launch("stats", y, neurons, vector, Norm(mean, mean, var, channels, inner))
    args = _MAP.pack(pointer(y), 0, 0, steps, neurons, stride)
    total = launch.total(pointer(mean), pointer(var), y, y.numel() // channels)
    launch.run(_map_names(launch), args, total=total)


def norm_dy(x: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor) -> None:
    steps, neurons, stride = x.shape[0], x.numel() // x.shape[0], _time_stride(x)
    vector = _vector(x, neurons, stride, dx, dy)
    launch = Launch("apply", x, neurons, vector, norm, a=a, b=b, c=c)
    args = _MAP.pack(pointer(x), pointer(dx), pointer(dy), steps, neurons, stride)
    launch.run(_map_names(launch), args)
