"""Steps on the CPU backend, forward and back, whatever runs them there; and what it has to give."""

import programs
import torch

from snnfast import surrogate as surrogates
from snnfast.backends import cpu
from snnfast.backends.contract import Backend
from snnfast.backends.layout import state_dtype
from snnfast.backends.spec import segments
from snnfast.program.evaluate import evaluate

BACKEND = Backend(cpu)
ATAN = surrogates.ATan()


def same(got, expected):
    """The same numbers; one NaN is as good as another, and one zero: of two, PyTorch's minimum
    takes the second in vectors and the first in what is left over."""
    differ = (got != expected) & ~(got.isnan() & expected.isnan())
    assert not differ.any(), (got[differ], expected[differ])


def run(layer, inputs, states, params, every=True):
    """(results, borders) of the backend: the outputs, then the states after each step, or after the
    last."""
    x, steps = inputs[0], layer.steps
    state = state_dtype(x)
    outputs = [torch.empty(x.shape, dtype=x.dtype) for _ in range(layer.step.outputs)]
    rows = x.shape if every else x.shape[1:]
    new = [torch.empty(rows, dtype=state) for _ in range(layer.step.states)]
    count = segments(steps) - 1
    borders = torch.empty(layer.step.states, count, *x.shape[1:], dtype=state) if count else None
    BACKEND.neuron_forward(layer, inputs, states, params, outputs, new, borders)
    return outputs + new, borders


def backward(layer, inputs, states, params, borders, douts, dstates, wanted=lambda k: True):
    """The gradients of inputs, states and params, of which ``wanted`` may leave some out."""
    x = inputs[0]
    rows = x.shape[1:] if layer.static else x.shape
    every = [torch.empty(rows, dtype=x.dtype) for _ in inputs]
    every += [torch.empty(x.shape[1:], dtype=state_dtype(x)) for _ in states]
    every += [torch.empty_like(p) for p in params]
    every = [t if wanted(k) else None for k, t in enumerate(every)]
    i, s = len(inputs), len(inputs) + len(states)
    arguments = (layer, inputs, states, params, borders, douts, dstates)
    BACKEND.neuron_backward(*arguments, every[:i], every[i:s], every[s:])
    return every


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
    dinputs = [torch.stack(d) for d in zip(*dinputs, strict=True)]
    channel = torch.arange(n) // layer.inner % layer.channels
    dparams = [
        torch.zeros(p.numel(), dtype=torch.float64)
        .index_add_(0, channel if p.dim() else channel * 0, d.double())
        .view(p.shape)
        for p, d in zip(params, sums, strict=True)
    ]
    return dinputs + now + dparams


def close(got, wanted, tolerance):
    """Within a tolerance of the largest; and ``got`` whole."""
    for g, w in zip(got, wanted, strict=True):
        w = w.double()
        assert (g.double() - w).abs().max() <= tolerance * w.abs().max()


def looped(layer, inputs, states, params):
    """What ``run`` has to give."""
    outputs, every = programs.looped(layer, inputs, states, params, ATAN)
    return outputs + every


def cotangents(layer, results):
    """Gradients of the outputs, and of the states after every step."""
    along = [torch.randn_like(r) for r in results]
    return along[: layer.step.outputs], along[layer.step.outputs :]


def all_same(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        same(g, w)
