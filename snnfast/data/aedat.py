"""Files of event cameras: AEDAT 2.0, 3.1 and 4.0.

Events come as a structured array of t (int64, microseconds), x, y (column and row from the upper
left, int64) and p (1: brighter, 0: darker, int64), in the order of the file.
"""

import struct
from pathlib import Path
from xml.parsers import expat

import numpy as np

from snnfast.data.expanded import lz4_bytes, zstd_bytes
from snnfast.data.extras import regular
from snnfast.packages import require

EVENT = np.dtype([("t", np.int64), ("x", np.int64), ("y", np.int64), ("p", np.int64)])
_PACKET = np.dtype(
    [
        ("type", "<u2"),
        ("source", "<u2"),
        ("size", "<u4"),
        ("timestamp_at", "<u4"),
        ("overflows", "<u4"),
        ("capacity", "<u4"),
        ("events", "<u4"),
        ("valid", "<u4"),
    ]
)
_POLARITY = 1
_AEDAT4 = b"#!AER-DAT4.0\r\n"
_SIZES = {1: lz4_bytes, 2: lz4_bytes, 3: zstd_bytes, 4: zstd_bytes}  # by the header's compression
MOST = 2**28  # bytes of a recording's packets, 16 of them for an event
DEEPEST = 100  # elements within each other in a recording's description, which needs five


def events(t, x, y, p) -> np.ndarray:
    """One structured array [N] of four arrays [N]."""
    out = np.empty(len(t), EVENT)
    out["t"], out["x"], out["y"], out["p"] = t, x, y, p
    return out


def read_aedat2(path: str | Path) -> np.ndarray:
    """A recording of a DVS128 in AEDAT 2.0, turned as its pictures stood before the camera.

    An event is two big-endian numbers of 32 bits: the address, whose bit 0 is 0 for brighter, bits
    1-7 and 8-14 the two coordinates, bit 15 set for what is no event of a pixel and left out, and
    the time. Raises ValueError for another version, for another sensor (its name, or addresses of
    more bits) and for a part of an event at the end.
    """
    version, lines, content = _header(path)
    if not version.startswith("2"):
        raise ValueError(f"AEDAT 2.0 expected, got {version or 'no AEDAT header'}")
    sensor = next((line for line in lines if line.startswith("# AEChip:")), "DVS128")
    if "DVS128" not in sensor:
        raise ValueError(f"a recording of a DVS128 expected, got {sensor[2:100]!r}")
    if len(content) % 8:
        raise ValueError(f"{len(content)} bytes of events are not a multiple of 8")
    address, t = np.frombuffer(content, ">u4").astype(np.int64).reshape(-1, 2).T
    if (address >> 16).any():
        raise ValueError(f"addresses of a DVS128 have 16 bits, got {int(address.max()):#x}")
    pixel = address >> 15 == 0
    address, t = address[pixel], t[pixel]
    return events(t, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1))


def read_aedat3(path: str | Path) -> np.ndarray:
    """A recording in AEDAT 3.1: packets of a header and events; valid polarity events alone are
    kept.

    A packet has room for its capacity of events, of which the first ``events`` are there. An event
    is two little-endian numbers of 32 bits: bit 0 is 1 where it is valid, bit 1 the polarity, bits
    2-16 y, bits 17-31 x, and the time, which the packet continues by its count of overflows of 31
    bits. Raises ValueError for another version and for an incomplete packet.
    """
    version, _, content = _header(path)
    if not version.startswith("3"):
        raise ValueError(f"AEDAT 3.1 expected, got {version or 'no AEDAT header'}")
    parts, at = [], 0
    while at < len(content):
        if at + _PACKET.itemsize > len(content):
            raise ValueError(f"incomplete packet header at byte {at} of the events")
        packet = np.frombuffer(content, _PACKET, 1, at)[0]
        at += _PACKET.itemsize
        size, capacity, count = (int(packet[n]) for n in ("size", "capacity", "events"))
        if at + size * capacity > len(content):
            raise ValueError(f"incomplete packet of {capacity} events at byte {at} of the events")
        if count > capacity:
            raise ValueError(
                f"{count} events in a packet for {capacity} at byte {at} of the events"
            )
        if packet["type"] == _POLARITY:
            if size != 8:
                raise ValueError(f"polarity events must have 8 bytes, got {size}")
            data, t = np.frombuffer(content, "<u4", 2 * count, at).astype(np.int64).reshape(-1, 2).T
            valid = data & 1 == 1
            data, t = data[valid], t[valid] | int(packet["overflows"]) << 31
            parts.append(events(t, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1))
        at += size * capacity
    return np.concatenate(parts) if parts else np.empty(0, EVENT)


