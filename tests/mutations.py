"""Good files made bad: bits, lengths and parts changed by chance, and whole files to do harm."""

import io
import os
import pickle
import pickletools
import random
import re
import struct
import zlib

import event_files
import numpy as np
from PIL import Image

NUMBERS = [0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**28, 2**31 - 1, 2**31, -(2**31)]
NUMBERS += [2**32 - 1, 2**40, 2**63 - 1, -(2**63)]


def mutated(draw: random.Random, good: bytes, kind: str, others: list[bytes]) -> tuple[str, bytes]:
    """What was done to a good file, and the bytes; ``kind`` is the suffix of its name, and parts of
    the ``others`` may come in."""
    if draw.random() < 0.1:
        made = _hostile(draw, good, kind)
        if made is not None:
            return "hostile", made
    content, done = bytearray(good), []
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        change = draw.choice(CHANGES)
        done.append(change.__name__[1:])
        if change is _splice:
            _splice(draw, content, draw.choice(others))
        else:
            change(draw, content)
    if content.startswith(b"\x89PNG") and draw.random() < 0.8:
        _sums(content)
    return "+".join(done), bytes(content[: 2**20])


def _place(draw: random.Random, content: bytearray) -> int:
    """Anywhere; headers are at both ends."""
    end = len(content)
    near = draw.choice((16, 64, 256, end, end))
    at = draw.randrange(min(near, end) + 1) if end else 0
    return end - at if draw.random() < 0.15 else at


def _flip(draw, content):
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = _place(draw, content)
        if at < len(content):
            content[at] ^= 1 << draw.randrange(8)


def _byte(draw, content):
    at = _place(draw, content)
    content[at : at + 1] = bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))])


def _cut(draw, content):
    del content[_place(draw, content) :]


def _remove(draw, content):
    at = _place(draw, content)
    del content[at : at + draw.choice((1, 2, 4, 8, 100, 1000))]


def _repeat(draw, content):
    at = _place(draw, content)
    part = content[at : at + draw.choice((1, 4, 28, 200))]
    content[at:at] = part * draw.choice((1, 2, 50, 5000))


def _number(draw, content):
    """A length, a size, a count: an extreme one in its place."""
    kind = draw.choice("BHIQ")
    value = draw.choice(NUMBERS) % 2 ** (8 * struct.calcsize(kind))
    made = struct.pack(draw.choice("<>") + kind, value)
    at = _place(draw, content)
    content[at : at + len(made)] = made


def _digits(draw, content):
    """The same of a number in decimal digits."""
    found = list(re.finditer(rb"\d+", content))
    if found:
        made = draw.choice(
            (str(draw.choice(NUMBERS)), "9" * 5000, "1" * 140_000, "", "-", "1e9", "NaN")
        )
        chosen = draw.choice(found)
        content[chosen.start() : chosen.end()] = made.encode()


def _fill(draw, content):
    at, count = _place(draw, content), draw.choice((2, 8, 64, 512))
    value = draw.choice((b"\0", b"\xff", b"#", b"\n"))
    content[at : at + count] = draw.choice((value * count, draw.randbytes(count)))


def _splice(draw, content, other=b""):
    start = draw.randrange(len(other) + 1)
    part = other[start : start + draw.choice((4, 30, 500, len(other)))]
    at = _place(draw, content)
    content[at : at + draw.choice((0, len(part), len(content)))] = part


CHANGES = (_flip, _byte, _cut, _remove, _repeat, _number, _number, _digits, _fill, _splice)


