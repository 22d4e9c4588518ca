"""Kernels whose text is written while a program runs, as modules that Triton can read."""

import hashlib
import linecache
import sys
from types import ModuleType

_PREFIX = f"{__name__}_"


def module(text: str) -> ModuleType:
    """The one module of this text."""
    name = _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:16]
    if name not in sys.modules:
        made = ModuleType(name)
        made.__file__ = f"<{name}>"
        linecache.cache[made.__file__] = len(text), None, text.splitlines(True), made.__file__
        exec(compile(text, made.__file__, "exec"), made.__dict__)
        sys.modules.setdefault(name, made)  # another thread may have been first
    return sys.modules[name]


def text(name: str) -> str | None:
    """That of the module of such a name; None for any other."""
    if not name.startswith(_PREFIX):
        return None
    return "".join(linecache.cache[sys.modules[name].__file__][2])
