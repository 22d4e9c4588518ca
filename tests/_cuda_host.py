"""snnfast._cuda for the host: csrc/cuda as it is, compiled by the host compiler against
tests/cuda_shim, where a launch runs the threads of a block as fibers. A misaligned access, or one
outside the tensors of the launch, fails it.
"""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pybind11

from snnfast.backends.cuda import launch

ROOT = Path(__file__).resolve().parents[1]
CUDA, SHIM = ROOT / "csrc" / "cuda", ROOT / "tests" / "cuda_shim"
FLAGS = "-std=c++17 -O1 -ffp-contract=off -U_FORTIFY_SOURCE -fPIC -Wno-unknown-pragmas".split()
# Functions that nvcc leaves to the linker, which keeps one where two dtypes share a name.
FLAGS.append("-fno-inline-functions-called-once")
INCLUDES = [f"-I{folder}" for folder in (SHIM, ROOT / "csrc" / "include", CUDA)]


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    assert found, "the tests of the CUDA device code need a C++ compiler"
    return found


def folder_of(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def objects() -> dict[str, Path]:
    """Every source as setup.py compiles it, by its name, and the shim."""
    folder, python = folder_of("cuda_host"), sysconfig.get_paths()["include"]
    jobs = {"shim": [str(SHIM / "shim.cpp")]}
    jobs["bindings"] = [f"-I{pybind11.get_include()}", f"-I{python}", str(CUDA / "bindings.cpp")]
    for source in CUDA.glob("*.cu"):
        maths = ["-include", "device_maths.h"] if source.stem.startswith("distill") else []
        device = ["-include", "cuda_runtime.h", *maths, "-x", "c++", str(source)]
        for io in launch.IO.values() if "SNN_IO" in source.read_text() else (None,):
            jobs[f"{source.stem}_{io}"] = [f"-DSNN_IO={io}", *device] if io else device

    def build(name):
        out = folder / f"{name}.o"
        subprocess.run(
            [compiler(), *FLAGS, *INCLUDES, *jobs[name], "-c", "-o", str(out)], check=True
        )
        return name, out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(build, jobs))


@functools.cache
def module():
    """The module itself, and the library that it is."""
    (shim, *_) = objects().values()
    out = shim.parent / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = [compiler(), "-shared", *map(str, objects().values()), "-o", str(out)]
    subprocess.run(link, check=True)
    spec = importlib.util.spec_from_file_location("_cuda", out)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found, library(out)