def _sums(content: bytearray) -> None:
    """Right check sums for a PNG's chunks, without which nothing behind them is looked at."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 8 + length
        if end + 4 > len(content):
            return
        struct.pack_into(">I", content, end, zlib.crc32(content[at + 4 : end]))
        at = end + 4


def _hostile(draw: random.Random, good: bytes, kind: str) -> bytes | None:
    """A file of that kind that is made to do harm; None where there is none of it."""
    if kind == "":
        return draw.choice((_program, _program, _injected))(draw, good)
    if kind == ".aedat4":
        pack, blocks = (
            draw.choice((event_files.lz4, event_files.zstd)),
            draw.choice((1, 100, 20_000)),
        )
        return event_files.aedat4(*event_files.random_events(1, 40), pack=pack, blocks=blocks)
    if kind == ".npy":
        return _array(draw)
    if kind in (".png", ".tif", ".gif", ".bmp", ".webp"):
        return _picture(draw)
    return None


NAMES = """os system;builtins exec;builtins getattr;numpy ndarray;numpy dtype;_codecs encode;
numpy.core.multiarray _reconstruct;numpy._core.multiarray _reconstruct;
numpy._core.numeric _frombuffer;numpy.core.multiarray scalar;
copyreg _reconstructor;builtins bytearray;collections OrderedDict"""
TEXTS = [
    "u1",
    "i8",
    "O",
    "V8",
    "|",
    "<",
    ">",
    "b",
    "latin1",
    "data",
    "labels",
    "fine_labels",
    "A" * 8,
]


def _program(draw: random.Random, good: bytes) -> bytes:
    """A pickle of operations by chance, the useful ones more often."""
    out = [b"\x80", bytes([draw.choice((2, 2, 4, 5))])]
    for _ in range(draw.choice((5, 20, 80, 400))):
        out.append(_operation(draw))
    return b"".join(out) + b"."


def _injected(draw: random.Random, good: bytes) -> bytes:
    """Operations in the middle of a good pickle, between two of its own."""
    places = [at for _, _, at in pickletools.genops(good)]
    at = draw.choice(places[1:])
    return good[:at] + b"".join(_operation(draw) for _ in range(draw.choice((1, 2, 8)))) + good[at:]


def _operation(draw: random.Random) -> bytes:
    text = draw.choice((*TEXTS, "B" * draw.choice((1, 300, 100_000)))).encode()
    number = struct.pack("<I", draw.choice(NUMBERS) % 2**32)
    return draw.choice(
        (
            b"U" + bytes([len(text) % 256]) + text[: len(text) % 256],
            b"T" + struct.pack("<I", len(text)) + text,
            b"X" + struct.pack("<I", len(text)) + text,
            b"B" + struct.pack("<I", len(text)) + text,
            b"c" + draw.choice(NAMES.split(";")).strip().replace(" ", "\n").encode() + b"\n",
            b"K" + number[:1],
            b"J" + number,
            b"\x8a\x04" + number,
            draw.choice((b"T", b"X", b"B", b"r", b"j", b"\x8b")) + number,
            draw.choice((b"\x8e", b"\x8d", b"\x96", b"\x95")) + number + number,
            draw.choice((b"q", b"h")) + bytes([draw.randrange(8)]),
            b"(" * draw.choice((1, 1, 2000)),
            b"h\0\x86q\0" * draw.choice((1, 60)),
            draw.choice((b"}", b"]", b")", b"N", b"\x88", b"\x89", b"\x94")),
            draw.choice((b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"0", b"2")),
            draw.choice((b"R", b"R", b"b", b"b", b"\x81", b"\x92", b"\x93", b"i", b"o")),
            draw.choice((b"a", b"e", b"s", b"u", b"\x8f", b"\x90", b"\x97", b"Q", b"P1\n")),
        )
    )


def _array(draw: random.Random) -> bytes:
    """NumPy files: shapes and types of every size, with little behind them."""
    kinds = ("<i8", "<f8", ">i4", "|O", "<U9999999", "|V1", "<M8[us]", "<c16", "|b1")
    shape = tuple(
        draw.choice((0, 1, 4, 4, 50, 2**20, 2**40)) for _ in range(draw.choice((0, 1, 2, 2, 2, 9)))
    )
    order = draw.choice((True, False))
    text = f"{{'descr': {draw.choice(kinds)!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = draw.choice((text, text, "[" * 9000, text + " " * 9000)).encode() + b"\n"
    npy = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + draw.randbytes(1600)
    made = io.BytesIO()
    np.savez_compressed(made, np.zeros(2**20))
    return draw.choice((npy, npy, npy, pickle.dumps(os.getcwd), made.getvalue()))


def _picture(draw: random.Random) -> bytes:
    """Small files of large, long, odd and foreign pictures."""
    mode = draw.choice(("1", "L", "P", "RGB"))
    size = draw.choice(
        ((1, 10_000), (50_000, 1), (1, 1), (9_000, 9_000), (9_000, 10_000), (3, 700))
    )
    made = io.BytesIO()
    kind = draw.choice(("PNG", "PNG", "GIF", "TIFF", "EPS", "PCX", "ICO", "TGA", "SGI", "IM"))
    try:
        image = Image.new(mode, size if size[0] * size[1] < 10**6 or mode == "1" else (640, 480))
        image.save(made, kind)
    except (ValueError, OSError, KeyError):  # not in this mode, not of this size
        Image.new("RGB", (5, 5)).save(made, "PNG")
    return made.getvalue()
