"""Steps of neurons for the tests of whatever runs programs: some by name, any number at random, and
the loop over time that all are held to."""

import functools
import itertools
import random

import torch

from snnfast.backends.layout import state_dtype
from snnfast.backends.spec import NeuronLayer
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Builder, Program
from snnfast.program.step import Step
from snnfast.program.trace import recording, trace
from snnfast.reference.neuron import fire
from snnfast.surrogate import Surrogate


def spike(u):
    return recording().spike(u)


def lif(x, v, *, tau=2.0, theta=1.0):
    h = v + (x - v) / tau
    s = spike(h - theta)
    return s, torch.where(s > 0, 0.0, h)


def adaptive_lif(x, v, a, rho, *, tau=20.0, beta=1.8, theta=1.0):
    h = v + (x - v) / tau
    s = spike(h - (theta + beta * a))
    return s, h * (1 - s.detach()), rho * a + s.detach()


def synaptic(x, i, v, alpha, beta, *, theta=1.0):
    reset = spike(v - theta).detach()
    i = alpha * i + x
    v = beta * v + i - reset * theta
    return spike(v - theta), i, v


def izhikevich(x, v, u, *, a=0.02, b=0.2, c=-65.0, d=8.0, theta=30.0):
    h = v + 0.5 * (0.04 * v * v + 5 * v + 140 - u + x)
    h = h + 0.5 * (0.04 * h * h + 5 * h + 140 - u + x)
    s = spike(h - theta)
    w = u + a * (b * h - u)
    return s, torch.where(s > 0, c, h), w + d * s


def exponential(x, v, tau, *, theta=1.0, sharp=0.4):
    """An exponential neuron with a graded output: no plain arithmetic."""
    h = v + (x - v + sharp * torch.exp(torch.clamp((v - theta) / sharp, -6.0, 3.0))) / tau
    s = spike(h - theta)
    return torch.tanh(h) * s, torch.sigmoid(h) * (1 - s)


def gated(x, v, alpha, beta, *, theta=1.0):
    """Parameters are computed with before they meet a neuron."""
    decay = 1 - alpha * (1 - beta / 2)
    h = decay * v + x * (2 - beta)
    s = spike(h - theta)
    return s, h - decay * s


STEPS = {
    "lif": (lif, 1, ()),
    "adaptive_lif": (adaptive_lif, 2, ("rho",)),
    "synaptic": (synaptic, 2, ("alpha", "beta")),
    "gated": (gated, 1, ("alpha", "beta")),
    "izhikevich": (izhikevich, 2, ()),
    "exponential": (exponential, 1, ("tau",)),
}
"""{name: (function, its states, its parameters that are tensors)}; one input each."""


@functools.cache
def named(name: str) -> Step:
    """A step of the table."""
    function, states, params = STEPS[name]
    program, outputs = trace(name, function, 1, states, params, {})
    return Step.of(program.pack(), outputs, 1, len(params))


_EXACT = ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "sqrt", "where", "spike")
_OTHERS = ("exp", "log", "tanh", "sigmoid", "pow")
_COMPARISONS = ("ge", "gt", "le", "lt", "eq", "ne")


class _Draw:
    """Draws operations on what there is, none of which leaves the finite numbers: the bounds of
    every value are known."""

    def __init__(self, seed: str, exact: bool):
        self.random, self.builder = random.Random(seed), Builder()
        self.bounds: dict[int, tuple[float, float]] = {}
        self.unused: list[int] = []
        self.truths: list[int] = []
        self.operations = _EXACT if exact else _EXACT + _OTHERS

    def keep(self, place: int, low: float, high: float) -> int:
        if place not in self.bounds:
            self.bounds[place] = (low, high)
            self.unused.append(place)
        return place

    def leaf(self, kind: str, which: int, low: float, high: float) -> None:
        self.keep(self.builder.add(kind, number=which), low, high)

    def constant(self) -> int:
        number = self.random.choice((0.5, 1.0, -1.0, 2.0, round(self.random.uniform(-2, 2), 3)))
        place = self.builder.constant(number)
        self.bounds[place] = (number, number)
        return place

    def value(self, constants: float = 0.2) -> int:
        """An earlier value, or a constant; one that nobody reads yet where there is."""
        if self.random.random() < constants:
            return self.constant()
        if self.unused and self.random.random() < 0.6:
            return self.unused.pop(self.random.randrange(len(self.unused)))
        place = self.random.choice(list(self.bounds))
        if place in self.unused:
            self.unused.remove(place)
        return place

    def truth(self) -> int:
        """A comparison, or what and, or, not make of some."""
        add = self.builder.add
        place = add(self.random.choice(_COMPARISONS), self.value(0.0), self.value())
        if self.truths and self.random.random() < 0.4:
            place = add(self.random.choice(("and", "or")), place, self.random.choice(self.truths))
        elif self.random.random() < 0.2:
            place = add("not", place)
        self.truths.append(place)
        return place

    def positive(self, x: int) -> int:
        """|x| + 1/2."""
        low, high = self.bounds[x]
        place = self.builder.add("add", self.builder.add("abs", x), self.builder.constant(0.5))
        self.bounds[place] = (0.5, max(-low, high) + 0.5)
        return place

    def within(self, x: int, limit: float) -> int:
        """x, clamped where it may be beyond."""
        low, high = self.bounds[x]
        if low >= -limit and high <= limit:
            return x
        add, constant = self.builder.add, self.builder.constant
        place = add("min", add("max", x, constant(-limit)), constant(limit))
        self.bounds[place] = (max(low, -limit), min(high, limit))
        return place

    def operation(self) -> None:
        op, add = self.random.choice(self.operations), self.builder.add
        x = self.within(self.value(0.0), 20.0)
        (low, high), most = self.bounds[x], max(map(abs, self.bounds[x]))
        if op in ("add", "sub", "mul", "min", "max", "where"):
            y = self.within(self.value(), 20.0)
            other = max(map(abs, self.bounds[y]))
            limit = {"add": most + other, "sub": most + other, "mul": most * other}
            limit = limit.get(op, max(most, other))
            args = (self.truth(), x, y) if op == "where" else (x, y)
            self.keep(add(op, *args), -limit, limit)
        elif op == "div":
            y = self.positive(self.value())
            self.keep(add(op, x, y), -most * 2, most * 2)
        elif op in ("sqrt", "log", "pow"):
            y = self.positive(x)
            args = (y,)
            if op == "pow":
                args = (y, self.builder.constant(self.random.choice((1.5, -0.7, 0.3, 2.25))))
            limit = {"sqrt": most + 1, "log": 4.0, "pow": (most + 1) ** 2.25}[op]
            self.keep(add(op, *args), -limit, limit)
        elif op == "exp":
            self.keep(add(op, self.within(x, 4.0)), 0.0, 55.0)
        elif op == "neg":
            self.keep(add(op, x), -high, -low)
        elif op == "abs":
            self.keep(add(op, x), 0.0, most)
        else:
            self.keep(add(op, x), -1.0, 1.0)  # tanh, sigmoid, spike
        if self.random.random() < 0.1:
            place = self.value(0.0)
            self.keep(add("detach", place), *self.bounds[place])


