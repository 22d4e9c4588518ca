"""Files of event cameras: AEDAT 2.0, 3.1 and 4.0.

Events come as a structured array of t (int64, microseconds), x, y (column and row from the upper
left, int64) and p (1: brighter, 0: darker, int64), in the order of the file.
"""

from pathlib import Path

import numpy as np

from snnfast.data.extras import require

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


def events(t, x, y, p) -> np.ndarray:
    """One structured array [N] of four arrays [N]."""
    out = np.empty(len(t), EVENT)
    out["t"], out["x"], out["y"], out["p"] = t, x, y, p
    return out


def read_aedat2(path: str | Path) -> np.ndarray:
    """A recording of a DVS128 in AEDAT 2.0, turned as its pictures stood before the camera.

    An event is two big-endian numbers of 32 bits: the address, whose bit 0 is 0 for brighter, bits
    1-7 and 8-14 the two coordinates, and the time. Raises ValueError for another version and for a
    part of an event at the end.
    """
    version, content = _header(path)
    if not version.startswith("2"):
        raise ValueError(f"AEDAT 2.0 expected, got {version or 'no AEDAT header'}")
    if len(content) % 8:
        raise ValueError(f"{len(content)} bytes of events are not a multiple of 8")
    address, t = np.frombuffer(content, ">u4").astype(np.int64).reshape(-1, 2).T
    return events(t, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1))


def read_aedat3(path: str | Path) -> np.ndarray:
    """A recording in AEDAT 3.1: packets of a header and events; polarity events alone are kept.

    An event is two little-endian numbers of 32 bits: bit 1 is the polarity, bits 2-16 y, bits 17-31
    x, and the time, which the packet continues by its count of overflows of 31 bits. Raises
    ValueError for another version and for an incomplete packet.
    """
    version, content = _header(path)
    if not version.startswith("3"):
        raise ValueError(f"AEDAT 3.1 expected, got {version or 'no AEDAT header'}")
    parts, at = [], 0
    while at < len(content):
        if at + _PACKET.itemsize > len(content):
            raise ValueError(f"incomplete packet header at byte {at} of the events")
        packet = np.frombuffer(content, _PACKET, 1, at)[0]
        at += _PACKET.itemsize
        size, capacity = int(packet["size"]), int(packet["capacity"])
        if at + size * capacity > len(content):
            raise ValueError(f"incomplete packet of {capacity} events at byte {at} of the events")
        if packet["type"] == _POLARITY:
            if size != 8:
                raise ValueError(f"polarity events must have 8 bytes, got {size}")
            data, t = (
                np.frombuffer(content, "<u4", 2 * capacity, at).astype(np.int64).reshape(-1, 2).T
            )
            t = t | int(packet["overflows"]) << 31
            parts.append(events(t, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1))
        at += size * capacity
    return np.concatenate(parts) if parts else np.empty(0, EVENT)


def read_aedat4(path: str | Path) -> np.ndarray:
    """A recording in AEDAT 4.0, all its event streams, through the package ``aedat``.

    Raises ImportError without it, and its own errors for a damaged file.
    """
    packets = [p["events"] for p in require("aedat", "events").Decoder(str(path)) if "events" in p]
    parts = [events(*(packet[name] for name in packet.dtype.names)) for packet in packets]
    return np.concatenate(parts) if parts else np.empty(0, EVENT)


def _header(path: str | Path) -> tuple[str, bytes]:
    """Version and what follows the header: lines that begin with #."""
    content = Path(path).read_bytes()
    version, at = "", 0
    while content[at : at + 1] == b"#":
        end = content.find(b"\n", at) + 1 or len(content)
        line = content[at:end].decode("latin1").strip()
        if line.startswith("#!AER-DAT"):
            version = line.removeprefix("#!AER-DAT")
        at = end
        if line == "#!END-HEADER":
            break
    return version, content[at:]
