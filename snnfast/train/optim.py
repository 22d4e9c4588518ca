"""SGD, its learning rate at every step, and averaged weights."""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step alone, so that resuming needs no state.

    ``cosine``: lr (1 + cos(pi n / N)) / 2 at step n of N. ``step``: lr gamma^(epoch // lr_epochs).
    Over the first ``warmup`` epochs it rises linearly to that.
    """

    kind: str
    lr: float
    epochs: int
    epoch_steps: int
    warmup: int = 0
    lr_epochs: int = 30
    lr_gamma: float = 0.1

    def at(self, step: int) -> float:
        """The learning rate of step ``step``, from 0."""
        epoch = step // self.epoch_steps
        if self.kind == "cosine":
            lr = self.lr * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * self.epoch_steps)))
        else:
            lr = self.lr * self.lr_gamma ** (epoch // self.lr_epochs)
        rise = self.warmup * self.epoch_steps
        return lr * (step + 1) / rise if step < rise else lr


def make_optimizer(
    model: nn.Module, *, momentum: float, weight_decay: float, fused: bool = False
) -> torch.optim.SGD:
    """SGD; weight decay on the weights of convolutions and linear layers only; see :func:`fuse`."""
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    }
    weights = [p for p in model.parameters() if id(p) in decayed]
    others = [p for p in model.parameters() if id(p) not in decayed]
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=0.0,
        momentum=momentum,
        fused=fused or None,
    )
    fuse(optimizer, fused)
    return optimizer


def fuse(optimizer: torch.optim.SGD, fused: bool) -> None:
    """Whether a step that a GradScaler finds infinite is left out on the device; torch's other ways
    of a step wait for the device to say so."""
    for group in optimizer.param_groups:
        group["fused"] = fused or None
        for p in group["params"] if fused and group["momentum"] else ():
            # torch would begin with memory as it is found, which a first step left out leaves so.
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def load_optimizer(optimizer: torch.optim.SGD, state: dict) -> None:
    """Go on from the momenta in ``state``; all else is the optimiser's own. Raises ValueError, or
    what torch does, where they are not those of its parameters."""
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)
        for p in group["params"]:
            momentum = optimizer.state.get(p, {}).get("momentum_buffer")
            if momentum is None:
                continue
            if momentum.shape != p.shape or not momentum.isfinite().all():
                raise ValueError(f"no momentum of a parameter {list(p.shape)}")


class Average:
    """An exponential moving average of a model's parameters; buffers are the model's own."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average = decay average + (1 - decay) parameters"""
        own = list(self.parameters.values())
        new = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(own, new, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module):
        """Inside, ``model`` has the averaged parameters."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._copy(model, self.parameters)
        try:
            yield model
        finally:
            self._copy(model, own)

    @staticmethod
    @torch.no_grad()
    def _copy(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """A state dict of ``model`` with the averaged parameters."""
        return model.state_dict() | self.parameters

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Go on from the averages in ``weights``."""
        for name, value in self.parameters.items():
            if weights[name].shape != value.shape or not weights[name].isfinite().all():
                raise ValueError(f"no average of {name} {list(value.shape)}")
            value.copy_(weights[name])