def read_aedat4(path: str | Path) -> np.ndarray:
    """A recording in AEDAT 4.0, all its event streams, through the package ``aedat``.

    Raises ImportError without it, ValueError and its own errors for a damaged file.
    """
    decoder = require("aedat", "events").Decoder
    _check_aedat4(regular(path).read_bytes())
    try:
        packets = [packet["events"] for packet in decoder(str(path)) if "events" in packet]
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        raise ValueError(f"damaged: {error}") from error
    parts = [events(*(packet[name] for name in packet.dtype.names)) for packet in packets]
    return np.concatenate(parts) if parts else np.empty(0, EVENT)


def _check_aedat4(content: bytes) -> None:
    """ValueError for what ends the process in the package: a length beyond the end of a file in
    AEDAT 4.0, or packets that together become too long, since it reserves as much memory as a
    length says, and a description that it takes for UTF-8 unseen and reads by recursion.

    After a first line comes the header, and then packets until a table of them, or until the end
    where the header says that there is none: each behind its length, which for a packet follows the
    number of its stream.
    """
    at = len(_AEDAT4)
    if not content.startswith(_AEDAT4):
        raise ValueError("AEDAT 4.0 expected")
    try:
        (length,) = struct.unpack_from("<I", content, at)
        compression, end = _aedat4_header(content[at + 4 : at + 4 + length])
        size_of, expanded = _SIZES.get(compression, len), 0
        at, end = at + 4 + length, len(content) if end < 0 else min(end, len(content))
        while at < end:
            (length,) = struct.unpack_from("<I", content, at + 4)
            expanded += size_of(content[at + 8 : at + 8 + length])
            at += 8 + length
    except struct.error as error:
        raise ValueError(f"incomplete at byte {at}") from error
    if at > len(content):
        raise ValueError(f"incomplete: {at} bytes or more expected, got {len(content)}")
    if expanded > MOST:
        raise ValueError(f"its packets may have at most {MOST} bytes, expanded, got {expanded}")


def _aedat4_header(header: bytes) -> tuple[int, int]:
    """Compression, and where the table of packets is or -1: fields 0 and 1 of a FlatBuffer; those
    at their defaults are left out. ValueError where field 2, the description, is none."""
    (table,) = struct.unpack_from("<I", header)
    fields = table - struct.unpack_from("<i", header, table)[0]
    (size,) = struct.unpack_from("<H", header, fields)
    values, at = [0, -1, None], table
    for field, kind in enumerate(("<i", "<q", "<I")):
        if size >= 6 + 2 * field:
            (place,) = struct.unpack_from("<H", header, fields + 4 + 2 * field)
            if place:
                at = table + place
                (values[field],) = struct.unpack_from(kind, header, at)
    compression, end, text = values
    if text is not None:
        (length,) = struct.unpack_from("<I", header, at + text)
        _check_description(*struct.unpack_from(f"{length}s", header, at + text + 4))
    return compression, end


def _check_description(text: bytes) -> None:
    """ValueError unless it is XML in UTF-8 whose elements are not nested too deeply."""
    depth = 0

    def enter(name, attributes):
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"its description may nest at most {DEEPEST} elements")

    def leave(name):
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = enter, leave
    try:
        parser.Parse(text.decode(), True)
    except (UnicodeDecodeError, expat.ExpatError) as error:
        raise ValueError(f"its description must be XML in UTF-8: {error}") from error


def _header(path: str | Path) -> tuple[str, list[str], bytes]:
    """Version, the lines of the header, which begin with #, and what follows it."""
    content = regular(path).read_bytes()
    version, lines, at = "", [], 0
    while content[at : at + 1] == b"#":
        end = content.find(b"\n", at) + 1 or len(content)
        line = content[at:end].decode("latin1").strip()
        if line.startswith("#!AER-DAT"):
            version = line.removeprefix("#!AER-DAT")[:20]
        lines.append(line)
        at = end
        if line == "#!END-HEADER":
            break
    return version, lines, content[at:]
