"""Spikes as bits through Triton: one launch each way."""

import torch
from torch import Tensor

from snnfast.backends.triton.launch import Call

# Bytes of bits that a program makes: 16 bytes of spikes a thread, twice.
_BYTES = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# Plans: the constants of a kernel are always the same dict.
_UNPACK = {dtype: {"BYTES": size, **_OPTIONS} for dtype, size in _BYTES.items()}
_PACK = {
    dtype: {"WIDE": dtype == torch.float32, **constants} for dtype, constants in _UNPACK.items()
}


def pack_call(s: Tensor, bits: Tensor) -> Call:
    """The launch behind ``pack_spikes``."""
    from snnfast.kernels.spikes import pack_spikes as kernel

    programs = -(-bits.numel() // _BYTES[s.dtype])
    return Call(kernel, programs, (s, bits, s.numel()), _PACK[s.dtype])


def unpack_call(bits: Tensor, s: Tensor) -> Call:
    """The launch behind ``unpack_spikes``."""
    from snnfast.kernels.spikes import unpack_spikes as kernel

    programs = -(-bits.numel() // _BYTES[s.dtype])
    return Call(kernel, programs, (bits, s, s.numel()), _UNPACK[s.dtype])


def pack_spikes(s: Tensor, bits: Tensor) -> None:
    pack_call(s, bits).launch(s.device)


def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    unpack_call(bits, s).launch(s.device)
