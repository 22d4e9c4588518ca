"""snnfast._cuda for the host: csrc/cuda as it is, compiled by the host compiler against
tests/cuda_shim, where a launch runs the threads of a block as fibers. A misaligned access, or one
outside the tensors of the launch, fails it.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import torch

from snnfast.backends.cuda import distill, launch, lif, norm_lif, nvrtc, spikes

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


@functools.cache
def kept() -> Path:
    """A folder for what is compiled of these sources by this compiler, shared by all processes and
    kept until one of them changes."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + repr((FLAGS, pybind11.__version__)).encode())
    for source in sorted(p for of in (CUDA, CUDA.parent / "include", SHIM) for p in of.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    found = ROOT / "build" / "cuda_host" / digest.hexdigest()[:20]
    if not found.exists():
        for other in set(found.parent.glob("*")) - {found}:
            shutil.rmtree(other, ignore_errors=True)
        found.mkdir(parents=True, exist_ok=True)
    return found


def built(name: str, build: Callable[[Path], None]) -> Path:
    """That file of ``kept``, by ``build`` where no process has built it yet."""
    out = kept() / name
    with open(out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            with tempfile.TemporaryDirectory(dir=kept()) as folder:
                build(Path(folder, name))
                os.replace(Path(folder, name), out)
    return out


def compile_object(out: Path, *arguments: str) -> Path:
    subprocess.run([compiler(), *FLAGS, *INCLUDES, *arguments, "-c", "-o", str(out)], check=True)
    return out


@functools.cache
def shim() -> Path:
    return built("shim.o", lambda out: compile_object(out, str(SHIM / "shim.cpp")))


def link_module(out: Path) -> None:
    """Every source as setup.py compiles it, and the shim."""
    python = sysconfig.get_paths()["include"]
    jobs = {}
    jobs["bindings"] = [f"-I{pybind11.get_include()}", f"-I{python}", str(CUDA / "bindings.cpp")]
    for source in CUDA.glob("*.cu"):
        maths = ["-include", "device_maths.h"] if source.stem.startswith("distill") else []
        device = ["-include", "cuda_runtime.h", *maths, "-x", "c++", str(source)]
        for io in launch.IO.values() if "SNN_IO" in source.read_text() else (None,):
            jobs[f"{source.stem}_{io}"] = [f"-DSNN_IO={io}", *device] if io else device

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(lambda name: compile_object(out.parent / f"{name}.o", *jobs[name]), jobs)
        parts = [*map(str, objects), str(shim())]
    subprocess.run([compiler(), "-shared", *parts, "-o", str(out)], check=True)


@functools.cache
def module():
    """The module itself, and the library that it is."""
    out = built(f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", link_module)
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


_run = launch.run
_NEURON = (lif.NeuronArgs,)
STRUCTS = {
    "lif_forward": (lif.ForwardArgs, *_NEURON),
    "lif_backward": (lif.BackwardArgs, *_NEURON),
    "norm_lif_forward": (lif.ForwardArgs, *_NEURON, norm_lif.NormArgs),
    "norm_lif_backward": (lif.BackwardArgs, *_NEURON, norm_lif.NormArgs),
    "norm_stats": (norm_lif.MapArgs, norm_lif.NormArgs),
    "norm_dy": (norm_lif.MapArgs, norm_lif.NormArgs),
    "norm_prepare": (norm_lif.TotalArgs, norm_lif.PreparedArgs),
    "norm_finish": (norm_lif.TotalArgs, norm_lif.FinishedArgs),
    "stepwise_rows": (distill.RowArgs, distill.StepwiseNumbers),
    "tssd_rows": (distill.RowArgs, distill.TssdNumbers),
    "finish_loss": (distill.FinishArgs,),
    "scale_gradient": (distill.ScaleArgs,),
    "pack_spikes": (spikes.SpikesArgs,),
    "unpack_spikes": (spikes.SpikesArgs,),
}
"""What each function of the module takes."""


def unpacked(kind, data):
    """The struct of bytes."""
    return _nested(kind, list(launch.layout(kind).unpack(data)))


def _nested(kind, flat):
    kinds = kind.__annotations__.values()
    return kind(*(_nested(k, flat) if hasattr(k, "_fields") else flat.pop(0) for k in kinds))


class Launched(types.SimpleNamespace):
    """name, choices, and what the runtime got: blocks, threads, shared, device, stream; ``bytes``:
    what went to or from each tensor, by the name of its field; ``structs``, by their names."""


class Host:
    """``snnfast._cuda`` for ``ahead_of_time``, with an eye on every launch."""

    DEVICE, STREAM = 3, 0x5EED

    def __init__(self):
        self.launches, self.tensors = [], {}
        self.allows = True

    @property
    def module(self):
        return module()[0]

    @property
    def library(self):
        return module()[1]

    # In place of the functions of the same names in backends/cuda/launch.py.

    def device_and_stream(self, x):
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

    def run(self, launched, like, *structs):
        # A kernel by itself has structs of its own.
        self.kinds = STRUCTS.get(launched.name)
        _run(launched, like, *structs)

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if not callable(function) or name == "error_string":
            return function
        return lambda *args: self.watch(self.library, name, args, lambda: function(*args))

    def watch(self, library, name, args, call):
        """call() with the tensors allowed, noted as a launch."""
        data = [each for each in args if isinstance(each, bytes)]
        kinds = [] if self.kinds is None else zip(self.kinds, data, strict=True)
        structs = [unpacked(*each) for each in kinds]
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
    for name in ("device_and_stream", "pointer", "run"):
        monkeypatch.setattr(launch, name, getattr(host, name))
    monkeypatch.setattr(launch, "on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(launch, "ahead_of_time", lambda: host)
    host.compiled = compiled_here(host, monkeypatch)
    return host


@functools.cache
def one_kernel(text: str, name: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """What NVRTC would make of a text and -D options, for the host."""

    def build(out):
        source = out.with_suffix(".cuh")
        source.write_text(text)
        names = [f'-DSNN_HEADER="{source}"', f"-DSNN_KERNEL={name}", *options]
        forced = ["cuda_runtime.h", *["device_maths.h"] * ('"distill.cuh"' in text)]
        include = [part for each in forced for part in ("-include", each)]
        sources = [str(SHIM / "one_kernel.cpp"), str(shim())]
        command = [compiler(), *FLAGS, *INCLUDES, *names, *include, "-shared", *sources]
        subprocess.run([*command, "-o", str(out)], check=True)

    key = hashlib.sha256("\0".join((text, name, *options)).encode()).hexdigest()[:20]
    return library(built(f"{key}.so", build))


class Driver:
    """libcuda: a kernel is loaded from what stands for its cubin, and runs here, once the context
    of the device is the current one."""

    def __init__(self, host):
        self.host, self.kernels, self.images, self.context = host, [], {}, 0

    def cuGetErrorString(self, status, text):
        text._obj.value = b"an illegal memory access was encountered"
        return 0

    def cuDeviceGet(self, handle, device):
        handle._obj.value = 10 + device
        return 0

    def cuDevicePrimaryCtxRetain(self, context, handle):
        context._obj.value = 100 + handle.value
        return 0

    def cuCtxSetCurrent(self, context):
        self.context = context.value
        return 0

    def cuModuleLoadData(self, module, image):
        if not self.context:
            return nvrtc.NO_CONTEXT
        assert self.context == 110 + self.host.DEVICE
        self.images[len(self.images) + 1] = image
        module._obj.value = len(self.images)
        return 0

    def cuModuleGetFunction(self, function, module, name):
        text, *options = self.images[module.value].decode().split("\0")
        self.kernels.append((name.decode(), one_kernel(text, name.decode(), tuple(options))))
        function._obj.value = len(self.kernels)
        return 0

    def cuLaunchKernel(self, function, x, y, z, bx, by, bz, shared, stream, pointers, extra):
        assert y == z == by == bz == 1 and extra is None and stream.value == self.host.STREAM
        if not self.context:
            return nvrtc.NO_CONTEXT
        name, library = self.kernels[function.value - 1]
        sizes = (ctypes.c_int64 * 8)()
        library.shim_parameters(sizes)
        addresses = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        structs = [ctypes.string_at(addresses[k], sizes[k]) for k in range(len(pointers))]
        run = functools.partial(library.shim_run, x, bx, shared, pointers)
        return self.host.watch(library, name, structs, run)


def compiled_here(host: Host, monkeypatch) -> list[tuple[str, ...]]:
    """What NVRTC would compile runs here, too; the list grows with it."""
    built, driver = [], Driver(host)

    def cubin(text, options):
        built.append(tuple(o for o in options if o.startswith("-D")))
        return "\0".join((text, *built[-1])).encode()

    monkeypatch.setattr(nvrtc, "cubin", cubin)
    monkeypatch.setattr(nvrtc, "driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "compiled", functools.cache(launch.compiled.__wrapped__))
    return built


def without_module(host: Host, monkeypatch) -> list[tuple[str, ...]]:
    """No snnfast._cuda, but NVRTC; the list grows with what it compiles."""
    monkeypatch.setattr(launch, "ahead_of_time", lambda: None)
    return compiled_here(host, monkeypatch)
