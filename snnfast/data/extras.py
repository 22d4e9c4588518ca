"""Files and folders that may be there or not."""

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path


def root_of(root: str | Path, names: Sequence[str], signs: Sequence[str]) -> Path:
    """``root``, or the folder of ``names`` in it that holds one of the files ``signs``."""
    root = Path(root)
    places = (root, *(root / name for name in names))
    return next((p for p in places if any((p / sign).exists() for sign in signs)), root)


def regular(path: str | Path, most: int | None = None) -> Path:
    """``path``, of a file that can be read to its end: ValueError for a pipe, a device or a folder,
    and for more than ``most`` bytes; OSError where there is nothing."""
    path = Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a regular file")
    if most is not None and found.st_size > most:
        raise ValueError(f"it must have at most {most} bytes, got {found.st_size}")
    return path


def seen(paths: Iterable[Path]) -> list[Path]:
    """Those that are not hidden, sorted: copying and viewing leave ._0.png and the like behind."""
    return sorted(path for path in paths if not path.name.startswith("."))
