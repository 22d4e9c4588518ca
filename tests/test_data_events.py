"""Event recordings: published files in, sequences of frames out."""

import os
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from event_files import (
    OBJECTS,
    gesture_events,
    lz4,
    random_events,
    write_aedat2,
    write_aedat3,
    write_aedat4,
    write_cifar10_dvs,
    write_dvs_gesture,
    zstd,
)

from snnfast.data import IGNORED, DataError, load_data

NO_WORKERS = {"workers": 0}


def read(split):
    images, targets = zip(*split.batches(torch.arange(len(split)).split(4)))
    return torch.cat(images, 1), torch.cat(targets)


def counts(t, x, y, p, timesteps):
    """Frames [T, 2, 128, 128], event by event."""
    frames = torch.zeros(timesteps, 2, 128, 128)
    for i in range(len(t)):
        frame = min(i // (len(t) // timesteps), timesteps - 1)
        frames[frame, p[i], y[i], x[i]] += 1
    return frames


@pytest.mark.parametrize("kind", ["aedat", "aedat4"])
def test_cifar10_dvs_counts_events_in_equal_frames(tmp_path, kind):
    write_cifar10_dvs(tmp_path / "CIFAR10DVS", per_class=3, kind=kind)
    data = load_data("cifar10_dvs", root=tmp_path, timesteps=7, image_size=128, **NO_WORKERS)
    assert (data.num_classes, data.in_channels, data.timesteps) == (10, 2, 7)
    assert len(data.train) == 20 and len(data.test) == 10
    for split, numbers in ((data.train, (0, 1)), (data.test, (2,))):
        images, targets = read(split)
        assert images.shape == (7, len(split), 2, 128, 128) and images.dtype == torch.float32
        assert targets.tolist() == [label for label in range(10) for _ in numbers]
        for i in (0, 1, len(split) - 1):
            label, number = divmod(i, len(numbers))
            expected = counts(*random_events([label, numbers[number]]), 7)
            assert torch.equal(images[:, i], expected)
        # 300 events: six frames of 42 and one of 48.
        assert images[:, 0].sum((1, 2, 3)).tolist() == [42] * 6 + [48]


def test_nine_tenths_of_every_class_are_for_training(tmp_path):
    write_cifar10_dvs(tmp_path, per_class=11)
    options = {"timesteps": 1, "image_size": 128, "workers": 0}
    data = load_data("cifar10_dvs", root=tmp_path, **options)
    assert len(data.train) == 90 and len(data.test) == 20
    # In the order of their names: 0, 1, 10, 2 ... 7 and 8, 9.
    for split, place, number in ((data.train, 2, 10), (data.train, 8, 7), (data.test, 0, 8)):
        expected = counts(*random_events([0, number]), 1)
        assert torch.equal(read(split)[0][:, place], expected)


def test_frames_are_averaged_down(tmp_path):
    write_cifar10_dvs(tmp_path, per_class=2)
    large, _ = read(load_data("cifar10_dvs", root=tmp_path, image_size=128, **NO_WORKERS).train)
    data = load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)
    assert (data.image_size, data.timesteps) == (48, 10)
    small, _ = read(data.train)
    assert small.shape == (10, 10, 2, 48, 48) and data.train.images.dtype == torch.float16
    # A triangle of the width of a small pixel on both sides of its centre, per direction.
    ratio = 128 / 48
    centres = (torch.arange(48) + 0.5) * ratio
    weights = (1 - (torch.arange(128) + 0.5 - centres[:, None]).abs() / ratio).clamp_min(0)
    weights /= weights.sum(1, keepdim=True)
    expected = weights @ large @ weights.T
    torch.testing.assert_close(small, expected, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("cut", [False, True], ids=["published", "cut"])
def test_dvs_gesture(tmp_path, cut):
    write_dvs_gesture(tmp_path / ("DVSGesture" if cut else "DvsGesture"), cut=cut)
    data = load_data("dvs_gesture", root=tmp_path, timesteps=3, image_size=128, **NO_WORKERS)
    assert data.num_classes == 11 and len(data.train) == 22 and len(data.test) == 11
    for split, users in ((data.train, ("user01_led", "user02_lab")), (data.test, ("user24_led",))):
        images, targets = read(split)
        # The files of cut samples go by their names: 10.npy before 2.npy.
        labels = sorted(range(11), key=str) if cut else list(range(11))
        assert targets.tolist() == labels * len(users)
        for place in (0, 2, len(split) - 1):
            expected = counts(*gesture_events(users[place // 11], labels[place % 11]), 3)
            assert torch.equal(images[:, place], expected)


def test_long_recordings_go_on_after_31_bits_of_time(tmp_path):
    write_dvs_gesture(tmp_path)
    t, x, y, p = random_events(0, start=2**31 + 5)
    write_aedat3(tmp_path / "user24_led.aedat", t, x, y, p)
    (tmp_path / "user24_led_labels.csv").write_text(f"class,start,end\n3,{t[0]},{t[-1] + 1}\n")
    split = load_data("dvs_gesture", root=tmp_path, timesteps=2, image_size=128, workers=0).test
    images, targets = read(split)
    assert targets.tolist() == [2] and torch.equal(images[:, 0], counts(t, x, y, p, 2))


def test_frames_are_kept_until_anything_changes(tmp_path, monkeypatch):
    from snnfast.data import aedat

    def load(**options):
        return load_data("cifar10_dvs", root=tmp_path, **{"timesteps": 2, "workers": 0} | options)

    write_cifar10_dvs(tmp_path, per_class=2)
    first, _ = read(load().train)
    kept = sorted(path.name for path in tmp_path.glob("*.*"))
    assert kept == [f"cifar10_dvs-{split}-T2-48.safetensors" for split in ("test", "train")]
    recordings = sorted(tmp_path.glob("*/*.aedat"))

    def broken(path):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("snnfast.data.events.read_aedat2", broken)
        assert torch.equal(read(load().train)[0], first)
        for changed in ({"timesteps": 3}, {"image_size": 32}):
            with pytest.raises(DataError, match="read again"):
                load(**changed)
        os.utime(recordings[0], ns=(1, 1))
        with pytest.raises(DataError, match="read again"):
            load()
    # A file of the same name with other events, and a damaged file of frames.
    recordings[0].write_bytes(recordings[2].read_bytes())
    second, _ = read(load().train)
    assert torch.equal(second[:, 0], first[:, 1]) and torch.equal(second[:, 1:], first[:, 1:])
    (tmp_path / "cifar10_dvs-train-T2-48.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="cannot be read .* made anew"):
        assert torch.equal(read(load().train)[0], second)
    assert aedat.read_aedat2(recordings[0]).size == 300
    assert not list(tmp_path.glob("*.part"))


def test_frames_that_cannot_be_kept_are_used_all_the_same(tmp_path, monkeypatch):
    write_cifar10_dvs(tmp_path, per_class=2)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match=r"-T10-48.safetensors cannot be written.*No sp") as warned:
        data = load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)
    assert len(warned) == 2
    assert len(data.train) == 10 and not list(tmp_path.glob("*.*"))


def damage(tmp_path):
    write_cifar10_dvs(tmp_path, per_class=2)
    paths = [tmp_path / name / f"cifar10_{name}_0.aedat" for name in ("bird", "cat", "dog")]
    paths[0].write_bytes(paths[0].read_bytes()[:-3])
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:150])
    return [str(path) for path in paths]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_recording_stops_and_is_named(tmp_path, workers):
    damage(tmp_path)
    with pytest.raises(DataError, match=r"cifar10_bird_0.aedat cannot be read: .* multiple of 8"):
        load_data("cifar10_dvs", root=tmp_path, workers=workers)


def test_corrupt_recordings_are_skipped_and_counted(tmp_path):
    paths = damage(tmp_path)
    for _ in range(2):  # the second time from what was kept
        with pytest.warns(UserWarning, match=r"bird_0.aedat cannot be read.*: 3 left out"):
            split = load_data("cifar10_dvs", root=tmp_path, on_error="skip", **NO_WORKERS).train
        images, targets = read(split)
        assert targets.tolist() == [0, 1, *[IGNORED] * 2, 4, IGNORED, 6, 7, 8, 9]
        assert split.skipped == paths
        assert images.any(4).any(3).any(2).all(0).tolist() == [t != IGNORED for t in targets]
    with pytest.raises(DataError, match=r"cifar10_bird_0.aedat cannot be read"):
        load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)


