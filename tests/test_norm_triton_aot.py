"""The Triton kernels of norm_lif compiled ahead of time for sm_80 and sm_90, and their machine code
read, as test_triton_aot.py does for LIF alone.

Bytes of a pass are those of its 16-byte accesses, over (steps) x (elements of a thread): y, the
residual, spikes and gradients, which are to move once each. What is loaded or stored otherwise are
the numbers of the channels: a handful of 4-byte words per thread, whatever T.
"""

import _aot
import pytest
import torch

from snnfast.backends.spec import SEGMENT, Channels, segments
from snnfast.backends.triton import lif as backend
from snnfast.backends.triton import norm_lif as norms
from snnfast.ops.layer import lif_layer

pytestmark = pytest.mark.usefixtures("read_at_once")
BUDGET = 43  # instructions per neuron-step in backward
# Name: channels, inner, neurons of a timestep. Those of ResNet-18, an odd one, channels last.
LAYOUTS = {
    "64x32x32": (64, 1024, 32 * 64 * 1024),
    "512x4x4": (512, 16, 32 * 512 * 16),
    "64x56x56": (64, 56 * 56, 32 * 64 * 56 * 56),
    "64 last": (64, 1, 32 * 64 * 1024),
    "512 last": (512, 1, 32 * 512 * 16),
}
CASES = pytest.mark.parametrize(
    ("arch", "dtype", "layout"),
    [
        (90, torch.bfloat16, "64x32x32"),
        (90, torch.bfloat16, "64x56x56"),
        (90, torch.bfloat16, "512 last"),
        (90, torch.float32, "512x4x4"),
        (80, torch.bfloat16, "64 last"),
        (80, torch.float32, "64x32x32"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)


def tensor(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_call(call, arch=90, registers=128):
    """128 registers: four blocks fit on a multiprocessor."""
    kernel = _aot.compile_call(call, arch)
    assert kernel.spills == 0 and kernel.stack == 0
    assert kernel.registers <= registers
    return kernel


def layer(T, layout, dtype, rate=None, surrogate="atan", **changes):
    """The tensors of one layer."""
    channels, inner, n = LAYOUTS[layout]
    spec = lif_layer(T, surrogate=surrogate)
    spec = spec._replace(**{"channels": channels, "inner": inner} | changes)
    norm = Channels(channels, inner), tensor(4, channels), tensor(channels)
    y = tensor(T, n, dtype=dtype)
    borders = tensor(segments(T) - 1, n) if T > SEGMENT else None
    rates = {None: None, "scalar": tensor(), "channel": tensor(channels)}[rate]
    return spec, norm, y, borders, rates


def each(call):
    """Neurons of a thread."""
    return call.constants["TILE"].rows * call.constants["TILE"].cols // 128


def once(call, dtype):
    """Bytes of a thread's neurons in one step, which are to move in one access."""
    return each(call) * dtype.itemsize


def wide(kernel, base, size):
    """Bytes that a thread moves in accesses of ``size`` bytes."""
    return size * kernel.widths(base).get(8 * size, 0)


def part_of(kernel, T):
    return kernel if T <= SEGMENT else kernel.loops[-1]


def forward(T, layout, dtype, residual, rate=None, **changes):
    spec, (where, *norm), y, borders, rates = layer(T, layout, dtype, rate, **changes)
    r = y if residual else None
    return backend.forward_call(spec, where, y, None, rates, y, None, borders, *norm, r)


def backward(T, layout, dtype, residual, rate=None, want_dx=True, **changes):
    spec, (where, *norm), y, borders, rates = layer(T, layout, dtype, rate, **changes)
    r = y if residual else None
    place = backend.backward_place(spec, y, None, rates, None, where, r, True)
    sums = norms.partial_sums(place, 3 if rate == "channel" else 2, y.device)
    drate = backend.partial_sums(spec, y, rates, place) if rate == "scalar" else None
    drate = sums if rate == "channel" else drate
    return backend.backward_call(
        spec, where, y, None, rates, borders, y, None, y if want_dx else None, None, drate, *norm,
        r, sums,
    )  # fmt: skip


def gradient(T, layout, dtype):
    spec, (where, stats, bias), y, borders, _ = layer(T, layout, dtype)
    return backend.backward_call(
        spec, where, y, None, None, borders, y, None, y, None, None, stats, bias,
        totals=tensor(5, where.count),
    )  # fmt: skip


@CASES
def test_forward(arch, dtype, layout):
    for residual in (False, True) if layout == "64x32x32" else (True,):
        call = forward(4, layout, dtype, residual)
        kernel = compile_call(call, arch)
        assert once(call, dtype) == 16
        numbers = 4 * 3 * (each(call) if "last" in layout else 1)
        assert kernel.bytes("LDG") == 16 * 4 * (1 + residual) + numbers
        assert wide(kernel, "LDG", 16) >= 16 * 4 * (1 + residual)
        assert wide(kernel, "STG", 16) == kernel.bytes("STG") == 16 * 4
        assert kernel.count("FFMA") == 0, "normalisation or update is contracted"
        assert kernel.registers <= 96 and kernel.size / (4 * each(call)) <= 23


@CASES
def test_first_pass_of_backward(arch, dtype, layout):
    """Where the second pass computes dX again it is not written: what is stored are two sums a row
    or program."""
    for residual in (False, True):
        call = backward(4, layout, dtype, residual, want_dx=residual)
        # Three blocks there; narrower tiles are 72 registers and 16 % more instructions.
        kernel = compile_call(call, arch, 136 if "last" in layout and residual else 128)
        size = once(call, dtype)
        assert size == 16
        numbers = 4 * 3 * (each(call) if "last" in layout else 1)
        assert kernel.bytes("LDG") == size * 4 * (2 + residual) + numbers
        assert wide(kernel, "STG", size) == (size * 4 if residual else 0)
        assert kernel.bytes("STG") == wide(kernel, "STG", size) + 2 * 4
        assert kernel.loads_ahead() >= 7, "loads wait for one another"
        assert kernel.size / (4 * each(call)) <= BUDGET


@CASES
def test_second_pass_of_backward(arch, dtype, layout):
    channels, inner, n = LAYOUTS[layout]
    call = gradient(4, layout, dtype)
    kernel, size = compile_call(call, arch), once(call, dtype)
    assert size == 16
    assert wide(kernel, "STG", 16) == kernel.bytes("STG") == 16 * 4
    numbers = 4 * 5 * (each(call) if "last" in layout else 1)
    assert kernel.bytes("LDG") == 16 * 4 * 2 + numbers
    assert kernel.size / (4 * each(call)) <= BUDGET

    y, where = tensor(4, n, dtype=dtype), Channels(channels, inner)
    call = norms.norm_dy_call(where, y, y, y, tensor(4, channels), tensor(5, channels))
    kernel = compile_call(call, arch)
    numbers = 4 * 4 * (each(call) if "last" in layout else 1)
    assert kernel.bytes("LDG") == 16 * 4 * 2 + numbers
    assert wide(kernel, "STG", 16) == kernel.bytes("STG") == 16 * 4
    assert kernel.size / (4 * each(call)) <= 16


@CASES
def test_statistics_read_everything_once(arch, dtype, layout):
    """In its loop a program reads eight tiles at a time, each once; before it, one for the shift.
    The four numbers that it leaves of a channel are few beside y, or at most half a megabyte."""
    channels, inner, n = LAYOUTS[layout]
    given, y = (tensor(4, channels), *[tensor(channels)] * 3), tensor(4, n, dtype=dtype)
    take, finish = norms.stats_calls(Channels(channels, inner), 0.1, 1.0, 1e-5, y, *given)
    kernel = compile_call(take, arch)
    (loop,) = kernel.loops
    assert loop.widths("LDG") == {128: 8}
    assert kernel.widths("LDG") == {128: 9}
    assert kernel.bytes("STG") == 4 * 4
    assert loop.size / (8 * each(take)) <= 8
    assert kernel.registers <= 72 and kernel.size <= 900, "a sum is one of constants"
    if channels == 64:
        assert take.programs >= 448
    parts = take.arguments[1]
    assert parts.numel() * parts.element_size() <= max(2**19, 0.01 * 4 * n * dtype.itemsize)
    if arch == 90:
        kernel = compile_call(finish, arch)
        assert kernel.registers <= 64 and kernel.size <= 1000
        assert kernel.bytes("STG") == 4 * 6  # mean, var, inv_std, scale and the running ones


@CASES
def test_sums_of_backward_are_few_and_end_in_one_launch(arch, dtype, layout):
    """At most half a megabyte or 2 % of what the first pass reads, and no long chain of loads for
    any channel."""
    spec, (where, stats, _), y, _, _ = layer(4, layout, dtype)
    place = backend.backward_place(spec, y, None, None, None, where, None, True)
    parts = norms.partial_sums(place, 2, y.device)
    read = 2 * y.numel() * dtype.itemsize
    assert parts.numel() * parts.element_size() <= max(2**19, 0.02 * read)
    rows, values = (1000, stats, tensor(5, where.count)), tensor(where.count)
    call = norms.finish_call(*rows, parts)
    kernel = compile_call(call, arch)
    assert parts.shape[1] * parts.shape[3] <= 4 * call.constants["BLOCK"]
    assert kernel.bytes("STG") >= 4 * 5 and kernel.size <= 2000
    for call in (
        norms.finish_call(*rows),
        norms.prepare_call(0.1, 1.0, 1e-5, stats, *[values] * 3),
    ):
        assert compile_call(call, arch).size <= 400


@pytest.mark.parametrize(
    ("T", "layout", "dtype", "rate"),
    (
        (5, "64 last", torch.bfloat16, None),
        (7, "64x32x32", torch.bfloat16, "scalar"),
        (8, "64x32x32", torch.bfloat16, None),
        (8, "512 last", torch.float32, None),
        (10, "64 last", torch.bfloat16, None),
        (16, "64x32x32", torch.float32, None),
        (16, "64x32x32", torch.bfloat16, "scalar"),
        (20, "512 last", torch.bfloat16, "channel"),
    ),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_four_blocks_fit_whatever_is_asked_for(T, layout, dtype, rate):
    # All of it at once is three blocks.
    compile_call(backward(T, layout, dtype, True, rate), registers=168 if T == 20 else 128)


@pytest.mark.parametrize(
    ("dtype", "T", "layout"),
    ((torch.bfloat16, 8, "512 last"), (torch.bfloat16, 16, "64x32x32")),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_more_steps_move_no_more(dtype, T, layout):
    steps, long = min(T, SEGMENT), T > SEGMENT
    for pass_, residual in ((forward, True), (backward, False), (backward, True)):
        more = {} if pass_ is forward else {"want_dx": residual}
        call = pass_(T, layout, dtype, residual, **more)
        kernel, size = part_of(compile_call(call), T), once(call, dtype)
        numbers = 0 if long else 4 * 3 * (each(call) if "last" in layout else 1)
        read = steps * ((1 if pass_ is forward else 2) + residual) * size + numbers
        state = 4 * each(call) if long else 0
        if pass_ is forward:
            assert kernel.bytes("STG") == size * steps + state
        else:
            read += state
            assert wide(kernel, "STG", size) == (size * steps if residual else 0)
        assert kernel.bytes("LDG") == read


@pytest.mark.parametrize(
    ("dtype", "T", "layout", "rate"),
    (
        (torch.bfloat16, 20, "512 last", "channel"),
        (torch.bfloat16, 7, "64x56x56", "scalar"),
        (torch.float32, 20, "64x56x56", "channel"),
    ),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_no_spills_with_everything_asked_for(dtype, T, layout, rate):
    compile_call(
        backward(T, layout, dtype, True, rate, divide=True, hard=False, surrogate="sigmoid"),
        registers=168,
    )


@pytest.mark.parametrize(("channels", "inner"), ((64, 49), (3, 196), (10, 1)), ids=str)
def test_odd_sizes_compile(channels, inner):
    """Rows that 16 bytes do not divide are read in smaller pieces, without spills."""
    n, where = 4 * channels * inner, Channels(channels, inner)
    norm = tensor(4, channels), tensor(channels)
    y = tensor(4, n, dtype=torch.bfloat16)
    compile_call(norms.stats_calls(where, 0.1, 1.0, 1e-5, y, norm[0])[0])
    spec = layer(4, "64 last", torch.bfloat16)[0]
    place = backend.backward_place(spec, y, None, None, None, where, y, True)
    sums = norms.partial_sums(place, 2, y.device)
    given = (y, None, None, None, y, None, y, None, None)
    call = backend.backward_call(spec, where, *given, *norm, y, sums)
    compile_call(call, registers=168)
