"""The packing kernels of the GPU backends without a GPU: CUDA C++ compiled by the host compiler
with every access checked, and the machine code of both. What they compute: ops/test_spikes.py.
"""

import math
from pathlib import Path

import _cuda_host
import pytest
import torch
from _aot import compile_call
from _cuda_aot import needs_nvcc, needs_nvrtc, nvrtc_kernel, of_the_module
from spikes_cases import NO_SPIKES, SIZES, expected_bits, spikes_of

from snnfast.backends.cuda import spikes as cuda_spikes
from snnfast.backends.triton import spikes as triton_spikes

ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.usefixtures("read_at_once")
@pytest.mark.parametrize("arch", (80, 90))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_ahead_of_time(arch, dtype):
    """Spikes go 16 bytes at a time, once; bits a byte at a time."""
    s = torch.empty(1 << 20, dtype=dtype, device="meta")
    bits = torch.empty(1 << 17, dtype=torch.uint8, device="meta")
    pack, unpack = triton_spikes.pack_call(s, bits), triton_spikes.unpack_call(bits, s)
    for call, wide, narrow in ((pack, "LDG", "STG"), (unpack, "STG", "LDG")):
        code = compile_call(call, arch)
        each = call.constants["BYTES"] * 8 // (32 * call.constants["num_warps"])
        assert code.spills == 0 and code.stack == 0 and code.registers <= 40
        assert set(code.widths(wide)) == {128}
        assert code.bytes(wide) == each * dtype.itemsize
        assert set(code.widths(narrow)) == {8}
        assert code.bytes(narrow) == math.ceil(each / 8)


# CUDA C++, compiled by the host compiler: every thread in turn, every access checked.


@pytest.fixture
def shim(monkeypatch):
    return _cuda_host.install(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", (0, 1), ids=("aligned", "not aligned"))
def test_cuda_on_the_host(shim, dtype, offset):
    for n in SIZES:
        s = spikes_of(n + offset, dtype)[offset:]
        bits = torch.full(((n + 7) // 8,), 255, dtype=torch.uint8)
        cuda_spikes.pack_spikes(s, bits)
        assert torch.equal(bits, expected_bits(s))
        assert shim.last.structs["SpikesArgs"].aligned == (offset == 0)
        once = {"s": n * dtype.itemsize, "bits": (n + 7) // 8}
        assert shim.last.bytes == once
        back = torch.full((n + offset,), math.nan, dtype=dtype)[offset:]
        cuda_spikes.unpack_spikes(bits, back)
        assert torch.equal(back, s)
        assert shim.last.bytes == once
        for at, value in zip((0, n // 2, n - 1), (NO_SPIKES * 2)[n % 6 :]):
            other = s.clone()
            other[at] = value
            cuda_spikes.pack_spikes(other, bits)
            assert torch.equal(bits, expected_bits(other))


def check_cuda(code, direction, size):
    """The way of whole blocks: all loads before the first is used; 16 bytes, 4 bytes of bits."""
    wide, narrow = ("LDG", "STG") if direction == "pack" else ("STG", "LDG")
    assert code.spills == 0 and code.stack == 0 and code.registers <= 64
    assert code.widths(wide)[128] * 16 == 4 * 8 * size
    assert code.widths(narrow)[8] == 4
    assert code.count("LD") == code.count("ST") == 0
    assert code.loads_ahead() >= 4


@needs_nvcc
def test_cuda_ahead_of_time():
    for kernels in of_the_module("spikes"):
        assert len(kernels) == 4
        for name, code in kernels.items():
            direction = "unpack" if "unpack" in name else "pack"
            check_cuda(code, direction, 4 if "Li4E" in name else 2)


@needs_nvrtc
@pytest.mark.parametrize("direction", ("pack", "unpack"))
@pytest.mark.parametrize("size", (2, 4))
def test_nvrtc_compiles_the_source(direction, size):
    code = nvrtc_kernel("spikes", cuda_spikes.defines(direction, size))
    check_cuda(code, direction, size)


def test_compiled_at_first_use(shim, monkeypatch):
    """Without snnfast._cuda: one kernel a size and direction by NVRTC."""
    built = _cuda_host.without_module(shim, monkeypatch)
    for dtype in DTYPES:
        for n in (9, 4096, 5003):
            s = spikes_of(n, dtype)
            bits, back = torch.empty((n + 7) // 8, dtype=torch.uint8), torch.empty_like(s)
            cuda_spikes.pack_spikes(s, bits)
            cuda_spikes.unpack_spikes(bits, back)
            assert torch.equal(bits, expected_bits(s)) and torch.equal(back, s)
    assert len(built) == 4


def test_constants_are_those_of_the_headers():
    text = (ROOT / "csrc/cuda/spikes_args.h").read_text()
    assert f"kPackThreads = {cuda_spikes._THREADS};" in text
    assert f"kPackBytes = {cuda_spikes._BYTES};" in text
