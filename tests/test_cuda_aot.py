"""The CUDA kernels compiled for sm_80 and sm_90 without a GPU, and their machine code read: no
spills, 16-byte accesses, the bytes of the floor, few instructions, loads in flight.
"""

import pytest
import torch
from _cuda_aot import (
    ROOT,
    each_compiler,
    each_pair,
    needs_nvcc,
    needs_nvrtc,
    nvrtc_kernel,
    of_the_module,
    one_kernel,
)

from snnfast.backends.cuda import lif as cuda
from snnfast.backends.cuda import nvrtc
from snnfast.backends.spec import DECAY_INPUT, DECAY_STATE
from snnfast.ops.layer import lif_layer

pytestmark = pytest.mark.usefixtures("read_at_once")


def spec_of(steps, name="sigmoid", charge=DECAY_INPUT):
    layer = lif_layer(steps, surrogate=name, decay_input=charge == DECAY_INPUT)
    return layer._replace(divide=True, rate=2.0)


def kernel(direction, spec, dtype, arch, flags, compiled=one_kernel):
    return compiled("lif", cuda.defines(direction, spec, dtype, True, flags), arch)


@each_compiler
@each_pair
def test_one_configuration(dtype, steps, arch, compiled):
    """The default neuron, 16 bytes of every step in each thread; the whole kernel is counted."""
    lanes, size = (4, 4) if dtype == torch.float32 else (8, 2)
    elements = lanes * steps
    forward = kernel("forward", spec_of(steps), dtype, arch, 0, compiled)
    backward = kernel("backward", spec_of(steps), dtype, arch, cuda.HAS_DS, compiled)
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


@each_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_borders(dtype, compiled):
    """Beyond 8 steps: V at the border of a segment, 4/8 bytes a step, each way."""
    lanes, size = (4, 4) if dtype == torch.float32 else (8, 2)
    spec, border = spec_of(100), 4 * lanes
    flags = cuda.HAS_BORDERS
    forward = kernel("forward", spec, dtype, "sm_90", flags, compiled)
    backward = kernel("backward", spec, dtype, "sm_90", flags | cuda.HAS_DS, compiled)
    assert forward.bytes("LDG") == size * lanes * 8
    assert forward.bytes("STG") == size * lanes * 8 + border
    assert backward.bytes("LDG") == 2 * size * lanes * 8 + border
    assert backward.bytes("STG") == size * lanes * 8
    assert forward.spills == backward.spills == 0
    assert backward.size <= 32 * 8 * lanes


@each_compiler
@pytest.mark.parametrize("charge", [DECAY_INPUT, DECAY_STATE], ids=["input", "state"])
def test_learnable_rate(charge, compiled):
    """A rate per channel with its gradient: more registers, still no spills."""
    flags = cuda.HAS_DS | cuda.HAS_RATE | cuda.PER_CHANNEL | cuda.HAS_DRATE
    code = kernel("backward", spec_of(8, charge=charge), torch.bfloat16, "sm_90", flags, compiled)
    assert code.spills == 0 and code.stack == 0


@needs_nvcc
@pytest.mark.parametrize("io", ["Float32", "BFloat16"])
def test_ahead_of_time(io):
    """All kernels of a dtype as the module has them: 3 widths, 6 neurons, 2 directions."""
    for kernels in of_the_module("lif", f"-DSNN_IO={io}"):
        check_kernels(kernels)


def check_kernels(kernels):
    assert len(kernels) == 36
    for name, code in kernels.items():
        assert code.spills == 0 and code.stack == 0, name
        assert code.registers <= 248, f"{name}: {code.registers}"
        assert code.count("LD") == code.count("ST") == 0
        vector = "ELi1ELi8E" not in name
        assert (code.widths("STG").get(128, 0) > 0) == vector, name


@needs_nvrtc
def test_nvrtc_compiles_the_source():
    spec = spec_of(20, "atan")
    for direction, flags in (("forward", cuda.HAS_BORDERS), ("backward", cuda.HAS_DS)):
        names = cuda.defines(direction, spec, torch.bfloat16, True, flags)
        assert nvrtc_kernel("lif", names).spills == 0


@needs_nvrtc
def test_nvrtc_flushes_no_denormals():
    """As everywhere: with tau = 2 a silent state settles at 1.4e-45, not at 0."""
    for steps in (4, 20):
        code = nvrtc_kernel("lif", cuda.defines("forward", spec_of(steps), torch.float32, True, 0))
        assert any(i.base == "FADD" for i in code.instructions)
        assert not any("FTZ" in i.opcode for i in code.instructions)


@needs_nvrtc
def test_cubins_are_kept(monkeypatch, tmp_path):
    """By source, options and compiler: the second process compiles nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text, options = 'extern "C" __global__ void f() {}', ("--gpu-architecture=sm_90",)
    first = nvrtc.cubin(text, options)
    compiled = []
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *args: compiled.append(args) or b"other")
    assert nvrtc.cubin(text, options) == first and not compiled
    assert nvrtc.cubin(text, ("--gpu-architecture=sm_80",)) == b"other" and len(compiled) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert nvrtc.cubin(text, options) == b"other"


@needs_nvrtc
def test_nvrtc_says_what_is_wrong():
    with pytest.raises(RuntimeError, match=r"snnfast.cu\(1\): error: this declaration has no"):
        nvrtc.compile_cubin("nonsense;", ("--gpu-architecture=sm_90",))


def test_without_nvrtc(monkeypatch):
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    with pytest.raises(RuntimeError, match=r"it is not installed: pip install 'snnfast\[cuda"):
        nvrtc.cubin("", ())


def test_constants_are_those_of_the_headers():
    """The numbers that Python sends stand in csrc/cuda/lif_args.h."""
    text = (ROOT / "csrc" / "cuda" / "lif_args.h").read_text()
    for name, value in (
        ("kHasV0", cuda.HAS_V0), ("kHasRate", cuda.HAS_RATE), ("kHasV", cuda.HAS_V),
        ("kEveryState", cuda.EVERY_STATE), ("kHasBorders", cuda.HAS_BORDERS),
        ("kHasDs", cuda.HAS_DS), ("kHasDv0", cuda.HAS_DV0), ("kHasDrate", cuda.HAS_DRATE),
        ("kSumDx", cuda.SUM_DX), ("kPerChannel", cuda.PER_CHANNEL),
    ):  # fmt: skip
        assert f"  {name} = {value}," in text
    assert f"kThreads = {cuda._THREADS};" in text
