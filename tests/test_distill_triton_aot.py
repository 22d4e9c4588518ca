"""The distillation kernels compiled ahead of time for sm_80 and sm_90, and their machine code read.

Needs no GPU. What is compiled are the calls that the backend makes, tiles and flags included.

Counting rules. Bytes are what one thread moves with the LDG and STG of the kernel, which has no
loop where all steps are in registers. A program has ROWS x BLOCK elements of each step, so a tensor
that is read once costs each of its threads ROWS x BLOCK x b / threads bytes per step, b those of an
element, lanes past the last class counted. To these come the label and the program's sums.
"""

from collections import Counter

import pytest
import torch
from _aot import compile_call

import snnfast
from snnfast.backends.spec import SELF_CORRECT, StepwiseLoss
from snnfast.backends.triton import distill as backend
from snnfast.ops.distill import loss_options

pytestmark = pytest.mark.usefixtures("read_at_once")
TWKD = loss_options(snnfast.twkd_loss)
TSER = loss_options(snnfast.tser_loss)
TSSD = loss_options(snnfast.tssd_loss, student_steps=2)
SPECS = {"twkd": TWKD, "tser": TSER, "tssd": TSSD}
SUMS = 5 * 4  # bytes of a program's sums
LABEL = 8  # bytes of the label of a program's one row


def make_tensor(*sizes, dtype=torch.float32):
    return torch.empty(sizes, dtype=dtype, device="meta")


def make_calls(spec, shape, dtype, *, soft=False, other=True, gradient=True, transposed=False):
    """A loss kernel's call on tensors without memory, behind those of the statistics that it needs.
    ``other``: teacher or auxiliary logits."""
    steps, batch, classes = shape

    def tensor(*sizes, dtype=dtype):
        return make_tensor(*sizes, dtype=dtype)

    logits = tensor(batch, steps, classes).transpose(0, 1) if transposed else tensor(*shape)
    target = tensor(batch, classes) if soft else tensor(batch, dtype=torch.int64)
    if isinstance(spec, StepwiseLoss):
        teacher = tensor(batch, classes) if other else None
        into = tensor(*shape) if gradient else None
        return backend.stepwise_calls(spec, logits, target, teacher, into)[0]
    aux = tensor(*shape) if other else None
    into = (tensor(*shape) if gradient else None, tensor(*shape) if gradient and other else None)
    return backend.tssd_calls(spec, logits, target, aux, *into)[0]


def make_call(*args, **kwargs):
    return make_calls(*args, **kwargs)[-1]


def bytes_per_step(call, dtype):
    """What one thread moves of one step of one tensor."""
    constants = call.constants
    elements = constants["ROWS"] * constants["BLOCK"]
    return elements * dtype.itemsize // (32 * constants["num_warps"])


@pytest.mark.parametrize(
    ("shape", "dtype", "arch"),
    (
        ((4, 512, 1000), torch.bfloat16, 90),
        ((4, 512, 1000), torch.float32, 80),
        ((6, 128, 100), torch.bfloat16, 80),
        ((6, 128, 100), torch.float32, 90),
    ),
    ids=str,
)
@pytest.mark.parametrize("name", SPECS)
def test_logits_are_read_and_gradients_written_once(name, shape, dtype, arch):
    call = make_call(SPECS[name], shape, dtype)
    kernel = compile_call(call, arch)
    assert kernel.spills == 0 and kernel.stack == 0
    assert not call.constants["LONG"] and not kernel.loops
    step = bytes_per_step(call, dtype)
    once = step * shape[0] * (2 if name == "tssd" else 1)  # logits and auxiliary logits
    teacher = 0 if name == "tssd" else step
    assert kernel.bytes("LDG") == once + teacher + LABEL
    assert kernel.bytes("STG") == once + SUMS
    if name != "tssd":
        width = max(kernel.widths("LDG")) // 8
        assert kernel.loads_ahead() >= once // width, "a load waits for another"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=("bfloat16", "float32"))
@pytest.mark.parametrize("name", SPECS)
def test_accesses_are_as_wide_as_the_shape_allows(name, dtype):
    """C = 1000 is a multiple of 8, but not of 16: the compiler is told."""
    call = make_call(SPECS[name], (4, 512, 1000), dtype)
    kernel = compile_call(call, 90)
    wide = min(128, 8 * bytes_per_step(call, dtype))
    assert set(kernel.widths("LDG")) == {wide, 8 * LABEL}
    assert set(kernel.widths("STG")) == {wide, 32}


