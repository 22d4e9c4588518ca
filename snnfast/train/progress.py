"""What a run shows while it goes on."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from snnfast.data.base import Data
from snnfast.packages import require
from snnfast.train.config import Config
from snnfast.train.distributed import World
from snnfast.train.loop import spiking


def headline(
    config: Config, data: Data, model: nn.Module, device: torch.device, world: World
) -> str:
    """What is about to be trained, on one line."""
    kind = "images" if data.timesteps is None else "recordings"
    parts = [
        f"{config.data.name}: {len(data.train):,} {kind} to train and {len(data.test):,} to test",
        f"{data.num_classes} classes",
        "x".join(str(n) for n in (data.in_channels, data.image_size, data.image_size)) + " pixels",
        f"{config.model} of {sum(p.numel() for p in model.parameters()):,} parameters",
        f"T = {config.timesteps}" if spiking(model) else "no time",
        str(device) if world.size == 1 else f"{world.size} x {device.type}",
        "float32" if config.amp == "none" else config.amp,
        f"into {config.output}",
    ]
    return ", ".join(parts)


def memory(device: torch.device) -> dict[str, int]:
    """The most memory that was in use: of the GPU, or of this process."""
    if device.type == "cuda":
        return {"peak_gpu_bytes": torch.cuda.max_memory_allocated(device)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_process_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


class Bar:
    """A progress bar over a phase's steps, with losses, accuracy, images/s and memory."""

    def __init__(self, bar, trainer):
        self._bar, self._trainer = bar, trainer
        self._shown, self._tested = 0.0, ""

    def step(self) -> None:
        """One step is done."""
        self._bar.update()
        now = time.perf_counter()
        if now - self._shown > 1 and not self._bar.disable:
            self._shown = now
            self._show()

    def tested(self, row: dict) -> None:
        """An epoch's row of metrics."""
        self._tested = f" test {100 * row['test_accuracy'][-1]:.1f} %"
        self._show()

    def _show(self) -> None:
        trainer = self._trainer
        means = trainer.means()
        right = means.pop("train_accuracy", 0.0)
        seconds = trainer.seconds
        rate = trainer.images / max(seconds["loading"] + seconds["step"], 1e-9)
        (used,) = memory(trainer.device).values()
        losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._bar.set_postfix_str(
            f"epoch {trainer.epoch + 1}/{trainer.options.epochs} {losses} train {100 * right:.1f} %"
            f"{self._tested} {rate:.0f} images/s {used / 2**30:.2f} GiB"
        )


@contextmanager
def bar(name: str, trainer, world: World) -> Iterator[Bar]:
    """The bar of a phase that may have begun before; silent but on rank 0."""
    total = trainer.options.epochs * len(trainer.batches)
    behind = trainer.epoch * len(trainer.batches) + trainer.done
    with require("tqdm").tqdm(
        total=total, initial=behind, desc=name, unit="step", disable=not world.main
    ) as shown:
        yield Bar(shown, trainer)
