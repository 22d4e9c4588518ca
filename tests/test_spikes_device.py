"""The packing kernels of the GPU backends without a GPU: CUDA C++ compiled by the host compiler
with every access checked, and the machine code of both. What they compute: ops/test_spikes.py.
"""

import ctypes
import importlib.util
import math
import os
import shutil
import subprocess
from pathlib import Path

import _sass
import pytest
import torch
from _aot import compile_call
from spikes_cases import NO_SPIKES, SIZES, expected_bits, spikes_of

from snnfast.backends.cuda import launch as cuda_launch
from snnfast.backends.cuda import spikes as cuda_spikes
from snnfast.backends.triton import spikes as triton_spikes

ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("arch", (80, 90))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_ahead_of_time(arch, dtype):
    """Spikes go 16 bytes at a time, once; bits a byte at a time."""
    s = torch.empty(1 << 20, dtype=dtype, device="meta")
    bits = torch.empty(1 << 17, dtype=torch.uint8, device="meta")
    exact = torch.empty(1, dtype=torch.int32, device="meta")
    pack, look = triton_spikes.pack_call(s, bits, None), triton_spikes.pack_call(s, bits, exact)
    unpack = triton_spikes.unpack_call(bits, s)
    for call, wide, narrow in ((pack, "LDG", "STG"), (look, "LDG", None), (unpack, "STG", "LDG")):
        code = compile_call(call, arch)
        each = call.constants["BYTES"] * 8 // (32 * call.constants["num_warps"])
        assert code.spills == 0 and code.stack == 0 and code.registers <= 40
        assert set(code.widths(wide)) == {128}
        assert code.bytes(wide) == each * dtype.itemsize
        if narrow:
            assert set(code.widths(narrow)) == {8}
            assert code.bytes(narrow) == math.ceil(each / 8)


# CUDA C++, compiled by the host compiler: every thread in turn, every access checked.