def random_step(seed: int, exact: bool = False) -> Step:
    """1 to 3 inputs and states, 1 or 2 outputs, up to 2 parameters, 3 to 30 operations, detach
    anywhere. ``exact``: only those that every executor computes bit for bit. Values stay finite for
    inputs, states and parameters as ``tensors`` has them."""
    for attempt in itertools.count():
        step = _drawn(_Draw(f"{seed} {attempt}", exact))
        if 3 <= step.forward.operations() <= 30:
            return step


def _drawn(draw: _Draw) -> Step:
    inputs, states = draw.random.randint(1, 3), draw.random.randint(1, 3)
    outputs, params = draw.random.randint(1, 2), draw.random.randint(0, 2)
    for kind, count, limit in (("input", inputs, 6.0), ("state", states, 4.0)):
        for which in range(count):
            draw.leaf(kind, which, -limit, limit)
    for which in range(params):
        draw.leaf("param", which, 0.2, 2.0)
    for _ in range(draw.random.randint(3, 24)):
        draw.operation()
    results = [draw.within(draw.value(0.0), 1000.0) for _ in range(outputs)]
    results += [draw.within(draw.value(0.0), 4.0) for _ in range(states)]
    return Step.of(draw.builder.program(results).pack(), outputs, inputs, params)


def tensors(step: Step, seed: int, steps: int, n: int, dtype=torch.float32, channels: int = 0):
    """(inputs [T, N], states [N], params, [C] where there are channels) for a step."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [normal(steps, n, dtype=dtype).clamp(-6, 6) for _ in range(step.inputs)]
    states = [normal(n, dtype=state).clamp(-4, 4) for _ in range(step.states)]
    shape = (channels,) if channels else ()
    params = [normal(*shape, dtype=state).abs().clamp(0.2, 2.0) for _ in range(step.params)]
    return inputs, states, params


def spread(param, layer: NeuronLayer, n: int):
    """A parameter, one value for each neuron where it is [C]."""
    if not param.dim():
        return param
    return param[(torch.arange(n) // layer.inner) % layer.channels]


def looped(layer: NeuronLayer, inputs, states, params, surrogate: Surrogate):
    """(outputs [T, N] each, states [T, N] each) of the step as it was traced, one step after the
    other; differentiable. Inputs are [T, N]; a state that is None starts at the layer's rest."""
    step, state = layer.step, state_dtype(inputs[0])
    program, n = Program.unpack(step.text.split(";")[1]), inputs[0].shape[1]
    now = [
        torch.full((n,), rest, dtype=state) if v is None else v
        for v, rest in zip(states, layer.rest or (0.0,) * step.states, strict=True)
    ]
    params = [spread(p, layer, n) for p in params]
    outputs, every = [], []
    for t in range(layer.steps):
        leaves = {"input": [x[t].to(state) for x in inputs], "state": now, "param": params}
        results = evaluate(program, leaves, surrogate, lambda u: fire(u, surrogate))
        results = [torch.broadcast_to(r, (n,)) for r in results]
        outputs.append([s.to(inputs[0].dtype) for s in results[: step.outputs]])
        now = results[step.outputs :]
        every.append(now)
    of = lambda rows: [torch.stack(column) for column in zip(*rows, strict=True)]  # noqa: E731
    return of(outputs), of(every)


def layer_of(step: Step, surrogate: Surrogate, steps: int, *, channels: int = 1, inner: int = 1,
             static: bool = False, rest: tuple[float, ...] = ()) -> NeuronLayer:  # fmt: skip
    rest = rest or (0.0,) * step.states
    return NeuronLayer(
        step, surrogate.ID, static, *surrogate.params(), rest, steps, channels, inner
    )
