"""N-MNIST, N-Caltech101, SHD and frames integrated before: published formats in, sequences out."""

import numpy as np
import pytest
import torch
from event_files import (
    drawn,
    write_bin,
    write_caltech,
    write_cifar10_dvs,
    write_dvs_gesture,
    write_frames,
    write_shd,
)

from snnfast.data import DataError, load_data


def counted(t, x, y, p, timesteps, rows, columns):
    """Frames [T, 2, rows, columns], event by event."""
    frames = torch.zeros(timesteps, 2, rows, columns)
    for i in range(len(t)):
        frames[min(i // (len(t) // timesteps), timesteps - 1), p[i], y[i], x[i]] += 1
    return frames


def read(split):
    images, targets = zip(*split.batches(torch.arange(len(split)).split(4)))
    return torch.cat(images, 1), torch.cat(targets)


def test_n_mnist(tmp_path):
    for split, count in (("Train", 2), ("Test", 1)):
        for digit in range(10):
            for n in range(count):
                events = drawn([digit, n], 34, 34)
                write_bin(tmp_path / f"NMNIST/{split}/{digit}/{n:05d}.bin", *events)
    data = load_data("n_mnist", root=tmp_path, timesteps=3, workers=0)
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 2, 34)
    images, targets = read(data.train)
    assert images.shape == (3, 20, 2, 34, 34) and len(data.test) == 10
    assert targets.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert torch.equal(images[:, 5], counted(*drawn([2, 1], 34, 34), 3, 34, 34))


def test_times_pass_an_overflow(tmp_path):
    from snnfast.data.neuromorphic import read_bin

    t, x, y, p = drawn(0, 34, 34)
    write_bin(tmp_path / "a.bin", t, x, y, p)
    found = read_bin(tmp_path / "a.bin")
    for name, values in zip("txyp", (t, x, y, p)):
        assert found[name].tolist() == values.tolist()


def test_n_caltech101(tmp_path):
    write_caltech(tmp_path / "N-Caltech101")
    data = load_data("n_caltech101", root=tmp_path, timesteps=2, image_size=48, workers=0)
    assert data.classes == ("BACKGROUND_Google", "accordion", "yin_yang")
    assert len(data.train) == 27 and len(data.test) == 6
    images, _ = read(data.test)
    expected = torch.nn.functional.interpolate(
        counted(*drawn([0, 9], 180, 240), 2, 180, 240), (48, 48), mode="bilinear", antialias=True
    )
    assert torch.allclose(images[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_seed_draws_another_split_and_is_kept_apart(tmp_path):
    write_caltech(tmp_path)

    def tests_of(**options):
        data = load_data("n_caltech101", root=tmp_path, timesteps=1, workers=0, **options)
        assert len(data.train) == 27 and len(data.test) == 6
        everything = torch.cat([data.train.images, data.test.images]).flatten(1).sum(1)
        return data.test.images, everything.sort().values

    (plain, a), (first, b), (again, _), (other, c) = (
        tests_of(**options)
        for options in ({}, {"split_seed": 1}, {"split_seed": 1}, {"split_seed": 2})
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, plain)
    assert torch.equal(a, b) and torch.equal(b, c)  # the same samples in all
    kept = {path.name for path in tmp_path.glob("*.safetensors")}
    assert {
        "n_caltech101-test-T1-48.safetensors",
        "n_caltech101-test-T1-48-seed2.safetensors",
    } <= kept
    write_cifar10_dvs(tmp_path / "dvs", per_class=10)
    sizes = [
        load_data("cifar10_dvs", root=tmp_path / "dvs", timesteps=1, workers=0, split_seed=seed)
        for seed in (0, 1)
    ]
    assert [len(data.test) for data in sizes] == [10, 10]
    assert not torch.equal(sizes[0].test.images, sizes[1].test.images)
    with pytest.raises(ValueError, match="n_caltech101: split_seed must be an int >= 0"):
        tests_of(split_seed=-1)


@pytest.mark.parametrize("split", [True, False])
def test_frames_that_were_integrated_before(tmp_path, split):
    folder = tmp_path / "frames_number_4_split_by_number"
    classes = [str(n) for n in range(11)]
    for part, count in (("train", 3), ("test", 2)) if split else (("", 10),):
        write_frames(folder / part, classes, count)
    data = load_data("event_frames", root=tmp_path, timesteps=4, image_size=34, workers=0)
    assert data.classes == tuple(classes)  # 10 behind 9
    assert len(data.test) == (22 if split else 11)
    images, targets = read(data.train)
    expected = np.random.default_rng([10, 0]).integers(0, 5, (4, 2, 34, 34))
    place = (targets == 10).nonzero()[0].item()
    assert torch.equal(images[:, place], torch.from_numpy(expected).float())


def test_wrong_frames_are_named(tmp_path):
    folder = tmp_path / "frames"
    write_frames(folder, ("a", "b"), 2)
    with pytest.raises(DataError, match=r"0.npz cannot be read: it has 4 frames, timesteps is 5"):
        load_data("event_frames", root=folder, timesteps=5, workers=0)
    np.savez(folder / "a" / "0.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="an array 'frames' expected"):
        load_data("event_frames", root=folder, timesteps=4, workers=0)
    np.savez(folder / "a" / "0.npz", frames=-np.ones((4, 2, 8, 8)))
    with pytest.raises(DataError, match="counts >= 0 expected"):
        load_data("event_frames", root=folder, timesteps=4, workers=0)
    with pytest.raises(FileNotFoundError, match=r"event_frames: .* 2 or more classes, got 0"):
        load_data("event_frames", root=tmp_path / "nothing", timesteps=4, workers=0)


def test_shd(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "SHD").mkdir()
    for split, count in (("train", 6), ("test", 3)):
        write_shd(tmp_path / f"SHD/shd_{split}.h5", count)
    data = load_data("shd", root=tmp_path, timesteps=7)
    images, targets = read(data.train)
    assert images.shape == (7, 6, 700, 1, 1) and targets.tolist() == [0, 7, 14, 1, 8, 15]
    expected = torch.zeros(7, 700)
    with h5py.File(tmp_path / "SHD/shd_train.h5") as file:
        for at, unit in zip(file["spikes/times"][4], file["spikes/units"][4]):
            expected[int(float(at) / 1.4 * 7), unit] += 1
    assert torch.equal(images[:, 4, :, 0, 0], expected)
    assert len(load_data("shd", root=tmp_path, train=3, test=1).train) == 3


def test_wrong_spikes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shd: .* must hold shd_train.h5"):
        load_data("shd", root=tmp_path)
    write_shd(tmp_path / "shd_train.h5", latest=2.0)
    write_shd(tmp_path / "shd_test.h5")
    with pytest.raises(
        DataError, match=r"shd_train.h5 cannot be read: a time step must be 0 to 99"
    ):
        load_data("shd", root=tmp_path)
    (tmp_path / "shd_train.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"shd_train.h5 cannot be read"):
        load_data("shd", root=tmp_path)


def test_half_an_event_is_named(tmp_path):
    for split in ("Train", "Test"):
        for digit in range(10):
            write_bin(tmp_path / f"{split}/{digit}/0.bin", *drawn(digit, 34, 34))
    (tmp_path / "Train/3/0.bin").write_bytes(bytes(7))
    with pytest.raises(DataError, match=r"3/0.bin cannot be read: 7 bytes are not a multiple of 5"):
        load_data("n_mnist", root=tmp_path, workers=0)


def test_what_is_wrong_is_said_alike_each_time(tmp_path):
    """numpy names a place in memory where a header has a name for a number."""
    write_dvs_gesture(tmp_path, cut=True)
    bad = tmp_path / "ibmGestureTrain/user01_led/3.npy"
    bad.write_bytes(bad.read_bytes().replace(b"False", b"Fault"))
    with pytest.raises(DataError, match=r"3.npy cannot be read: malformed node or string") as error:
        load_data("dvs_gesture", root=tmp_path, workers=0)
    assert "0x" not in str(error.value)
