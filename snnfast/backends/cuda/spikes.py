"""Spikes as bits through CUDA C++: one launch each way, packed as ``csrc/cuda/spikes_args.h`` has
it."""

from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import Int, Kernel, Long, Pointer

LOOK, VECTOR = 1, 2
_ONE = {torch.float32: 0x3F800000, torch.float16: 0x3C00, torch.bfloat16: 0x3F80}
_THREADS, _BYTES = 128, 4


class SpikesArgs(NamedTuple):
    s: Pointer
    bits: Pointer
    exact: Pointer
    n: Long
    one: Int
    flags: Int


def _launch(direction: str, s: Tensor, bits: Tensor, exact: Tensor | None) -> None:
    flags = (exact is not None) * LOOK | (s.data_ptr() % 16 == 0) * VECTOR
    pointers = [driver.pointer(t) for t in (s, bits, exact)]
    args = driver.packed(SpikesArgs(*pointers, s.numel(), _ONE[s.dtype], flags))
    size, op = s.element_size(), f"{direction}_spikes"

    def kernel() -> Kernel:
        blocks = -(-s.numel() // (_THREADS * _BYTES * 8))
        return Kernel("spikes", defines(direction, size), blocks, _THREADS)

    driver.run(op, s, op, (size,), kernel, args)


def defines(direction: str, size: int) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/spikes.cuh."""
    return f"-DSNN_{direction.upper()}", f"-DSNN_SIZE={size}"


def pack_spikes(s: Tensor, bits: Tensor) -> None:
    _launch("pack", s, bits, None)


def pack_if_spikes(s: Tensor, bits: Tensor) -> bool:
    exact = torch.ones(1, dtype=torch.int32, device=s.device)
    _launch("pack", s, bits, exact)
    return bool(exact.item())


def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    _launch("unpack", s, bits, None)
