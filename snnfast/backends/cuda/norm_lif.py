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
from snnfast.backends.cuda.launch import IO, Double, Float, Int, Kernel, Long, Pointer, Unsigned
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Finished, Norm, Prepared

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


@lru_cache(maxsize=256)
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
        width = 0 if abc else {"stats": 4, "backward": 2}.get(kind, 0)
        self.at = tiles(neurons, self.lanes, norm.channels, norm.inner, aligned, width)
        self.parts = None
        if width:
            shape = (self.at.blocks, self.at.slots, width)
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

    def total(self, name: str, first: Tensor, second: Tensor, follows: tuple, **of) -> None:
        """Adds up ``parts``, to two vectors [C] and what follows from them."""
        sizes = {"tile": _THREADS * self.lanes, "dtype": DTYPES[self.x.dtype], "at": self.at}
        _total(name, first, second, follows, parts=driver.pointer(self.parts), **sizes, **of)


def _total(name: str, first: Tensor, second: Tensor, follows: tuple, **of) -> None:
    """The launch of that name; without parts the two vectors are given."""
    of = {"parts": 0, "y": 0, "count": 1, "tile": 0, "dtype": 0} | of
    of.setdefault("at", Tiles(first.numel(), 1, 0, 0, 0, 0, ANY_CHANNELS))
    channels = of["at"].channels
    # As many side by side as a line of the parts holds.
    lanes = _TOTAL_THREADS if not of["parts"] else 8 if of["at"].inner == 1 else 1
    args = TotalArgs(first=driver.pointer(first), second=driver.pointer(second), lanes=lanes, **of)

    def kernel() -> Kernel:
        names = (f"-DSNN_NORM_TOTALS={type(follows).__name__}",)
        shared = 3 * 8 * _TOTAL_THREADS if args.parts else 0
        return Kernel("norm_lif", names, -(-channels // lanes), _TOTAL_THREADS, shared)

    structs = driver.packed(args), driver.packed(follows)
    driver.run("norm_lif", first, name, (), kernel, *structs)


_NOT_PREPARED, _NOT_FINISHED = PreparedArgs(*[0] * 8), FinishedArgs(*[0] * 6)


def _prepared(p: Prepared | None) -> PreparedArgs:
    return PreparedArgs(*map(driver.pointer, p[:5]), *p[5:]) if p else _NOT_PREPARED


def finished(f: Finished | None) -> FinishedArgs:
    """What follows from sums, as the launch that ends them takes it."""
    if f is None:
        return _NOT_FINISHED
    pointers = map(driver.pointer, (f.scale, f.inv_std, f.dweight, f.b, f.c))
    return FinishedArgs(*pointers, f.count)


def norm_prepare(mean: Tensor, var: Tensor, prepared: Prepared) -> None:
    _total("norm_prepare", mean, var, _prepared(prepared))


def norm_finish(sums: Tensor, f: Finished) -> None:
    _total("norm_finish", *sums, finished(f))


def _map_names(launch: Launch) -> tuple[str, ...]:
    return f"-DSNN_IO={IO[launch.x.dtype]}", f"-DSNN_LANES={launch.lanes}"


def _vector(y: Tensor, neurons: int, stride: int, *tensors: Tensor) -> bool:
    lanes = 16 // y.element_size()
    return (neurons | stride) % lanes == 0 and all(t.data_ptr() % 16 == 0 for t in (y, *tensors))


def _time_stride(t: Tensor) -> int:
    return t.stride(0) if t.shape[0] > 1 else 0


def norm_stats(
    y: Tensor,
    channels: int,
    inner: int,
    mean: Tensor,
    var: Tensor,
    prepared: Prepared | None = None,
) -> None:
    steps, neurons, stride = y.shape[0], y.numel() // y.shape[0], _time_stride(y)
    vector = _vector(y, neurons, stride)
    launch = Launch("stats", y, neurons, vector, Norm(mean, mean, var, channels, inner))
    args = driver.packed(MapArgs(driver.pointer(y), 0, 0, steps, neurons, stride))
    launch.run("norm_stats", lambda: _map_names(launch), args)
    of = {"y": driver.pointer(y), "count": y.numel() // channels}
    launch.total("norm_prepare", mean, var, _prepared(prepared), **of)


def norm_dy(x: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor) -> None:
    steps, neurons, stride = x.shape[0], x.numel() // x.shape[0], _time_stride(x)
    vector = _vector(x, neurons, stride, dx, dy)
    launch = Launch("dy", x, neurons, vector, norm, a=a, b=b, c=c)
    pointers = [driver.pointer(t) for t in (x, dx, dy)]
    args = driver.packed(MapArgs(*pointers, steps, neurons, stride))
    launch.run("norm_dy", lambda: _map_names(launch), args)
