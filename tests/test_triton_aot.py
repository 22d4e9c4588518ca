"""The Triton kernels compiled ahead of time for sm_80 and sm_90, and their machine code read.

Needs no GPU. What is compiled are the calls that the backend makes, tiles and flags included.

Counting rules. A segment is the whole kernel for T <= 8, prologue included, and the body of the
loop over segments beyond. Instructions per neuron-step are the segment's SASS instructions without
padding, over (steps of a segment) x (elements of a thread). Bytes are those of the segment's LDG
and STG, over the same; a state kept between segments adds 4 bytes per element and segment.
"""

import math

import pytest
import torch
from _aot import compile_call

from snnfast.backends.spec import SEGMENT, segments
from snnfast.backends.triton import lif as backend
from snnfast.ops.layer import lif_layer

pytestmark = pytest.mark.usefixtures("read_at_once")
BUDGET = 30  # instructions per neuron-step in backward
SHAPE = (32, 128, 16, 16)
TAU_17 = {"number": 1.7, "divide": True}

main_cases = pytest.mark.parametrize(
    "arch, dtype, T, surrogate",
    [
        (arch, dtype, T, surrogate)
        for arch in (80, 90)
        for dtype in (torch.bfloat16, torch.float32)
        for T in (4, 8, 16)
        for surrogate in (("atan", "sigmoid", "rect") if arch == 90 else ("sigmoid",))
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)


def make_call(T, dtype, *, backward, surrogate="atan", rate=None, states=None, **changes):
    """A call of the backend on tensors without memory, tau = 2 unless changed. ``rate`` is None,
    "scalar" or "channel"; ``changes`` are fields of the spec."""

    def tensor(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    static = changes.pop("static", False)
    with_v0 = changes.pop("v0", False)
    number = changes.pop("number", 0.5)
    place = {"rate": number, "channels": SHAPE[1], "inner": math.prod(SHAPE[2:])}
    spec = lif_layer(T, surrogate=surrogate)._replace(**place | changes)
    x, s, ds = (tensor(T, *SHAPE, dtype=dtype) for _ in range(3))
    x = x[:1].expand(T, *SHAPE) if static else x
    v0 = tensor(*SHAPE) if with_v0 else None
    v = {None: None, "last": tensor(*SHAPE), "all": tensor(T, *SHAPE)}[states]
    rates = {None: None, "scalar": tensor(), "channel": tensor(SHAPE[1])}[rate]
    borders = tensor(segments(T) - 1, *SHAPE) if T > SEGMENT else None
    if not backward:
        return backend.forward_call(spec, None, x, v0, rates, s, v, borders)
    dx = tensor(*SHAPE, dtype=dtype) if static else tensor(T, *SHAPE, dtype=dtype)
    place = backend.backward_place(spec, x, v0, rates, v, None, None, False)
    parts = None if rates is None else backend.partial_sums(spec, x, rates, place)
    return backend.backward_call(spec, None, x, v0, rates, borders, ds, v, dx, v0, parts)


def segment(kernel, T):
    """The instructions that run once per segment."""
    if T <= SEGMENT:
        assert not kernel.loops
        return kernel
    return kernel.loops[-1]


def elements(call):
    return call.constants["BLOCK"] // (32 * call.constants["num_warps"])


@main_cases
def test_backward(arch, dtype, T, surrogate):
    call = make_call(T, dtype, backward=True, surrogate=surrogate)
    kernel = compile_call(call, arch)
    part, each = segment(kernel, T), elements(call)
    steps, borders = min(T, SEGMENT), 4 if T > SEGMENT else 0
    assert kernel.spills == 0 and kernel.stack == 0
    assert kernel.registers <= 144
    assert set(part.widths("LDG")) == {128} and set(part.widths("STG")) == {128}
    assert part.bytes("LDG") == each * (steps * 2 * dtype.itemsize + borders)
    assert part.bytes("STG") == each * steps * dtype.itemsize
    assert part.loads_ahead() >= 4
    assert part.size / (steps * each) <= BUDGET


@pytest.mark.parametrize("arch", (80, 90))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=("bfloat16", "float32"))
@pytest.mark.parametrize("T", (4, 8, 16))
def test_forward(arch, dtype, T):
    call = make_call(T, dtype, backward=False)
    kernel = compile_call(call, arch)
    part, each = segment(kernel, T), elements(call)
    steps, borders = min(T, SEGMENT), 4 if T > SEGMENT else 0
    assert kernel.spills == 0 and kernel.stack == 0
    assert kernel.registers <= 64
    assert set(part.widths("LDG")) == {128} and set(part.widths("STG")) == {128}
    assert part.bytes("LDG") == each * steps * dtype.itemsize
    assert part.bytes("STG") == each * (steps * dtype.itemsize + borders)
    assert part.loads_ahead() >= 4
    assert part.count("FFMA") == 0, "the state's update is contracted"


def test_the_quotient_takes_two_fma():
    call = make_call(8, torch.float32, backward=False, **TAU_17)
    kernel = compile_call(call, 90)
    assert kernel.count("FFMA") == 2 * 8 * elements(call)
    assert kernel.count("CALL") == 0 and kernel.count("MUFU") == 0


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=("bfloat16", "float32"))
def test_static_input_is_read_and_its_gradient_written_once(dtype, backward):
    call = make_call(8, dtype, backward=backward, static=True)
    kernel = compile_call(call, 90)
    each = elements(call) * dtype.itemsize
    assert kernel.bytes("LDG") == each * (9 if backward else 1)
    assert kernel.bytes("STG") == each * (1 if backward else 8)


@pytest.mark.parametrize(
    "options",
    (
        {"T": 20, "surrogate": "sigmoid"},
        {"T": 3, **TAU_17, "hard": False, "v0": True, "states": "last"},
        {"T": 20, "rate": "channel", "divide": True, "v0": True, "states": "all", "reset": -0.2},
        {"T": 8, "rate": "scalar"},
    ),
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_no_spills_with_everything_asked_for(options):
    options = dict(options)
    T = options.pop("T")
    for backward in (False, True):
        kernel = compile_call(make_call(T, torch.bfloat16, backward=backward, **options), 90)
        assert kernel.spills == 0 and kernel.stack == 0
