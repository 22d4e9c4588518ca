"""How CUDA kernels get from ``csrc/cuda`` onto a device: ahead of time in ``snnfast._cuda``, or
compiled by NVRTC through CuPy at first use. Arguments are structs, packed as bytes.
"""

import hashlib
import importlib
import importlib.util
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

IO = {torch.float32: "Float32", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
"""What the kernels call a dtype."""


# The fields of a struct: a NamedTuple of these, and at the end perhaps of such a tuple.
Pointer = Annotated[int, "Q"]
Long = Annotated[int, "q"]
Int = Annotated[int, "i"]
Float = Annotated[float, "f"]
Double = Annotated[float, "d"]


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _format(kind) -> str:
    if hasattr(kind, "_fields"):
        return "".join(_format(field) for field in kind.__annotations__.values())
    return kind.__metadata__[0]


@cache
def layout(kind: type) -> struct.Struct:
    """How a struct of csrc/cuda lies in memory."""
    return struct.Struct("=" + _format(kind))


def packed(value: NamedTuple) -> bytes:
    """The struct of that name in csrc/cuda/*_args.h."""
    flat = value[:-1] + value[-1] if isinstance(value[-1], tuple) else value
    return layout(type(value)).pack(*flat)


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


class Kernel(NamedTuple):
    """What is compiled at first use, and how many threads it runs on."""

    header: str
    names: tuple[str, ...]
    """The -D options of a configuration."""
    blocks: int
    threads: int
    shared: int = 0
    """Bytes of shared memory of a block."""


def run(
    op: str, like: Tensor, name: str, choices: tuple, kernel: Callable[[], Kernel], *structs: bytes
) -> None:
    """``snnfast._cuda.name(*choices, ...)``, or without it ``kernel()``, on like's device and
    stream. Raises RuntimeError where the launch is refused."""
    device, stream = place(like)
    module = ahead_of_time()
    if module is None:
        launch_compiled(op, kernel(), device, stream, structs)
        return
    status = getattr(module, name)(*choices, device, stream, *structs)
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
def compiled(op: str, device: int, header: str, names: tuple[str, ...]):
    """The kernel snnfast_<header> of csrc/cuda/<header>.cuh that ``names`` (-D options) say, loaded
    on one device."""
    import cupy

    text, options = source(f"{header}.cuh")
    with cupy.cuda.Device(device):
        try:
            kernel = cupy.RawKernel(text, f"snnfast_{header}", options=(*options, *names))
            kernel.compile()
        except Exception as error:
            raise RuntimeError(f"{op}: NVRTC could not compile the kernel: {error}") from error
    return kernel


def launch_compiled(
    op: str, kernel: Kernel, device: int, stream: int, structs: tuple[bytes, ...]
) -> None:
    import cupy
    import numpy

    function = compiled(op, device, kernel.header, kernel.names)
    # CuPy passes an array of one structure by value.
    args = tuple(numpy.frombuffer(each, numpy.dtype(f"V{len(each)}")) for each in structs)
    try:
        with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
            function((kernel.blocks,), (kernel.threads,), args, shared_mem=kernel.shared)
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