def test_a_gesture_out_of_time_is_one_sample_lost(tmp_path):
    write_dvs_gesture(tmp_path)
    table = tmp_path / "user24_led_labels.csv"
    table.write_text(table.read_text().replace("4,60000,70000", "4,990000,999000"))
    with pytest.warns(UserWarning, match=r"user24_led.aedat\[3\] .* 0 events are too few for 10"):
        split = load_data("dvs_gesture", root=tmp_path, on_error="skip", **NO_WORKERS).test
    assert split.targets.tolist() == [0, 1, 2, IGNORED, *range(4, 11)]
    assert split.skipped == [f"{tmp_path / 'user24_led.aedat'}[3]"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-9], "incomplete packet of 100 events"),
        (lambda c: c + c[-20:], "incomplete packet header"),
        (lambda c: c.replace(b"DAT3.1", b"DAT2.0"), "AEDAT 3.1 expected, got 2.0"),
        (lambda c: c[1:], "AEDAT 3.1 expected, got no AEDAT header"),
        (lambda c: c[:-8] + b"\xff" * 8, r"x must be 0 to 127, got 0 to 32767"),
    ],
)
def test_damaged_gestures_say_how(tmp_path, change, message):
    write_dvs_gesture(tmp_path)
    path = tmp_path / "user01_led.aedat"
    path.write_bytes(change(path.read_bytes()))
    table = tmp_path / "user01_led_labels.csv"
    table.write_text("class,start,end\n1,0,5000000000000\n")
    with pytest.raises(DataError, match=rf"user01_led.aedat cannot be read: {message}"):
        load_data("dvs_gesture", root=tmp_path, **NO_WORKERS)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar10_dvs: .* must hold airplane/\*.aedat"):
        load_data("cifar10_dvs", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dvs_gesture: .*trials_to_train.txt.*ibmGestureT"):
        load_data("dvs_gesture", root=tmp_path)
    write_cifar10_dvs(tmp_path, per_class=1)
    with pytest.raises(FileNotFoundError, match=r"airplane must hold 2 or more .* got 1"):
        load_data("cifar10_dvs", root=tmp_path)
    write_dvs_gesture(tmp_path)
    (tmp_path / "user02_lab_labels.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"trials_to_train.txt needs 'user02_lab_labels.csv'"
    ):
        load_data("dvs_gesture", root=tmp_path)


def test_a_missing_package_is_named_before_the_work(tmp_path, monkeypatch):
    write_cifar10_dvs(tmp_path, per_class=2, kind="aedat4")
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(ImportError, match=r'aedat is not installed: pip install "snnfast.events.'):
        load_data("cifar10_dvs", root=tmp_path, on_error="skip")


def test_labels_that_do_not_fit_are_named(tmp_path):
    write_dvs_gesture(tmp_path)
    table = tmp_path / "user02_lab_labels.csv"
    good = table.read_text()
    table.write_text(good + "12,220000,230000\n")
    with pytest.raises(ValueError, match=r"11 classes expected, the labels .* are 0 to 11"):
        load_data("dvs_gesture", root=tmp_path)
    table.write_text(good + "x,220000,230000\n")
    with pytest.raises(DataError, match=r"user02_lab_labels.csv must hold class,startTime"):
        load_data("dvs_gesture", root=tmp_path)


def test_a_pixel_that_never_rests_is_not_infinite(tmp_path):
    """700,000 events of one pixel, in frames that are kept as float16."""
    write_cifar10_dvs(tmp_path, per_class=2)
    count = 700_000
    at = np.full(count, 5)
    write_aedat2(
        tmp_path / "airplane" / "cifar10_airplane_0.aedat", np.arange(count), at, at, at - 4
    )
    options = {"timesteps": 2, "image_size": 128, "workers": 0}
    images, _ = read(load_data("cifar10_dvs", root=tmp_path, **options).train)
    assert images.isfinite().all()
    assert images[:, 0, 1, 5, 5].tolist() == [65504] * 2 and images[:, 0].count_nonzero() == 2


def one_recording(root, kind="aedat"):
    write_cifar10_dvs(root, per_class=2, kind=kind)
    return root / "airplane" / f"cifar10_airplane_0.{kind}"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (42, 30, "damaged: range start index"),  # a panic
        # Lengths: of the header, of a packet.
        (14, 0xFFFFFFFF, "incomplete: 4294967313 bytes or more expected, got"),
        (None, 0xFFFFFFFF, r"incomplete: 42949\d* bytes or more expected, got"),
        (0, 0, "AEDAT 4.0 expected"),
        # A tag's name, which goes into the package's error.
        (86, 0x206564EF, "its description must be XML in UTF-8: .* invalid continuation byte"),
    ],
)
def test_damaged_aedat4_is_named_and_skipped(tmp_path, workers, at, value, message):
    path = one_recording(tmp_path, "aedat4")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"EVTS") - 12 if at is None else at
    content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    options = {"root": tmp_path, "workers": workers}
    with pytest.raises(DataError, match=rf"airplane_0.aedat4 cannot be read: {message}"):
        load_data("cifar10_dvs", **options)
    with pytest.warns(UserWarning, match=rf"airplane_0.aedat4 cannot be read: {message}"):
        split = load_data("cifar10_dvs", on_error="skip", **options).train
    assert split.targets.tolist() == [IGNORED, *range(1, 10)] and split.skipped == [str(path)]


