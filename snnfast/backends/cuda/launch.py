"""How CUDA kernels get from ``csrc/cuda`` onto a device: ahead of time in ``snnfast._cuda``, or
compiled by NVRTC through CuPy at first use. Arguments are structs, packed as bytes.
"""

import hashlib
import importlib
import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IO = ("Float32", "Float16", "BFloat16")
"""What the kernels call each of DTYPES."""


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def place(x: Tensor) -> tuple[int, int]:
    """The index of x's device and its current stream."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


@cache
def ahead_of_time():
    """``snnfast._cuda``, or None where ``not_built`` says why."""
    return None if not_built() else importlib.import_module("snnfast._cuda")


@cache
def not_built() -> str | None:
    """Why there is no ``snnfast._cuda``: what the installation noted, or why it does not load."""
    try:
        importlib.import_module("snnfast._cuda")
    except ModuleNotFoundError:
        note = Path(__file__).resolve().parents[2] / "_no_cuda.txt"
        why = note.read_text().strip() if note.is_file() else "snnfast is not installed"
        return f"snnfast._cuda was not built: {why}"
    except ImportError as error:
        return f"snnfast._cuda does not load: {error}"
    return None


def check_status(op: str, module, status: int) -> None:
    """Raises RuntimeError where a launch of ``snnfast._cuda`` was refused."""
    if status:
        raise RuntimeError(f"{op}: the CUDA launch failed: {module.error_string(status)}")


@cache
def sources() -> Path:
    """The folder of the device code: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_csrc", package.parent / "csrc"):
        if (folder / "cuda" / "lif.cuh").is_file():
            return folder
    raise RuntimeError(f"cuda: no device code in {package / '_csrc'}: reinstall snnfast")


@cache
def source(header: str) -> tuple[str, tuple[str, ...]]:
    """What NVRTC compiles, and its options. CuPy keeps cubins on disk and looks at this text only,
    so the digest of the headers is in it."""
    folder = sources()
    digest = hashlib.sha256()
    for name in sorted([*folder.glob("include/*.h"), *folder.glob("cuda/*.[ch]*")]):
        digest.update(name.read_bytes())
    includes = (f"-I{folder / 'include'}", f"-I{folder / 'cuda'}")
    text = f'// {digest.hexdigest()}\n#include "{header}"\n'
    # NVRTC would otherwise take a lambda for a host function.
    return text, ("-std=c++17", "--fmad=false", "-default-device", *includes)


@cache
def compiled(op: str, device: int, names: tuple[str, ...]):
    """The kernel snnfast_<op> of csrc/cuda/<op>.cuh that ``names`` (-D options) say, loaded on one
    device."""
    import cupy

    text, options = source(f"{op}.cuh")
    with cupy.cuda.Device(device):
        try:
            kernel = cupy.RawKernel(text, f"snnfast_{op}", options=(*options, *names))
            kernel.compile()
        except Exception as error:
            raise RuntimeError(f"{op}: NVRTC could not compile the kernel: {error}") from error
    return kernel


def launch_compiled(
    op: str, kernel, device: int, stream: int, grid: tuple[int, int], *structs: bytes, **options
) -> None:
    """Runs ``kernel`` on grid = (blocks, threads)."""
    import cupy
    import numpy

    # CuPy passes an array of one structure by value.
    args = tuple(numpy.frombuffer(each, numpy.dtype(f"V{len(each)}")) for each in structs)
    try:
        with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
            kernel((grid[0],), (grid[1],), args, **options)
    except Exception as error:
        raise RuntimeError(f"{op}: the CUDA launch failed: {error}") from error


@cache
def available() -> str | None:
    """None where this backend can run; else what was tried and the command that enables it."""
    built = torch.version.cuda
    if built is None:
        return (
            f"torch {torch.__version__} was built without CUDA; pytorch.org/get-started/locally "
            "has the command that installs one with it"
        )
    if not torch.cuda.is_available():
        return f"torch (CUDA {built}) finds no usable GPU: nvidia-smi shows whether the driver does"
    if ahead_of_time() is None and importlib.util.find_spec("cupy") is None:
        return (
            f"{not_built()}; CuPy, which compiles at first use instead, is not "
            f"installed: pip install cupy-cuda{built.split('.')[0]}x"
        )
    return None


def details() -> str:
    return not_built() or "snnfast._cuda, built by nvcc at install"