@pytest.mark.parametrize("arch", (80, 90))
@pytest.mark.parametrize(
    "name, shape, dtype, options",
    (
        ("correct", (8, 512, 1000), torch.bfloat16, {}),
        ("correct", (4, 64, 4096), torch.float32, {"soft": True}),
        ("correct", (9, 64, 1000), torch.float32, {}),
        ("tser apart", (8, 64, 2000), torch.float32, {"soft": True}),
        ("tssd both", (8, 512, 1000), torch.float32, {}),
        ("tssd means", (10, 32, 10), torch.float32, {"soft": True}),
        ("twkd", (4, 32768, 10), torch.bfloat16, {}),
        ("twkd", (6, 128, 100), torch.float32, {"transposed": True}),
        ("twkd", (4, 64, 21841), torch.float32, {}),
        ("tser", (4, 64, 21840), torch.bfloat16, {}),
        ("tssd", (4, 64, 21841), torch.float32, {}),
    ),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_no_spills(name, shape, dtype, options, arch):
    correct = TWKD._replace(self_target=SELF_CORRECT, skip_all_wrong=True, label_smoothing=0.1)
    others = {
        "correct": correct,
        "tser apart": TSER._replace(ce_temperature=2.0, entropy_temperature=5.0),
        "tssd both": TSSD._replace(ce_all=0.5, ce_student=0.5),
        "tssd means": TSSD._replace(ce_all=0.5, ce_student=0.5, per_step=False),
    }
    for call in make_calls((SPECS | others)[name], shape, dtype, **options):
        kernel = compile_call(call, arch)
        assert kernel.spills == 0 and kernel.stack == 0


@pytest.mark.parametrize("name, tensors", (("tser", 2 + 1), ("tssd", 4)))
def test_rows_of_many_classes_move_16_bytes_at_a_time(name, tensors):
    """Each step once more, by a program for every chunk, behind the statistics."""
    *statistics, call = make_calls(SPECS[name], (1, 64, 21840), torch.float32)
    assert call.programs == 64 * 11
    for one in statistics:
        assert one.programs == 64 and set(compile_call(one, 90).widths("LDG")) == {128}
    kernel = compile_call(call, 90)
    accesses = kernel.widths("LDG")[128] + kernel.widths("STG")[128]
    assert 16 * accesses == tensors * bytes_per_step(call, torch.float32)


def test_equal_temperatures_share_a_softmax():
    """TSER's entropy is at tau, unless told otherwise: it costs no exponentials of its own."""
    shape = (4, 512, 1000)
    shared, alone = (
        compile_call(make_call(spec, shape, torch.float32), 90).count("MUFU")
        for spec in (TSER, TSER._replace(entropy_temperature=5.0))
    )
    assert alone - shared >= shape[0] * 8


def test_steps_do_not_rebuild_kernels():
    for classes in (10, 1000, 4000, 21841):
        built = set()
        for steps in range(1, 101):
            for call in make_calls(TWKD, (steps, 32, classes), torch.bfloat16):
                absent = tuple(value is None for value in call.arguments)
                built.add((call.kernel, absent, *call.constants.items()))
                sizes = dict(zip(call.kernel.arg_names, call.arguments))
                sizes = {name for name, value in sizes.items() if type(value) is int}
                assert sizes == set(call.kernel.do_not_specialize)
        assert max(Counter(kernel.fn.__name__ for kernel, *_ in built).values()) <= 10


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=("bfloat16", "float32"))
def test_scaling_reads_and_writes_once(dtype):
    gradient, number = make_tensor(4, 512, 1000, dtype=dtype), make_tensor()
    call = backend.scale_call(gradient, number, number, gradient)
    kernel = compile_call(call, 90)
    assert kernel.spills == 0
    assert kernel.widths("LDG") == {128: 1, 32: 2} and kernel.widths("STG") == {128: 1}


def test_launches(monkeypatch):
    """Two forward, one backward; the last one forward needs no more than the sums."""
    launched = []
    monkeypatch.setattr(backend.Call, "launch", lambda call, device: launched.append(call))
    logits, target = make_tensor(4, 32, 10), make_tensor(32, dtype=torch.int64)
    outputs = (make_tensor(), make_tensor(4), make_tensor())
    backend.stepwise_loss(TWKD, logits, target, logits[0], *outputs, logits)
    outputs = (make_tensor(), make_tensor(3), make_tensor())
    backend.tssd_loss(TSSD, logits, target, logits, *outputs, logits, logits)
    backend.scale_gradient(logits, outputs[0], outputs[0], logits)
    names = [call.kernel.fn.__name__ for call in launched]
    assert names == ["stepwise_rows", "finish", "tssd_rows", "finish", "scale_gradient"]
    for call in (launched[1], launched[3]):
        assert call.programs == 1
        assert compile_call(call, 90).spills == 0


@pytest.mark.parametrize(
    "name, soft, launches", (("tser", False, 2), ("twkd", True, 4), ("tssd", True, 5))
)
def test_rows_of_many_classes_take_a_launch_for_statistics_of_each_kind(name, soft, launches):
    calls = make_calls(SPECS[name], (4, 32, 4097), torch.float32, soft=soft)
    names = [call.kernel.fn.__name__ for call in calls]
    assert names[:-1] == ["row_statistics"] * launches
