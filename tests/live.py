"""SpikingJelly's old releases beside the one that is installed: what ours is compared with.

``make test`` unpacks them side by side under build/. They are imported under names of their own,
as a repository imports the copy that it carries.
"""

import functools
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parent.parent / "build"
NAMESPACES = {"0.0.0.0.12": "clock_driven", "0.0.0.0.14": "activation_based"}


class Live:
    """Modules of one release by name, imported at first use: ``live("0.0.0.0.12").neuron``."""

    def __init__(self, version: str, namespace: str):
        self.version, self.namespace = version, namespace
        self._root = f"spikingjelly_{version.replace('.', '_')}"
        _package(self._root, BUILD / f"spikingjelly-{version}" / "spikingjelly")

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        with _known_as_spikingjelly(self._root, self.namespace):
            module = importlib.import_module(f"{self._root}.{self.namespace}.{name}")
        setattr(self, name, module)
        return module


def live(version: str, namespace: str | None = None) -> Live:
    """``namespace``: the wheel of .14 has clock_driven as well."""
    namespace = namespace or NAMESPACES[version]
    if not (BUILD / f"spikingjelly-{version}").is_dir():
        pytest.skip(f"make build/spikingjelly-{version}/.installed unpacks it")
    return _live(version, namespace)


@functools.cache
def _live(version: str, namespace: str) -> Live:
    return Live(version, namespace)


def _package(name: str, folder: Path) -> None:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


@contextmanager
def _known_as_spikingjelly(root: str, namespace: str):
    """Some of its modules import others by their whole name: meanwhile that name is this one's."""

    def theirs():
        return [name for name in sys.modules if name.split(".")[0] == "spikingjelly"]

    others = {name: sys.modules.pop(name) for name in theirs()}
    package = importlib.import_module(f"{root}.{namespace}")
    sys.modules["spikingjelly"] = sys.modules[root]
    sys.modules[f"spikingjelly.{namespace}"] = package
    try:
        yield
    finally:
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(others)
