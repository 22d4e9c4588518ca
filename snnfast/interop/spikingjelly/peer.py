"""What there is no own one of: names and modules of an installed SpikingJelly."""

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType

PEER = "spikingjelly"
HERE = "snnfast.interop.spikingjelly"
_SUCCESSORS = {"clock_driven": "activation_based", "event_driven": "timing_based"}
"""How a namespace is called from 0.0.0.0.14 on."""

_theirs: dict[str, ModuleType] = {}
"""Modules of the peer that were loaded while ours stand under its names."""
_looking = False


def is_looking() -> bool:
    """Whether the peer itself is being imported, for which our aliases must not be found."""
    return _looking


def is_ours(module) -> bool:
    return getattr(module, "__name__", "").startswith(HERE)


def _of_peer() -> list[str]:
    return [name for name in sys.modules if name == PEER or name.startswith(f"{PEER}.")]


@contextmanager
def _in_our_absence():
    """``sys.modules`` without our aliases, which come back over what was imported meanwhile."""
    global _looking
    aliased = is_ours(sys.modules.get(PEER))
    ours = {name: sys.modules.pop(name) for name in _of_peer()} if aliased else {}
    sys.modules.update(_theirs if aliased else {})
    before, _looking = _looking, True
    try:
        yield
    finally:
        _looking = before
        if aliased:
            _theirs.update({name: sys.modules[name] for name in _of_peer()})
        sys.modules.update(ours)


def _import(name: str) -> ModuleType | None:
    """None where there is no such module; an import that fails within it is not hidden."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None


def module(where: str, name: str = "") -> ModuleType:
    """The peer's module ``where``, such as "datasets.cifar10_dvs", of what version is installed;
    for the sake of ``name`` in it.

    Raises:
        ModuleNotFoundError: SpikingJelly is not installed, or has no such module.
    """
    wanted = ".".join(filter(None, (where, name)))
    first, _, rest = where.partition(".")
    later = ".".join(filter(None, (_SUCCESSORS.get(first), rest)))
    with _in_our_absence():
        if _import(PEER) is None:
            raise ModuleNotFoundError(
                f"spikingjelly: snnfast has no {wanted} of its own, and passes it on to "
                "SpikingJelly, which must be installed, got none; pip install spikingjelly",
                name=PEER,
            )
        found = _import(f"{PEER}.{where}")
        if found is None and first in _SUCCESSORS:
            found = _import(f"{PEER}.{later}")
    if found is None:
        raise ModuleNotFoundError(
            f"spikingjelly: neither snnfast nor the SpikingJelly that is installed has {wanted}",
            name=f"{PEER}.{where}",
        )
    return found


def names(of: str):
    """The ``__getattr__`` of our module ``of``: its submodules at first use, and what the peer's
    has beyond it.

    Raises ModuleNotFoundError as :func:`module` does, AttributeError for a name nobody has.
    """
    where = of.removeprefix(HERE).removeprefix(".")

    def __getattr__(name: str):
        if name.startswith("_"):
            raise AttributeError(f"module {of!r} has no attribute {name!r}")
        if hasattr(sys.modules[of], "__path__"):
            own = _import(f"{of}.{name}")
            return own or module(f"{where}.{name}".removeprefix("."))
        theirs = module(where, name)
        if not hasattr(theirs, name):
            raise AttributeError(
                f"module {of!r} has no attribute {name!r}, nor has {theirs.__name__}"
            )
        return getattr(theirs, name)

    return __getattr__
