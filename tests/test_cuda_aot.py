"""The CUDA kernels compiled for sm_80 and sm_90 without a GPU, and their machine code read: no
spills, 16-byte accesses, the bytes of the floor, few instructions, loads in flight.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import _sass
import pytest

from snnfast.backends.cuda import lif as cuda
from snnfast.backends.spec import DECAY_INPUT, DECAY_STATE
from snnfast.ops.layer import lif_layer

ROOT = Path(__file__).resolve().parents[1]
HOMES = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
NVCC = shutil.which("nvcc") or next(
    (str(Path(h, "bin/nvcc")) for h in HOMES if h and Path(h, "bin/nvcc").exists()), None
)
needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="nvcc is not in CUDA_HOME, on PATH or in /usr/local/cuda"
)
ARCHS = ["sm_80", "sm_90"]
FLAGS = ["-std=c++17", "-O3", "-fmad=false"]
INCLUDES = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]


def spec_of(steps, name="sigmoid", charge=DECAY_INPUT):
    layer = lif_layer(steps, surrogate=name, decay_input=charge == DECAY_INPUT)
    return layer._replace(divide=True, rate=2.0)


@pytest.fixture(scope="session")
def kernel(tmp_path_factory):
    """The kernel of one configuration, all of it constants, as NVRTC would get it."""
    folder = tmp_path_factory.mktemp("cubins")

    def build(direction, spec, dtype, arch, flags, vector=True):
        names = cuda.defines(direction, spec, dtype, vector, flags)
        (folder / "one.cu").write_text(cuda.source()[0])
        command = [NVCC, *FLAGS, *INCLUDES, *names, f"-arch={arch}", "-cubin", "one.cu"]
        subprocess.run([*command, "-o", "one.cubin"], check=True, cwd=folder)
        return _sass.read(folder / "one.cubin")["snnfast_lif"]

    return build


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("dtype", [0, 2], ids=["float32", "bfloat16"])
def test_one_configuration(kernel, dtype, steps, arch):
    """The default neuron, 16 bytes of every step in each thread; the whole kernel is counted."""
    lanes, size = (4, 4) if dtype == 0 else (8, 2)
    elements = lanes * steps
    forward = kernel("forward", spec_of(steps), dtype, arch, 0)
    backward = kernel("backward", spec_of(steps), dtype, arch, cuda.HAS_DS)
    for code in (forward, backward):
        assert code.spills == 0 and code.stack == 0
        assert set(code.widths("LDG")) == set(code.widths("STG")) == {128}
        assert code.count("LD") == code.count("ST") == 0
    assert forward.bytes("LDG") == forward.bytes("STG") == size * elements
    assert backward.bytes("LDG") == 2 * size * elements
    assert backward.bytes("STG") == size * elements
    assert forward.loads_ahead() == steps
    assert backward.loads_ahead() == 2 * steps
    assert forward.size <= 20 * elements
    assert backward.size <= 30 * elements
    assert backward.registers <= (96 if steps == 4 else 208)


@needs_nvcc
@pytest.mark.parametrize("dtype", [0, 2], ids=["float32", "bfloat16"])
def test_borders(kernel, dtype):
    """Beyond 8 steps: V at the border of a segment, 4/8 bytes a step, each way."""
    lanes, size = (4, 4) if dtype == 0 else (8, 2)
    spec, border = spec_of(100), 4 * lanes
    forward = kernel("forward", spec, dtype, "sm_90", cuda.HAS_BORDERS)
    backward = kernel("backward", spec, dtype, "sm_90", cuda.HAS_BORDERS | cuda.HAS_DS)
    assert forward.bytes("LDG") == size * lanes * 8
    assert forward.bytes("STG") == size * lanes * 8 + border
    assert backward.bytes("LDG") == 2 * size * lanes * 8 + border
    assert backward.bytes("STG") == size * lanes * 8
    assert forward.spills == backward.spills == 0
    assert backward.size <= 32 * 8 * lanes


@needs_nvcc
@pytest.mark.parametrize("charge", [DECAY_INPUT, DECAY_STATE], ids=["input", "state"])
def test_learnable_rate(kernel, charge):
    """A rate per channel with its gradient: more registers, still no spills."""
    flags = cuda.HAS_DS | cuda.HAS_RATE | cuda.PER_CHANNEL | cuda.HAS_DRATE
    code = kernel("backward", spec_of(8, charge=charge), 2, "sm_90", flags)
    assert code.spills == 0 and code.stack == 0


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ahead_of_time(tmp_path, dtype):
    """All kernels of a dtype as the module has them: 3 widths, 6 neurons, 2 directions."""
    source, out = ROOT / "csrc" / "cuda" / f"lif_{dtype}.cu", tmp_path / "lif.o"
    archs = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in ARCHS]
    command = [NVCC, *FLAGS, *INCLUDES, *archs, "-Xcompiler", "-fPIC", "-c", str(source)]
    subprocess.run([*command, "-o", str(out)], check=True)
    folder = tmp_path / "cubins"
    folder.mkdir()
    cubins = _sass.cubins(out, folder)
    assert len(cubins) == len(ARCHS)
    for cubin in cubins:
        check_kernels({n: code for n, code in _sass.read(cubin).items() if code.registers})


def check_kernels(kernels):
    assert len(kernels) == 36
    for name, code in kernels.items():
        assert code.spills == 0 and code.stack == 0, name
        assert code.registers <= 248, f"{name}: {code.registers}"
        assert code.count("LD") == code.count("ST") == 0
        vector = "ELi1ELi8E" not in name
        assert (code.widths("STG").get(128, 0) > 0) == vector, name


def libnvrtc() -> str | None:
    """The library of a pip wheel (nvidia-cuda-nvrtc, or what a CUDA build of torch brings)."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations] if spec else []
    roots += [Path(h) for h in HOMES if h]
    found = [f for root in roots for f in sorted(root.glob("**/libnvrtc.so*"))]
    return str(found[0]) if found else None


