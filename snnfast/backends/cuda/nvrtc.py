"""Device code compiled at first use and launched by the driver, both through ctypes: NVRTC comes
with every torch for CUDA. Cubins are kept in the user's cache folder.
"""

import ctypes
import hashlib
import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path

import torch

NO_CONTEXT = 201


def _folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(p) for p in spec.submodule_search_locations] if spec else []
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    toolkits = [Path(home) / part for home in homes if home for part in ("lib64", "lib")]
    return [*(f for wheel in wheels for f in sorted(wheel.glob("*/lib"))), *toolkits]


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC of the CUDA that torch was built with; None where there is none."""
    major = (torch.version.cuda or "").split(".")[0] or "*"
    for folder in _folders():
        for path in sorted(folder.glob(f"libnvrtc.so.{major}"), reverse=True):
            # It looks for its own headers by name, and would not find them beside it.
            for builtins in sorted(folder.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    return None


def command() -> str:
    """What installs NVRTC."""
    major = (torch.version.cuda or "").split(".")[0]
    return f"pip install 'snnfast[cuda{major}]'"


def _text(size, read, program) -> bytes:
    count = ctypes.c_size_t()
    size(program, ctypes.byref(count))
    buffer = ctypes.create_string_buffer(count.value)
    read(program, buffer)
    return buffer.raw


def compile_cubin(text: str, options: tuple[str, ...]) -> bytes:
    """RuntimeError with the compiler's log where it refuses."""
    nvrtc, program = library(), ctypes.c_void_p()
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"snnfast.cu", 0, None, None
    )
    if status:
        raise RuntimeError(f"nvrtcCreateProgram returned {status}")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise RuntimeError(log.rstrip(b"\0").decode().strip() or "NVRTC failed without a word")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def cubin(text: str, options: tuple[str, ...]) -> bytes:
    """The same, from the cache folder where it is there."""
    if library() is None:
        raise RuntimeError(f"it is not installed: {command()}")
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256("\n".join((_version(), text, *options)).encode()).hexdigest()
    kept = Path(cache_home) / "snnfast" / f"{key}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    found = compile_cubin(text, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(found)
        os.replace(file.name, kept)
    except OSError:
        pass  # a folder that cannot be written to: compiled again in the next process
    return found


@cache
def driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def check(status: int) -> None:
    """RuntimeError with the driver's words."""
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError((text.value or f"error {status}".encode()).decode())


def _make_current(device: int) -> None:
    """The context that torch has on that device; a new thread has none."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    check(driver().cuDeviceGet(ctypes.byref(handle), device))
    check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    check(driver().cuCtxSetCurrent(context))


def load(image: bytes, name: str, device: int) -> ctypes.c_void_p:
    """A kernel of a cubin on the device that is the current one."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    status = driver().cuModuleLoadData(ctypes.byref(module), image)
    if status == NO_CONTEXT:
        _make_current(device)
        status = driver().cuModuleLoadData(ctypes.byref(module), image)
    check(status)
    check(driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    return function


def launch(
    function: ctypes.c_void_p,
    grid: tuple[int, int, int],
    device: int,
    stream: int,
    structs: tuple[bytes, ...],
) -> None:
    """``grid``: blocks, threads, and bytes of shared memory of a block."""
    blocks, threads, shared = grid
    # What lies at these addresses are the arguments, by value.
    pointers = (ctypes.c_char_p * len(structs))(*structs)
    arguments = (blocks, 1, 1, threads, 1, 1, shared, ctypes.c_void_p(stream), pointers, None)
    status = driver().cuLaunchKernel(function, *arguments)
    if status == NO_CONTEXT:
        _make_current(device)
        status = driver().cuLaunchKernel(function, *arguments)
    check(status)
