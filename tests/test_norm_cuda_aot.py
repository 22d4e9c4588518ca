"""The CUDA kernels of norm_lif compiled for sm_80 and sm_90 without a GPU, and their machine code
read: no spills, 16-byte accesses, the bytes of the floor in every pass.
"""

import ctypes
import subprocess
from pathlib import Path

import _sass
import pytest
from test_cuda_aot import ARCHS, FLAGS, INCLUDES, NVCC, ROOT, libnvrtc, needs_nvcc, spec_of

from snnfast.backends.cuda import launch
from snnfast.backends.cuda import lif as cuda

LANES = {0: 4, 2: 8}


@pytest.fixture(scope="session")
def kernel(tmp_path_factory):
    """One kernel, all of its configuration constants, as NVRTC would get it."""
    folder = tmp_path_factory.mktemp("cubins")

    def build(names, arch):
        (folder / "one.cu").write_text(launch.source("norm.cuh")[0])
        command = [NVCC, *FLAGS, *INCLUDES, *names, f"-arch={arch}", "-cubin", "one.cu"]
        subprocess.run([*command, "-o", "one.cubin"], check=True, cwd=folder)
        code = _sass.read(folder / "one.cubin")["snnfast_norm"]
        assert code.spills == 0 and code.stack == 0
        assert code.count("LD") == code.count("ST") == 0
        return code

    return build


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
@pytest.mark.parametrize(
    ("dtype", "steps", "arch"),
    [(0, 4, "sm_80"), (0, 8, "sm_90"), (2, 4, "sm_90"), (2, 8, "sm_80")],
)
def test_bytes_of_a_scan(kernel, dtype, steps, arch):
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
    through = kernel(scan("backward", steps, dtype, wanted ^ residual | cuda.THROUGH), arch)
    assert moved(through, 6, lanes) == (2 * steps, steps, {})
    assert through.registers <= (128 if steps == 4 else 232)
    alone = kernel(scan("backward", steps, dtype, cuda.HAS_DS), arch)
    assert alone.widths("STG") == {32: 2}


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [0, 2], ids=["float32", "bfloat16"])
def test_bytes_of_stats_and_apply(kernel, dtype, arch):
    """8 steps of y in flight, or 4 of y and dx; the numbers of a channel are few."""
    lanes, names = LANES[dtype], [f"-DSNN_IO={launch.IO[dtype]}", f"-DSNN_LANES={LANES[dtype]}"]
    stats = kernel(("-DSNN_NORM_STATS", *names), arch)
    assert stats.widths("LDG") == {128: 8}
    assert stats.widths("STG") == {32: 4}
    loops = [loop for loop in stats.loops if loop.widths("LDG").get(128)]
    assert loops and loops[0].bytes("LDG") == 8 * 16
    assert loops[0].size <= 9 * 8 * lanes
    apply = kernel(("-DSNN_NORM_APPLY", *names), arch)
    assert moved(apply, 4, lanes) == (8, 4, {})
    assert stats.registers <= 96 and apply.registers <= 96


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ahead_of_time(tmp_path, dtype):
    """All kernels of a dtype as the module has them: 3 widths of 2 scans, 2 of stats and apply."""
    source, out = ROOT / "csrc" / "cuda" / f"norm_{dtype}.cu", tmp_path / "norm.o"
    archs = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in ARCHS]
    command = [NVCC, *FLAGS, *INCLUDES, *archs, "-Xcompiler", "-fPIC", "-c", str(source)]
    subprocess.run([*command, "-o", str(out)], check=True)
    folder = tmp_path / "cubins"
    folder.mkdir()
    cubins = _sass.cubins(out, folder)
    assert len(cubins) == len(ARCHS)
    for cubin in cubins:
        kernels = {n: code for n, code in _sass.read(cubin).items() if code.registers}
        assert len(kernels) == 10
        for name, code in kernels.items():
            assert code.spills == 0 and code.stack == 0, name
            assert code.registers <= 248, f"{name}: {code.registers}"
            assert code.count("LD") == code.count("ST") == 0, name
            if "norm_stats" not in name:
                assert (code.widths("STG").get(128, 0) > 0) == ("ELi1E" not in name), name


@pytest.mark.skipif(libnvrtc() is None, reason="no libnvrtc: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize(
    "names",
    [
        scan("forward", 20, 2, cuda.HAS_BORDERS | cuda.HAS_RESIDUAL),
        scan("backward", 20, 2, cuda.HAS_BORDERS | cuda.HAS_DS | cuda.HAS_DX),
        ("-DSNN_NORM_STATS", "-DSNN_IO=Float16", "-DSNN_LANES=8"),
        ("-DSNN_NORM_APPLY", "-DSNN_IO=Float32", "-DSNN_LANES=1"),
        ("-DSNN_NORM_TOTALS",),
    ],
    ids=lambda names: names[0],
)
def test_nvrtc_compiles_the_source(names):
    """What is compiled at first use where there was no nvcc: NVRTC knows no standard header."""
    path = Path(libnvrtc())
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(path))
    text, options = launch.source("norm.cuh")
    arguments = [o.encode() for o in (*options, *names, "--gpu-architecture=sm_90")]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    create = (ctypes.byref(program), text.encode(), b"norm.cu", 0, None, None)
    assert not nvrtc.nvrtcCreateProgram(*create)
    array = (ctypes.c_char_p * len(arguments))(*arguments)
    status = nvrtc.nvrtcCompileProgram(program, len(arguments), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    assert _sass.read(cubin.raw)["snnfast_norm"].spills == 0
