"""One call of a step's kernels each way, held to the step looped over time."""

import programs
import torch

from snnfast import surrogate as surrogates
from snnfast.ops.select import implementation

EXACT = {"lif", "adaptive_lif", "synaptic", "izhikevich"}
"""The named steps that are bit-equal everywhere."""


class Case:
    """One call each way on drawn tensors, and the loop's."""

    def __init__(self, step, T, n, dtype=torch.float32, *, channels=0, static=(), every=False,
                 start=True, stride=1, seed=0, surrogate="atan"):  # fmt: skip
        self.step, self.T, self.n, self.every = step, T, n, every
        inner = n // channels if channels else 1
        self.surrogate = surrogates.resolve(surrogate)
        rest = tuple(0.25 * k - 0.5 for k in range(step.states))
        self.layer = programs.layer_of(
            step, self.surrogate, T, channels=channels or 1, inner=inner, rest=rest
        )
        inputs, states, params = programs.tensors(step, seed, T, n, dtype, channels)
        apart = [x.repeat_interleave(stride, 0)[::stride] for x in inputs]
        self.inputs = [x[:1].expand_as(x) if k in static else x for k, x in enumerate(apart)]
        self.states = states if start else [None] * step.states
        self.params = params
        self.static = static
        g = torch.Generator().manual_seed(seed + 1)
        self.douts = [torch.randn(T, n, generator=g).to(dtype) for _ in range(step.outputs)]
        shape = (T, n) if every else (n,)
        self.dstates = [torch.randn(shape, generator=g) for _ in range(step.states)]

    def run(self, kernels):
        """Outputs, new states, then the gradients of inputs, states and params."""
        x, step, T, n = self.inputs[0], self.step, self.T, self.n
        outputs = [torch.empty(T, n, dtype=x.dtype) for _ in range(step.outputs)]
        news = [torch.empty(*((T, n) if self.every else (n,))) for _ in range(step.states)]
        borders = torch.empty(step.states, -(-T // 8) - 1, n) if T > 8 else None
        given = (self.layer, self.inputs, self.states, self.params)
        kernels.neuron_forward(*given, outputs, news, borders)
        dinputs = [
            torch.empty(n, dtype=x.dtype) if k in self.static else torch.empty(T, n, dtype=x.dtype)
            for k in range(step.inputs)
        ]
        dstates0 = [torch.empty(n) for _ in range(step.states)]
        dparams = [torch.empty_like(p) for p in self.params]
        kernels.neuron_backward(
            *given, borders, self.douts, self.dstates, dinputs, dstates0, dparams
        )
        return outputs, news, [*dinputs, *dstates0, *dparams]

    def looped(self, dtype=torch.float32):
        """The same by the loop and autograd."""
        steps = self.T
        leaves = [(x[0] if k in self.static else x).to(dtype) for k, x in enumerate(self.inputs)]
        rest = self.layer.rest
        states = [
            torch.full((self.n,), r) if v is None else v
            for v, r in zip(self.states, rest, strict=True)
        ]
        leaves += [t.to(dtype) for t in (*states, *self.params)]
        leaves = [t.detach().requires_grad_() for t in leaves]
        a, b = self.step.inputs, self.step.inputs + self.step.states
        inputs = [
            x.expand(steps, self.n) if k in self.static else x for k, x in enumerate(leaves[:a])
        ]
        outputs, every = programs.looped(
            self.layer, inputs, leaves[a:b], leaves[b:], self.surrogate
        )
        news = every if self.every else [v[-1] for v in every]
        results = [t for t in (*outputs, *news) if t.requires_grad]
        given = [
            g for t, g in zip((*outputs, *news), (*self.douts, *self.dstates)) if t.requires_grad
        ]
        gradients = torch.autograd.grad(
            results, leaves, [g.to(dtype) for g in given], allow_unused=True
        )
        gradients = [
            torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)
        ]
        return outputs, news, gradients

    def check(self, backend, exact=True):
        outputs, news, gradients = self.run(implementation(backend.name))
        wanted_outputs, wanted_news, wanted = self.looped()
        for got, want in zip((*outputs, *news), (*wanted_outputs, *wanted_news), strict=True):
            if exact:
                assert torch.equal(got, want.to(got.dtype)), (got - want).abs().max()
            else:
                torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-5, atol=1e-5)
        for got, want in zip(gradients, wanted, strict=True):
            assert got.isfinite().all()
            scale = want.abs().max().clamp_min(1e-6)
            far = (got.double() - want.double()).abs().max() / scale
            assert far <= (2e-5 if got.dtype == torch.float32 else 2**-6), far
