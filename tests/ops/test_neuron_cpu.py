"""The interpreter of neurons' programs on a CPU, and their machine code: every instruction bit for
bit, forward and adjoint of steps by name and at random against the loop over time, whatever dtype,
layout and T."""

import math

import programs
import pytest
import torch

from snnfast import surrogate as surrogates
from snnfast.backends import cpu
from snnfast.backends.contract import Backend
from snnfast.backends.cpu import compiled, interpreted, neuron
from snnfast.backends.layout import state_dtype
from snnfast.backends.spec import segments
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Builder
from snnfast.program.step import Step

BACKEND = Backend(cpu)
SIZES = (1, 7, 511, 512, 513, 4099)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ATAN = surrogates.ATan()


@pytest.fixture(autouse=True, params=[interpreted, compiled], ids=["interpreted", "compiled"])
def executor(request, monkeypatch):
    if request.param is compiled and not compiled.available():
        pytest.skip("llvmlite is not installed")
    monkeypatch.setattr(neuron, "executor", lambda: request.param)
    return request.param


def same(got, expected):
    """Bit for bit, but that one NaN is as good as another."""
    equal = (got == expected) & (torch.signbit(got) == torch.signbit(expected))
    assert (equal | (got.isnan() & expected.isnan())).all(), (got[~equal], expected[~equal])


def run(layer, inputs, states, params, every=True):
    """(outputs, states, borders) of the backend; the states after each step, or after the last."""
    x, steps = inputs[0], layer.steps
    state = state_dtype(x)
    outputs = [torch.empty(steps, *x.shape[1:], dtype=x.dtype) for _ in range(layer.step.outputs)]
    lead = (steps,) if every else ()
    new = [torch.empty(*lead, *x.shape[1:], dtype=state) for _ in range(layer.step.states)]
    count = segments(steps) - 1
    borders = torch.empty(layer.step.states, count, *x.shape[1:], dtype=state) if count else None
    BACKEND.neuron_forward(layer, inputs, states, params, outputs, new, borders)
    return outputs, new, borders


def backward(layer, inputs, states, params, borders, douts, dstates, static=False):
    """The gradients of inputs, states and params of the backend."""
    x = inputs[0]
    rows = x.shape[1:] if static else x.shape
    dinputs = [torch.empty(rows, dtype=x.dtype) for _ in inputs]
    dstates0 = [torch.empty(x.shape[1:], dtype=state_dtype(x)) for _ in states]
    dparams = [torch.empty_like(p) for p in params]
    BACKEND.neuron_backward(
        layer, inputs, states, params, borders, douts, dstates, dinputs, dstates0, dparams
    )
    return dinputs, dstates0, dparams


def adjoint_loop(layer, inputs, states, params, surrogate, douts, dstates):
    """What ``backward`` computes, by ``evaluate`` and one step after the other: dstates [T, N]."""
    step, state = layer.step, state_dtype(inputs[0])
    n = inputs[0].shape[1]
    spread = [programs.spread(p, layer, n) for p in params]
    _, every = programs.looped(layer, inputs, states, params, surrogate)
    now = [torch.zeros(n, dtype=state) for _ in states]
    dinputs, sums = [], [torch.zeros(n, dtype=state) for _ in params]
    for t in reversed(range(layer.steps)):
        now = [g + d[t] for g, d in zip(now, dstates, strict=True)]
        before = [v[t - 1] for v in every] if t else states
        leaves = {
            "input": [x[t].to(state) for x in inputs], "state": before, "param": spread,
            "dout": [d[t].to(state) for d in douts], "dstate": now,
        }  # fmt: skip
        results = evaluate(step.adjoint, leaves, surrogate)
        results = [torch.zeros(n, dtype=state) if r is None else r.expand(n) for r in results]
        dinputs.insert(0, results[: step.inputs])
        now = results[step.inputs : step.inputs + step.states]
        sums = [a + b for a, b in zip(sums, results[step.inputs + step.states :], strict=True)]
    return [torch.stack(d) for d in zip(*dinputs, strict=True)], now, sums


OPERATIONS = {
    "exact": ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "sqrt", "spike"),
    "comparisons": ("ge", "gt", "le", "lt", "eq", "ne"),
    "functions": ("exp", "log", "tanh", "sigmoid"),
}
UGLY = (0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan, 0.5)


def of_operation(op, dtype=torch.float32, steps=1):
    """A step of two inputs and no state whose outputs are ``op``, and it in front of and behind
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
        (s,), _, _ = run(layer, [x, y, z], [], [])
        (expected,) = evaluate(step.forward, {"input": [x, y, z]})
        same(s, expected)


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
            (s,), _, _ = run(programs.layer_of(step, ATAN, 1), [at], [], [])
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
STEPS = [*NAMED, *RANDOM]


@pytest.mark.parametrize("step", range(len(STEPS)))
@pytest.mark.parametrize("steps,n", [(1, 7), (4, 512), (9, 513), (17, 511), (8, 1), (25, 1057)])
def test_forward_and_adjoint(step, steps, n):
    step = STEPS[step]
    inputs, states, params = programs.tensors(step, n, steps, n)
    layer = programs.layer_of(step, ATAN, steps)
    outputs, new, borders = run(layer, inputs, states, params)
    expected, every = programs.looped(layer, inputs, states, params, ATAN)
    exact = step in RANDOM or step is not programs.named("exponential")
    for got, wanted in zip(outputs + new, expected + every, strict=True):
        same(got, wanted) if exact else torch.testing.assert_close(got, wanted)
    for k, border in enumerate([] if borders is None else borders):
        same(border, new[k][7:-1:8][: len(border)])
    douts = [torch.randn_like(s) for s in outputs]
    dstates = [torch.randn_like(v) for v in new]
    got = backward(layer, inputs, states, params, borders, douts, dstates)
    wanted = adjoint_loop(layer, inputs, states, params, ATAN, douts, dstates)
    for g, w in zip(got[0] + got[1], wanted[0] + wanted[1], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5 * float(w.abs().max()))
    for g, w in zip(got[2], wanted[2], strict=True):
        torch.testing.assert_close(
            g.double(), w.double().sum(), rtol=1e-4, atol=1e-4 * float(w.abs().max())
        )
