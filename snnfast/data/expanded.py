"""How long compressed data may become, told from its frame and block headers alone.

A decoder that returns all at once has no bound: 32 kB can become 1 GB.
"""

import struct
from collections.abc import Callable

_ZSTD, _LZ4 = 0xFD2FB528, 0x184D2204  # how a frame begins
_BLOCK = 2**17  # bytes of a block of Zstandard at most
_RLE, _COMPRESSED = 1, 2


def zstd_bytes(content: bytes) -> int:
    """Bytes that Zstandard makes of ``content`` at most (RFC 8878); ValueError if it is damaged."""
    return _all_frames(content, _ZSTD, _zstd_frame)


def lz4_bytes(content: bytes) -> int:
    """The same of LZ4's frame format, version 1.6."""
    return _all_frames(content, _LZ4, _lz4_frame)


def _all_frames(content: bytes, begin: int, frame: Callable[[bytes, int], tuple[int, int]]) -> int:
    total = at = 0
    try:
        while at < len(content):
            (found,) = struct.unpack_from("<I", content, at)
            if found != begin:
                raise ValueError(f"a compressed frame expected, got {found:#x}")
            size, at = frame(content, at + 4)
            total += size
    except (struct.error, IndexError) as error:
        raise ValueError("an incomplete compressed frame") from error
    return total


def _zstd_frame(content: bytes, at: int) -> tuple[int, int]:
    """Bytes at most, and where the frame ends."""
    flags = content[at]
    single, known = flags >> 5 & 1, flags >> 6
    at += 1 + (not single) + (0, 1, 2, 4)[flags & 3]
    at += single if known == 0 else (2, 4, 8)[known - 1]
    total = last = 0
    while not last:
        low, high = struct.unpack_from("<BH", content, at)
        last, kind, size = low & 1, low >> 1 & 3, low >> 3 | high << 5
        total += _BLOCK if kind == _COMPRESSED else size
        at += 3 + (1 if kind == _RLE else size)
    return total, at + 4 * (flags >> 2 & 1)


def _lz4_frame(content: bytes, at: int) -> tuple[int, int]:
    """Bytes at most, and where the frame ends."""
    flags, block = content[at], 2 ** (8 + 2 * (content[at + 1] >> 4 & 7))
    at += 3 + 8 * (flags >> 3 & 1) + 4 * (flags & 1)
    total = 0
    while True:
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if size == 0:
            return total, at + 4 * (flags >> 2 & 1)
        size &= 0x7FFFFFFF  # the highest bit: stored as it is
        total += min(block, 255 * size)
        at += size + 4 * (flags >> 4 & 1)
