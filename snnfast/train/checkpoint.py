"""Files of a run: weights, and checkpoints to go on from, each written whole or not at all.

A checkpoint is a folder ``checkpoint/NNN`` with the weights as safetensors and all the rest in
``state.pt`` (loadable with ``weights_only=True``). ``checkpoint/latest.json`` names it and holds
the SHA-256 of its files; it is replaced in one step when the folder is complete, so that a process
that dies at any moment leaves the previous checkpoint.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

STUDENT, EMA, TEACHER = "model.safetensors", "ema.safetensors", "teacher.safetensors"
FOLDER, LATEST, STATE = "checkpoint", "latest.json", "state.pt"
FORMAT = "snnfast checkpoint 1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the reason."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` a temporary file beside ``path`` and rename it, so that none is ever half there."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        _sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Parameters and buffers as safetensors, on the CPU; ``metadata`` goes into its header."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomic(path, lambda part: part.write_bytes(save(state, metadata)))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of :func:`save_weights`. Raises CheckpointError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from error


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Load ``weights`` into ``model``; names, shapes and dtypes must match, all numbers be finite
    and variances >= 0. Raises CheckpointError that names the tensor."""
    own = model.state_dict()
    for name, value in weights.items():
        wanted = own[name].dtype if name in own else value.dtype
        if value.dtype != wanted:  # load_state_dict would cast
            problem = f"must be {wanted}, got {value.dtype}".replace("torch.", "")
        elif not (finite := value.isfinite()).all():
            problem = f"must be finite, got {value[~finite][0].item()}"
        elif name.endswith("running_var") and (value < 0).any():
            problem = f"must be >= 0, got {value.min().item():g}"
        else:
            continue
        raise CheckpointError(f"{path}: {name} {problem}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"{path}: not of this network: {' '.join(lines[1:3])}") from error
    return model


def save_checkpoint(output: Path, weights: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
    """Write a checkpoint into ``output`` in place of the one before, which stays until this one is
    complete.

    Args:
        weights: state dicts by file name, ``{"model.safetensors": ...}``.
        state: everything else: tensors, numbers, strings, and dicts and lists of them.

    Raises CheckpointError, for a full disk say; the previous checkpoint is then still there.
    """
    home = output / FOLDER
    try:
        home.mkdir(parents=True, exist_ok=True)
        name = f"{_number(home) + 1:06d}"
        folder, part = home / name, home / f".{name}.part"
        for left in (folder, part):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir()
        for file, tensors in weights.items():
            save_weights(tensors, part / file)
        write_atomic(part / STATE, lambda path: torch.save(state, path))
        digests = {file.name: _digest(file) for file in sorted(part.iterdir())}
        os.replace(part, folder)
        manifest = {"format": FORMAT, "folder": name, "sha256": digests}
        write_atomic(home / LATEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise CheckpointError(
            f"{home}: the checkpoint could not be written ({_first_line(error)}); "
            f"the one before it, if there was one, is untouched"
        ) from error
    for other in home.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(output: Path) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """(weights, state) of the checkpoint in ``output``, None where there is none. Raises
    CheckpointError for one that is damaged or not ours."""
    latest = output / FOLDER / LATEST
    if not latest.exists():
        return None
    try:
        manifest = json.loads(latest.read_text())
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise CheckpointError(f"{latest}: not a checkpoint of ours: {FORMAT!r} != {found!r}")
        folder = output / FOLDER / manifest["folder"]
        digests = manifest["sha256"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{latest}: damaged: {_first_line(error)}") from error
    for name, expected in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if _digest(file) != expected:
            raise CheckpointError(f"{file}: damaged: its SHA-256 is not that of {LATEST}")
    weights = {name: load_weights(folder / name) for name in digests if name != STATE}
    try:
        return weights, torch.load(folder / STATE, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError) as error:
        raise CheckpointError(f"{folder / STATE}: {_first_line(error)}") from error


def remove_checkpoint(output: Path) -> None:
    """Remove the checkpoint in ``output``, its manifest first."""
    (output / FOLDER / LATEST).unlink(missing_ok=True)
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def _number(home: Path) -> int:
    """The number of the checkpoint that ``latest.json`` names, 0 where there is none to be read."""
    try:
        return int(json.loads((home / LATEST).read_text())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Out of the system's buffers, before a rename makes the file count."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
