"""Spike tensors and their bits, for the tests of packing."""

import math

import numpy
import torch

# Around bytes, groups of 32, looks of 1024, tiles of the GPU kernels and chunks of threads.
SIZES = (1, 7, 8, 9, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 5003, 16385, 70_001, 98_804, 200_003)
NO_SPIKES = (-0.0, 0.5, -1.0, 2.0, math.inf, math.nan)


def spikes_of(n, dtype=torch.float32):
    return (torch.rand(n) < 0.3).to(dtype)


def expected_bits(s):
    """The definition, bit i % 8 of byte i // 8, by NumPy."""
    return torch.from_numpy(numpy.packbits((s != 0).reshape(-1).cpu().numpy(), bitorder="little"))
