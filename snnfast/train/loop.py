"""The training loop: one network, one objective, steps that can be stopped and gone on from.

Everything that is drawn (order, augmentation, Mixup) comes from the seed and the number of the
epoch or step, never from a stream: where a run goes on, nothing of it has to be replayed.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnfast.data.base import Data
from snnfast.ops.packed import packed_spikes
from snnfast.ops.warm_up import warm_up
from snnfast.train.distributed import World
from snnfast.train.graph import Graphed
from snnfast.train.objective import Objective, step_logits
from snnfast.train.optim import Average, Schedule, fuse, load_optimizer, make_optimizer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and on what."""


@dataclass(frozen=True)
class Options:
    """How a network is trained; the names are those of the recipe's keys."""

    seed: int
    epochs: int
    batch_size: int
    lr: float
    schedule: str = "cosine"
    warmup: int = 0
    lr_epochs: int = 30
    lr_gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    accumulate: int = 1
    clip_norm: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    amp: str = "none"
    channels_last: bool = False
    packed_spikes: bool = True
    compile: str = "none"
    cuda_graph: bool = False


@dataclass(frozen=True)
class Step:
    """What one step reports; epoch and step count from 1."""

    epoch: int
    step: int
    last: bool  # of its epoch
    lr: float


class Trainer:
    """Trains ``model`` in place: iterate over :meth:`steps`, save :meth:`state` between any two.

    Args:
        name: "teacher" or "student"; seeds differ with it.
        objective: (output, targets, teacher's logits) -> (loss, terms).
        teacher: gives the logits that the objective sees, once per batch, without gradient.
        frames: sequences with fewer frames are repeated from their first to this many; 0: as given.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        data: Data,
        options: Options,
        *,
        device: torch.device,
        world: World | None = None,
        teacher: nn.Module | None = None,
        frames: int = 0,
    ):
        self.name, self.model, self.objective, self.data = name, model, objective, data
        self.options, self.device, self.world = options, device, world or World()
        self.teacher, self.frames = teacher, frames
        self.epoch, self.done = 0, 0  # epochs, and steps of the present one, that are behind us
        self.batches = _batch_sizes(len(data.train), options.batch_size, self.world.size)
        if not self.batches:
            raise TrainingError(
                f"{len(data.train)} training samples are too few for {self.world.size} ranks"
            )
        self.schedule = Schedule(
            options.schedule, options.lr, options.epochs, len(self.batches),
            options.warmup, options.lr_epochs, options.lr_gamma,
        )  # fmt: skip
        self._reads_wait = reads_wait(device)
        self._graphed, self._lr = None, None
        if options.cuda_graph:
            self._begin_graph()
        self._fused = self._reads_wait and (options.amp == "fp16" or self._graphed is not None)
        self.optimizer = make_optimizer(
            model, momentum=options.momentum, weight_decay=options.weight_decay, fused=self._fused
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        self.average = Average(model, options.ema) if options.ema else None
        self.sums: dict[str, float] = {}
        # Of this process in this epoch: less than the epoch where a run went on in its middle.
        self.seconds, self.images = {"loading": 0.0, "step": 0.0}, 0
        self._pending: list[tuple[Step, dict[str, Tensor]]] = []
        self._patience = 20 if self._reads_wait else 1  # steps until losses are read
        self._run = self._callable()

    def steps(self) -> Iterator[Step]:
        """Train, and yield after every step. Raises TrainingError at a loss or a gradient that is
        not finite; on a GPU up to 19 steps late, but always before :meth:`state` returns."""
        while self.epoch < self.options.epochs:
            yield from self._epoch()

    def warm_up(self) -> int:
        """Compile what a step on a GPU launches, as :func:`snnfast.warm_up` does, on a batch of one
        sample again and again. Returns how many kernels are new; 0 where there is no step."""
        if not self._reads_wait or self.epoch == self.options.epochs:
            return 0
        total, world = self.batches[0], self.world
        part = world.part(total)
        count = part.stop - part.start
        images, targets = next(self.data.train.batches([torch.zeros(1, dtype=torch.int64)]))
        images, targets = images.repeat_interleave(count, -4), targets.repeat(count)
        images, targets, _ = self._shown(images, targets, 0, total)
        few = max(1, count // self.options.accumulate)
        images, targets = images[..., :few, :, :, :], targets[:few]
        taught, workers = self._taught(images), None
        if world.local_size > 1:
            workers = max(1, (os.cpu_count() or 1) // world.local_size)
        with self._step_contexts():
            return warm_up(
                self.model.train(), images, workers=workers,
                loss=lambda output: self.objective(output, targets, taught)[0],
            )  # fmt: skip

    def flush(self) -> None:
        """Add the losses of the steps since the last call to ``sums``, over all ranks."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        rows = torch.stack([torch.stack(list(row.values())) for _, row in self._pending])
        rows = self.world.sum(rows.double()).tolist()
        steps, self._pending = [step for step, _ in self._pending], []
        for step, row in zip(steps, rows, strict=True):
            values = dict(zip(names, row, strict=True))
            norm = values.pop("gradient") / self.world.size
            losses = _per_sample(values)
            if not math.isfinite(losses["loss"] + norm):
                shown = " ".join(f"{name}={value:g}" for name, value in losses.items())
                shown += f" norm of the gradient={norm:g}"
                raise TrainingError(f"not finite at step {step.step} (epoch {step.epoch}): {shown}")
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The epoch's mean loss and terms, and the fraction right of the training images as they
        were shown, up to the last :meth:`flush`. One rank may ask alone: nothing is exchanged."""
        if not self.sums:
            return {}
        right = self.sums["right"] / self.sums["count"]
        return _per_sample(self.sums) | {"train_accuracy": right}

    def state(self) -> dict:
        """All that a run needs to go on, but the weights. Loadable with ``weights_only=True``.
        Raises TrainingError where these are not finite."""
        self.check()
        state = {
            "name": self.name,
            "epoch": self.epoch,
            "done": self.done,
            "sums": dict(self.sums),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def check(self) -> None:
        """Raise TrainingError where a loss, a gradient or a weight is not finite: neurons hide a
        NaN before them from the loss."""
        self.flush()
        state = self.model.state_dict()
        # The sum of the magnitudes is finite only where all are: one number to wait for, not many.
        total = sum(v.detach().double().abs().sum() for v in state.values())
        if not math.isfinite(total):
            bad = [name for name, value in state.items() if not value.isfinite().all()]
            where = f"after step {self.epoch * len(self.batches) + self.done}"
            raise TrainingError(f"not finite {where} (epoch {self.epoch + 1}): {', '.join(bad)}")

    def restore(self, state: dict) -> None:
        """Go on from :meth:`state`; the model's weights are the caller's to load."""
        self.epoch, self.done = int(state["epoch"]), int(state["done"])
        if not (0 <= self.epoch <= self.options.epochs and 0 <= self.done <= len(self.batches)):
            raise ValueError(f"no epoch {self.epoch} with {self.done} steps")
        self.sums = {name: float(value) for name, value in state["sums"].items()}
        finite = all(math.isfinite(value) for value in self.sums.values())
        if self.sums and not (finite and self.sums["count"] > 0 and self.sums["right"] >= 0):
            raise ValueError(f"no sums of losses: {self.sums}")
        load_optimizer(self.optimizer, state["optimizer"])
        fuse(self.optimizer, self._fused)  # the device may be another than before
        if not all(math.isfinite(value) for value in state["scaler"].values()):
            raise ValueError(f"no state of a GradScaler: {state['scaler']}")
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _epoch(self) -> Iterator[Step]:
        epoch_seed = seed_of(self.options.seed, self.name, "epoch", self.epoch)
        generator = torch.Generator().manual_seed(epoch_seed)
        order = torch.randperm(len(self.data.train), generator=generator)
        whole = order[: sum(self.batches)].split(self.batches)[self.done :]
        own = [batch[self.world.part(len(batch))] for batch in whole]
        loaded = self.data.train.batches(own, seed=epoch_seed)
        for batch in whole:
            start = time.perf_counter()
            images, targets = next(loaded)
            middle = time.perf_counter()
            number = self.epoch * len(self.batches) + self.done
            lr = self.schedule.at(number)
            row = self._step(images, targets, number, len(batch), lr)
            self.done += 1
            last = self.done == len(self.batches)
            step = Step(self.epoch + 1, number + 1, last, lr)
            self._pending.append((step, row))
            if last or len(self._pending) >= self._patience:
                self.flush()
            self.images += len(batch)
            self.seconds["loading"] += middle - start
            self.seconds["step"] += time.perf_counter() - middle
            yield step
        self.epoch, self.done, self.sums = self.epoch + 1, 0, {}
        self.seconds, self.images = {"loading": 0.0, "step": 0.0}, 0

    def _step(self, images: Tensor, targets: Tensor, number: int, total: int, lr: float):
        """One step of the optimiser on this rank's part of a global batch of ``total`` samples;
        returns sums over the part."""
        self.model.train()  # the caller may have evaluated it since
        images, targets, labels = self._shown(images, targets, number, total)
        if self._lr is not None:
            lr = self._lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._graphed is not None:
            return self._graphed(images, targets, labels)
        return self._compute(images, targets, labels, total)

    def _shown(self, images: Tensor, targets: Tensor, number: int, total: int):
        """Images and targets as the network sees them in step ``number``, and the labels."""
        options = self.options
        seed = seed_of(options.seed, self.name, "step", number)
        images = self.data.augment(images, seed, self.world.part(total).start, total)
        labels = targets
        if options.mixup:
            images, targets = _mixup(images, targets, self.data.num_classes, options.mixup, seed)
        images = show(images, self.frames, options.channels_last)
        return images if spiking(self.model) else still(images), targets, labels

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor | None:
        """The teacher's logits."""
        with self._autocast():
            return self.teacher(still(images)) if self.teacher else None

    def _compute(self, images: Tensor, targets: Tensor, labels: Tensor, total: int):
        """The step but for what the host draws and decides."""
        options, world = self.options, self.world
        taught = self._taught(images)
        parts = min(options.accumulate, len(labels))
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            at = slice(len(labels) * part // parts, len(labels) * (part + 1) // parts)
            count = at.stop - at.start
            waits = isinstance(self._run, DistributedDataParallel) and part < parts - 1
            with self._run.no_sync() if waits else nullcontext():
                with self._step_contexts():
                    output = self._run(images[..., at, :, :, :])
                    loss, terms = self.objective(
                        output, targets[at], None if taught is None else taught[at]
                    )
                # DistributedDataParallel divides by the ranks; parts need not be of one size.
                self.scaler.scale(loss * (count * world.size / total)).backward()
            logits = step_logits(output).detach()
            right = (logits.float().mean(0).argmax(-1) == labels[at]).sum()
            row = {"loss": loss.detach() * count}
            row |= {name: value * count for name, value in terms.items()}
            row |= {"right": right, "count": torch.full_like(right, count)}
            for name, value in row.items():
                sums[name] = sums[name] + value if name in sums else value
        sums["gradient"] = self._update(sums["loss"])
        return {name: value.double() for name, value in sums.items()}

    def _update(self, loss: Tensor) -> Tensor:
        """Apply the gradients; returns their norm, before clipping. On a CPU not where the loss or
        the norm is not finite: the weights stay good. A GPU is not waited for."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.options.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.options.clip_norm, norm)
        if self.scaler.is_enabled():  # an overflow, which a smaller scale mends
            scale = self.scaler.scale(torch.ones_like(norm))
            norm = torch.where(scale >= 1, norm.nan_to_num(0, 0, 0), norm)
        if not self._reads_wait and self.world.any(not (loss + norm).isfinite(), self.device):
            return norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)
        return norm

    def _begin_graph(self) -> None:
        """Steps as one CUDA graph, where that can be."""
        reason = None
        if self.world.size > 1:
            reason = "several ranks wait for one another"
        elif self.options.compile != "none":
            reason = f"compile is {self.options.compile}"
        elif not self._reads_wait:
            reason = f"the device must be cuda, got {self.device.type}"
        if reason:
            warnings.warn(f"cuda_graph: steps run without a graph: {reason}", stacklevel=3)
            return

        def step(images, targets, labels):
            return self._compute(images, targets, labels, len(labels))

        self._lr = torch.zeros((), device=self.device)
        self._graphed = Graphed(step, undo=self._forget_capture)

    def _forget_capture(self) -> None:
        """Put right what a capture that failed has changed in Python."""
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.state_dict()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
        self.scaler.load_state_dict(scale)

    def _callable(self) -> Callable:
        """The network as it is run: over ranks, and compiled where asked for."""
        run = self.model
        if self.options.compile != "none":
            run = torch.compile(run, mode=self.options.compile)
        if self.world.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            with warnings.catch_warnings():
                # torch 2.13 warns of an argument that it has no substitute for yet.
                warnings.simplefilter("ignore", FutureWarning)
                run = DistributedDataParallel(run, device_ids=devices, broadcast_buffers=False)
        return run

    @contextmanager
    def _step_contexts(self) -> Iterator[None]:
        """What forward and loss of a step run in."""
        with self._autocast(), packed_spikes() if self.options.packed_spikes else nullcontext():
            yield

    def _autocast(self):
        dtype = DTYPES.get(self.options.amp)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()


def reads_wait(device: torch.device) -> bool:
    """Whether to read a number is to wait for the device."""
    return device.type != "cpu"


def show(images: Tensor, frames: int = 0, channels_last: bool = False) -> Tensor:
    """Images as a network takes them: sequences [T, B, C, H, W] repeated from their first frame to
    ``frames``, images and frames channels-last where asked for."""
    if images.dim() == 5 and frames > len(images):
        images = images[torch.arange(frames, device=images.device) % len(images)]
    if channels_last:
        flat = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        images = flat.view(images.shape)
    return images


def spiking(model: nn.Module) -> bool:
    """Whether a model gives logits [T, B, C], one row a timestep; ANNs give [B, C]."""
    return hasattr(model, "timesteps")


def seed_of(*what) -> int:
    """A seed for the thing that is described, independent of all others."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")


