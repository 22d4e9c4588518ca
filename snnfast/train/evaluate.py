"""Accuracy at every number of timesteps, and the time of one training step."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from snnfast.distill import full_range


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits in evaluation mode, in batches: [T, N, C] of a spiking model, [N, C] of an ANN."""
    training = model.training
    model.eval()
    try:
        logits = [model(batch) for batch in images.split(batch_size)]
    finally:
        model.train(training)
    return torch.cat(logits, dim=-2)


def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> list[float]:
    """Fraction right at 1 .. T timesteps out of one pass; of an ANN a list of one."""
    logits = predict(model, images)
    return full_range(logits if logits.dim() == 3 else logits[None], targets).tolist()


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
