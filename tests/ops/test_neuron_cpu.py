"""The interpreter of neurons' programs on a CPU, and their machine code: every instruction bit for
bit, forward and adjoint of steps by name and at random against the loop over time, whatever dtype,
layout and T."""

import math

import programs
import pytest
import torch
from backends import HALF
from program_cases import (
    ATAN,
    adjoint_loop,
    all_same,
    backward,
    close,
    cotangents,
    looped,
    run,
    same,
)

from snnfast import neurons
from snnfast.backends.cpu import compiled, interpreted, neuron
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Builder
from snnfast.program.step import Step


@pytest.fixture(autouse=True, params=[interpreted, compiled], ids=["interpreted", "compiled"])
def executor(request, monkeypatch):
    if request.param is compiled and not compiled.available():
        pytest.skip("llvmlite is not installed")
    monkeypatch.setattr(neuron, "executor", lambda: request.param)
    return request.param


OPERATIONS = {
    "exact": ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "sqrt", "spike"),
    "comparisons": ("ge", "gt", "le", "lt", "eq", "ne"),
    "functions": ("exp", "log", "tanh", "sigmoid"),
}
UGLY = (0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan, 0.5,
        1.5, -0.3, 1e-38)  # fmt: skip
"""16: their pairs fill vectors."""


def of_operation(op):
    """Steps of three inputs and no state whose output is ``op``, and it in front of and behind
    others."""
    b = Builder()
    x, y, z = (b.add("input", number=k) for k in range(3))
    one, two = b.constant(1.0), b.constant(2.0)
    args = (x,) if op in ("neg", "abs", "sqrt", "spike", *OPERATIONS["functions"]) else (x, y)
    value = b.add(op, *args)
    if op in OPERATIONS["comparisons"]:
        other = b.add("gt", z, y)
        truths = [value, b.add("not", value), b.add("and", value, other), b.add("or", value, other)]
        results = [b.add("where", t, z, two) for t in truths]
    else:
        results = [value]
        if op in OPERATIONS["exact"]:
            results += [b.add(second, value, z) for second in ("add", "sub", "mul", "div")]
            results += [b.add(second, z, value) for second in ("sub", "div")]
            results += [b.add("spike", value), b.add("add", value, one)]
    return [Step.of(b.program([r]).pack(), 1, 3, 0) for r in results]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("op", OPERATIONS["exact"] + OPERATIONS["comparisons"])
def test_an_instruction_is_bit_for_bit(op, dtype):
    """On all pairs of ugly numbers, alone and fused with another operation."""
    ugly = torch.tensor(UGLY, dtype=dtype)
    x, y, z = (t.flatten()[None] for t in torch.meshgrid(ugly, ugly, ugly, indexing="ij"))
    for step in of_operation(op):
        layer = programs.layer_of(step, ATAN, 1)
        (s,), _ = run(layer, [x, y, z], [], [])
        (expected,) = evaluate(step.forward, {"input": [x, y, z]})
        same(s, expected)
        assert torch.equal(s.signbit() & ~s.isnan(), expected.signbit() & ~s.isnan())