class Shim:
    """Stands in for snnfast._cuda."""

    def __init__(self, library):
        self.library, self.moved, self.vector = library, None, None
        library.shim_allow.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        library.shim_moved.restype = ctypes.c_int64
        assert library.shim_args() == cuda_spikes._ARGS.size

    def run(self, function, size, args):
        s, bits, exact, n, _, flags = cuda_spikes._ARGS.unpack(args)
        self.library.shim_clear()
        for at, count in ((s, n * size), (bits, (n + 7) // 8), (exact, 4 if exact else 0)):
            self.library.shim_allow(at, at + count)
        status = function(size, args)
        self.moved = [self.library.shim_moved(i) for i in range(3)]
        self.vector = bool(flags & cuda_spikes.VECTOR)
        return status

    def pack_spikes(self, size, device, stream, args):
        return self.run(self.library.shim_pack, size, args)

    def unpack_spikes(self, size, device, stream, args):
        return self.run(self.library.shim_unpack, size, args)

    def error_string(self, status):
        return f"an illegal memory access was encountered ({status})"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    cxx = shutil.which("g++") or shutil.which("c++")
    assert cxx, "the tests of the CUDA device code need a C++ compiler"
    out = tmp_path_factory.mktemp("spikes_shim") / "shim.so"
    flags = "-std=c++17 -O1 -shared -fPIC -Wno-unknown-pragmas".split()
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]
    driver = ROOT / "tests" / "cuda_shim" / "spikes_driver.cpp"
    subprocess.run([cxx, *flags, *includes, str(driver), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture
def shim(library, monkeypatch):
    shim = Shim(library)
    monkeypatch.setattr(cuda_launch, "ahead_of_time", lambda: shim)
    monkeypatch.setattr(cuda_launch, "place", lambda x: (0, 0))
    return shim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", (0, 1), ids=("aligned", "not aligned"))
def test_cuda_on_the_host(shim, dtype, offset):
    for n in SIZES:
        s = spikes_of(n + offset, dtype)[offset:]
        bits = torch.full(((n + 7) // 8,), 255, dtype=torch.uint8)
        assert cuda_spikes.pack_if_spikes(s, bits)
        assert torch.equal(bits, expected_bits(s))
        assert shim.vector == (offset == 0)
        # Once each, and not the flag.
        assert shim.moved == [n * dtype.itemsize, (n + 7) // 8, 0]
        back = torch.full((n + offset,), math.nan, dtype=dtype)[offset:]
        cuda_spikes.unpack_spikes(bits, back)
        assert torch.equal(back, s)
        assert shim.moved[:2] == [n * dtype.itemsize, (n + 7) // 8]
        for at, value in zip((0, n // 2, n - 1), (NO_SPIKES * 2)[n % 6 :]):
            other = s.clone()
            other[at] = value
            assert not cuda_spikes.pack_if_spikes(other, bits), (at, value)
            assert torch.equal(bits, expected_bits(other))
            cuda_spikes.pack_spikes(other, bits)
            assert torch.equal(bits, expected_bits(other))


HOMES = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
NVCC = shutil.which("nvcc") or next(
    (str(Path(h, "bin/nvcc")) for h in HOMES if h and Path(h, "bin/nvcc").exists()), None
)


def check_cuda(code, direction, size):
    """The way of whole blocks: all loads before the first is used; 16 bytes, 4 bytes of bits."""
    wide, narrow = ("LDG", "STG") if direction == "pack" else ("STG", "LDG")
    assert code.spills == 0 and code.stack == 0 and code.registers <= 64
    assert code.widths(wide)[128] * 16 == 4 * 8 * size
    assert code.widths(narrow)[8] == 4
    assert code.count("LD") == code.count("ST") == 0
    assert code.loads_ahead() >= 4


@pytest.mark.skipif(NVCC is None, reason="nvcc is not in CUDA_HOME, on PATH or in /usr/local/cuda")
def test_cuda_ahead_of_time(tmp_path):
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]
    archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    source, out = ROOT / "csrc/cuda/spikes.cu", tmp_path / "spikes.o"
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC", "-c"]
    command = [NVCC, *flags, *includes, *archs, str(source), "-o", str(out)]
    subprocess.run(command, check=True)
    folder = tmp_path / "cubins"
    folder.mkdir()
    cubins = _sass.cubins(out, folder)
    assert len(cubins) == 2
    for cubin in cubins:
        kernels = {n: code for n, code in _sass.read(cubin).items() if code.registers}
        assert len(kernels) == 4
        for name, code in kernels.items():
            direction = "unpack" if "unpack" in name else "pack"
            check_cuda(code, direction, 4 if "Li4E" in name else 2)


def libnvrtc() -> str | None:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations] if spec else []
    roots += [Path(h) for h in HOMES if h]
    found = [f for root in roots for f in sorted(root.glob("**/libnvrtc.so*"))]
    return str(found[0]) if found else None


@pytest.mark.skipif(libnvrtc() is None, reason="no libnvrtc: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("direction", ("pack", "unpack"))
@pytest.mark.parametrize("size", (2, 4))
def test_nvrtc_compiles_the_source(direction, size):
    path = Path(libnvrtc())
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(path))
    text, options = cuda_launch.source("spikes.cuh")
    names = cuda_spikes.defines(direction, size)
    arguments = [o.encode() for o in (*options, *names, "--gpu-architecture=sm_90")]
    program, length = ctypes.c_void_p(), ctypes.c_size_t()
    at = ctypes.byref(program)
    assert not nvrtc.nvrtcCreateProgram(at, text.encode(), b"spikes.cu", 0, None, None)
    array = (ctypes.c_char_p * len(arguments))(*arguments)
    status = nvrtc.nvrtcCompileProgram(program, len(arguments), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    log = ctypes.create_string_buffer(length.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(length))
    cubin = ctypes.create_string_buffer(length.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    check_cuda(_sass.read(cubin.raw)["snnfast_spikes"], direction, size)


def test_constants_are_those_of_the_headers():
    text = (ROOT / "csrc/cuda/spikes_args.h").read_text()
    assert f"kPackThreads = {cuda_spikes._THREADS};" in text
    assert f"kPackBytes = {cuda_spikes._BYTES};" in text
    assert f"kLook = {cuda_spikes.LOOK}," in text and f"kVector = {cuda_spikes.VECTOR}," in text
