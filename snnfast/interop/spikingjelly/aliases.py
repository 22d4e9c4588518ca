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


class _Known(Loader):
    """A module of ours, or else of the peer, under an alias."""

    def __init__(self, where: str):
        self.where = where

    def create_module(self, spec):
        if self.where in _places():
            module = importlib.import_module(_dotted(peer.HERE, self.where))
        else:
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
            if f"{fullname}.".startswith(f"{alias}."):
                where = _dotted(home, fullname.removeprefix(alias).removeprefix("."))
                return ModuleSpec(fullname, _Known(where))
        return None


class _Parents(MetaPathFinder):
    """The packages around an alias that nobody else has: of a copy that is gone."""

    def find_spec(self, fullname, path=None, target=None):
        around = any(alias.startswith(f"{fullname}.") for alias in _homes)
        return (
            ModuleSpec(fullname, None, is_package=True)
            if around and not peer.is_looking()
            else None
        )


_finder, _parents = _Finder(), _Parents()


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
        if name.rpartition(".")[2] in _FILES:
            raise ValueError(f"install: names must be those of packages, got the module {name!r}")
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
    last = name.rpartition(".")[2]
    _homes[name] = last if last in _OURS else ""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        sys.meta_path.append(_parents)
    if name == last:  # of another the packages around it come first, when it is imported
        home = _homes[name]
        for where in _places():
            if not home or f"{where}.".startswith(f"{home}."):
                importlib.import_module(_dotted(name, where.removeprefix(home).removeprefix(".")))


def _places():
    """Our modules below ``peer.HERE``, itself first."""
    yield ""
    for package, files in _OURS.items():
        yield package
        yield from (f"{package}.{file}" for file in files)


def _dotted(*parts: str) -> str:
    return ".".join(filter(None, parts))
