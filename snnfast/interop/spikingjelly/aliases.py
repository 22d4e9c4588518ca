"""``install``: our modules under the names that a script imports."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

from snnfast.interop.spikingjelly import peer

_FILES = ("base", "encoding", "functional", "layer", "monitor", "neuron", "surrogate")
_OURS = {"clock_driven": _FILES, "activation_based": _FILES, "cext": ("neuron",)}

_homes: dict[str, str] = {}
"""{an alias: which of our packages it is, "" for the whole}"""


class _PassedOn(Loader):
    """A module of the peer under an alias."""

    def __init__(self, where: str):
        self.where = where

    def create_module(self, spec):
        module = peer.module(self.where)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.own_spec


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if peer.is_looking():
            return None
        for alias, home in _homes.items():
            if fullname.startswith(f"{alias}."):
                where = _dotted(home, fullname.removeprefix(f"{alias}."))
                return ModuleSpec(fullname, _PassedOn(where))
        return None


_finder = _Finder()


def install(*names: str) -> None:
    """Have ``import spikingjelly`` find :mod:`snnfast.interop.spikingjelly`.

    Args:
        names: the packages that a script imports SpikingJelly as: ``"spikingjelly"``, and the
            places of copies that it carries, such as ``"src.spikingjelly"``. A name that ends in
            ``clock_driven``, ``activation_based`` or ``cext`` stands for that part alone.

    Call it above all other imports; calling it again does nothing. What snnfast has no own one of
    (data sets, models, ...) is looked up in an installed SpikingJelly when it is imported.

    Raises:
        ValueError: a package of that name has been imported before; then nothing is installed.

    Example:
        >>> snnfast.interop.install("spikingjelly")
        >>> from spikingjelly.clock_driven.neuron import MultiStepLIFNode
    """
    if not names:
        raise ValueError("install: names must be one or more packages, got none")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"install: names must be strings, got {type(name).__name__}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"install: names must be dotted names of packages, got {name!r}")
        there = sys.modules.get(name)
        if there is not None and not peer.is_ours(there):
            where = getattr(there, "__file__", None) or "a module without a file"
            raise ValueError(
                f"install: {name} must not be imported before, got {where}; "
                "call install above all other imports"
            )
    for name in names:
        _register(name)


def _register(name: str) -> None:
    parent, _, last = name.rpartition(".")
    home = last if last in _OURS else ""
    _homes[name] = home
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for where in _places():
        if f"{where}.".startswith(f"{home}.") or not home:
            module = importlib.import_module(_dotted(peer.HERE, where))
            sys.modules[_dotted(name, where.removeprefix(home).removeprefix("."))] = module
    if parent in sys.modules:
        setattr(sys.modules[parent], last, sys.modules[name])


def _places():
    """Our modules below ``peer.HERE``, itself first."""
    yield ""
    for package, files in _OURS.items():
        yield package
        yield from (f"{package}.{file}" for file in files)


def _dotted(*parts: str) -> str:
    return ".".join(filter(None, parts))
