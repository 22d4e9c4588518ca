"""Kernels that are written from a neuron's step, compiled ahead of time for sm_80 and sm_90, and
their machine code read. Needs no GPU; the counting rules are those of test_triton_aot.py."""

import math

import programs
import pytest
import test_triton_aot as lif
import torch
from _aot import compile_call

import snnfast
from snnfast import surrogate
from snnfast.backends.spec import SEGMENT, segments
from snnfast.backends.triton import neuron as backend

pytestmark = pytest.mark.usefixtures("read_at_once")
SHAPE = (32, 128, 16, 16)
ATAN = surrogate.resolve("atan")
INSTRUCTIONS = {"lif": 22, "adaptive_lif": 36, "synaptic": 30, "izhikevich": 64, "exponential": 150}
"""Per neuron-step in backward, at most."""


def tensor(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def make_call(step, T, dtype, *, backward, channels=False, static=False, every=False, v0=False):
    """A call of the backend on tensors without memory."""
    place = {"channels": SHAPE[1], "inner": math.prod(SHAPE[2:])}
    layer = programs.layer_of(step, ATAN, T, **place)
    whole = (T, *SHAPE)
    xs = [tensor(*whole, dtype=dtype) for _ in range(step.inputs)]
    xs = [x[:1].expand(whole) for x in xs] if static else xs
    outputs = [tensor(*whole, dtype=dtype) for _ in range(step.outputs)]
    states = [tensor(*SHAPE) if v0 else None for _ in range(step.states)]
    news = [tensor(*whole) if every else None for _ in range(step.states)]
    params = [tensor(SHAPE[1]) if channels else tensor() for _ in range(step.params)]
    borders = tensor(step.states, segments(T) - 1, *SHAPE) if T > SEGMENT else None
    if not backward:
        news = news if every else ()
        return backend.forward_call(layer, xs, states, params, outputs, news, borders)
    dxs = [tensor(*(SHAPE if static else whole), dtype=dtype) for _ in xs]
    given = (layer, xs, states, params, borders, outputs, news, dxs, states, params)
    return backend.backward_call(*given)[0]


def segment(kernel, T):
    """The instructions that run once per segment."""
    return kernel if T <= SEGMENT else kernel.loops[-1]


def elements(call):
    return call.constants["L"].block // (32 * call.constants["num_warps"])


def at_floor(step, part, call, T, dtype, backward):
    """Whether all is read and written once, in accesses as wide as a thread's elements are."""
    each, steps = elements(call), min(T, SEGMENT)
    moved = {"LDG": step.inputs, "STG": step.outputs}
    if backward:
        moved = {"LDG": step.inputs + step.outputs, "STG": step.inputs}
    borders = 4 * step.states if T > SEGMENT else 0
    single = 4 * step.params  # read or written once a program
    for op, streams in moved.items():
        bytes_ = each * (steps * streams * dtype.itemsize + borders * (backward == (op == "LDG")))
        assert bytes_ <= part.bytes(op) <= bytes_ + single, op
        assert part.widths(op)[8 * each * dtype.itemsize] >= steps * streams


def eight_steps_of_half(step, backward, arch, spills=0):
    call = make_call(step, 8, torch.bfloat16, backward=backward)
    kernel = compile_call(call, arch)
    assert kernel.spills <= spills and kernel.stack <= 4 * spills
    assert kernel.registers <= 128
    at_floor(step, kernel, call, 8, torch.bfloat16, backward)
    return call, kernel


# Each neuron forward and backward, on one architecture each.
FAMILY = [
    (name, arch, (k + (arch == 80)) % 2 == 0)
    for k, name in enumerate(snnfast.neurons.__all__)
    for arch in (80, 90)
]


@pytest.mark.parametrize(("name", "arch", "backward"), FAMILY, ids=str)
def test_the_family(name, arch, backward):
    # ptxas gives one word up for a sixth block of 80 registers.
    spills = 2 if (name, arch, backward) == ("klif", 80, True) else 0
    eight_steps_of_half(getattr(snnfast.neurons, name).program.step, backward, arch, spills)


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_eight_steps_of_half(name, backward):
    call, kernel = eight_steps_of_half(programs.named(name), backward, 80)
    assert kernel.loads_ahead() >= (4 if backward else 2)
    if backward:
        assert kernel.size / (8 * elements(call)) <= INSTRUCTIONS[name]
    else:
        assert elements(call) == 8


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("T, dtype", ((4, torch.float32), (16, torch.float16)), ids=str)
def test_other_lengths(T, dtype, backward):
    step = programs.named("synaptic")
    call = make_call(step, T, dtype, backward=backward)
    kernel = compile_call(call, 90)
    assert kernel.spills == 0 and kernel.registers <= 128
    at_floor(step, segment(kernel, T), call, T, dtype, backward)


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("T", (4, 8, 16))
def test_as_short_as_the_kernel_of_lif(T, backward):
    """Whose reset to zero this one is, its spike detached; steps and tiles are the same."""
    written = make_call(programs.named("lif"), T, torch.bfloat16, backward=backward)
    own = lif.make_call(T, torch.bfloat16, backward=backward, detach_reset=True)
    written, own = compile_call(written, 90), compile_call(own, 90)
    assert written.size <= 1.02 * own.size and written.registers <= own.registers + 8


def test_sums_are_not_contracted():
    """A forward without a quotient has no fma at all."""
    call = make_call(programs.named("synaptic"), 8, torch.float32, backward=False)
    kernel = compile_call(call, 90)
    assert kernel.count("FFMA") == 0 and kernel.count("FMUL") and kernel.count("FADD")


@pytest.mark.parametrize("name, each", (("adaptive_lif", 2), ("lif", 0)))
def test_a_quotient_takes_two_fma(name, each):
    """That by a power of two is a product."""
    call = make_call(programs.named(name), 8, torch.float32, backward=False)
    kernel = compile_call(call, 90)
    assert kernel.count("FFMA") == each * 8 * elements(call)
    assert kernel.count("CALL") == 0 and kernel.count("MUFU") == 0


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_static_input_is_read_and_its_gradient_written_once(backward):
    step = programs.named("lif")
    call = make_call(step, 8, torch.bfloat16, backward=backward, static=True)
    kernel = compile_call(call, 90)
    each = elements(call) * 2
    assert kernel.bytes("LDG") == each * (9 if backward else 1)
    assert kernel.bytes("STG") == each * (1 if backward else 8)


@pytest.mark.parametrize("name", ("adaptive_lif", "izhikevich"))
def test_no_spills_with_everything_asked_for(name):
    step = programs.named(name)
    for backward in (False, True):
        call = make_call(
            step, 20, torch.bfloat16, backward=backward, channels=True, every=True, v0=True
        )
        kernel = compile_call(call, 90)
        assert kernel.spills == 0 and kernel.stack == 0
