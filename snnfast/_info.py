"""What was built, what was not, and why: the text of ``snnfast info``."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from snnfast import __version__
from snnfast.ops.select import implementation


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _state(why_not: str | None) -> str:
    return f"not available: {why_not}" if why_not else "available"


def info() -> str:
    """One line per backend, and the versions that matter."""
    cpu, triton, cuda = (implementation(name) for name in ("cpu", "triton", "cuda"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = {
        "snnfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "gpu": gpu,
        "reference": "available",
        "cpu": _state(cpu.available()) + f", {cpu.details()}",
        "triton backend": _state(triton.available()),
        "cuda backend": _state(cuda.available()),
        "cuda module": cuda.details(),
        "SNNFAST_BACKEND": os.environ.get("SNNFAST_BACKEND", "auto (not set)"),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