def test_a_description_that_nests_too_deeply(tmp_path):
    path = one_recording(tmp_path, "aedat4")
    content = path.read_bytes()
    start, end = content.index(b"<dv"), content.index(b"</dv>") + 5
    text = b"<a>" * 100_000
    (length,) = struct.unpack_from("<I", content, 14)
    header = struct.pack("<I", length + len(text) - (end - start)) + content[18 : start - 4]
    text = struct.pack("<I", len(text)) + text
    path.write_bytes(content[:14] + header + text + content[end:])
    with pytest.raises(DataError, match="its description may nest at most 100 elements"):
        load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)


@pytest.mark.parametrize("pack", [zstd, lz4])
def test_compressed_aedat4(tmp_path, pack):
    path = one_recording(tmp_path, "aedat4")
    write_aedat4(path, *random_events(5), pack=pack)
    options = {"root": tmp_path, "image_size": 128, "workers": 0}
    images, _ = read(load_data("cifar10_dvs", **options).train)
    assert torch.equal(images[:, 0], counts(*random_events(5), 10))
    good = path.read_bytes()
    for changed in (good[:-4912] + b"\x27" + good[-4911:], good[:-60]):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"airplane_0.aedat4 cannot be read"):
            load_data("cifar10_dvs", **options)
    write_aedat4(path, *random_events(5), pack=pack, blocks=5000)
    with pytest.raises(DataError, match=r"at most 268435456 bytes, expanded, got \d{9}"):
        load_data("cifar10_dvs", **options)