def library(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.shim_allow.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    found.shim_bytes.restype = found.shim_wrong_quotients.restype = ctypes.c_int64
    found.shim_wrong_quotients.argtypes = [ctypes.c_int64, ctypes.c_uint64, ctypes.c_float]
    found.shim_quotient.argtypes = [ctypes.c_float, ctypes.c_float]
    found.shim_quotient.restype = ctypes.c_float
    found.shim_last.restype = ctypes.POINTER(ctypes.c_int64)
    return found


_packed, _structs = launch.packed, {}


class Launched(types.SimpleNamespace):
    """name, choices, and what the runtime got: blocks, threads, shared, device, stream; ``bytes``:
    what went to or from each tensor, by the name of its field; ``structs``, by their names."""


class Host:
    """``snnfast._cuda`` for ``ahead_of_time``, with an eye on every launch."""

    DEVICE, STREAM = 3, 0x5EED

    def __init__(self):
        self.module, self.library = module()
        self.launches, self.tensors = [], {}
        self.allows = True

    # In place of the functions of the same names in backends/cuda/launch.py.

    def place(self, x):
        return self.DEVICE, self.STREAM

    def pointer(self, tensor):
        if tensor is None:
            return 0
        at = tensor.data_ptr()
        self.tensors.pop(at, None)
        self.tensors[at] = tensor  # the last with that address; kept, so that no other gets it
        while len(self.tensors) > 64:
            del self.tensors[next(iter(self.tensors))]
        return at

    def packed(self, value):
        data = _packed(value)
        _structs[data] = value
        return data

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if not callable(function) or name == "error_string":
            return function
        return lambda *args: self.watch(self.library, name, args, lambda: function(*args))

    def watch(self, library, name, args, call):
        """call() with the tensors allowed, noted as a launch."""
        structs = [_structs[data] for data in args if isinstance(data, bytes)]
        library.shim_clear()
        if self.allows:
            for at, t in self.tensors.items():
                span = 1 + sum((n - 1) * st for n, st in zip(t.shape, t.stride(), strict=True))
                library.shim_allow(at, at + span * t.element_size() * (t.numel() > 0))
        status = call()
        found = library.shim_last()
        moved = {at: i for i, at in enumerate(self.tensors)} if self.allows else {}
        addresses = {
            field: at
            for struct in structs
            for (field, kind), at in zip(type(struct).__annotations__.items(), struct)
            if kind is launch.Pointer and at in moved
        }
        self.launches.append(
            Launched(
                name=name,
                choices=[a for a in args if not isinstance(a, bytes)],
                structs={type(struct).__name__: struct for struct in structs},
                bytes={k: library.shim_bytes(moved[at]) for k, at in addresses.items()},
                **dict(zip(("blocks", "threads", "shared", "device", "stream"), found[:5])),
            )
        )
        return status

    @property
    def last(self) -> Launched:
        return self.launches[-1]

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.launches]


def install(monkeypatch) -> Host:
    """backend="cuda" takes CPU tensors."""
    host = Host()
    for name in ("place", "pointer", "packed"):
        monkeypatch.setattr(launch, name, getattr(host, name))
    monkeypatch.setattr(launch, "ahead_of_time", lambda: host)
    return host


@functools.cache
def one_kernel(header: str, name: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """What NVRTC would make of a header and -D options, for the host."""
    out = folder_of("cuda_kernel") / "kernel.so"
    names = [f'-DSNN_HEADER="{header}"', f"-DSNN_KERNEL={name}", *options]
    forced = ["cuda_runtime.h", *["device_maths.h"] * (header == "distill.cuh")]
    include = [part for each in forced for part in ("-include", each)]
    sources = [str(SHIM / "one_kernel.cpp"), str(objects()["shim"])]
    command = [compiler(), *FLAGS, *INCLUDES, *names, *include, "-shared", *sources]
    subprocess.run([*command, "-o", str(out)], check=True)
    return library(out)


def without_module(host: Host, monkeypatch) -> list[tuple[str, ...]]:
    """No snnfast._cuda, but CuPy, whose kernels run here; the list grows with what is compiled."""
    built = []

    class FakeKernel:
        """cupy.RawKernel."""

        def __init__(self, text, name, options):
            self.header, self.name = text.split('"')[1], name
            self.options = tuple(o for o in options if o.startswith("-D"))
            built.append(self.options)

        def compile(self):
            self.library = one_kernel(self.header, self.name, self.options)

        def __call__(self, grid, block, args, shared_mem):
            assert all(isinstance(each, numpy.ndarray) and each.size == 1 for each in args)
            addresses = (ctypes.c_void_p * len(args))(*(each.ctypes.data for each in args))
            structs = [each.tobytes() for each in args]
            status = host.watch(
                self.library,
                self.name,
                structs,
                lambda: self.library.shim_run(*grid, *block, shared_mem, addresses),
            )
            assert not status, status

    @contextlib.contextmanager
    def current(*device):
        assert device[-1] == host.DEVICE
        yield

    fake = types.ModuleType("cupy")
    fake.cuda = types.SimpleNamespace(Device=current, ExternalStream=current)
    fake.RawKernel = FakeKernel
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(launch, "ahead_of_time", lambda: None)
    monkeypatch.setattr(launch, "compiled", functools.cache(launch.compiled.__wrapped__))
    return built
