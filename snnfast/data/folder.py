"""Folders of images: ImageNet and any other set with one folder per class."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from snnfast.data import hub
from snnfast.data.augment import RESIZED_CROP, pipelines
from snnfast.data.base import Data
from snnfast.data.decoded import ON_ERROR, DecodedSplit, Samples
from snnfast.data.extras import root_of
from snnfast.data.known import NORMALISE
from snnfast.data.pictures import centre_crop, decode, resized_crop, shorter_side
from snnfast.data.subset import choose
from snnfast.packages import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
AUGMENT = (RESIZED_CROP, "flip")
PROBED = 5  # images whose size is looked at before the work
TEST_FOLDERS = ("test", "val", "valid", "validation")


def imagenet(
    root: str | Path = "data",
    source: str = "files",
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = AUGMENT,
    normalise: bool = True,
    image_size: int = 224,
    workers: int = 2,
    on_error: str = "stop",
    device: str | torch.device = "cpu",
) -> Data:
    """ImageNet (Russakovsky et al., arXiv 1409.0575): train and val in ``root`` or in
    ``root``/imagenet, with a folder for every class, as many of them as there are; their sorted
    names are the labels.

    ``source`` "hub" reads it with the Hugging Face package ``datasets`` instead
    (:mod:`snnfast.data.hub`). The rest as in :func:`folder`.
    """
    options = (train, test, augment, normalise, image_size, workers, on_error, device)
    if source == "files":
        root = root_of(root, ("imagenet",), ("train",))
        return _folders("imagenet", root, ("val",), *options)
    samples = {
        split: hub.table("imagenet", "ILSVRC/imagenet-1k", root, source, called)
        for split, called in (("train", "train"), ("test", "validation"))
    }
    return _decoded("imagenet", samples, *options)


def folder(
    root: str | Path = "data",
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = AUGMENT,
    normalise: bool = True,
    image_size: int = 224,
    workers: int = 2,
    on_error: str = "stop",
    device: str | torch.device = "cpu",
) -> Data:
    """Any images: ``root``/train/CLASS/*.png and ``root``/test/CLASS/*.png (or val, valid,
    validation); jpg, webp and the like too.

    Images come out [3, image_size, image_size], in RGB. "resizedcrop" in ``augment`` cuts them at
    random in training; without it, and in testing, the shorter side is scaled to image_size * 256 /
    224 and the middle is taken, or the image as it is where it has that size. Smaller images are
    scaled up; a warning says so from twice the sides on. ``train`` and
    ``test`` are numbers of images, 0 for all. ``workers`` processes decode. ``on_error`` is "stop",
    or "skip" for samples that cannot be read (:class:`snnfast.data.decoded.DecodedSplit`).
    Normalised with ImageNet's mean and deviation.
    """
    options = (train, test, augment, normalise, image_size, workers, on_error, device)
    return _folders("folder", Path(root), TEST_FOLDERS, *options)


def _folders(name: str, root: Path, test_folders: Sequence[str], *options) -> Data:
    tested = next((t for t in test_folders if (root / t).is_dir()), None)
    if tested is None or not (root / "train").is_dir():
        found = ", ".join(sorted(path.name for path in root.glob("*/"))[:5])
        tests, *others = (f"{called}/CLASS/IMAGE" for called in test_folders)
        raise FileNotFoundError(
            f"{name}: {root.resolve()} must hold train/CLASS/IMAGE and {tests}"
            f"{' (or ' + ', '.join(others) + ')' if others else ''}, images being "
            f"{', '.join(SUFFIXES)}, got {f'the folders {found}' if found else 'no folders'}: put "
            "the images there, or set root"
        )
    samples = {"train": Folder(name, root / "train"), "test": Folder(name, root / tested)}
    return _decoded(name, samples, *options)


def _decoded(
    name: str,
    samples: dict[str, Samples],
    train: int,
    test: int,
    augment: Sequence[str],
    normalise: bool,
    image_size: int,
    workers: int,
    on_error: str,
    device,
) -> Data:
    require("PIL.Image")
    for option, value, least in (("image_size", image_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name}: {option} must be >= {least}, got {value}")
    if on_error not in ON_ERROR:
        raise ValueError(f"{name}: on_error must be {' or '.join(ON_ERROR)}, got {on_error!r}")
    normalised = NORMALISE[name] if normalise else None
    steps = pipelines(name, augment, normalised, decoding=(RESIZED_CROP,))
    known, tested = samples["train"].classes, samples["test"].classes
    if known != tested:
        odd = sorted(set(known) ^ set(tested))[:3]
        raise ValueError(
            f"{name}: the classes of both splits must be the same, got {len(known)} for training "
            f"and {len(tested)} for testing (not in both: {', '.join(odd) or 'their order'})"
        )
    _warn_of_enlargement(name, samples["train"], image_size)
    splits = {
        split: DecodedSplit(
            source,
            choose(name, split, source.targets, {"train": train, "test": test}[split]),
            resized_crop if split == "train" and RESIZED_CROP in augment else _middle,
            image_size,
            workers,
            on_error,
            device,
        )
        for split, source in samples.items()
    }
    return Data(
        splits["train"],
        splits["test"],
        num_classes=len(known),
        in_channels=3,
        image_size=image_size,
        augment=steps[0],
        prepare=steps[1],
        classes=tuple(known),
        resize=shorter_side(image_size),
    )


def _warn_of_enlargement(name: str, samples: Samples, size: int) -> None:
    """A warning where most of a few images, from all over the set, get four times the pixels."""
    sides = []
    for index in torch.linspace(0, len(samples.targets) - 1, PROBED).long().tolist():
        with contextlib.suppress(Exception):  # who reads it says so
            sides.append(min(samples.image(index).size))
    side = sorted(sides)[len(sides) // 2] if sides else size
    if 2 * side <= size:
        warnings.warn(
            f"{name}: images of {side} pixels (the shorter side) are scaled up to image_size "
            f"{size}, {(size / side) ** 2:.3g} times the pixels: image_size={side} "
            f"(--data.image_size {side}) leaves them as they are",
            stacklevel=5,
        )


def _middle(image, size: int, random):
    return centre_crop(image, size, shorter_side(size))


class Folder:
    """Images of a folder of class folders, in the order of their names."""

    def __init__(self, name: str, path: Path):
        self.path = path
        self.classes = sorted(
            entry.name for entry in os.scandir(path) if entry.is_dir() and not _hidden(entry.name)
        )
        self.files: list[str] = []
        labels = []
        for label, known in enumerate(self.classes):
            files = sorted(_images(path / known))
            if not files:
                raise FileNotFoundError(f"{name}: no images in {(path / known).resolve()}")
            self.files += files
            labels += [label] * len(files)
        if not self.files:
            raise FileNotFoundError(f"{name}: no class folders in {path.resolve()}")
        self.targets = torch.tensor(labels)

    def label_of(self, index: int) -> str:
        return self.files[index]

    def image(self, index: int):
        return decode(self.files[index], self.files[index])


def _images(folder: Path):
    for where, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not _hidden(name)]
        yield from (
            os.path.join(where, name)
            for name in files
            if name.lower().endswith(SUFFIXES) and not _hidden(name)
        )


def _hidden(name: str) -> bool:
    """What copying and viewing leave behind, ._0.png and .ipynb_checkpoints, is no image."""
    return name.startswith(".")
