"""Spikes as bits through CUDA C++: one launch each way, packed as ``csrc/cuda/spikes_args.h`` has
it."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import Int, Kernel, Launch, Long, Pointer

_ONE = {torch.float32: 0x3F800000, torch.float16: 0x3C00, torch.bfloat16: 0x3F80}
_THREADS, _BYTES = 128, 4


class SpikesArgs(NamedTuple):
    s: Pointer
    bits: Pointer
    n: Long
    one: Int
    aligned: Int


@lru_cache(maxsize=256)
def _plan(direction: str, n: int, dtype: torch.dtype, aligned: bool) -> tuple[Launch, bytes]:
    blocks, size = -(-n // (_THREADS * _BYTES * 8)), dtype.itemsize
    kernel = Kernel("spikes", defines(direction, size), blocks, _THREADS)
    op = f"{direction}_spikes"
    return Launch(op, op, (size,), kernel), driver.behind(SpikesArgs, n, _ONE[dtype], aligned)


def _run(direction: str, s: Tensor, bits: Tensor) -> None:
    pointers = [driver.pointer(t) for t in (s, bits)]
    launch, rest = _plan(direction, s.numel(), s.dtype, pointers[0] % 16 == 0)
    driver.run(launch, s, driver.addressed(pointers, rest))


def defines(direction: str, size: int) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/spikes.cuh."""
    return f"-DSNN_{direction.upper()}", f"-DSNN_SIZE={size}"


def pack_spikes(s: Tensor, bits: Tensor) -> None:
    _run("pack", s, bits)


def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    _run("unpack", s, bits)
