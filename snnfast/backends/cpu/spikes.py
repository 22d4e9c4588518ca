"""Spikes as bits in C++."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module
from snnfast.backends.layout import DTYPES


def _pack(s: Tensor, bits: Tensor, only_if_spikes: bool) -> bool:
    return module().pack_spikes(
        DTYPES[s.dtype],
        torch.get_num_threads(),
        s.numel(),
        s.data_ptr(),
        bits.data_ptr(),
        only_if_spikes,
    )


def pack_spikes(s: Tensor, bits: Tensor) -> None:
    _pack(s, bits, False)


def pack_if_spikes(s: Tensor, bits: Tensor) -> bool:
    return _pack(s, bits, True)


def unpack_spikes(bits: Tensor, s: Tensor) -> None:
    module().unpack_spikes(
        DTYPES[s.dtype], torch.get_num_threads(), s.numel(), bits.data_ptr(), s.data_ptr()
    )
