"""Fewer samples of a set, of all classes alike."""

import torch
from torch import Tensor


def choose(name: str, split: str, targets: Tensor, count: int) -> Tensor:
    """Numbers of ``count`` samples (0: all), ascending int64; ``targets`` int64 [N].

    The first sample of every class, then the second of every class, and so on: smaller choices are
    subsets of larger ones, and classes differ by one sample at most while none runs out. Raises
    ValueError, naming the set and its split, where there are not that many.
    """
    if not 0 <= count <= len(targets):
        raise ValueError(f"{name}: {split} must be 0 (all) to {len(targets)}, got {count}")
    if count in (0, len(targets)):
        return torch.arange(len(targets))
    by_class = torch.argsort(targets, stable=True)
    sizes = torch.bincount(targets)
    first = (sizes.cumsum(0) - sizes)[targets[by_class]]
    place = torch.empty_like(targets)  # of a sample within its class
    place[by_class] = torch.arange(len(targets)) - first
    return torch.argsort(place, stable=True)[:count].sort().values


def pick(values: Tensor, chosen: Tensor) -> Tensor:
    """values[chosen], without a copy where that is all of them."""
    return values if len(chosen) == len(values) else values[chosen]
