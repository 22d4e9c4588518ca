"""Recordings of event cameras as sequences of frames: DVS-Gesture and CIFAR10-DVS, and what
they share with those of :mod:`snnfast.data.neuromorphic`."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from snnfast.data.aedat import events, read_aedat2, read_aedat3, read_aedat4
from snnfast.data.augment import pipelines
from snnfast.data.base import Data, DataError, TensorSplit
from snnfast.data.decoded import ON_ERROR
from snnfast.data.extras import regular, root_of, seen
from snnfast.data.frames import Recording, load_frames
from snnfast.data.known import CLASSES, OBJECTS
from snnfast.data.subset import choose, pick
from snnfast.packages import require

GESTURES = 11
TABLE = 2**15  # bytes of a table of labels or a list of recordings; published ones have up to 2,000


def cifar10_dvs(
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
    """CIFAR10-DVS (Li et al., Frontiers in Neuroscience 2017): sequences of T = ``timesteps``
    frames [2, image_size, image_size] of event counts, of 10 classes.

    airplane/*.aedat and so on for all classes, in ``root`` or in cifar10_dvs or CIFAR10DVS there:
    1,000 files each, as they are published (AEDAT 2.0) or as the package tonic has them (AEDAT 4.0,
    *.aedat4; needs ``snnfast[events]``). Nine tenths of every class are for training: the
    first in the order of their names, or with ``split_seed`` as that draws them.

    Every frame has equally many events (:func:`snnfast.data.frames.integrate`), in float16 on
    ``device``. They are computed by ``workers`` processes and kept in a file beside the recordings.
    ``train`` and ``test`` are numbers of samples, 0 for all. ``on_error`` is "stop", or "skip" for
    recordings that cannot be read: their frames are zeros, their targets IGNORED.
    """
    options = (timesteps, image_size, train, test, augment, workers, on_error, device)
    name, root = "cifar10_dvs", root_of(root, ("cifar10_dvs", "CIFAR10DVS"), OBJECTS[:1])
    if not (root / OBJECTS[0]).is_dir():
        raise FileNotFoundError(
            f"{name}: {root.resolve()} must hold airplane/*.aedat, automobile/*.aedat and so on: "
            "unpack the published archives there, or set root"
        )
    by_class = []
    for known in OBJECTS:
        files = seen((root / known).glob("*.aedat")) or seen((root / known).glob("*.aedat4"))
        if len(files) < 2:
            raise FileNotFoundError(
                f"{name}: {root.resolve()}/{known} must hold 2 or more recordings (*.aedat, "
                f"*.aedat4), got {len(files)}"
            )
        if files[0].suffix == ".aedat4":
            require("aedat", "events")  # before the work begins
        by_class.append(files)

    def recording(path: Path, label: int) -> Recording:
        return Recording.whole(
            path, label, read_aedat4 if path.suffix == ".aedat4" else read_aedat2
        )

    recordings = nine_to_one(name, by_class, split_seed, recording)
    return sequences(name, root, recordings, len(OBJECTS), *options, split_seed=split_seed)


def nine_to_one(
    name: str,
    by_class: Sequence[Sequence[Path]],
    seed: int | None,
    recording: Callable[[Path, int], Recording],
) -> dict[str, list[Recording]]:
    """Recordings for training and for testing, made of the files of each label, in their order."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ValueError(f"{name}: split_seed must be an int >= 0 or None, got {seed!r}")
    recordings: dict[str, list[Recording]] = {"train": [], "test": []}
    for label, files in enumerate(by_class):
        order = range(len(files))
        if seed is not None:  # RandomState's stream is frozen
            order = np.random.RandomState([seed % 2**32, label]).permutation(len(files)).tolist()
        train = set(order[: len(files) * 9 // 10])
        for place, path in enumerate(files):
            recordings["train" if place in train else "test"].append(recording(path, label))
    return recordings


def dvs_gesture(
    root: str | Path = "data",
    timesteps: int = 10,
    image_size: int = 48,
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = ("events",),
    workers: int = 2,
    on_error: str = "stop",
    device: str | torch.device = "cpu",
) -> Data:
    """DVS-Gesture (Amir et al., CVPR 2017): 11 gestures, as :func:`cifar10_dvs`.

    ``root``, or dvs_gesture, DvsGesture or DVSGesture there, holds the published files,
    trials_to_train.txt, trials_to_test.txt and, for every recording they name, user01_led.aedat
    (AEDAT 3.1) with user01_led_labels.csv: 1,176 and 288 samples. Or the samples as the package
    tonic has them, cut out before, ibmGestureTrain/user01_led/3.npy (x, y, p, t in milliseconds;
    the name is the label, from 0) and ibmGestureTest. To flip gestures of the right hand makes them
    others of the left hand, hence no "flip" in ``augment``.
    """
    options = (timesteps, image_size, train, test, augment, workers, on_error, device)
    signs = ("trials_to_train.txt", "ibmGestureTrain")
    name, root = "dvs_gesture", root_of(root, ("dvs_gesture", "DvsGesture", "DVSGesture"), signs)
    published = (root / "trials_to_train.txt").is_file()
    if not published and not (root / "ibmGestureTrain").is_dir():
        raise FileNotFoundError(
            f"{name}: {root.resolve()} must hold trials_to_train.txt, trials_to_test.txt and their "
            "*.aedat and *_labels.csv, or ibmGestureTrain and ibmGestureTest with */*.npy: unpack "
            "the published archive there, or set root"
        )
    find = _trials if published else _cut
    recordings = {split: find(root, split) for split in ("train", "test")}
    for split, found in recordings.items():
        labels = [label for recording in found for label, _, _ in recording.samples]
        if not labels or not 0 <= min(labels) <= max(labels) < GESTURES:
            raise ValueError(
                f"{name}: {GESTURES} classes expected, the labels of its {len(labels)} {split} "
                f"samples are {min(labels, default=None)} to {max(labels, default=None)}"
            )
    return sequences(name, root, recordings, GESTURES, *options)


