"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the files in which they are published.

Either version will do, unpacked: the binary one (``cifar-10-batches-bin``, ``cifar-100-binary``),
which is nothing but labels and pixels and comes first where both are there, or the pickles for
Python (``cifar-10-batches-py``, ``cifar-100-python``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnfast.data import hub, known, pickled
from snnfast.data.augment import pipelines
from snnfast.data.base import Data, DataError, TensorSplit
from snnfast.data.extras import regular
from snnfast.data.subset import choose, pick

PIXELS = 3 * 32 * 32
MOST = 2**28  # bytes of a file; the largest published one has 155 million


@dataclass(frozen=True)
class _Published:
    """What one of the two sets is called, and how its files are laid out."""

    name: str
    classes: int
    folder: str  # Python version
    files: dict[str, tuple[str, ...]]  # split -> its files
    labels: str  # key of the fine labels
    binary: str
    label_bytes: int  # before the pixels of a binary record; the last of them is the fine label
    hub: str

    def binary_files(self, split: str) -> tuple[str, ...]:
        return tuple(f"{file}.bin" for file in self.files[split])


_CIFAR10 = _Published(
    "cifar10",
    10,
    "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "labels",
    "cifar-10-batches-bin",
    1,
    "uoft-cs/cifar10",
)
_CIFAR100 = _Published(
    "cifar100",
    100,
    "cifar-100-python",
    {"train": ("train",), "test": ("test",)},
    "fine_labels",
    "cifar-100-binary",
    2,
    "uoft-cs/cifar100",
)
AUGMENT = ("crop4", "flip", "autoaugment", "cutout16")


def cifar10(
    root: str | Path = "data",
    source: str = "files",
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = AUGMENT,
    normalise: bool = True,
    device: str | torch.device = "cpu",
) -> Data:
    """CIFAR-10: 50,000 and 10,000 images [3, 32, 32] of 10 classes, uint8 on ``device``.

    ``source`` "files" reads the published files under ``root``; "hub" the Hugging Face package
    ``datasets`` (:mod:`snnfast.data.hub`). ``train`` and ``test`` are numbers of images, 0 for all.
    Raises FileNotFoundError where there are no files, DataError for one that cannot be read.
    """
    return _cifar(_CIFAR10, root, source, train, test, augment, normalise, device)


def cifar100(
    root: str | Path = "data",
    source: str = "files",
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = AUGMENT,
    normalise: bool = True,
    device: str | torch.device = "cpu",
) -> Data:
    """CIFAR-100: as :func:`cifar10`, with 100 classes (the fine labels)."""
    return _cifar(_CIFAR100, root, source, train, test, augment, normalise, device)


def _cifar(published, root, source, train, test, augment, normalise, device) -> Data:
    steps = pipelines(
        published.name, augment, known.NORMALISE[published.name] if normalise else None
    )
    splits = {}
    for split, count in (("train", train), ("test", test)):
        if source == "files":
            images, targets = _read(published, Path(root), split)
        else:
            images, targets = _from_hub(published, root, source, split)
        _check(published, targets, split)
        chosen = choose(published.name, split, targets, count)
        splits[split] = TensorSplit(
            pick(images, chosen).to(device), pick(targets, chosen).to(device)
        )
    return Data(
        splits["train"],
        splits["test"],
        num_classes=published.classes,
        in_channels=3,
        image_size=32,
        augment=steps[0],
        prepare=steps[1],
        classes=known.CLASSES[published.name],
    )


def _check(published: _Published, targets: Tensor, split: str) -> None:
    name = published.name
    if len(targets) == 0:
        raise ValueError(f"{name}: there are no {split} images")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= published.classes:
        raise ValueError(
            f"{name}: {published.classes} classes expected, the labels of its {split} images are "
            f"{low} to {high}"
        )


def _read(published: _Published, root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and targets int64 [N]."""
    for folder, files, read in (
        (published.binary, published.binary_files(split), _read_binary),
        (published.folder, published.files[split], _read_pickle),
    ):
        # The folder itself may be given, too.
        for place in (root / folder, root):
            if (place / files[0]).is_file() and (place is not root or root.name == folder):
                parts = [read(published, place / file) for file in files]
                images = np.concatenate([pixels for pixels, _ in parts])
                targets = np.concatenate([labels for _, labels in parts])
                return torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(targets)
    raise FileNotFoundError(
        f"{published.name}: neither {published.folder}/{published.files[split][0]} (Python version)"
        f" nor {published.binary}/{published.binary_files(split)[0]} (binary version) in "
        f"{root.resolve()}: unpack the published archive there, set root, or use source=hub"
    )


def _read_pickle(published: _Published, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [n, 3072] and labels int64 [n] of one pickle."""
    try:
        content = pickled.load(regular(path, MOST).read_bytes())
        missing = [key for key in ("data", published.labels) if key not in content]
        if missing:
            raise ValueError(f"it has no {missing[0]!r}")
        pixels, labels = (pickled.numbers(content[key]) for key in ("data", published.labels))
    except Exception as error:  # damaged pickles raise errors of nearly every type
        raise DataError(f"{published.name}: {path} cannot be read: {error}") from error
    if pixels.dtype != np.uint8 or pixels.shape != (*labels.shape, PIXELS):
        raise DataError(
            f"{published.name}: {path} must hold uint8 [{len(labels)}, {PIXELS}], got "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    return pixels, labels.astype(np.int64)


def _read_binary(published: _Published, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same of one binary file: records of label bytes and 3072 pixels."""
    try:
        content = np.fromfile(regular(path, MOST), dtype=np.uint8)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{published.name}: {path} cannot be read: {error}") from error
    record = published.label_bytes + PIXELS
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{published.name}: {path} must hold records of {record} bytes, got {len(content)} "
            "bytes"
        )
    content = content.reshape(-1, record)
    labels = content[:, published.label_bytes - 1].astype(np.int64)
    return content[:, published.label_bytes :].copy(), labels


def _from_hub(published, root, source, split) -> tuple[Tensor, Tensor]:
    table = hub.table(published.name, published.hub, root, source, split)
    if len(table.classes) != published.classes:
        raise ValueError(
            f"{published.name}: {published.classes} classes expected, {table.name} has "
            f"{len(table.classes)}"
        )
    images = [np.asarray(table.image(i)) for i in range(len(table))]
    wrong = next((image.shape for image in images if image.shape != (32, 32, 3)), None)
    if wrong is not None:
        raise DataError(f"{published.name}: images must be 32x32 in colour, got {list(wrong)}")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, table.targets
