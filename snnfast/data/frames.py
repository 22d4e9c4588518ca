"""Frames of event recordings, computed once and kept in a file."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snnfast.data.base import IGNORED, DataError
from snnfast.data.workers import load
from snnfast.packages import require

DVS128 = (128, 128)  # rows and columns of the sensor
VERSION = 2  # of the frames: counts up when they are computed in another way


@dataclass(frozen=True)
class Recording:
    """One file and its samples: (label, start, stop) with start <= t < stop in microseconds, or
    (label, None, None) for all of it; its sensor has so many rows and columns. ``read`` gives its
    events, or where they are ``integrated`` already frames [T, 2, H, W]."""

    path: Path
    samples: tuple[tuple[int, int | None, int | None], ...]
    read: Callable[[Path], np.ndarray]
    sensor: tuple[int, int] = DVS128
    integrated: bool = False

    @classmethod
    def whole(cls, path: Path, label: int, read: Callable[[Path], np.ndarray], **more):
        """A file that is one sample."""
        return cls(path, ((label, None, None),), read, **more)


def integrate(
    events: np.ndarray, timesteps: int, size: int, sensor: tuple[int, int] = DVS128
) -> Tensor:
    """Counts of events in ``timesteps`` frames of equally many, float16 [T, 2, size, size].

    Of N events, frame t has those from t * (N // T), the last frame the rest as well. Channel 0
    counts events to darker, 1 to brighter. From the rows and columns of ``sensor`` the counts are
    averaged down, bilinearly and over all pixels. Counts above 65504, the largest float16, are
    65504: a pixel that never rests must not be infinite. Raises ValueError for fewer events than
    frames and for events outside of the sensor.
    """
    count = len(events)
    if count < timesteps:
        raise ValueError(f"{count} events are too few for {timesteps} frames")
    x, y, p = events["x"], events["y"], events["p"]
    rows, columns = sensor
    for name, values, most in (("x", x, columns - 1), ("y", y, rows - 1), ("p", p, 1)):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > most:
            raise ValueError(f"{name} must be 0 to {most}, got {low} to {high}")
    frame = np.minimum(np.arange(count) // (count // timesteps), timesteps - 1)
    cells = ((frame * 2 + p) * rows + y) * columns + x
    counts = np.bincount(cells, minlength=timesteps * 2 * rows * columns)
    return scaled(torch.from_numpy(counts).view(timesteps, 2, rows, columns), size)


def scaled(frames: Tensor, size: int) -> Tensor:
    """Counts [T, 2, H, W] averaged down to float16 [T, 2, size, size], at most 65504."""
    frames = frames.float()
    if frames.shape[-2:] != (size, size):
        frames = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
    return frames.clamp(max=torch.finfo(torch.float16).max).half()


def checked(frames: np.ndarray, timesteps: int, size: int) -> Tensor:
    """Frames that were integrated before, as :func:`integrate` gives them; ValueError for another
    shape, another T, and for numbers that no counts are."""
    if frames.ndim != 4 or frames.shape[1] != 2 or frames.dtype.kind not in "iuf":
        raise ValueError(f"frames [T, 2, H, W] expected, got {frames.dtype} {list(frames.shape)}")
    if len(frames) != timesteps:
        raise ValueError(f"it has {len(frames)} frames, timesteps is {timesteps}")
    if frames.size == 0 or not (np.isfinite(frames).all() and frames.min() >= 0):
        raise ValueError("counts >= 0 expected")
    return scaled(torch.from_numpy(frames.astype(np.float32)), size)


def load_frames(
    name: str,
    path: Path,
    recordings: Sequence[Recording],
    timesteps: int,
    size: int,
    workers: int,
    on_error: str,
) -> tuple[Tensor, Tensor, list[str]]:
    """Frames float16 [N, T, 2, size, size] and targets int64 [N] of all samples, in their order,
    and the files that were left out.

    They are kept in the file ``path`` and taken from there while recordings and options are the
    same: each recording's place, size and time of change are in it, and a digest of all that it
    holds. Where they are not, or the file is damaged, it is made anew; where it cannot be written,
    a warning says so. Raises DataError for a recording that cannot be read; with ``on_error``
    "skip" its samples are zeros, with the target IGNORED, and a warning counts them.
    """
    mark = _fingerprint(path.parent, recordings, timesteps, size)
    kept = _read(path, mark)
    if kept is None:
        kept = _integrate_all(name, recordings, timesteps, size, workers, on_error)
        _write(path, mark, *kept)
    frames, targets, failures = kept
    if failures and on_error == "stop":
        raise DataError(next(iter(failures.values())))
    if failures:
        first = next(iter(failures.values()))
        warnings.warn(f"{first}: {len(failures)} left out", stacklevel=4)
    return frames, targets, list(failures)


def _integrate_all(name, recordings, timesteps, size, workers, on_error):
    """Frames, targets and the errors by the names of their samples."""
    labels = [label for recording in recordings for label, _, _ in recording.samples]
    targets, failures, first = torch.tensor(labels), {}, 0
    frames = torch.empty(len(labels), timesteps, 2, size, size, dtype=torch.float16)
    reader = _Reader(name, recordings, timesteps, size)
    loaded = load(reader, workers, lambda n: f"{name}: {recordings[n].path}", batch_size=None)
    shown = _shown(loaded, name, len(reader))
    for recording, (made, found) in zip(recordings, shown, strict=True):
        if found and on_error == "stop":
            raise DataError(next(iter(found.values())))
        # Copied, not collected: what workers send holds an open file each.
        frames[first : first + len(made)] = made
        for place in found:
            targets[first + place] = IGNORED
        failures |= {label_of(recording, place): error for place, error in found.items()}
        first += len(made)
    return frames, targets, failures


def _shown(made: Iterable, name: str, total: int) -> Iterable:
    """With a progress bar, where there is a terminal and tqdm: thousands of files take minutes."""
    if find_spec("tqdm") is None:
        return made
    bar = require("tqdm").tqdm
    return bar(made, f"{name}: frames", total, unit="file", disable=None)


class _Reader:
    """What a worker runs for each recording: frames [n, T, 2, size, size] and errors by place."""

    def __init__(self, name: str, recordings: Sequence[Recording], timesteps: int, size: int):
        self.name, self.recordings = name, recordings
        self.timesteps, self.size = timesteps, size

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[int, str]]:
        recording = self.recordings[index]
        shape = (len(recording.samples), self.timesteps, 2, self.size, self.size)
        frames, failures = torch.zeros(shape, dtype=torch.float16), {}
        events, problem = None, None
        try:
            events = recording.read(recording.path)
        except Exception as error:  # readers raise errors of nearly every type
            problem = error
        for place, (_, start, stop) in enumerate(recording.samples):
            try:
                if problem is not None:
                    raise problem
                if recording.integrated:
                    frames[place] = checked(events, self.timesteps, self.size)
                    continue
                t = events["t"]
                part = events if start is None else events[(t >= start) & (t < stop)]
                frames[place] = integrate(part, self.timesteps, self.size, recording.sensor)
            except Exception as error:
                sample = label_of(recording, place)
                why = re.sub(r" object at 0x[0-9a-f]+", "", str(error))  # the same each time
                failures[place] = f"{self.name}: {sample} cannot be read: {why}"
        return frames, failures


def label_of(recording: Recording, place: int) -> str:
    """What messages call a sample: its file, with its place where there are several."""
    return f"{recording.path}[{place}]" if len(recording.samples) > 1 else str(recording.path)


def _fingerprint(root, recordings, timesteps, size) -> str:
    """Changes with any file, sample or option."""
    parts = [VERSION, timesteps, size]
    for recording in recordings:
        place = os.path.relpath(recording.path, root)
        try:
            stat = recording.path.stat()
            parts.append([place, stat.st_size, stat.st_mtime_ns, recording.samples])
        except OSError as error:  # of a broken link; who reads it says so
            parts.append([place, str(error), recording.samples])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path, mark: str):
    """What was kept; None if there is nothing, or something else or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != mark:
                return None
            frames, targets = file.get_tensor("frames"), file.get_tensor("targets")
        failures = metadata["failures"]
        if metadata.get("digest") != _digest(mark, failures, frames, targets):
            raise ValueError("its digest does not fit")
        return frames, targets, json.loads(failures)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        warnings.warn(f"{path} cannot be read ({error}) and is made anew", stacklevel=5)
        return None


def _digest(mark: str, failures: str, *tensors: Tensor) -> str:
    """SHA-256 of all that is kept."""
    digest = hashlib.sha256(json.dumps([mark, failures]).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _write(path: Path, mark: str, frames: Tensor, targets: Tensor, failures: dict) -> None:
    """In one step, so that nobody ever sees a part; several processes may."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    known = json.dumps(failures)
    metadata = {
        "fingerprint": mark,
        "failures": known,
        "digest": _digest(mark, known, frames, targets),
    }
    try:
        save_file({"frames": frames, "targets": targets}, part, metadata)
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        warnings.warn(f"frames are not kept, {path} cannot be written: {error}", stacklevel=5)
    finally:
        part.unlink(missing_ok=True)
