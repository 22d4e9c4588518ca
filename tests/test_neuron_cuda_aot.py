"""The CUDA C++ of a neuron's step compiled for sm_80 and sm_90 without a GPU, and its machine code
read: no spills, at most 128 registers, 16-byte accesses and the bytes of the floor."""

import programs
import pytest
import torch
from _cuda_aot import ARCHS, each_compiler, needs_nvcc, needs_nvrtc, nvrtc_kernel, one_kernel

from snnfast import neurons, surrogate
from snnfast.backends.cuda import neuron
from snnfast.backends.spec import SEGMENT, segments

pytestmark = pytest.mark.usefixtures("read_at_once")
INSTRUCTIONS = {"lif": 28, "adaptive_lif": 50, "synaptic": 42}
"""Per neuron and step in backward, at most."""
N, CHANNELS = 4096, 16


def plan(step, T, dtype, *, backward, channels=0, v0=False):
    """What the backend launches for such tensors."""
    place = {"channels": channels, "inner": N // channels} if channels else {}
    layer = programs.layer_of(step, surrogate.resolve("atan"), T, **place)
    xs = [torch.zeros(T, N, dtype=dtype) for _ in range(step.inputs)]
    outputs = [torch.zeros(T, N, dtype=dtype) for _ in range(step.outputs)]
    states = [torch.zeros(N) if v0 else None for _ in range(step.states)]
    params = [torch.zeros(channels) if channels else torch.zeros(()) for _ in range(step.params)]
    borders = torch.zeros(step.states, segments(T) - 1, N) if T > SEGMENT else None
    if not backward:
        return neuron.forward_call(layer, xs, states, params, outputs, (), borders)[0]
    parts = [torch.zeros(N) for _ in params]
    given = (layer, xs, states, params, borders, outputs, [None] * step.states)
    return neuron.backward_call(*given, xs, states, parts)[0]


def checked(step, T, dtype, arch, *, backward, compiled=one_kernel, **options):
    """The machine code of a configuration that moves what it must."""
    made = plan(step, T, dtype, backward=backward, **options)
    kernel = made.launch.kernel
    code = compiled("neuron", kernel.names, arch, kernel.text)
    assert code.spills == 0 and code.stack == 0
    assert code.count("LD") == code.count("ST") == 0
    assert made.lanes * dtype.itemsize == 16
    steps, states = min(T, SEGMENT), made.lanes * step.states // 4
    loads, stores = (step.inputs, step.outputs)
    if backward:
        loads, stores = (step.inputs + step.outputs, step.inputs)
    loads, stores = loads * steps, stores * steps
    border = states * (T > SEGMENT)
    singles = {32: step.params} if step.params else {}
    assert code.widths("LDG") == {128: loads + border * backward} | singles
    written = singles if backward else {}
    assert code.widths("STG") == {128: stores + border * (not backward)} | written
    return made, code


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_eight_steps_of_half(name, backward, arch):
    made, code = checked(programs.named(name), 8, torch.bfloat16, arch, backward=backward)
    assert code.registers <= 128
    if backward:
        assert code.size <= INSTRUCTIONS[name] * 8 * made.lanes
    else:
        assert code.loads_ahead() >= 8


@needs_nvrtc
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("name", neurons.__all__)
def test_the_family(name, backward):
    """One architecture forward, the other backward; of three states more registers."""
    step = getattr(neurons, name).program.step
    arch = ARCHS[(neurons.__all__.index(name) + backward) % 2]
    options = {"backward": backward, "compiled": nvrtc_kernel}
    _, code = checked(step, 8, torch.bfloat16, arch, **options)
    assert code.registers <= (128 if step.states < 3 else 168)


@each_compiler
@pytest.mark.parametrize(
    "T, dtype, channels", [(4, torch.float16, CHANNELS), (20, torch.float32, 0)], ids=str
)
def test_other_lengths(T, dtype, channels, compiled):
    step = programs.named("synaptic")
    for backward in (False, True):
        options = {"backward": backward, "channels": channels, "compiled": compiled}
        assert checked(step, T, dtype, "sm_90", **options)[1].registers <= (128 if T <= 8 else 168)


@needs_nvcc
def test_nothing_spills_where_more_is_held():
    """States that are given and whose gradients are wanted, and parameters of each neuron of a
    thread: more registers instead."""
    for step, options in (
        (programs.named("adaptive_lif"), {"v0": True}),
        (programs.named("synaptic"), {"channels": N}),
        (programs.random_step(3), {}),  # three inputs, two outputs, three states
    ):
        kernel = plan(step, 8, torch.bfloat16, backward=True, **options).launch.kernel
        code = one_kernel("neuron", kernel.names, "sm_90", kernel.text)
        assert code.spills == 0 and code.stack == 0


@needs_nvcc
def test_sums_are_not_contracted():
    """A forward without a quotient has no fma at all; an exact quotient has two."""
    for name, each in (("synaptic", 0), ("adaptive_lif", 2)):
        _, code = checked(programs.named(name), 8, torch.float32, "sm_90", backward=False)
        assert code.count("FFMA") == 4 * 8 * each
        assert code.count("FMUL") and code.count("FADD") and not code.count("CALL")
