"""Files of a run: weights, and checkpoints to go on from, each written whole or not at all.

A checkpoint is a folder ``checkpoint/NNN`` with the weights as safetensors and all the rest in
``state.pt`` (loadable with ``weights_only=True``). ``checkpoint/latest.json`` names it and holds
the SHA-256 of its files and of those beside it that the run needs; it is replaced in one step when
the folder is complete, so that a process that dies at any moment leaves the previous checkpoint.

Weights carry the SHA-256 of all that they say in their own header. Files of version 0.1.0 have
neither that nor the files beside the checkpoint, and are read without.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_blob
from safetensors.torch import save
from torch import Tensor, nn

STUDENT, EMA, TEACHER = "model.safetensors", "ema.safetensors", "teacher.safetensors"
FOLDER, LATEST, STATE = "checkpoint", "latest.json", "state.pt"
FORMAT, BEFORE = "snnfast checkpoint 2", "snnfast checkpoint 1"  # BEFORE: of version 0.1.0
WEIGHTS, DIGEST = "snnfast weights 1", "sha256"
_NAME, _SHA256 = re.compile(r"\d{6,}"), re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"\d{6,}|\.\d{6,}\.part")  # folders in FOLDER


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the reason."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` a temporary file beside ``path`` and rename it, so that none is ever half there."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.unlink(missing_ok=True)  # of a run that was killed; a link is not followed
    try:
        write(part)
        _sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Parameters and buffers as safetensors, on the CPU; ``metadata`` goes into its header, with a
    digest of the whole. The same weights and metadata give the same bytes."""
    write_atomic(path, lambda part: part.write_bytes(pack_weights(weights, metadata)))


def pack_weights(weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of :func:`save_weights`."""
    blob = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    header, data = _split(blob)
    header["__metadata__"] = {**(metadata or {}), "format": WEIGHTS}
    header["__metadata__"][DIGEST] = _weights_digest(header, data)
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of :func:`save_weights`, or of any safetensors. Raises CheckpointError, also for
    a file that is not what was saved."""
    try:
        blob = path.read_bytes()
        weights = load_blob(blob)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from error
    header, data = _split(blob)
    metadata = header.get("__metadata__", {})
    ours = metadata.get("format") == WEIGHTS or DIGEST in metadata
    if ours and metadata.get(DIGEST) != _weights_digest(header, data):
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not that of its header")
    return weights


def _split(blob: bytes) -> tuple[dict, memoryview]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end]), memoryview(blob)[end:]


def _weights_digest(header: dict, data: memoryview) -> str:
    """SHA-256 of a safetensors file, but for the digest in its header."""
    metadata = {k: v for k, v in header.get("__metadata__", {}).items() if k != DIGEST}
    known = hashlib.sha256(_canonical(header | {"__metadata__": metadata}))
    known.update(data)
    return known.hexdigest()


def _canonical(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


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


def save_checkpoint(
    output: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: dict,
    needs: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint into ``output`` in place of the one before, which stays until this one is
    complete.

    Args:
        weights: state dicts by file name, ``{"model.safetensors": ...}``.
        state: everything else: tensors, numbers, strings, and dicts and lists of them.
        needs: files in ``output`` that the run cannot go on without, with their SHA-256.

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
        digests = {file.name: digest(file) for file in sorted(part.iterdir())}
        os.replace(part, folder)
        manifest = {"format": FORMAT, "folder": name, "sha256": digests, "needs": dict(needs or {})}
        write_atomic(home / LATEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise CheckpointError(
            f"{home}: the checkpoint could not be written ({_first_line(error)}); "
            f"the one before it, if there was one, is untouched"
        ) from error
    _remove_folders(home, but=name)


def load_checkpoint(output: Path) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """(weights, state) of the checkpoint in ``output``, None where there is none. Raises
    CheckpointError for one that is damaged, incomplete or not ours, and where a file that it needs
    beside it is missing or another."""
    latest = output / FOLDER / LATEST
    if not os.path.exists(latest):
        return None
    name, digests, needs = _manifest(latest)
    folder = latest.parent / name
    for file, expected in [(folder / n, d) for n, d in digests.items()] + [
        (output / n, d) for n, d in needs.items()
    ]:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if digest(file) != expected:
            raise CheckpointError(f"{file}: damaged: its SHA-256 is not that of {LATEST}")
    weights = {name: load_weights(folder / name) for name in digests if name != STATE}
    try:
        return weights, torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle that is not ours, anything
        raise CheckpointError(
            f"{folder / STATE}: damaged or not ours: it is no plain data ({type(error).__name__})"
        ) from error


def _manifest(latest: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """Folder, and SHA-256 by name of its files and of those that it needs beside it."""
    try:
        manifest = json.loads(latest.read_text())
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found not in (FORMAT, BEFORE):
            raise CheckpointError(f"{latest}: not a checkpoint of ours: {FORMAT!r} != {found!r}")
        name, digests = manifest["folder"], manifest["sha256"]
        needs = manifest["needs"] if found == FORMAT else {}
        whole = {STATE, STUDENT} <= set(digests) <= {STATE, STUDENT, EMA}
        if not whole or not set(needs) <= {TEACHER} or not _NAME.fullmatch(name):
            raise ValueError("it does not name a checkpoint's folder and files")
        if not all(_SHA256.fullmatch(value) for value in (*digests.values(), *needs.values())):
            raise ValueError("a SHA-256 is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{latest}: damaged: {_first_line(error)}") from error
    return name, digests, needs


def resumable(output: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return os.path.isfile(output / FOLDER / LATEST)  # False where it may not be looked for


def remove_checkpoint(output: Path) -> None:
    """Remove the checkpoint in ``output``, its manifest first, and nothing that is not ours."""
    home = output / FOLDER
    if home.is_dir():
        (home / LATEST).unlink(missing_ok=True)
        _remove_folders(home)
        if not any(home.iterdir()):
            home.rmdir()


def _remove_folders(home: Path, but: str | None = None) -> None:
    for other in home.iterdir():
        if other.name != but and _OURS.fullmatch(other.name) and not other.is_symlink():
            shutil.rmtree(other, ignore_errors=True)


def _number(home: Path) -> int:
    """The number of the checkpoint that ``latest.json`` names, 0 where there is none to be read."""
    try:
        return int(_manifest(home / LATEST)[0])
    except CheckpointError:
        return 0


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
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