def _per_sample(sums: dict[str, float]) -> dict[str, float]:
    """Mean losses out of their sums over ``count`` samples."""
    return {n: v / sums["count"] for n, v in sums.items() if n not in ("count", "right")}


def _batch_sizes(count: int, batch_size: int, ranks: int) -> list[int]:
    """Sizes of an epoch's global batches; a remainder that gives a rank less than two samples, of
    which batch normalisation has no variance, is left out."""
    sizes = [batch_size] * (count // batch_size)
    rest = count % batch_size
    return [*sizes, rest] if rest >= 2 * ranks else sizes


def still(images: Tensor) -> Tensor:
    """What an ANN sees: an image, or the mean of a sequence's frames (arXiv 2501.15925)."""
    return images.mean(0) if images.dim() == 5 else images


def _mixup(images: Tensor, targets: Tensor, classes: int, alpha: float, seed: int):
    """Mixup (arXiv 1710.09412): lam x_i + (1 - lam) x_j of a batch and its reverse, and the same of
    the targets [B, classes]; lam ~ Beta(alpha, alpha). A target that is no class has no weight."""
    lam = float(np.random.default_rng(seed).beta(alpha, alpha))
    images = torch.lerp(images.flip(images.dim() - 4), images, lam)
    # Not F.one_hot, which looks at the labels and refuses those that are no class.
    labels = torch.arange(classes, device=targets.device)
    one_hot = (targets[:, None] == labels).to(images.dtype)
    return images, torch.lerp(one_hot.flip(0), one_hot, lam)
