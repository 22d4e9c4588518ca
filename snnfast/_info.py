"""What was built, what was not, and why: the text of ``snnfast info``."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from snnfast.ops.select import module


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_line() -> str:
    why_not = module("cpu").available()
    if why_not:
        return f"not available: {why_not}"
    from snnfast import _C

    threads = f"{torch.get_num_threads()} threads" if _C.openmp else "built without OpenMP"
    return f"available, {_C.instruction_set()} instructions, {threads}"


def _cuda_lines() -> str:
    built = importlib.util.find_spec("snnfast._cuda") is not None
    how = (
        "built by nvcc at install"
        if built
        else (
            "snnfast._cuda was not built (no nvcc at install, or SNNFAST_CUDA=0); "
            "NVRTC through CuPy is used where CuPy is installed"
        )
    )
    why_not = module("cuda").available()
    return f"{how}; {'available' if not why_not else f'not available: {why_not}'}"


def info() -> str:
    """One line per backend, and the versions that matter."""
    why_not = module("triton").available()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = {
        "snnfast": _version("snnfast"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "gpu": gpu,
        "reference": "available",
        "cpu": _cpu_line(),
        "triton backend": "available" if not why_not else f"not available: {why_not}",
        "cuda backend": _cuda_lines(),
        "SNNFAST_BACKEND": os.environ.get("SNNFAST_BACKEND", "auto (not set)"),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
