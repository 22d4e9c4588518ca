"""More event data: N-MNIST, N-Caltech101, spoken digits of SHD, and frames that were integrated
before."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from snnfast.data.aedat import events
from snnfast.data.base import Data, DataError, TensorSplit
from snnfast.data.events import nine_to_one, sequences
from snnfast.data.extras import regular, root_of, seen
from snnfast.data.frames import Recording
from snnfast.data.subset import choose, pick
from snnfast.packages import require

N_MNIST, N_CALTECH101 = (34, 34), (180, 240)  # rows and columns of the sensor's part
UNITS, SPOKEN, LONGEST = 700, 20, 1.4  # channels of SHD, its classes, seconds
MOST = 2**28  # bytes of a file of frames


def n_mnist(
    root: str | Path = "data",
    timesteps: int = 10,
    image_size: int = 34,
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = (),
    workers: int = 2,
    on_error: str = "stop",
    device: str | torch.device = "cpu",
) -> Data:
    """N-MNIST (Orchard et al., Frontiers in Neuroscience 2015): as :func:`cifar10_dvs`, 10 classes.

    Train/0/*.bin and Test/0/*.bin and so on, in ``root`` or in n_mnist, N-MNIST or NMNIST there:
    60,000 and 10,000 recordings of 34 x 34 pixels.
    """
    options = (timesteps, image_size, train, test, augment, workers, on_error, device)
    name, root = "n_mnist", root_of(root, ("n_mnist", "N-MNIST", "NMNIST"), ("Train",))
    names = [str(digit) for digit in range(10)]
    recordings = {
        split: [
            Recording.whole(path, label, read_bin, sensor=N_MNIST)
            for label, files in enumerate(_files(root / split.title(), names, "*.bin"))
            for path in files
        ]
        for split in ("train", "test")
    }
    if not all(recordings.values()):
        raise FileNotFoundError(
            f"{name}: {root.resolve()} must hold Train/0/*.bin to Train/9 and Test/0/*.bin to "
            "Test/9: unpack the published archives there, or set root"
        )
    return sequences(name, root, recordings, 10, *options, classes_of=names)


def n_caltech101(
    root: str | Path = "data",
    timesteps: int = 10,
    image_size: int = 48,
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = ("flip", "events"),
    workers: int = 2,
    on_error: str = "stop",
    split_seed: int | None = None,
    device: str | torch.device = "cpu",
) -> Data:
    """N-Caltech101 (Orchard et al., Frontiers in Neuroscience 2015): as :func:`cifar10_dvs`.

    Caltech101/CLASS/*.bin in ``root`` or in n_caltech101, N-Caltech101 or NCaltech101 there; the
    sorted names of the folders are the labels, 101 in the published archive. Pixels of 180 x 240,
    whose sides are scaled each for itself. Nine tenths of every class are for training: the first
    in the order of their names, or with ``split_seed`` as that draws them.
    """
    options = (timesteps, image_size, train, test, augment, workers, on_error, device)
    places = ("n_caltech101", "N-Caltech101", "NCaltech101")
    name, root = "n_caltech101", root_of(root, places, ("Caltech101",))
    folder = root / "Caltech101"
    classes = _classes(name, folder, "*.bin")

    def recording(path, label):
        return Recording.whole(path, label, read_bin, sensor=N_CALTECH101)

    recordings = nine_to_one(name, _files(folder, classes, "*.bin"), split_seed, recording)
    own = {"split_seed": split_seed, "classes_of": classes}
    return sequences(name, root, recordings, len(classes), *options, **own)


def event_frames(
    root: str | Path = "data",
    timesteps: int = 10,
    image_size: int = 48,
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = (),
    workers: int = 2,
    on_error: str = "stop",
    split_seed: int | None = None,
    device: str | torch.device = "cpu",
) -> Data:
    """Frames that SpikingJelly has integrated before: ``root``/CLASS/*.npz (CIFAR10-DVS,
    N-Caltech101), or train/CLASS/*.npz and test/CLASS/*.npz (N-MNIST, DVS-Gesture), each with an
    array "frames" [T, 2, H, W].

    ``root`` is that folder, or holds frames_number_T_split_by_number, or ..._by_time, for
    T = ``timesteps``. Sorted names of the classes, as numbers where they are, are the labels;
    without train and test nine tenths of every class are for training, as in :func:`n_caltech101`.
    """
    options = (timesteps, image_size, train, test, augment, workers, on_error, device)
    name, root = "event_frames", Path(root)
    known = [root / f"frames_number_{timesteps}_split_by_{kind}" for kind in ("number", "time")]
    root = next((place for place in known if place.is_dir()), root)

    def recording(path, label):
        return Recording.whole(path, label, read_npz, integrated=True)

    split = (root / "train").is_dir()
    classes = _classes(name, root / "train" if split else root, "*.npz")
    if not split:
        recordings = nine_to_one(name, _files(root, classes, "*.npz"), split_seed, recording)
    elif split_seed is not None:
        raise ValueError(f"{name}: split_seed must be None where there are train and test")
    else:
        recordings = {
            part: [
                recording(path, label)
                for label, files in enumerate(_files(root / part, classes, "*.npz"))
                for path in files
            ]
            for part in ("train", "test")
        }
    own = {"split_seed": split_seed, "classes_of": classes}
    return sequences(name, root, recordings, len(classes), *options, **own)


def shd(
    root: str | Path = "data",
    timesteps: int = 100,
    train: int = 0,
    test: int = 0,
    device: str | torch.device = "cpu",
) -> Data:
    """Spiking Heidelberg Digits (Cramer et al., IEEE TNNLS 2020): spoken digits in German and
    English, 20 classes, sequences [T, B, 700, 1, 1] of counts of spikes in each of 700 channels.

    shd_train.h5 and shd_test.h5 in ``root`` or in shd or SHD there, as published, unpacked: 8,156
    and 2,264 samples. The T = ``timesteps`` bins divide 1.4 s evenly; later spikes, of which the
    published files have none, are refused. Needs ``snnfast[events]``.
    """
    name, root = "shd", root_of(root, ("shd", "SHD"), ("shd_train.h5",))
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"{name}: timesteps must be an int >= 1, got {timesteps!r}")
    splits = {}
    for split, count in (("train", train), ("test", test)):
        path = root / f"shd_{split}.h5"
        if not path.is_file():
            raise FileNotFoundError(
                f"{name}: {root.resolve()} must hold shd_train.h5 and shd_test.h5: unpack the "
                "published archives there, or set root"
            )
        h5py = require("h5py", "events")
        try:
            with h5py.File(path) as file:
                labels = torch.from_numpy(file["labels"][:].astype(np.int64))
                chosen = choose(name, split, labels, count)
                times, units = file["spikes/times"], file["spikes/units"]
                if not len(times) == len(units) == len(labels):
                    raise ValueError("as many times and units as labels expected")
                if len(labels) and not 0 <= labels.min() <= labels.max() < SPOKEN:
                    raise ValueError(f"labels must be 0 to {SPOKEN - 1}")
                counts = [_bins(times[n], units[n], timesteps) for n in chosen.tolist()]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{name}: {path} cannot be read: {error}") from error
        frames = torch.stack(counts)[..., None, None].to(device)
        splits[split] = TensorSplit(frames, pick(labels, chosen).to(device))
    return Data(
        splits["train"],
        splits["test"],
        num_classes=SPOKEN,
        in_channels=UNITS,
        image_size=1,
        timesteps=timesteps,
        classes=tuple(f"{language}_{digit}" for language in ("de", "en") for digit in range(10)),
    )


def _bins(times: np.ndarray, units: np.ndarray, timesteps: int) -> torch.Tensor:
    """Counts float16 [T, 700] of spikes at ``times`` (seconds) in channels ``units``."""
    step = np.floor(times.astype(np.float64) * (timesteps / LONGEST)).astype(np.int64)
    units = units.astype(np.int64)
    if len(step) != len(units):
        raise ValueError("as many times as units expected")
    for what, values, end in (("a time step", step, timesteps), ("a unit", units, UNITS)):
        if len(values) and not 0 <= values.min() <= values.max() < end:
            raise ValueError(f"{what} must be 0 to {end - 1}, got {values.min()} to {values.max()}")
    counts = np.bincount(step * UNITS + units, minlength=timesteps * UNITS)
    return torch.from_numpy(counts).view(timesteps, UNITS).half()


def read_bin(path: Path) -> np.ndarray:
    """Events of the ATIS sensor in five bytes: x, y, a bit for brighter, 23 bits of microseconds.
    A y of 240 is no event but an overflow of 2^13 microseconds."""
    content = np.frombuffer(regular(path).read_bytes(), np.uint8)
    if len(content) % 5:
        raise ValueError(f"{len(content)} bytes are not a multiple of 5")
    x, y, high, middle, low = content.reshape(-1, 5).astype(np.int64).T
    overflow = y == 240
    t = (high & 0x7F) << 16 | middle << 8 | low
    t = t + (np.cumsum(overflow) << 13)
    return events(t, x, y, high >> 7)[~overflow]


def read_npz(path: Path) -> np.ndarray:
    with np.load(regular(path, MOST), allow_pickle=False) as content:
        if content.files != ["frames"]:
            raise ValueError(f"an array 'frames' expected, got {content.files}")
        return content["frames"]


def _classes(name: str, root: Path, pattern: str) -> list[str]:
    """Folders in ``root`` that hold files, sorted; as numbers where all of them are."""
    found = [place.name for place in seen(root.glob("*")) if any(place.glob(pattern))]
    if len(found) < 2:
        raise FileNotFoundError(
            f"{name}: {root.resolve()} must hold CLASS/{pattern} of 2 or more classes, got "
            f"{len(found)}"
        )
    return sorted(found, key=int) if all(called.isdecimal() for called in found) else found


def _files(folder: Path, classes: Sequence[str], pattern: str) -> list[list[Path]]:
    """Of each class those in its folder."""
    return [seen((folder / called).glob(pattern)) for called in classes]
