"""A trained network's logits and accuracy at every number of timesteps, and the time of a step."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from snnfast.data.base import Augment, Split
from snnfast.distill import full_range
from snnfast.train.distributed import World
from snnfast.train.loop import show, spiking, still

BATCH = 250


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, timesteps: int | None = None) -> Tensor:
    """Logits [T, B, C] of images [B, C, H, W] or sequences [T, B, C, H, W], which are cut or
    repeated to ``timesteps``; of an ANN [1, B, C]."""
    if not spiking(model):
        return model(still(images))[None]
    if images.dim() == 4:
        return model(images, timesteps=timesteps)
    return model(show(images, timesteps or 0)[:timesteps])


def batches(
    model: nn.Module,
    split: Split,
    prepare: Augment,
    timesteps: int | None = None,
    *,
    batch_size: int = BATCH,
    world: World | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [T, B, C], targets [B]) of a split in evaluation mode, this rank's part of it;
    samples that could not be read (target -100) are left out."""
    training = model.training
    model.eval()
    try:
        order = torch.arange(len(split))[(world or World()).part(len(split))]
        for images, targets in split.batches(order.split(batch_size)):
            logits = logits_of(model, prepare(images, seed=0), timesteps)
            known = targets != -100
            yield (logits, targets) if known.all() else (logits[:, known], targets[known])
    finally:
        model.train(training)


def accuracy(
    model: nn.Module,
    split: Split,
    prepare: Augment,
    timesteps: int | None = None,
    *,
    batch_size: int = BATCH,
    world: World | None = None,
) -> list[float]:
    """Fraction right at 1 .. T timesteps out of one pass over all ranks' parts; of an ANN a list of
    one."""
    sums = None
    for logits, targets in batches(
        model, split, prepare, timesteps, batch_size=batch_size, world=world
    ):
        if len(targets) == 0:
            continue
        right = (full_range(logits, targets) * len(targets)).round()
        row = torch.cat([right, right.new_full((1,), len(targets))])
        sums = row if sums is None else sums + row
    if sums is None:
        raise ValueError("accuracy: there are no samples to test on")
    *right, count = (world or World()).sum(sums).tolist()
    return [value / count for value in right]


def time_steps(
    models: Sequence[nn.Module],
    loss_of: Callable[[nn.Module], Tensor],
    repeats: int = 11,
    warmup: int = 2,
) -> list[float]:
    """Median seconds of forward, loss and backward of each model, taken in turns.

    In turns, so that what else runs on the machine slows all of them alike.
    """
    device = next(models[0].parameters()).device
    seconds = [[] for _ in models]
    for repeat in range(warmup + repeats):
        for model, own in zip(models, seconds, strict=True):
            model.zero_grad(set_to_none=True)
            _synchronize(device)
            start = time.perf_counter()
            loss_of(model).backward()
            _synchronize(device)
            if repeat >= warmup:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
