"""What the Triton backend fills by the source that it writes of a step, under Triton's interpreter,
held to the step looped over time."""

import backends
import programs
import pytest
import torch

from snnfast import surrogate as surrogates
from snnfast.ops.select import implementation
from snnfast.program.step import Step
from snnfast.program.trace import trace

interpreted = pytest.mark.backends(backends.INTERPRETED)
EXACT = {"lif", "adaptive_lif", "synaptic", "izhikevich"}


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

    def check(self, exact=True):
        outputs, news, gradients = self.run(implementation("triton"))
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


@interpreted
@pytest.mark.parametrize("name", list(programs.STEPS))
@pytest.mark.parametrize("T, n", ((1, 1), (4, 37), (8, 130), (19, 37)), ids=str)
def test_named_steps(backend, name, T, n):
    Case(programs.named(name), T, n).check(exact=name in EXACT)


@interpreted
@pytest.mark.parametrize(
    "options",
    (
        {"channels": 3},
        {"channels": 3, "T": 19, "every": True},
        {"static": (0,)},
        {"static": (0,), "T": 19, "channels": 3},
        {"every": True, "T": 16},
        {"start": False, "T": 12},
        {"stride": 3, "T": 12},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "T": 12},
        {"surrogate": "sigmoid", "n": 1300},
    ),
    ids=backends.named,
)
@pytest.mark.parametrize("name", ("adaptive_lif", "synaptic"))
def test_choices(backend, name, options):
    options = {"T": 5, "n": 39, **options}
    Case(programs.named(name), options.pop("T"), options.pop("n"), **options).check()


@interpreted
@pytest.mark.parametrize("seed", range(16))
def test_random_steps(backend, seed):
    exact = seed % 2 == 0
    step = programs.random_step(seed, exact)
    static = (0,) if step.inputs > 1 and seed % 3 == 0 else ()
    channels = 3 if seed % 4 < 2 else 0
    Case(step, (3, 8, 11)[seed % 3], 21, channels=channels, static=static, seed=seed).check(exact)


def functions(x):
    """What is not exact, and what must not lose a NaN."""
    far = torch.abs(x)
    powers = (far**1.5, far**-0.75, x**5, x**-3)
    return (torch.exp(x), torch.log(far), torch.tanh(x), torch.sigmoid(x), *powers,
            torch.minimum(x, 2 * x), torch.maximum(x, 2 * x), torch.sqrt(far), 1 / x)  # fmt: skip


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_are_good_to_two_units(backend):
    program, outputs = trace("functions", functions, 1, 0, (), {})
    step = Step.of(program.pack(), outputs, 1, 0)
    small = torch.logspace(-6, 1.5, 300)
    x = torch.cat([small, -small, torch.tensor([0.0, 90.0, -90.0, 1e-30, torch.inf, -torch.inf])])
    x = torch.cat([x, torch.tensor([torch.nan])])[None]
    got = [torch.empty_like(x) for _ in range(outputs)]
    layer = programs.layer_of(step, surrogates.resolve("atan"), 1)
    implementation("triton").neuron_forward(layer, [x], [], [], got)
    for y, exact in zip(got, functions(x.double()), strict=True):
        want = exact.float()
        unit = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
        near = (y.double() - exact).abs() <= 2 * unit.double()
        good = near | (y == want) | (y.isnan() & want.isnan())
        assert good.all(), (x[~good], y[~good], want[~good])
