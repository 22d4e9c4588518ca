"""The models and modules of other packages: what they run on here; and files that other programs
read. None of these packages is needed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snnfast.interop import nir, onnx, pt2, snntorch, spikingjelly
    from snnfast.interop.spikingjelly.aliases import install

__all__ = ["install", "nir", "onnx", "pt2", "snntorch", "spikingjelly"]

_HOMES = {
    "install": "snnfast.interop.spikingjelly.aliases",
    "nir": None,
    "onnx": None,
    "pt2": None,
    "snntorch": None,
    "spikingjelly": None,
}
"""Imported at first use; None: a submodule."""


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'snnfast.interop' has no attribute {name!r}")
    if _HOMES[name] is None:
        return importlib.import_module(f"snnfast.interop.{name}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