@pytest.mark.skipif(libnvrtc() is None, reason="no libnvrtc: pip install nvidia-cuda-nvrtc")
def test_nvrtc_compiles_the_source():
    """What is compiled at first use where there was no nvcc: NVRTC knows no standard header."""
    path = Path(libnvrtc())
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(path))
    text, options = cuda.source()
    spec = spec_of(20, "atan")
    for direction, flags in (("forward", cuda.HAS_BORDERS), ("backward", cuda.HAS_DS)):
        names = cuda.defines(direction, spec, 2, True, flags)
        arguments = [o.encode() for o in (*options, *names, "--gpu-architecture=sm_90")]
        program = ctypes.c_void_p()
        assert not nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"lif.cu", 0, None, None
        )
        array = (ctypes.c_char_p * len(arguments))(*arguments)
        status, size = nvrtc.nvrtcCompileProgram(program, len(arguments), array), ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        assert status == 0, log.value.decode()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        assert _sass.read(cubin.raw)["snnfast_lif"].spills == 0


def test_constants_are_those_of_the_headers():
    """The numbers that Python sends stand in csrc/cuda/args.h."""
    text = (ROOT / "csrc" / "cuda" / "args.h").read_text()
    for name, value in (
        ("kHasV0", cuda.HAS_V0), ("kHasRate", cuda.HAS_RATE), ("kHasV", cuda.HAS_V),
        ("kEveryState", cuda.EVERY_STATE), ("kHasBorders", cuda.HAS_BORDERS),
        ("kHasDs", cuda.HAS_DS), ("kHasDv0", cuda.HAS_DV0), ("kHasDrate", cuda.HAS_DRATE),
        ("kSumDx", cuda.SUM_DX), ("kPerChannel", cuda.PER_CHANNEL),
    ):  # fmt: skip
        assert f"  {name} = {value}," in text
    assert f"kThreads = {cuda._THREADS};" in text
