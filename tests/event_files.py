"""Tiny event recordings in the formats in which the data sets are published."""

import struct

import numpy as np
import pytest

OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck".split()


def random_events(seed, count=300, start=0):
    """t (rising, microseconds), x, y and p of events of a sensor of 128 x 128 pixels."""
    random = np.random.default_rng(seed)
    t = start + np.sort(random.integers(0, 10_000, count))
    x, y = random.integers(0, 128, (2, count))
    return t, x, y, random.integers(0, 2, count)


def write_aedat2(path, t, x, y, p):
    """A DVS128's recording as CIFAR10-DVS has it: mirrored, on its side, 0 for brighter."""
    address = (127 - x) << 8 | (127 - y) << 1 | (1 - p)
    words = np.stack([address, t], 1).astype(">u4")
    header = "#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    path.write_bytes(header.encode() + words.tobytes())


def write_aedat3(path, t, x, y, p, size=100, valid=1, room=0):
    """Packets of ``size`` polarity events, after one of another kind; ``valid`` for all or for each
    event, and room for some more in every packet, where other events lie."""
    with path.open("wb") as file:
        file.write(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n")
        file.write(struct.pack("<HHIIIIII", 0, 1, 12, 4, 0, 1, 1, 1) + bytes(12))
        words = np.stack([x << 17 | y << 2 | p << 1 | valid, t & 0x7FFFFFFF], 1).astype("<u4")
        for at in range(0, len(t), size):
            part = words[at : at + size]
            count, overflows = len(part), int(t[at]) >> 31
            there = int((part[:, 0] & 1).sum())
            head = (1, 1, 8, 4, overflows, count + room, count, there)
            file.write(struct.pack("<HHIIIIII", *head) + part.tobytes())
            file.write(part[:1].tobytes() * room)


def zstd(content):
    """Zstandard's frame of one block that is stored, or of blocks that repeat a byte: an int is
    their number, each of 128 kB out of four bytes."""
    if isinstance(content, int):
        header = struct.pack("<I", 1 << 1 | 2**17 << 3)[:3]
        body = (header + b"\0") * content + b"\1\0\0"
    else:
        body = struct.pack("<I", 1 | len(content) << 3)[:3] + content
    return b"\x28\xb5\x2f\xfd\x00\x38" + body


def lz4(content):
    """LZ4's frame of one block that is stored, or as many compressed ones, each 64 kB of zeros."""
    if isinstance(content, int):
        block = b"\x1f\0\x01\0" + b"\xff" * 256 + b"\xe0\x50" + b"\0" * 5
        body = (struct.pack("<I", len(block)) + block) * content
    else:
        body = struct.pack("<I", 1 << 31 | len(content)) + content
    return b"\x04\x22\x4d\x18\x60\x40\x82" + body + bytes(4)


def aedat4(t, x, y, p, pack=None, blocks=0):
    """A file of one stream of events, one packet: FlatBuffers laid out by hand. The packet is
    stored, or in a frame that ``pack``, :func:`zstd` or :func:`lz4`, makes of it, or of ``blocks``
    of zeros."""
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        b'<attr key="compression" type="string">NONE</attr>'
        b'<attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        b'<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr>'
        b"</node></node></node></dv>"
    )
    method = {None: 0, lz4: 1, zstd: 3}[pack]
    # Root offset, identifier, vtable (at 8), table (at 24), string.
    header = struct.pack("<I4s5H6xiiqI", 24, b"IOHE", 10, 20, 4, 8, 16, 16, method, -1, 4)
    header += struct.pack("<I", len(info)) + info + bytes(4 - len(info) % 4)
    records = np.zeros(len(t), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?"), ("_", "V3")])
    records["t"], records["x"], records["y"], records["p"] = t, x, y, p
    # Root offset, identifier, vtable (at 8), table (at 16), vector (at 28).
    packet = struct.pack("<I4s3H2xiI4xI", 16, b"EVTS", 6, 8, 4, 8, 8, len(t)) + records.tobytes()
    packet = struct.pack("<I", len(packet)) + packet
    packet = pack(blocks or packet) if pack else packet
    header = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    return header + struct.pack("<ii", 0, len(packet)) + packet


def write_aedat4(path, *args, **options):
    path.write_bytes(aedat4(*args, **options))


def write_cifar10_dvs(root, per_class=3, kind="aedat"):
    """CIFAR10-DVS: a folder of recordings for each class."""
    write = {"aedat": write_aedat2, "aedat4": write_aedat4}[kind]
    for label, name in enumerate(OBJECTS):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            path = root / name / f"cifar10_{name}_{number}.{kind}"
            write(path, *random_events([label, number]))
    return root


def write_dvs_gesture(root, cut=False):
    """DVS-Gesture: two users for training and one for testing, all gestures of each; published
    files, or ``cut`` into one file per sample."""
    root.mkdir(exist_ok=True)
    splits = {"train": ("user01_led", "user02_lab"), "test": ("user24_led",)}
    for split, users in splits.items():
        if not cut:
            names = "".join(f"{user}.aedat\n" for user in users)
            (root / f"trials_to_{split}.txt").write_text(names)
        for user in users:
            parts = [gesture_events(user, label) for label in range(11)]
            if cut:
                folder = root / f"ibmGesture{split.title()}" / user
                folder.mkdir(parents=True)
                for label, (t, x, y, p) in enumerate(parts):
                    np.save(folder / f"{label}.npy", np.stack([x, y, p, t // 1000], 1))
                continue
            write_aedat3(root / f"{user}.aedat", *(np.concatenate(part) for part in zip(*parts)))
            times = [f"{i + 1},{20_000 * i},{20_000 * i + 10_000}\n" for i in range(11)]
            table = "class,startTime_usec,endTime_usec\n" + "".join(times)
            (root / f"{user}_labels.csv").write_text(table)
    return root


def gesture_events(user, label):
    """The events of one sample."""
    return random_events([*user.encode(), label], start=20_000 * label)


def drawn(seed, rows, columns, count=100):
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 2**15, count))
    x, y, p = (random.integers(0, most, count) for most in (columns, rows, 2))
    return t, x, y, p


def write_bin(path, t, x, y, p):
    """Five bytes an event; where 2^13 microseconds have gone by, one with y = 240 says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, passed = [], 0
    for now, *event in zip(t, x, y, p):
        while now - (passed << 13) >= 2**13:
            passed += 1
            rows.append((0, 240, 0, 0, 0))
        rest = int(now) - (passed << 13)
        rows.append((event[0], event[1], event[2] << 7 | rest >> 16, rest >> 8 & 255, rest & 255))
    path.write_bytes(np.array(rows, np.uint8).tobytes())


def write_caltech(root, per_class=11):
    for label, name in enumerate(("BACKGROUND_Google", "accordion", "yin_yang")):
        for n in range(per_class):
            write_bin(root / f"Caltech101/{name}/image_{n:04d}.bin", *drawn([label, n], 180, 240))


def write_frames(folder, classes, count, timesteps=4):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            frames = np.random.default_rng([label, n]).integers(0, 5, (timesteps, 2, 34, 34))
            np.savez_compressed(folder / name / f"{n}.npz", frames=frames.astype(np.float32))


def write_shd(path, count=6, latest=1.39):
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(count)
    with h5py.File(path, "w") as file:
        file["labels"] = (np.arange(count) * 7 % 20).astype(np.uint8)
        for name, dtype in (("times", np.float16), ("units", np.uint16)):
            kind = h5py.vlen_dtype(np.dtype(dtype))
            data = file.create_dataset(f"spikes/{name}", (count,), dtype=kind)
            for n in range(count):
                drawn = np.sort(random.uniform(0, latest, 50))
                data[n] = drawn if name == "times" else random.integers(0, 700, 50)


def write_n_mnist(root, count=1):
    for split in ("Train", "Test"):
        for digit in range(10):
            for n in range(count):
                write_bin(root / split / str(digit) / f"{n}.bin", *drawn([digit, n], 34, 34))
