"""Splits that are decoded while they are read, by worker processes."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from snnfast.data.base import IGNORED, DataError
from snnfast.data.pictures import to_tensor
from snnfast.data.workers import load

ON_ERROR = ("stop", "skip")


class Samples(Protocol):
    """Where images come from; pickled to the workers."""

    targets: Tensor  # int64 [N]

    def label_of(self, index: int) -> str:
        """What messages call a sample: its file."""
        ...

    def image(self, index: int):
        """A PIL image in RGB; raises DataError."""
        ...


class DecodedSplit:
    """Samples ``chosen`` of a source, cut to [3, size, size] by ``cut(image, size, random)``.

    ``random`` is a generator made from the seed of the batches and the sample's number, so that
    the number of ``workers`` (0: this process decodes) changes nothing. A sample that cannot be
    read raises DataError (``on_error`` "stop") or, with "skip", is an image of zeros with the
    target IGNORED; its name goes to ``skipped``, and the first one is warned of.
    """

    def __init__(
        self,
        samples: Samples,
        chosen: Tensor,
        cut: Callable,
        size: int,
        workers: int = 0,
        on_error: str = "stop",
        device: str | torch.device = "cpu",
    ):
        self.samples, self.chosen, self.cut, self.size = samples, chosen, cut, size
        self.workers, self.on_error, self.device = workers, on_error, torch.device(device)
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.chosen)

    def batches(self, indices: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`snnfast.data.Split.batches`."""
        lists = _Lists(indices)

        def name_of(batch: int) -> str:
            names = (self.samples.label_of(int(self.chosen[n])) for n in lists.ends[0])
            return f"batch {batch} (images {' to '.join(names)})"

        loaded = load(
            _Reader(self.samples, self.chosen, self.cut, self.size, seed),
            self.workers,
            name_of,
            batch_sampler=lists,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
        )
        for images, targets, failures in loaded:
            lists.ends.popleft()
            for name, message in failures:
                self._failed(name, message)
            images = images.to(self.device, non_blocking=True).float().div_(255)
            yield images, targets.to(self.device, non_blocking=True)

    def _failed(self, name: str, message: str) -> None:
        if self.on_error == "stop":
            raise DataError(message)
        if not self.skipped:
            warnings.warn(f"{message}: left out, and so will others be", stacklevel=3)
        if name not in self.skipped:
            self.skipped.append(name)


class _Lists:
    """Tensors of sample numbers as lists, one at a time: the order may be long. ``ends`` are the
    first and the last number of those that are being read."""

    def __init__(self, indices: Iterable[Tensor]):
        self.indices = indices
        self.ends: deque[list[int]] = deque()

    def __iter__(self):
        for index in self.indices:
            numbers = index.tolist()
            self.ends.append(numbers[:1] + numbers[-1:])
            yield numbers


class _Reader:
    """What a worker runs for each batch."""

    def __init__(self, samples: Samples, chosen: Tensor, cut: Callable, size: int, seed: int):
        self.samples, self.chosen, self.cut, self.size = samples, chosen, cut, size
        self.seed = seed

    def __getitems__(self, numbers: list[int]):
        images = torch.zeros(len(numbers), 3, self.size, self.size, dtype=torch.uint8)
        targets = torch.full((len(numbers),), IGNORED)
        failures = []
        for place, number in enumerate(numbers):
            index = int(self.chosen[number])
            random = np.random.default_rng((self.seed, number))
            name = self.samples.label_of(index)
            try:
                image = self.cut(self.samples.image(index), self.size, random)
                images[place] = to_tensor(image)
            except DataError as error:
                failures.append((name, str(error)))
                continue
            except Exception as error:  # of memory, of the storage
                failures.append(
                    (name, f"{name} cannot be read: {str(error) or type(error).__name__}")
                )
                continue
            targets[place] = self.samples.targets[index]
        return images, targets, failures


def _as_is(batch):
    return batch
