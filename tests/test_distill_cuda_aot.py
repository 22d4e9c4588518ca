"""The CUDA distillation losses compiled for sm_80 and sm_90 without a GPU, and their machine code
read: no spills, logits read once and gradients written once where the row lies in shared memory.
"""

import pytest
import torch
from _cuda_aot import ROOT, needs_nvcc, needs_nvrtc, nvrtc_kernel, of_the_module

from snnfast.backends.cuda import distill as backend

pytestmark = pytest.mark.usefixtures("read_at_once")
DTYPES = {"float32": 32, "float16": 16, "bfloat16": 16}
IO = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}
AHEAD = 8  # steps whose loads are under way at once


kernels = of_the_module


def only(kernels, *parts):
    (found,) = [code for name, code in kernels.items() if all(part in name for part in parts)]
    return found


@needs_nvcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_spills(dtype):
    """Two objectives in two layouts and the scaling; four blocks of 256 threads fit at once."""
    for of_arch in kernels("distill", f"-DSNN_IO={IO[dtype]}"):
        assert len(of_arch) == 5
        for name, code in of_arch.items():
            assert code.spills == 0 and code.stack == 0, name
            assert code.registers <= 64, f"{name}: {code.registers}"
            assert code.count("LD") == code.count("ST") == 0, name
            assert code.size < 4500, f"{name}: {code.size}"


@needs_nvcc
@pytest.mark.parametrize("objective", ["Stepwise", "Tssd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_read_once_and_gradients_written_once(dtype, objective):
    """A row in shared memory. Each tensor has one place that reads it, before anything is computed,
    AHEAD steps of logits at a time; a teacher and class probabilities have one for each width."""
    bits = DTYPES[dtype]
    for of_arch in kernels("distill", f"-DSNN_IO={IO[dtype]}"):
        code = only(of_arch, "Lb1", f"{objective}Numbers")
        small = {32: 4, 16: 4} if objective == "Stepwise" else {32: 1, 16: 1}
        # Stepwise: logits; teacher, probabilities, and those twice more for their largest class.
        # Tssd: logits and auxiliary logits; probabilities.
        small[bits] += AHEAD if objective == "Stepwise" else 2 * AHEAD
        assert code.widths("LDG") == small | {64: 2}
        computing = [loop for loop in code.loops if loop.count("MUFU")]
        assert computing and not any(loop.count("LDG") for loop in computing)
        if objective == "Stepwise":
            # One place writes gradients, two the zeros of rows that do not count (there are no
            # auxiliary ones), one the terms.
            assert code.widths("STG") == {bits: 3, 128: 1}
            assert sum(i.base == "STG" for i in computing[-1].instructions) == 1


@needs_nvcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_moves_16_bytes_at_a_time(dtype):
    bits = DTYPES[dtype]
    for of_arch in kernels("distill", f"-DSNN_IO={IO[dtype]}"):
        code = only(of_arch, "distill_scale")
        assert code.widths("LDG")[128] == code.widths("STG")[128] == 1
        # What is left is gone through element by element; factor and unit are two more loads.
        assert set(code.widths("LDG")) == {128, bits, 32} and set(code.widths("STG")) == {128, bits}


@needs_nvcc
def test_finish():
    for of_arch in kernels("distill_finish"):
        code = only(of_arch, "distill_finish")
        assert code.spills == 0 and code.stack == 0
        assert code.registers <= 64
        # 65,536 rows are 16 turns of 4 rows a thread.
        (loop,) = [b for b in code.loops if b.widths("LDG").get(128)]
        assert loop.widths("LDG") == {128: 4, 64: 4}


@needs_nvrtc
@pytest.mark.parametrize(
    "names",
    [
        backend.defines("stepwise", torch.float32, True),
        backend.defines("stepwise", torch.float16, False),
        backend.defines("tssd", torch.bfloat16, True),
        backend.defines("tssd", torch.float32, False),
        ("-DSNN_SCALE", "-DSNN_IO=BFloat16"),
        ("-DSNN_FINISH",),
    ],
    ids=lambda names: " ".join(names),
)
def test_nvrtc_compiles_the_source(names):
    code = nvrtc_kernel("distill", names)
    assert code.spills == 0 and code.stack == 0 and code.registers <= 64


def test_constants_are_those_of_the_headers():
    """The numbers that Python sends stand in csrc/cuda/distill_args.h."""
    text = (ROOT / "csrc" / "cuda" / "distill_args.h").read_text()
    assert f"kScratch = {backend._SCRATCH};" in text
    assert f"kFinishThreads = {backend._FINISH_THREADS};" in text
    assert f"kScaleThreads = {backend._SCALE_THREADS};" in text
    for classes in (1, 10, 100, 1000, 21841):
        assert f"kRowThreads = {max(256, backend.plan(4, classes, 1, False, 1).threads)};" in text
