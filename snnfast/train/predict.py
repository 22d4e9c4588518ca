"""``snnfast predict RUN IMAGE...``: classes of image files, and when the network was sure."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from snnfast.data.base import DataError
from snnfast.data.pictures import decode
from snnfast.distill import anytime
from snnfast.train.build import choose_device
from snnfast.train.config import ConfigError
from snnfast.train.evaluate import logits_of
from snnfast.train.load import load

BATCH = 32


def run(
    directory: Path,
    files: Sequence[Path],
    *,
    weights: str = "model",
    threshold: float = 0.9,
    device: str = "auto",
) -> str:
    """The table of what the network of the run in ``directory`` sees in image files.

    Raises CheckpointError or ConfigError for a run that cannot be read or that takes no images,
    DataError for a file that is no image.
    """
    chosen = choose_device(device)
    model = load(directory, weights=weights, device=chosen)
    if model.preprocess.frames:
        raise ConfigError(f"{directory}: its network takes frames of events, not images")
    rows = [("file", "class", "confidence", "sure at")]
    for file, name, confidence, step in predict(model, files, threshold, chosen):
        rows.append((str(file), name, f"{100 * confidence:.1f} %", step or "-"))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        f"{file:{widths[0]}}  {name:{widths[1]}}  {confidence:>{widths[2]}}  {step:>{widths[3]}}"
        for file, name, confidence, step in rows
    ]
    total = getattr(model, "timesteps", 1)
    sure = f"sure at: the first of {total} timesteps whose confidence reaches {threshold:g}"
    return "\n".join([*lines, "", f"{sure}, where the network stops; -: none"])


@torch.no_grad()
def predict(
    model: nn.Module, files: Sequence[Path], threshold: float, device: torch.device
) -> Iterator[tuple[Path, str, float, int | None]]:
    """(file, name of the class, confidence, step) of each of ``files`` by early exit
    (:func:`snnfast.distill.anytime`); the step, from 1, is None and the rest that after all steps
    where the confidence never reaches ``threshold``."""
    for first in range(0, len(files), BATCH):
        some = files[first : first + BATCH]
        images = model.preprocess([decode(file, str(file)) for file in some])
        logits = logits_of(model, images.to(device))
        prediction, steps = anytime(logits, threshold)
        for place, file in enumerate(some):
            label, step = prediction[place].item(), steps[place].item()
            confidence = logits[:step, place].double().mean(0).softmax(-1)[label].item()
            sure = step < len(logits) or confidence >= threshold
            name = model.classes[label] if model.classes else str(label)
            yield file, name, confidence, step if sure else None


__all__ = ["DataError", "predict", "run"]