def _trials(root: Path, split: str) -> list[Recording]:
    """The published files: recordings and, beside them, the times and labels of their samples."""
    recordings = []
    listed = root / f"trials_to_{split}.txt"
    try:
        names = regular(listed, TABLE).read_text().split()
    except ValueError as error:
        raise DataError(f"dvs_gesture: {listed} cannot be read: {error}") from error
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(
            f"dvs_gesture: {listed} must name every recording once, got {twice[0][:100]!r} again"
        )
    there = set(os.listdir(root))
    for name in names:
        known = f"{name.removesuffix('.aedat')}_labels.csv"
        for needed in (name, known):
            if needed not in there:  # never a path to another place
                raise FileNotFoundError(
                    f"dvs_gesture: {listed} needs {needed[:100]!r} beside it, which is not there"
                )
        path, table = root / name, root / known
        try:
            rows = list(csv.reader(regular(table, TABLE).read_text().split()))[1:]
            samples = tuple((int(label) - 1, int(start), int(stop)) for label, start, stop in rows)
            if any(abs(number) >= 2**63 for sample in samples for number in sample):
                raise ValueError("labels and times must have 63 bits")
        except (ValueError, OSError, csv.Error) as error:
            raise DataError(
                f"dvs_gesture: {table} must hold class,startTime_usec,endTime_usec: {error}"
            ) from error
        recordings.append(Recording(path, samples, read_aedat3))
    return recordings


def _cut(root: Path, split: str) -> list[Recording]:
    """Recordings that were cut into one file per sample, named after its label."""
    files = seen((root / f"ibmGesture{split.title()}").glob("*/*.npy"))
    try:
        labels = [int(path.stem) for path in files]
    except ValueError as error:
        raise ValueError(f"dvs_gesture: files must be called LABEL.npy: {error}") from error
    return [Recording.whole(path, label, _read_npy) for path, label in zip(files, labels)]


def _read_npy(path: Path) -> np.ndarray:
    content = np.load(regular(path), mmap_mode="r")  # refuses a shape that the file has not
    if content.ndim != 2 or content.shape[1] != 4 or content.dtype.kind not in "iuf":
        raise ValueError(f"numbers [N, 4] expected, got {content.dtype} {list(content.shape)}")
    if not np.isfinite(content).all():
        raise ValueError("it holds numbers that are not finite")
    x, y, p, t = content.T
    return events(1000 * t.astype(np.int64), x, y, p)


def sequences(
    name: str,
    root: Path,
    recordings: dict[str, list[Recording]],
    classes: int,
    timesteps: int,
    image_size: int,
    train: int,
    test: int,
    augment: Sequence[str],
    workers: int,
    on_error: str,
    device,
    split_seed: int | None = None,
    classes_of: Sequence[str] | None = None,
) -> Data:
    """Data of recordings {"train": ..., "test": ...}: their frames, computed or taken from the file
    that is called by split, T, size and ``split_seed``."""
    for option, value, least in (
        ("timesteps", timesteps, 1),
        ("image_size", image_size, 8),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: {option} must be >= {least}, got {value}")
    if on_error not in ON_ERROR:
        raise ValueError(f"{name}: on_error must be {' or '.join(ON_ERROR)}, got {on_error!r}")
    steps = pipelines(name, augment, None, channels=2)
    splits = {}
    for split, count in (("train", train), ("test", test)):
        found = recordings[split]
        labels = torch.tensor([label for r in found for label, _, _ in r.samples])
        chosen = choose(name, split, labels, count)
        drawn = "" if split_seed is None else f"-seed{split_seed}"
        kept = root / f"{name}-{split}-T{timesteps}-{image_size}{drawn}.safetensors"
        frames, targets, skipped = load_frames(
            name, kept, found, timesteps, image_size, workers, on_error
        )
        splits[split] = TensorSplit(
            pick(frames, chosen).to(device), pick(targets, chosen).to(device), skipped
        )
    return Data(
        splits["train"],
        splits["test"],
        num_classes=classes,
        in_channels=2,
        image_size=image_size,
        timesteps=timesteps,
        augment=steps[0],
        prepare=steps[1],
        classes=tuple(classes_of) if classes_of else CLASSES[name],
    )
