"""How CUDA kernels get from ``csrc/cuda`` onto a device: ahead of time in ``snnfast._cuda``, or
compiled by NVRTC at first use. Arguments are structs, packed as bytes.
"""

import hashlib
import importlib
import importlib.util
import struct
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import nvrtc

IO = {torch.float32: "Float32", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
"""What the kernels call a dtype."""


# The fields of a struct: a NamedTuple of these, and at the end perhaps of such a tuple.
Pointer = Annotated[int, "Q"]
Long = Annotated[int, "q"]
Int = Annotated[int, "i"]
Unsigned = Annotated[int, "I"]
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


@cache
def _addresses(count: int) -> struct.Struct:
    return struct.Struct(f"={count}Q")


def behind(kind: type, *values) -> bytes:
    """What follows the addresses that a struct begins with."""
    count = len(kind._fields) - len(values)
    return packed(kind(*[0] * count, *values))[8 * count :]


def addressed(pointers: list[int], rest: bytes) -> bytes:
    """A struct of addresses and what is ``behind`` them."""
    return _addresses(len(pointers)).pack(*pointers) + rest


def aligned(*pointers: int) -> bool:
    """To the 16 bytes of a vector access."""
    every = 0
    for at in pointers:
        every |= at
    return every % 16 == 0


def device_and_stream(x: Tensor) -> tuple[int, int]:
    """The index of x's device and its current stream."""
    device = x.get_device()
    return device, torch._C._cuda_getCurrentRawStream(device)


_HERE = nullcontext()


def on(device: int) -> AbstractContextManager:
    """Where that device is the current one; torch restores another without waking it up."""
    return _HERE if torch._C._cuda_getDevice() == device else torch.cuda.device(device)


@cache
def ahead_of_time():
    """``snnfast._cuda``, or None where ``not_built`` says why."""
    return None if not_built() else importlib.import_module("snnfast._cuda")


@cache
def broken() -> str | None:
    """Why the ``snnfast._cuda`` that is there cannot be used."""
    if importlib.util.find_spec("snnfast._cuda") is None:
        return None
    try:
        module = importlib.import_module("snnfast._cuda")
    except ImportError as error:
        return f"snnfast._cuda does not load: {error}"
    return None if hasattr(module, "probe") else "snnfast._cuda was built from older sources"


@cache
def not_built() -> str | None:
    """Why there is no ``snnfast._cuda``: what the installation noted, or why it cannot be used."""
    if importlib.util.find_spec("snnfast._cuda") is not None:
        return broken()
    note = Path(__file__).resolve().parents[2] / "_no_cuda.txt"
    why = note.read_text().strip() if note.is_file() else "snnfast is not installed"
    return f"snnfast._cuda was not built: {why}"


class Kernel(NamedTuple):
    """What is compiled at first use, and how many threads it runs on."""

    header: str
    names: tuple[str, ...]
    """The -D options of a configuration."""
    blocks: int
    threads: int
    shared: int = 0
    """Bytes of shared memory of a block."""
    text: str = ""
    """What stands behind the header, of a kernel that is in no module."""


class Launch(NamedTuple):
    """A launch but for its addresses: ``snnfast._cuda.name(*choices, ...)``, or ``kernel``."""

    op: str
    name: str
    choices: tuple
    kernel: Kernel


def run(launch: Launch, like: Tensor, *structs: bytes) -> None:
    """On like's device and stream. Raises RuntimeError where the launch is refused."""
    device, stream = device_and_stream(like)
    module = None if launch.kernel.text else ahead_of_time()
    with on(device):
        if module is None:
            launch_compiled(launch.op, launch.kernel, device, stream, structs)
            return
        status = getattr(module, launch.name)(*launch.choices, device, stream, *structs)
    if status:
        raise RuntimeError(f"{launch.op}: the CUDA launch failed: {module.error_string(status)}")


@cache
def sources() -> Path:
    """The folder of the device code: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_csrc", package.parent / "csrc"):
        if (folder / "cuda" / "lif.cuh").is_file():
            return folder
    raise RuntimeError(f"cuda: no device code in {package / '_csrc'}: reinstall snnfast")


@cache
def _digest() -> str:
    """That of the headers, by which cubins are kept."""
    folder, digest = sources(), hashlib.sha256()
    for name in sorted([*folder.glob("include/*.h"), *folder.glob("cuda/*.[ch]*")]):
        digest.update(name.read_bytes())
    return digest.hexdigest()


def source(header: str, text: str = "") -> tuple[str, tuple[str, ...]]:
    """What NVRTC compiles, with ``text`` behind the header, and its options."""
    folder = sources()
    includes = (f"-I{folder / 'include'}", f"-I{folder / 'cuda'}")
    text = f'// {_digest()}\n#include "{header}"\n{text}'
    # NVRTC would otherwise take a lambda for a host function.
    return text, ("-std=c++17", "--fmad=false", "-default-device", *includes)


@cache
def compiled(op: str, device: int, header: str, names: tuple[str, ...], text: str = ""):
    """The kernel snnfast_<header> of csrc/cuda/<header>.cuh, and of ``text`` behind it, that
    ``names`` (-D options) say, loaded on one device."""
    text, options = source(f"{header}.cuh", text)
    arch = "--gpu-architecture=sm_{}{}".format(*torch.cuda.get_device_capability(device))
    try:
        image = nvrtc.cubin(text, (*options, *names, arch))
    except RuntimeError as error:
        raise RuntimeError(f"{op}: NVRTC could not compile the kernel: {error}") from error
    return nvrtc.load(image, f"snnfast_{header}", device)


def launch_compiled(
    op: str, kernel: Kernel, device: int, stream: int, structs: tuple[bytes, ...]
) -> None:
    function = compiled(op, device, kernel.header, kernel.names, kernel.text)
    grid = kernel.blocks, kernel.threads, kernel.shared
    try:
        nvrtc.launch(function, grid, device, stream, structs)
    except RuntimeError as error:
        raise RuntimeError(f"{op}: the CUDA launch failed: {error}") from error


_TOO_OLD, _NO_CODE = 35, (98, 209)
"""cudaErrorInsufficientDriver; cudaErrorInvalidDeviceFunction, cudaErrorNoKernelImageForDevice."""


def _refusal(device: int) -> str | None:
    """What the driver says to a kernel of ours."""
    module, arch = ahead_of_time(), "{}{}".format(*torch.cuda.get_device_capability(device))
    if module is None:
        try:
            compiled("cuda", device, "spikes", ("-DSNN_PACK", "-DSNN_SIZE=4"))
        except (OSError, RuntimeError) as error:
            return str(error)
        return None
    status = module.probe(device)
    if status == _TOO_OLD:
        return (
            "the driver is too old for the CUDA that snnfast._cuda was built with: update it, or "
            "reinstall snnfast with SNNFAST_CUDA=0, which compiles at first use instead"
        )
    if status in _NO_CODE:
        return (
            f"snnfast._cuda has no code for this GPU: reinstall snnfast with "
            f"SNNFAST_CUDA_ARCHS={arch}"
        )
    return f"snnfast._cuda cannot be used: {module.error_string(status)}" if status else None


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
    if broken():
        return f"{broken()}; reinstall snnfast (SNNFAST_CUDA=0 leaves the module out)"
    if ahead_of_time() is None and nvrtc.library() is None:
        return (
            f"{not_built()}; NVRTC, which compiles at first use instead, is not installed: "
            f"{nvrtc.command()}"
        )
    return _refusal(torch.cuda.current_device())


def details() -> str:
    return not_built() or "snnfast._cuda, built by nvcc at install"
