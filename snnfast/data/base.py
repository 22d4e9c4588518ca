"""What training reads: a data set with two splits, and the augmentation of its batches.

A split is read batch by batch in an order that the caller gives, so that the order, and with it
resuming and sharding over ranks, is the caller's alone. Augmentations draw on the CPU for the whole
global batch and are applied to a slice of it: one seed gives one global batch, on every device and
for any number of ranks. What goes to a GPU goes there in one copy that nobody waits for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

IGNORED = -100  # the target of a sample that could not be read: no loss counts it


class DataError(RuntimeError):
    """A sample that cannot be read; the message names its file."""


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU ``tensors`` on ``device``: there in one copy, out of memory that the device reads by
    itself, so that nothing waits."""
    if device.type == "cpu" or not tensors:
        return list(tensors)
    sizes = [-(-t.nbytes // 8) * 8 for t in tensors]  # each begins where any dtype may
    starts = list(accumulate(sizes, initial=0))

    def parts(flat: Tensor) -> list[Tensor]:
        return [
            flat[start : start + t.nbytes].view(t.dtype).view(t.shape)
            for start, t in zip(starts, tensors)
        ]

    staged = _pinned(starts[-1], device)
    for part, t in zip(parts(staged), tensors):
        part.copy_(t)
    return parts(staged.to(device, non_blocking=True))


def _pinned(size: int, device: torch.device) -> Tensor:
    """Bytes on the CPU, at a place that stays while ``device`` reads them."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


class Split(Protocol):
    """Samples in a fixed order, read by index.

    ``skipped`` names the files of samples that could not be read and were left out, in the order
    in which they were met. Their images are zeros and their targets IGNORED.
    """

    skipped: list[str]

    def __len__(self) -> int: ...

    def batches(self, indices: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for every int64 tensor of sample numbers [B], in that order.

        Images are float32 in 0..1 (event frames: counts) on the split's device, [B, C, H, W], or
        [T, B, C, H, W] where samples are sequences; targets int64 [B]. What is drawn while decoding
        depends on ``seed`` and the sample's number alone. Raises DataError for a sample that cannot
        be read.
        """
        ...


class Transform(Protocol):
    """One augmentation of a batch of images [..., B, C, H, W]."""

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for ``n`` images: CPU tensors [n, ...]."""
        ...

    def arrange(self, draws: dict[str, Tensor]) -> dict[str, Tensor | list]:
        """The draws of a part of these images, in their order, as ``apply`` takes them: CPU
        tensors, and in lists what decides there which operations run."""
        ...

    def apply(self, images: Tensor, draws: dict[str, Tensor | list]) -> Tensor:
        """The augmented images; ``draws`` are arranged, their tensors on the images' device."""
        ...


@dataclass(frozen=True)
class Augment:
    """Transforms, one after the other."""

    transforms: Sequence[Transform] = ()

    def __call__(self, images: Tensor, seed: int, first: int = 0, total: int | None = None):
        """The batch, augmented: images ``first`` .. of a global batch of ``total`` (None: this is
        all of it), whose random numbers come from ``seed`` alone. The same seed gives the same
        result for an image whatever slice it is in."""
        count = images.shape[-4]
        total = count if total is None else total
        generator = torch.Generator().manual_seed(seed)
        arranged = []
        for transform in self.transforms:
            draws = transform.draw(total, generator)
            own = {name: values[first : first + count] for name, values in draws.items()}
            arranged.append(transform.arrange(own))
        drawn = [v for own in arranged for v in own.values() if isinstance(v, Tensor)]
        moved = iter(to_device(drawn, images.device))
        for transform, own in zip(self.transforms, arranged, strict=True):
            there = {n: next(moved) if isinstance(v, Tensor) else v for n, v in own.items()}
            images = transform.apply(images, there)
        return images


@dataclass(frozen=True)
class Data:
    """A data set: two splits, what its images are, and what training and testing do to them."""

    train: Split
    test: Split
    num_classes: int
    in_channels: int
    image_size: int
    timesteps: int | None = None  # T of sequences; None: images
    augment: Augment = Augment()  # training batches
    prepare: Augment = Augment()  # test batches: normalisation alone
    classes: tuple[str, ...] | None = None  # their names, by label
    resize: int | None = None  # shorter side before the middle is cut; None: as image_size


class TensorSplit:
    """Images uint8 (0..255 read as 0..1) or floating point [N, C, H, W] (sequences [N, T, C, H, W])
    and targets int64 [N] in memory, on the training device."""

    def __init__(self, images: Tensor, targets: Tensor, skipped: Sequence[str] = ()):
        if len(images) != len(targets):
            raise ValueError(
                f"TensorSplit: images and targets must be as many, got {len(images)} and "
                f"{len(targets)}"
            )
        self.images, self.targets, self.skipped = images, targets, list(skipped)

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, indices: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`Split.batches`; nothing is drawn."""
        for index in indices:
            (index,) = to_device([index], self.targets.device)
            images = self.images[index]
            if images.dtype == torch.uint8:
                images = images.float().div_(255)
            images = images.float()
            if images.dim() == 5:
                images = images.transpose(0, 1).contiguous()
            yield images, self.targets[index]
