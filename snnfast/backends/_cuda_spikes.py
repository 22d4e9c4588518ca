"""Spikes as bits through CUDA C++: one launch each way, packed as ``csrc/cuda/spikes_args.h`` has
it."""

import struct

import torch
from torch import Tensor

from snnfast.backends import _cuda_launch
from snnfast.backends._cuda_launch import check_status, launch_compiled, pointer
from snnfast.backends.contract import checked

LOOK, VECTOR = 1, 2
_ARGS = struct.Struct("=3QqIi")
_ONE = {torch.float32: 0x3F800000, torch.float16: 0x3C00, torch.bfloat16: 0x3F80}
_THREADS, _BYTES = 128, 4


def _launch(direction: str, s: Tensor, bits: Tensor, exact: Tensor | None) -> None:
    flags = (exact is not None) * LOOK | (s.data_ptr() % 16 == 0) * VECTOR
    tensors = (s.data_ptr(), bits.data_ptr(), pointer(exact))
    args = _ARGS.pack(*tensors, s.numel(), _ONE[s.dtype], flags)
    device, stream = _cuda_launch.place(s)
    module, op = _cuda_launch.ahead_of_time(), f"{direction}_spikes"
    if module is None:
        blocks = -(-s.numel() // (_THREADS * _BYTES * 8))
        kernel = _cuda_launch.compiled("spikes", device, defines(direction, s.element_size()))
        launch_compiled("spikes", kernel, device, stream, (blocks, _THREADS), args)
        return
    check_status(op, module, getattr(module, op)(s.element_size(), device, stream, args))


def defines(direction: str, size: int) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/spikes.cuh."""
    return f"-DSNN_{direction.upper()}", f"-DSNN_SIZE={size}"


@checked
def pack_spikes(s: Tensor, bits: Tensor) -> None:
    """Fills ``bits`` [ceil(N / 8)] with those of the dense ``s``, in the order of its memory."""
    _launch("pack", s, bits, None)


@checked
def pack_if_spikes(s: Tensor, bits: Tensor) -> bool:
    """The same, and whether all elements are +0 or 1, for which it waits."""
    exact = torch.ones(1, dtype=torch.int32, device=s.device)
    _launch("pack", s, bits, exact)
    return bool(exact.item())


@checked
def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    """Fills the dense ``s`` with 0 and 1."""
    _launch("unpack", s, bits, None)
