"""The CUDA kernels of norm_lif compiled for sm_80 and sm_90 without a GPU, and their machine code
read: no spills, 16-byte accesses, the bytes of the floor in every pass.
"""

import subprocess

import pytest
import torch
from _cuda_aot import (
    ARCHS,
    FLAGS,
    INCLUDES,
    NVCC,
    each_pair,
    needs_nvcc,
    needs_nvrtc,
    nvrtc_kernel,
    of_the_module,
    one_kernel,
)
from test_cuda_aot import spec_of

from snnfast.backends.cuda import launch
from snnfast.backends.cuda import lif as cuda

pytestmark = pytest.mark.usefixtures("read_at_once")
LANES = {torch.float32: 4, torch.bfloat16: 8}


def kernel(names, arch):
    code = one_kernel("norm_lif", names, arch)
    assert code.spills == 0 and code.stack == 0
    assert code.count("LD") == code.count("ST") == 0
    return code


def scan(direction, steps, dtype, flags):
    names = cuda.defines(direction, spec_of(steps), dtype, True, flags)
    return f"-DSNN_NORM_{direction.upper()}", *names[1:]


def moved(code, rows, lanes):
    """Accesses of 16 bytes to what has a time axis: without those to ``rows`` vectors of channels,
    each of which has one place for every way that channels may lie."""
    loads, stores = code.widths("LDG"), code.widths("STG")
    assert loads.pop(32) == rows * (1 + lanes)
    return loads.pop(128) - rows * lanes // 4, stores.pop(128), loads | stores


@needs_nvcc
@each_pair
def test_bytes_of_a_scan(dtype, steps, arch):
    """Each step of each tensor is read or written once, 16 bytes a thread: 2b forward, 3b backward,
    whether sums are wanted or dY, and b more for a residual."""
    lanes = LANES[dtype]
    for residual in (0, cuda.HAS_RESIDUAL):
        more, wanted = steps * bool(residual), cuda.HAS_DS | cuda.HAS_DX | residual
        forward = kernel(scan("forward", steps, dtype, residual), arch)
        backward = kernel(scan("backward", steps, dtype, wanted), arch)
        assert moved(forward, 3, lanes) == (steps + more, steps, {})
        assert moved(backward, 3, lanes) == (2 * steps + more, steps, {32: 2})  # and two sums
        assert forward.registers <= 168 and backward.registers <= (128 if steps == 4 else 232)
        assert forward.size <= 35 * lanes * steps + 400
        assert backward.size <= 50 * lanes * steps + 1000
    through = kernel(scan("backward", steps, dtype, wanted ^ residual | cuda.RECOMPUTE), arch)
    assert moved(through, 6, lanes) == (2 * steps, steps, {})
    assert through.registers <= (128 if steps == 4 else 232)
    alone = kernel(scan("backward", steps, dtype, cuda.HAS_DS), arch)
    assert alone.widths("STG") == {32: 2}


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", LANES, ids=str)
def test_bytes_of_stats_and_apply(dtype, arch):
    """8 steps of y in flight, or 4 of y and dx; the numbers of a channel are few."""
    lanes, names = LANES[dtype], [f"-DSNN_IO={launch.IO[dtype]}", f"-DSNN_LANES={LANES[dtype]}"]
    stats = kernel(("-DSNN_NORM_STATS", *names), arch)
    assert stats.widths("LDG") == {128: 8}
    assert stats.widths("STG") == {32: 4}
    loops = [loop for loop in stats.loops if loop.widths("LDG").get(128)]
    assert loops and loops[0].bytes("LDG") == 8 * 16
    assert loops[0].size <= 9 * 8 * lanes
    apply = kernel(("-DSNN_NORM_DY", *names), arch)
    assert moved(apply, 4, lanes) == (8, 4, {})
    assert stats.registers <= 96 and apply.registers <= 96


@needs_nvcc
@pytest.mark.parametrize("io", ["Float32", "BFloat16"])
def test_ahead_of_time(io):
    """All kernels of a dtype as the module has them: 3 widths of 2 scans, 2 of stats and apply."""
    for kernels in of_the_module("norm_lif", f"-DSNN_IO={io}"):
        assert len(kernels) == 10
        for name, code in kernels.items():
            assert code.spills == 0 and code.stack == 0, name
            assert code.registers <= 248, f"{name}: {code.registers}"
            assert code.count("LD") == code.count("ST") == 0, name
            if "norm_stats" not in name:
                assert (code.widths("STG").get(128, 0) > 0) == ("ELi1E" not in name), name


@needs_nvcc
def test_totals():
    """What 8 blocks have left is under way at once, 16 bytes of each with statistics, and found
    without a division."""
    for kernels in of_the_module("norm_lif_totals"):
        assert len(kernels) == 2
        for name, code in kernels.items():
            assert code.spills == 0 and code.stack == 0, name
            assert code.registers <= 80, f"{name}: {code.registers}"
            bits, each = (128, 1) if "PreparedArgs" in name else (32, 2)
            loop = next(b for b in code.loops if b.widths("LDG").get(bits) == 8 * each)
            assert loop.loads_ahead() == 8 * each
            assert loop.size <= 480, name


@needs_nvcc
def test_root_and_quotient_are_exact(tmp_path):
    """As on every other backend: an approximate 1 / sqrt would flip spikes in evaluation."""
    (tmp_path / "one.cu").write_text(launch.source("norm_lif.cuh")[0])
    names = ("-DSNN_NORM_TOTALS=PreparedArgs", "-arch=sm_90", "-ptx")
    command = [NVCC, *FLAGS, *INCLUDES, *names, "one.cu", "-o", "one.ptx"]
    subprocess.run(command, check=True, cwd=tmp_path)
    text = (tmp_path / "one.ptx").read_text()
    assert "sqrt.rn.f32" in text and "approx" not in text and ".ftz" not in text


@needs_nvrtc
@pytest.mark.parametrize(
    "names",
    [
        scan("forward", 20, torch.bfloat16, cuda.HAS_BORDERS | cuda.HAS_RESIDUAL),
        scan("backward", 20, torch.bfloat16, cuda.HAS_BORDERS | cuda.HAS_DS | cuda.HAS_DX),
        ("-DSNN_NORM_STATS", "-DSNN_IO=Float16", "-DSNN_LANES=8"),
        ("-DSNN_NORM_DY", "-DSNN_IO=Float32", "-DSNN_LANES=1"),
        ("-DSNN_NORM_TOTALS=PreparedArgs",),
        ("-DSNN_NORM_TOTALS=FinishedArgs",),
    ],
    ids=lambda names: names[0],
)
def test_nvrtc_compiles_the_source(names):
    assert nvrtc_kernel("norm_lif", names).spills == 0
