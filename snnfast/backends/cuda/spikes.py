"""Spikes as bits through CUDA C++: one launch each way, packed as ``csrc/cuda/spikes_args.h`` has
it."""

import struct

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import check_status, launch_compiled, pointer

LOOK, VECTOR = 1, 2
_ARGS = struct.Struct("=3QqIi")
_ONE = {torch.float32: 0x3F800000, torch.float16: 0x3C00, torch.bfloat16: 0x3F80}
_THREADS, _BYTES = 128, 4


def _launch(direction: str, s: Tensor, bits: Tensor, exact: Tensor | None) -> None:
    flags = (exact is not None) * LOOK | (s.data_ptr() % 16 == 0) * VECTOR
    tensors = (s.data_ptr(), bits.data_ptr(), pointer(exact))
    args = _ARGS.pack(*tensors, s.numel(), _ONE[s.dtype], flags)
    device, stream = driver.place(s)
    module, op = driver.ahead_of_time(), f"{direction}_spikes"
    if module is None:
        blocks = -(-s.numel() // (_THREADS * _BYTES * 8))
        kernel = driver.compiled("spikes", device, defines(direction, s.element_size()))
        launch_compiled("spikes", kernel, device, stream, (blocks, _THREADS), args)
        return
    check_status(op, module, getattr(module, op)(s.element_size(), device, stream, args))


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
