"""The directory of a run: whose it is, who is at work in it, and what may go from it.

A run claims its directory with ``MARKER`` and holds a lock (flock) on that file while it goes on.
Nothing is removed from a directory without the marker, and from one with it only what a run wrote.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from snnfast.train.checkpoint import EMA, FOLDER, STUDENT, TEACHER, remove_checkpoint, resumable
from snnfast.train.config import ConfigError
from snnfast.train.load import CONFIG
from snnfast.train.preprocess import FILE as PREPROCESS

METRICS, PLOT, BOARD = "metrics.jsonl", "accuracy.png", "tensorboard"
EVAL, EVAL_PLOT = "eval.json", "eval.png"
FILES = (STUDENT, EMA, TEACHER, CONFIG, PREPROCESS, METRICS, PLOT)
MARKER, FORMAT = ".snnfast.json", "snnfast run 1"


def check(output: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse, with ConfigError, a directory that a run may not write into: one that holds files of
    a run's names without a run's marker, and one that holds a run, unless it goes on (``resume``)
    or may be replaced (``overwrite``)."""
    there = [n for n in (*FILES, FOLDER, BOARD, EVAL, EVAL_PLOT) if os.path.lexists(output / n)]
    folders = {FOLDER, BOARD}
    for name in (*there, MARKER):
        path = output / name
        right = path.is_dir() if name in folders else path.is_file()
        if os.path.lexists(path) and not path.is_symlink() and not right:
            kind = "a directory" if name in folders else "a regular file"
            raise ConfigError(f"output: {path} must be {kind}; it is not a run's: move it away")
    marker = output / MARKER
    if marker.is_file() and marker.stat().st_size and not marked(output):
        raise ConfigError(f"output: {output / MARKER} must be the marker of a run, and is not")
    links = [name for name in there if (output / name).is_symlink()]
    if links:
        raise ConfigError(f"output: {output / links[0]} is a link; a run writes into its own files")
    if resume and resumable(output):
        return
    if there and not marked(output):
        raise ConfigError(
            f"output: {output} holds {', '.join(there)} and no {MARKER}, so they are not a run's "
            "to replace; move them away, or choose another output"
        )
    if not overwrite and {STUDENT, FOLDER} & set(there):
        raise ConfigError(
            f"output: {output} holds a run; --resume auto goes on with it, --overwrite replaces it"
        )


def marked(output: Path) -> bool:
    """Whether the directory is a run's."""
    return _claim(output / MARKER).get("format") == FORMAT


def check_free(output: Path) -> None:
    """Refuse, with ConfigError, a directory where a run is at work."""
    try:
        file = (output / MARKER).open("r+")
    except (OSError, ValueError):  # not there, or no name that anything could have
        return
    with file:
        _lock(file, output)


@contextlib.contextmanager
def claimed(output: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the directory, mark it as a run's and keep other runs out. Raises ConfigError where it
    cannot be written, where another run is at work in it, and as :func:`check`."""
    path = output / MARKER
    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except (OSError, ValueError) as error:
        raise ConfigError(f"output: {error}") from error
    with os.fdopen(handle, "r+") as file, _not_in_forks(file):  # closing it releases the lock
        _lock(file, output)
        check(output, resume=resume, overwrite=overwrite)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        claim = {"format": FORMAT, "pid": os.getpid(), "host": socket.gethostname(), "started": now}
        try:
            file.truncate()
            file.write(json.dumps(claim) + "\n")
            file.flush()
        except OSError as error:
            raise ConfigError(f"output: {error}") from error
        yield


def _lock(file: IO[str], output: Path) -> None:
    """Lock an open marker until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        by = _claim(output / MARKER)
        raise ConfigError(
            f"output: {output} is in use by process {by.get('pid')} on {by.get('host')}, "
            f"which started {by.get('started')}"
        ) from error
    except OSError as error:  # a file system without locks
        warnings.warn(f"{output} cannot be locked ({error}): keep other runs out", stacklevel=3)


_HELD: set[IO[str]] = set()


@contextlib.contextmanager
def _not_in_forks(file: IO[str]) -> Iterator[None]:
    """Processes that are forked meanwhile let go of the lock: they may outlive this one."""
    _HELD.add(file)
    try:
        yield
    finally:
        _HELD.discard(file)


def _let_go() -> None:
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_let_go)


def clear(output: Path) -> None:
    """Remove what an earlier run left."""
    remove_checkpoint(output)
    clear_board(output)
    for name in (*FILES, EVAL, EVAL_PLOT):
        (output / name).unlink(missing_ok=True)


def clear_board(output: Path) -> None:
    """Remove an earlier run's files for TensorBoard."""
    for file in (output / BOARD).glob("events.out.tfevents.*"):
        file.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        (output / BOARD).rmdir()


def go_on(output: Path) -> str:
    """The command that goes on with the run there, its options those of its config.toml."""
    command = "snnfast"
    if Path(sys.argv[0]).parts[-2:] == ("snnfast", "__main__.py"):
        command = f"{shlex.quote(sys.executable)} -m snnfast"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        each = os.environ.get("LOCAL_WORLD_SIZE", "1")
        command = f"torchrun --nproc-per-node={each} -m snnfast"
    config, place = (shlex.quote(str(path)) for path in (output / CONFIG, output))
    return f"{command} train {config} --output {place} --resume auto"


def _claim(path: Path) -> dict:
    """What the marker says; {} where there is none."""
    if not path.is_file():  # nor anything that would have to be waited for
        return {}
    try:
        claim = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return claim if isinstance(claim, dict) else {}