def test_a_table_of_packets_ends_aedat4(tmp_path):
    path = one_recording(tmp_path, "aedat4")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<q", -1))
    content[at : at + 8] = struct.pack("<q", len(content))
    path.write_bytes(content + b"\xff" * 9)
    images, _ = read(load_data("cifar10_dvs", root=tmp_path, image_size=128, **NO_WORKERS).train)
    assert torch.equal(images[:, 0], counts(*random_events([0, 0]), 10))


def test_recordings_of_other_sensors_are_refused(tmp_path):
    path = one_recording(tmp_path)
    content = path.read_bytes()
    header = content[: content.index(b"edit\r\n") + 6]
    events = content[len(header) :]
    chip = b"# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n"
    x, y = 200, 100
    address = 1 << 31 | y << 22 | x << 12 | 1 << 11
    for changed, message in (
        (header + chip + events, "a recording of a DVS128 expected, got .*DAVIS240C"),
        (header + events + struct.pack(">II", address, 0), "DVS128 have 16 bits, got 0x990c8800"),
    ):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=rf"airplane_0.aedat cannot be read: .*{message}"):
            load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)


def test_what_is_no_event_of_a_pixel_is_left_out(tmp_path):
    path = one_recording(tmp_path)
    known = b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"
    content = path.read_bytes().replace(b"# This is", known + b"# This is")
    path.write_bytes(content + struct.pack(">II", 0x8000, 0) * 7)
    images, _ = read(load_data("cifar10_dvs", root=tmp_path, image_size=128, **NO_WORKERS).train)
    assert torch.equal(images[:, 0], counts(*random_events([0, 0]), 10))


