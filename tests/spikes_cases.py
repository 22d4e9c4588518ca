"""Spike tensors and their bits, for the tests of packing."""

import math

import torch

import snnfast
from snnfast.ops import spikes

# Around bytes, groups of 32, looks of 1024, tiles of the GPU kernels and chunks of threads.
SIZES = (1, 7, 8, 9, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 5003, 16385, 70_001, 98_804, 200_003)
NO_SPIKES = (-0.0, 0.5, -1.0, 2.0, math.inf, math.nan)


def spikes_of(n, dtype=torch.float32):
    return (torch.rand(n) < 0.3).to(dtype)


def expected_bits(s):
    """Straight from the definition: bit i % 8 of byte i // 8."""
    flat = s.reshape(-1).tolist()
    rows = [flat[i : i + 8] for i in range(0, len(flat), 8)]
    return torch.tensor(
        [sum((x != 0) << j for j, x in enumerate(row)) for row in rows], dtype=torch.uint8
    )


def round_trip(n, dtype, backend):
    """One tensor through a backend; in each dtype also what is no spike, in turn everywhere."""
    s = spikes_of(n, dtype)
    s.view(-1)[-1] = 1
    bits = snnfast.pack_spikes(s, backend=backend)
    assert bits.dtype == torch.uint8 and torch.equal(bits, expected_bits(s))
    back = snnfast.unpack_spikes(bits, s.shape, dtype, backend=backend)
    assert back.dtype == dtype and torch.equal(back, s)
    assert torch.equal(spikes.pack_in_memory(s, backend, look=True), bits)
    for at, value in zip((0, n // 2, n - 1), (NO_SPIKES * 2)[n % 6 :]):
        other = s.clone()
        other[at] = value
        assert torch.equal(snnfast.pack_spikes(other, backend=backend), expected_bits(other))
        assert spikes.pack_in_memory(other, backend, look=True) is None, (at, value)