@pytest.mark.parametrize("op", OPERATIONS["functions"] + ("pow",))
def test_a_function_is_within_two_ulp(op):
    """Of PyTorch's, on numbers of all magnitudes."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.linspace(-30, 30, 100_000), torch.tensor(UGLY)])
    for dtype in (torch.float32, torch.float64):
        for exponent in (0.3, -1.7, 2.5, 7.0, -3.0) if op == "pow" else (0.0,):
            b = Builder()
            args = (b.add("input"), *([b.constant(exponent)] if op == "pow" else []))
            step = Step.of(b.program([b.add(op, *args)]).pack(), 1, 1, 0)
            at = x.to(dtype)[None]
            (s,), _ = run(programs.layer_of(step, ATAN, 1), [at], [], [])
            (expected,) = evaluate(step.forward, {"input": [at]})
            finite = expected.isfinite() & s.isfinite()
            same(torch.where(finite, 0, s), torch.where(finite, 0, expected))
            integer = torch.int32 if dtype == torch.float32 else torch.int64
            s, expected = s[finite].view(integer), expected[finite].view(integer)
            far = (s.long() - expected.long()).abs() > 2
            assert not far.any(), (
                at[finite][far][:9],
                s.view(dtype)[far][:9],
                expected.view(dtype)[far][:9],
            )


NAMED = [programs.named(name) for name in programs.STEPS]
RANDOM = [programs.random_step(seed, exact=True) for seed in range(8)]
INEXACT = programs.named("exponential")


@pytest.mark.parametrize("step", [*NAMED, *RANDOM], ids=[*programs.STEPS, *map(str, range(8))])
@pytest.mark.parametrize("steps,n", [(1, 7), (4, 512), (9, 513), (17, 511), (8, 1), (25, 1057)])
def test_a_step_forward_and_back(step, steps, n):
    """Against the loop over time and the loop of the adjoint, borders of segments included."""
    inputs, states, params = programs.tensors(step, n, steps, n)
    layer = programs.layer_of(step, ATAN, steps)
    results, borders = run(layer, inputs, states, params)
    expected = looped(layer, inputs, states, params)
    close(results, expected, 1e-6) if step is INEXACT else all_same(results, expected)
    for k in range(step.states if steps > 8 else 0):
        same(borders[k], results[step.outputs + k][7:-1:8])
    along = cotangents(layer, results)
    got = backward(layer, inputs, states, params, borders, *along)
    close(got, adjoint_loop(layer, inputs, states, params, ATAN, *along), 1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_gradients_are_those_of_autograd(seed):
    """Through the loop of the step as it was traced, detach included, in float64."""
    step, steps, n = programs.random_step(seed + 100), 11, 33
    inputs, states, params = programs.tensors(step, seed, steps, n, torch.float64)
    layer = programs.layer_of(step, ATAN, steps)
    results, borders = run(layer, inputs, states, params)
    douts, dstates = cotangents(layer, results)
    got = backward(layer, inputs, states, params, borders, douts, dstates)
    leaves = [t.requires_grad_() for t in inputs + states + params]
    total = sum(
        (r * d).sum()
        for r, d in zip(looped(layer, inputs, states, params), douts + dstates, strict=True)
    )
    close(got, torch.autograd.grad(total, leaves, materialize_grads=True), 1e-9)


CHANNELS = {1: (1, 1), 7: (7, 1), 511: (7, 73), 512: (4, 16), 513: (3, 19), 4099: (4099, 1),
            6144: (3, 2048)}  # fmt: skip
"""{neurons: (channels, inner)}"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("n", CHANNELS)
@pytest.mark.parametrize("name", ("adaptive_lif", "gated"))
def test_sizes_dtypes_and_channels(name, n, dtype):
    """Tails of rows, narrow dtypes, parameters by the channel within and beyond a tile."""
    channels, inner = CHANNELS[n]
    step = programs.named(name)
    inputs, states, params = programs.tensors(step, n, 9, n, dtype, channels)
    layer = programs.layer_of(step, ATAN, 9, channels=channels, inner=inner)
    results, borders = run(layer, inputs, states, params)
    all_same(results, looped(layer, inputs, states, params))
    along = cotangents(layer, results)
    got = backward(layer, inputs, states, params, borders, *along)
    wanted = adjoint_loop(layer, inputs, states, params, ATAN, *along)
    assert got[0].dtype == dtype
    close(got[:1], wanted[:1], max(1e-5, torch.finfo(dtype).eps / 2))
    close(got[1:], wanted[1:], 1e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_static_input(dtype):
    """Is shown at every step; its gradient is the sum over time."""
    step = programs.named("lif")
    (x,), states, _ = programs.tensors(step, 0, 11, 544, dtype)
    moving = programs.layer_of(step, ATAN, 11)
    still, copies = [x[:1].expand_as(x)], [x[:1].repeat(11, 1)]
    results, borders = run(moving, still, states, [])
    all_same(results, run(moving, copies, states, [])[0])
    along = cotangents(moving, results)
    dx, dv0 = backward(moving._replace(static=True), still, states, [], borders, *along)
    every = backward(moving, copies, states, [], borders, *along)
    close([dx], [every[0].double().sum(0)], max(1e-6, 2 * torch.finfo(dtype).eps))
    same(dv0, every[1])


def test_steps_may_lie_apart():
    step = programs.named("lif")
    (x,), states, _ = programs.tensors(step, 0, 11, 544)
    layer, apart = programs.layer_of(step, ATAN, 11), x.repeat_interleave(2, 0)[::2]
    results, borders = run(layer, [apart], states, [])
    all_same(results, run(layer, [x], states, [])[0])
    (ds,), dstates = cotangents(layer, results)
    spaced = ds.repeat_interleave(3, 0)[::3]
    got = backward(layer, [apart], states, [], borders, [spaced], dstates)
    all_same(got, backward(layer, [x], states, [], borders, [ds], dstates))


REST = (-0.25, 0.5)


def at_rest():
    """(layer, inputs, states, params) of two states at rest."""
    step, steps, n = programs.named("adaptive_lif"), 10, 600
    inputs, _, params = programs.tensors(step, 3, steps, n)
    layer = programs.layer_of(step, ATAN, steps, rest=REST)
    return layer, inputs, [torch.full((n,), rest) for rest in REST], params


def test_states_start_at_rest_and_end():
    layer, inputs, states, params = at_rest()
    results, _ = run(layer, inputs, states, params)
    all_same(run(layer, inputs, [None, None], params)[0], results)
    last, _ = run(layer, inputs, [None, states[1]], params, every=False)
    all_same(last, [results[0], results[1][-1], results[2][-1]])


def test_gradients_that_are_not_given_are_0():
    """Or those of the last state alone."""
    layer, inputs, states, params = at_rest()
    results, borders = run(layer, inputs, states, params)
    (ds,), (dv, da) = cotangents(layer, results)
    zeros, last = torch.zeros_like(dv), torch.cat([torch.zeros_like(dv[1:]), da[:1]])
    for douts, dstates, whole in (
        ([None], [dv, None], ([zeros], [dv, zeros])),
        ([ds], [None, last[-1]], ([ds], [zeros, last])),
        ([ds], [last[-1], da], ([ds], [last, da])),
    ):
        got = backward(layer, inputs, [None, states[1]], params, borders, douts, dstates)
        all_same(got, backward(layer, inputs, states, params, borders, *whole))


@pytest.mark.parametrize("left_out", range(4))
def test_gradients_that_are_not_wanted(left_out):
    layer, inputs, states, params = at_rest()
    results, borders = run(layer, inputs, states, params)
    arguments = (layer, inputs, states, params, borders, *cotangents(layer, results))
    every = backward(*arguments)
    some = backward(*arguments, wanted=lambda k: k != left_out)
    assert some.pop(left_out) is None
    every.pop(left_out)
    all_same(some, every)


def test_leaves_constants_and_repeats_as_results():
    """Results that no instruction computes, or that are one value, or 0."""
    b = Builder()
    x, v = b.add("input"), b.add("state")
    spike = b.add("spike", b.add("sub", x, v))
    step = Step.of(b.program([spike, b.constant(0.25), x, spike, v]).pack(), 3, 1, 0)
    inputs, states, _ = programs.tensors(step, 1, 9, 520)
    layer = programs.layer_of(step, ATAN, 9)
    results, borders = run(layer, inputs, states, [])
    all_same(results, looped(layer, inputs, states, []))
    along = cotangents(layer, results)
    got = backward(layer, inputs, states, [], borders, *along)
    close(got[:2], adjoint_loop(layer, inputs, states, [], ATAN, *along)[:2], 1e-6)
    assert not got[2].any()


@pytest.mark.parametrize("steps", (4, 9))
def test_any_number_of_threads_and_past_the_caches(steps):
    """The same bits; what no cache holds is written past it, and so are they those of few."""
    step, n = programs.named("synaptic"), 1_100_032
    inputs, states, params = programs.tensors(step, 5, steps, n)
    layer, douts = programs.layer_of(step, ATAN, steps), [torch.randn(steps, n)]
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results, borders = run(layer, inputs, states, params, every=False)
            got = backward(layer, inputs, states, params, borders, douts, [None, None])
            runs.append([*results, *got])
    finally:
        torch.set_num_threads(threads)
    all_same(*runs)
    few = slice(n - 5000, None)
    arguments = layer, [x[:, few].contiguous() for x in inputs], [v[few] for v in states], params
    results, borders = run(*arguments, every=False)
    all_same([r[..., few] for r in runs[0][:3]], results)
    got = backward(*arguments, borders, [douts[0][:, few].contiguous()], [None, None])
    all_same([r[..., few] for r in runs[0][3:6]], got[:3])


@pytest.mark.parametrize("step", NAMED, ids=programs.STEPS)
def test_every_instruction_set_computes_the_same(step):
    from snnfast import _C

    inputs, states, params = programs.tensors(step, 2, 9, 550)
    layer, runs = programs.layer_of(step, ATAN, 9), []
    along = [torch.ones(9, 550)], [torch.ones(9, 550)] * step.states
    try:
        for name in ("avx2", "baseline"):
            _C.use_instruction_set(name)
            results, borders = run(layer, inputs, states, params)
            got = backward(layer, inputs, states, params, borders, *along)
            runs.append((results, got))
    finally:
        _C.use_instruction_set(_C.instruction_sets()[-1])
    (results, got), (others, expected) = runs
    close(results, others, 1e-6) if step is INEXACT else all_same(results, others)
    close(got, expected, 1e-5)


@pytest.mark.parametrize("left_out", (0, 2, None))
def test_one_value_is_the_gradient_of_several(left_out):
    """Of parameters, where it is added up, or of an input, too, where it is kept."""
    b = Builder()
    x, v, p, q = b.add("input"), b.add("state"), b.add("param"), b.add("param", number=1)
    both = b.add("add", p, q)
    apart, beside = b.add("mul", v, both), b.add("add", v, b.add("add", both, x))
    for result in (apart, beside):
        step = Step.of(b.program([result, b.constant(0.5)]).pack(), 1, 1, 2)
        inputs, states, params = programs.tensors(step, 1, 9, 520)
        layer = programs.layer_of(step, ATAN, 9)
        results, borders = run(layer, inputs, states, params)
        arguments = (layer, inputs, states, params)
        along = cotangents(layer, results)
        got = backward(*arguments, borders, *along, wanted=lambda k: k != left_out)
        wanted = adjoint_loop(*arguments, ATAN, *along)
        close(*([every[k] for k in range(4) if k != left_out] for every in (got, wanted)), 1e-5)


@pytest.mark.unpoisoned
def test_more_than_2_to_the_31_elements():
    """From one row for all steps, and back from one: what is written alone takes memory."""
    steps, count = 8, 2**28 + 33
    row = torch.zeros(1, count, dtype=torch.bfloat16)
    row[:, -100:] = 4 * torch.randn(1, 100)

    def run(row, backend):
        x = row.expand(steps, -1).requires_grad_()
        s = neurons.leaky(x, backend=backend)
        last = s.detach()[:, -100:].clone()
        s.untyped_storage().resize_(0)  # gradients do not need it
        (dx,) = torch.autograd.grad(s, x, x.detach())
        return last, dx[:, -100:].clone()

    assert steps * count > 2**31
    found, wanted = run(row, "cpu"), run(row[:, -100:], "reference")
    assert torch.equal(found[0], wanted[0]) and found[0].any()
    torch.testing.assert_close(found[1], wanted[1])