def test_aedat3_has_events_that_are_valid_and_there(tmp_path):
    write_dvs_gesture(tmp_path)
    t, x, y, p = random_events(3)
    valid = np.arange(len(t)) % 3 > 0
    write_aedat3(tmp_path / "user24_led.aedat", t, x, y, p, valid=valid.astype(int), room=5)
    (tmp_path / "user24_led_labels.csv").write_text("class,start,end\n3,0,20000\n")
    options = {"root": tmp_path, "timesteps": 2, "image_size": 128, "workers": 0}
    images, _ = read(load_data("dvs_gesture", **options).test)
    assert torch.equal(images[:, 0], counts(t[valid], x[valid], y[valid], p[valid], 2))
    content = bytearray((tmp_path / "user24_led.aedat").read_bytes())
    at = content.index(struct.pack("<HHII", 1, 1, 8, 4)) + 20
    content[at : at + 4] = struct.pack("<I", 10**6)
    (tmp_path / "user24_led.aedat").write_bytes(content)
    with pytest.raises(DataError, match=r"user24_led.aedat .* 1000000 events in a packet for 105"):
        load_data("dvs_gesture", **options)


def test_lists_of_recordings_name_each_once(tmp_path):
    write_dvs_gesture(tmp_path)
    (tmp_path / "trials_to_test.txt").write_text("user24_led.aedat\n" * 2)
    with pytest.raises(
        DataError, match=r"trials_to_test.txt must name .* once, got 'user24_led.ae"
    ):
        load_data("dvs_gesture", root=tmp_path, **NO_WORKERS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"class,start,end\n1," + b"1" * 131_073 + b",2\n", "at most 32768 bytes, got 131"),
        (b"class,start,end\n1," + b"1" * 5_000 + b",2\n", "Exceeds the limit"),
        (b"class,start,end\n1,1,1" + b"0" * 30 + b"\n", "must have 63 bits"),
        (b"class,start,end\n1,2\n", "not enough values"),
        (b"\xff\xfe\x00", "codec can't decode"),
    ],
)
def test_damaged_tables_of_labels_are_named(tmp_path, content, message):
    write_dvs_gesture(tmp_path)
    (tmp_path / "user02_lab_labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"user02_lab_labels.csv must hold class.*{message}"):
        load_data("dvs_gesture", root=tmp_path, **NO_WORKERS)


@pytest.mark.parametrize(
    "name", ["../user09.aedat", "/etc/passwd", "u" * 5000, "a\0b", "gone.aedat"]
)
def test_lists_of_recordings_name_what_lies_beside_them(tmp_path, name):
    root = write_dvs_gesture(tmp_path / "inside")
    for place in (tmp_path, root):
        (tmp_path / "user09.aedat").write_bytes((root / "user24_led.aedat").read_bytes())
        (place / "user09_labels.csv").write_text("class,start,end\n1,0,10000\n")
    (root / "trials_to_test.txt").write_text(name)
    with pytest.raises(
        FileNotFoundError, match=r"dvs_gesture: .*trials_to_test.txt needs '.* beside"
    ):
        load_data("dvs_gesture", root=root, **NO_WORKERS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((50, 3), np.int64), r"numbers \[N, 4\] expected, got int64 \[50, 3\]"),
        (np.full((50, 4), np.nan), "not finite"),
        (np.array([["a"] * 4] * 50), r"numbers \[N, 4\] expected"),
        (np.array([{}] * 50), "Python objects in dtype"),
    ],
)
def test_damaged_cut_gestures_are_named(tmp_path, content, message):
    write_dvs_gesture(tmp_path, cut=True)
    np.save(tmp_path / "ibmGestureTest" / "user24_led" / "4.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=rf"4.npy cannot be read: .*{message}"):
        load_data("dvs_gesture", root=tmp_path, **NO_WORKERS)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_pipes_and_broken_links_are_not_waited_for(tmp_path, on_error):
    path = one_recording(tmp_path)
    broken = path.with_name("cifar10_airplane_00.aedat")
    broken.symlink_to(tmp_path / "nowhere")
    path.unlink()
    os.mkfifo(path)
    options = {"root": tmp_path, "on_error": on_error, "workers": 1}
    if on_error == "stop":
        with pytest.raises(DataError, match=r"airplane_0.aedat cannot be read: it is not a regul"):
            load_data("cifar10_dvs", **options)
    else:
        with pytest.warns(UserWarning, match=r"airplane_0.aedat .*: 2 left out"):
            split = load_data("cifar10_dvs", **options).train
        assert split.skipped == [str(path), str(broken)]


def test_what_is_hidden_is_no_recording(tmp_path):
    path = one_recording(tmp_path)
    path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    data = load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS)
    assert len(data.train) == 10 and len(data.test) == 10


