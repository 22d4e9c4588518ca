"""The training loop: SGD with momentum, cosine to 0, on a data set in memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfast.data import ImageData, random_shift

# (model, images, targets) -> (loss, its terms by name)
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and on what."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: lr falls from ``lr`` to 0 along half a cosine over all steps."""

    epochs: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    shift: int
    seed: int

    def steps(self, data: ImageData) -> int:
        """Steps of one epoch; the last batch may be smaller."""
        return math.ceil(len(data.train_targets) / self.batch_size)


@dataclass(frozen=True)
class Step:
    """What one step reports: epoch and step from 1, and the losses of that batch."""

    epoch: int
    step: int
    lr: float
    losses: dict[str, float]


def make_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.SGD:
    """SGD; weight decay on the weights of convolutions and linear layers only."""
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    }
    weights = [p for p in model.parameters() if id(p) in decayed]
    others = [p for p in model.parameters() if id(p) not in decayed]
    return torch.optim.SGD(
        [
            {"params": weights, "weight_decay": schedule.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=schedule.lr,
        momentum=schedule.momentum,
    )


def fit(
    model: nn.Module, objective: Objective, data: ImageData, schedule: Schedule
) -> Iterator[Step]:
    """Train ``model`` in place and yield every step.

    Order and augmentation come from ``schedule.seed`` alone, so that a CPU run with the same number
    of threads gives the same weights. Raises TrainingError at the first loss that is not finite,
    before its gradient reaches the weights.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    optimizer = make_optimizer(model, schedule)
    total = schedule.epochs * schedule.steps(data)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    step = 0
    for epoch in range(1, schedule.epochs + 1):
        order = torch.randperm(len(data.train_targets), generator=generator)
        for index in order.to(data.train_images.device).split(schedule.batch_size):
            step += 1
            # The caller may have evaluated the model since the last step.
            model.train()
            images = random_shift(data.train_images[index], schedule.shift, generator)
            loss, terms = objective(model, images, data.train_targets[index])
            values = torch.stack([loss.detach(), *terms.values()]).tolist()
            losses = dict(zip(("loss", *terms), values, strict=True))
            if not math.isfinite(losses["loss"]):
                shown = " ".join(f"{name}={value:g}" for name, value in losses.items())
                raise TrainingError(f"not finite at step {step} (epoch {epoch}): {shown}")
            lr = cosine.get_last_lr()[0]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cosine.step()
            yield Step(epoch, step, lr, losses)
