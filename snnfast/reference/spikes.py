"""Spikes as bits in plain PyTorch: element i, in row-major order, is bit i % 8 of byte i // 8."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pack_spikes(s: Tensor) -> Tensor:
    """Bits [ceil(N / 8)] uint8 of ``s``: what is not 0 is a 1."""
    ones = (s.reshape(-1) != 0).to(torch.uint8)
    ones = torch.nn.functional.pad(ones, (0, -ones.numel() % 8)).view(-1, 8)
    return (ones << torch.arange(8, dtype=torch.uint8, device=s.device)).sum(1, dtype=torch.uint8)


def unpack_spikes(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    lanes = torch.arange(8, dtype=torch.uint8, device=bits.device)
    ones = (bits[:, None] >> lanes) & 1
    return ones.view(-1)[: math.prod(shape)].to(dtype).view(shape)