def test_a_worker_that_ends_is_named(tmp_path, monkeypatch):
    one_recording(tmp_path)
    monkeypatch.setattr("snnfast.data.events.read_aedat2", lambda path: os._exit(1))
    with pytest.raises(DataError, match=r"airplane_0.aedat or one of the next ended a worker"):
        load_data("cifar10_dvs", root=tmp_path, workers=1)


def test_no_altered_file_of_frames_is_taken(tmp_path):
    one_recording(tmp_path)
    options = {"root": tmp_path, "timesteps": 1, "image_size": 8, "workers": 0}
    first = load_data("cifar10_dvs", **options).train
    kept = tmp_path / "cifar10_dvs-train-T1-8.safetensors"
    good = kept.read_bytes()
    assert len(first) == 10 and len(good) < 10_000
    random = np.random.default_rng(0)
    quiet = 0
    for at in random.integers(0, len(good), 150):
        damaged = bytearray(good)
        damaged[at] ^= 1 << random.integers(8)
        kept.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again = load_data("cifar10_dvs", **options).train
        assert torch.equal(again.images, first.images) and torch.equal(again.targets, first.targets)
        quiet += not said
    # Where the fingerprint itself is another, the file is one of other recordings.
    assert quiet < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "cifar10_dvs: timesteps must be >= 1, got 0"),
        ({"image_size": 7}, "cifar10_dvs: image_size must be >= 8, got 7"),
        ({"on_error": "go"}, "cifar10_dvs: on_error must be stop or skip, got 'go'"),
        ({"augment": ["autoaugment"]}, "autoaugment needs images of 3 channels, these have 2"),
        ({"normalise": True}, "load_data: cifar10_dvs has no option 'normalise'"),
        ({"test": 11}, r"cifar10_dvs: test must be 0 \(all\) to 10, got 11"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    write_cifar10_dvs(tmp_path, per_class=2)
    with pytest.raises(ValueError, match=message):
        load_data("cifar10_dvs", root=tmp_path, **NO_WORKERS | options)


def test_workers_change_nothing(tmp_path):
    write_cifar10_dvs(tmp_path, per_class=2)
    results = []
    for workers in (0, 2):
        results.append(read(load_data("cifar10_dvs", root=tmp_path, workers=workers).train))
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
    assert torch.equal(results[0][0], results[1][0])
    assert OBJECTS[results[0][1][3]] == "cat"
