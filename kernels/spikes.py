"""Spikes to bits and back: element i, in the order of memory, is bit i % 8 of byte i // 8.

Bytes per element, b those of its dtype: b + 1/8 each way.

Elements are looked at as the words that they are in memory: what is not 0 but for its sign is a
spike. A tile is [bytes, 8]: the bits of a byte lie next to each other, so 16 bytes of bf16 make one
byte within a thread, and of fp32 within two.
"""

import triton
import triton.language as tl


@triton.jit
def _words(s, WIDE: tl.constexpr):
    """Elements as signed words."""
    return s.to(tl.int32, bitcast=True) if WIDE else s.to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def pack_spikes(
    s,  # [N]
    bits,  # [ceil(N / 8)] uint8
    n: tl.int64,
    WIDE: tl.constexpr,  # 4 bytes an element, else 2
    BYTES: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BYTES
    byte = tl.arange(0, BYTES)
    lane = tl.arange(0, 8)
    at = byte[:, None] * 8 + lane[None, :]
    left = tl.minimum(n - first * 8, BYTES * 8).to(tl.int32)
    word = _words(tl.load(s + first * 8 + at, mask=at < left, other=0.0), WIDE)
    magnitude: tl.constexpr = 0x7FFFFFFF if WIDE else 0x7FFF
    spike = ((word & magnitude) != 0).to(tl.int32)
    value = tl.sum(spike << lane[None, :], 1)
    tl.store(bits + first + byte, value.to(tl.uint8), mask=byte * 8 < left)


@triton.jit
def unpack_spikes(
    bits,  # [ceil(N / 8)] uint8
    s,  # [N]
    n: tl.int64,
    BYTES: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BYTES
    byte = tl.arange(0, BYTES)
    lane = tl.arange(0, 8)
    at = byte[:, None] * 8 + lane[None, :]
    left = tl.minimum(n - first * 8, BYTES * 8).to(tl.int32)
    value = tl.load(bits + first + byte, mask=byte * 8 < left, other=0).to(tl.int32)
    spike = (value[:, None] >> lane[None, :]) & 1
    tl.store(s + first * 8 + at, spike.to(tl.float32).to(s.dtype.element_ty), mask=at < left)
