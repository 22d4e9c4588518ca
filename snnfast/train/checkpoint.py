"""Files of a run, each written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

STUDENT, TEACHER = "model.safetensors", "teacher.safetensors"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` a temporary file beside ``path`` and rename it, so that none is ever half there."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_model(model: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors, on the CPU."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(path, lambda part: part.write_bytes(save(state)))


def load_model(model: nn.Module, path: Path) -> nn.Module:
    """Fill ``model`` with the weights of :func:`save_model`; names and shapes must match."""
    model.load_state_dict(load_file(path))
    return model
