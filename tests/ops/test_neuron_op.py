"""What PyTorch and its users meet of ``@snnfast.neuron``: definition, refusals, memory,
registration, compilation, modules. What it computes: test_neuron.py."""

import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from neuron_cases import adaptive, integrator, memoryless, two_compartments
from torch import nn

import snnfast
from snnfast import spike
from snnfast.backends.spec import NeuronLayer
from snnfast.ops.neuron_op import Call

OUTSIDE = torch.ones(5)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def in_no_grad(x, v):
    with torch.no_grad():
        v = v + x
    return spike(x + v - 1), v


WRONG = {
    "a matrix product": (lambda x, v: (x @ x.mT, v), "a change of shape or a matrix product"),
    "a branch on data": (lambda x, v: (x, v) if (x > 0).any() else (v, v), "torch.where"),
    "a branch on each neuron": (lambda x, v: (x, v) if x > 0 else (v, v), "torch.where"),
    "a number of data": (lambda x, v: (x * x[0, 0, 0].item(), v), "must not hold"),
    "a number by NumPy": (lambda x, v: (x * float(x.detach().numpy()[0, 0, 0]), v), "the values"),
    "randomness": (lambda x, v: (x * torch.rand_like(x), v), "randomness"),
    "dropout": (lambda x, v: (torch.dropout(x, 0.5, True), v), "must not hold"),
    "a reduction": (lambda x, v: (x - x.mean(), v), "a reduction over neurons"),
    "time": (lambda x, v: (x * x.shape[0], v), "must not depend on the shape or the values"),
    "another shape": (lambda x, v: (x.sum(0), v), "a reduction over neurons"),
    "another dtype": (lambda x, v: (x, v.double()), "float64"),
    "a truth value": (lambda x, v: (x > v, v), "output 0 must keep x's dtype, got bool"),
    "too few results": (lambda x, v: x, "must return its outputs and then 1 new states, got 1"),
    "an unknown operation": (lambda x, v: (torch.erf(x), v), "must not hold erf; what may"),
    "in place": (lambda x, v: (v.add_(x), v), "in place"),
    "an own gradient": (lambda x, v: (Own.apply(x), v), r"autograd.Function \(Own\)"),
    "a spike of an int": (lambda x, v: (spike(3), v), "spike: u must be a floating point tensor"),
    "a tensor from outside": (lambda x, v: (x * OUTSIDE, v), "from outside; hand it in"),
    "a row": (lambda x, v: (x * torch.ones(3), v), "a tensor .3.; a step sees one neuron"),
    "swapped states": (lambda x, v, u: (spike(x), u, v), "in the order of the arguments"),
    "a root of 0": (lambda x, v: (spike(x), torch.sqrt(v + x)), "gradient at rest must be finite"),
    "by position": (lambda x, v, tau=2.0: (x, v), "parameters must be keyword-only"),
    "any number": (lambda x, *v: (x, v), "must name all that it takes"),
    "a taken name": (lambda x, v, *, backend=None: (x, v), "backend must not name a parameter"),
    "no string": (lambda x, v: (x, "v"), "state 0 must be a tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_step_that_cannot_be_fused_is_refused_at_its_definition(case):
    step, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        snnfast.neuron(step)
    assert not str(caught.value).startswith("'")


X = torch.randn(4, 2, 3)
CALLS = {
    "no tensor": (lambda: adaptive(3.0), TypeError, "adaptive: x must be a tensor, got float"),
    "an int": (lambda: adaptive(X.long()), TypeError, "adaptive: x must be float32"),
    "too many": (lambda: adaptive(X, X), TypeError, "inputs must be 1 .x., got 2; states are"),
    "too few": (lambda: two_compartments(X), TypeError, r"inputs must be 2 \(x, y\), got 1"),
    "two shapes": (lambda: two_compartments(X, X[:, :1]), ValueError, "y must be as x"),
    "no such name": (lambda: adaptive(X, leak=0.1), TypeError, "must be among tau, rho"),
    "a parameter's shape": (lambda: adaptive(X, rho=torch.ones(2)), ValueError, "here 3"),
    "a parameter's rank": (lambda: adaptive(X, rho=torch.ones(2, 3)), ValueError, "rho must be"),
    "a parameter's dtype": (
        lambda: adaptive(X, rho=torch.ones(3).double()), TypeError, "rho must be float32",
    ),
    "NaN": (lambda: adaptive(X, rho=math.nan), ValueError, "rho must not be NaN"),
    "one state": (lambda: adaptive(X, states=(X[0],)), ValueError, r"tuple of 2 \(v, a\), got 1"),
    "a state": (lambda: adaptive(X, states=X[0]), ValueError, "tuple of 2"),
    "a state's shape": (
        lambda: adaptive(X, states=(X[0], X)), ValueError, "state a must have shape",
    ),
    "a backend": (lambda: adaptive(X, backend="tpu"), ValueError, "backend must be one of"),
    "a state's name": (lambda: adaptive(X, return_state="some"), ValueError, "return_state"),
    "a surrogate": (lambda: adaptive(X, surrogate="some"), ValueError, "surrogate must be one"),
    "a scalar": (lambda: adaptive(torch.tensor(1.0)), ValueError, "time as its first axis"),
    "timesteps": (lambda: adaptive(X, timesteps=-1), ValueError, "timesteps must be >= 0"),
    "levels": (lambda: spike(X, levels=0), ValueError, "levels must be an int >= 1, got 0"),
    "no function": (lambda: snnfast.neuron(3), TypeError, "step must be a function, got int"),
    "rest": (
        lambda: snnfast.neuron(rest=(1.0, 2.0))(adaptive.step).__class__ and
        snnfast.neuron(rest=(1.0,))(adaptive.step), ValueError, "rest must be 2 numbers",
    ),
    "SpikingJelly's": (
        lambda: snnfast.neuron.LIFNode(), AttributeError,
        "snnfast.interop.spikingjelly.neuron.LIFNode",
    ),
    "a module of a function": (
        lambda: snnfast.nn.Neuron(adaptive.step), TypeError, "made by @snnfast.neuron",
    ),
    "a module's own name": (
        lambda: snnfast.nn.Neuron(snnfast.neuron(lambda x, *, training=0.5: x * training),
                                  training=0.3), ValueError, "training must not name a parameter",
    ),
    "a tensor that would learn": (
        lambda: snnfast.nn.Neuron(adaptive, rho=torch.ones(3, requires_grad=True)), ValueError,
        "rho must be an nn.Parameter to learn",
    ),
    "a module's parameter": (
        lambda: snnfast.nn.Neuron(adaptive, leak=1.0), TypeError, "must be among tau",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls_are_refused(case):
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call()


def test_no_grad_in_a_step_is_a_detach():
    gated = snnfast.neuron(in_no_grad)
    x = torch.randn(9, 4).requires_grad_()
    grads = []
    for backend in ("reference", None):
        s, v = gated(x, return_state="all", backend=backend)
        (g,) = torch.autograd.grad(s.sum(), x)
        assert not v.requires_grad or backend is None
        grads.append(g)
    torch.testing.assert_close(*grads)


def test_the_program_is_printed():
    text = str(adaptive.program)
    for line in ("adaptive(x, v, a)", "forward, 11 operations a step", "adjoint, ", "dx = ",
                 "kept for backward: 1b per neuron and step, and 8 bytes"):  # fmt: skip
        assert line in text
    hoisted = str(two_compartments.listing(w=torch.tensor(0.5)))
    assert "once a call" in hoisted and "w * w" in hoisted.split("forward")[0]


def kept(neuron, x, **call):
    y = neuron(x, **call)
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 8, 9, 17, 100])
def test_kept_for_backward(steps, dtype):
    x = torch.randn(steps, 4096).to(dtype).requires_grad_()
    borders = (math.ceil(steps / 8) - 1) * 4096 * 4
    floor = x.numel() * x.element_size()
    assert kept(adaptive, x) == floor + 2 * borders
    assert kept(integrator, x) == floor + borders
    assert kept(memoryless, x) == floor


@pytest.mark.unpoisoned
def test_opcheck():
    x, v0, rho = torch.randn(9, 2, 3, 4), torch.randn(2, 3, 4), torch.rand(3)
    plan, *_ = adaptive._planned({"rho": rho})
    layer = NeuronLayer(plan.step, 2, False, 2.0, 0.0, (0.0, 0.5), 9)
    ops = torch.ops.snnfast
    for state in (0, 1, 2):
        call = Call(layer, state, "cpu")
        forward = ([x], [v0, None], [rho], *call.packed, state, True)
        torch.library.opcheck(ops.neuron_forward.default, forward)
    *_, borders = ops.neuron_forward(*forward)
    gradients = [torch.randn_like(x)], [torch.randn_like(x), None]
    wanted = [True, True, False, True]
    backward = ([x], [v0, None], [rho], borders, *gradients, *call.packed, wanted)
    torch.library.opcheck(ops.neuron_backward.default, backward)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_once_for_any_number_of_steps(compiler):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(compiler)(graph, example_inputs)

    def network(x, rho):
        s, (v, _) = adaptive(x * 20, tau=15.0, rho=rho, surrogate="atan", return_state=True)
        return (s * 2).sum() + v.sum()

    compiled = torch.compile(network, backend=counting, fullgraph=True, dynamic=True)
    rho = torch.full((6,), 0.9, requires_grad=True)
    # T <= 8 keeps no states, and torch tells one kept state from several: three graphs for any T.
    for ranges in ((3, 9, 17), (4, 5, 8, 12, 16, 18, 30, 100)):
        before = len(graphs)
        for steps in ranges:
            x = torch.randn(steps, 4, 6, requires_grad=True)
            ours, plain = (torch.autograd.grad(f(x, rho), (x, rho)) for f in (compiled, network))
            for a, b in zip(ours, plain):
                torch.testing.assert_close(a, b)
    assert len(graphs) == before


def test_autocast_casts_nothing():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert snnfast.explain(adaptive, x)[0][1] == "cpu"
        s, (v, _) = adaptive(x, return_state=True)
    assert s.dtype == torch.bfloat16 and v.dtype == torch.float32


def test_lazily_negative_tensors_are_what_they_are():
    """First states and gradients stand in lists that PyTorch does not resolve."""
    x, v, a, ds = (torch.randn(shape) for shape in ((4, 6), (6,), (6,), (4, 6)))

    def run(lazy):
        leaf, *states = (lazy(t).detach().requires_grad_() for t in (x * 20, v, a))
        s, after = adaptive(leaf, states=tuple(states), return_state=True)
        along = [lazy(ds), *(lazy(t) for t in (v, a))]
        return (s, *after, *torch.autograd.grad((s, *after), (leaf, *states), along))

    lazily = run(lambda t: torch._neg_view(-t))
    for plain, other in zip(run(torch.clone), lazily, strict=True):
        assert torch.equal(plain, other)


def test_the_smooth_twin_passes_gradcheck():
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    rho = torch.rand(3, dtype=torch.float64, requires_grad=True)

    @snnfast.neuron
    def attached(x, v, a, *, rho=0.9):
        h = 0.5 * v + x
        s = spike(h - 1.0 - a)
        return s, h * (1 - s), rho * a + s

    def run(x, rho):
        smooth = snnfast.surrogate.ATan(spiking=False)
        s, states = attached(x, rho=rho, surrogate=smooth, return_state="all", backend="reference")
        return s, *states

    torch.autograd.gradcheck(run, (x, rho))


def test_module():
    rho = nn.Parameter(torch.full((3,), 0.9))
    layer = snnfast.nn.Neuron(adaptive, rho=rho, tau=15.0, surrogate="atan")
    assert list(layer.state_dict()) == ["rho"] and "tau=15.0" in repr(layer)
    x = 20 * torch.randn(9, 2, 3)
    s = layer(x)
    assert torch.equal(s, adaptive(x, rho=rho, tau=15.0))
    s.sum().backward()
    assert rho.grad.shape == (3,)
    again = pickle.loads(pickle.dumps(snnfast.nn.Neuron(adaptive, tau=15.0)))
    assert torch.equal(again(x), adaptive(x, tau=15.0))
    half = layer.bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_module_streams():
    layer = nn.Sequential(snnfast.nn.Neuron(adaptive), snnfast.nn.Neuron(integrator))
    x = 20 * torch.randn(12, 2, 3)
    whole = layer(x)
    with snnfast.streaming(layer):
        parts = [layer(part) for part in x.split([1, 8, 3])]
    assert torch.equal(torch.cat(parts), whole)


def test_spikes_are_packed():
    x = (20 * torch.randn(4, 1, 64, 64)).requires_grad_()
    convolution = nn.Conv2d(64, 8, 1)
    with snnfast.packed_spikes():
        y = convolution(adaptive(x.permute(0, 2, 1, 3).reshape(4, 64, 8, 8)))
    y.sum().backward()
    assert x.grad is not None


class Cosine(snnfast.surrogate.Surrogate):
    """Of operations that no program has."""

    def gradient(self, x):
        return torch.cos(x.clamp(-1.5, 1.5))


def test_a_surrogate_that_is_no_program_runs_on_the_reference():
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="no kernel knows Cosine"):
        adaptive(x, surrogate=Cosine()).sum().backward()
    assert snnfast.explain(adaptive, x, surrogate=Cosine())[0][1] == "reference"
    with pytest.raises(snnfast.BackendUnavailable, match="no kernel knows the surrogate"):
        adaptive(x, surrogate=Cosine(), backend="cpu")


def _modes():
    from torch._subclasses import FakeTensorMode

    def double():
        torch.set_default_dtype(torch.float64)
        return nullcontext()

    return {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "fake tensors": FakeTensorMode,
        "another default dtype": double,
    }


@pytest.mark.parametrize("mode", _modes())
def test_the_program_does_not_depend_on_the_mode_it_is_first_called_in(mode):
    def step(x, v, *, tau=3.0):
        h = v + (x - v) / tau
        s = spike(h - torch.tensor(0.5))
        return s, torch.where(s > 0, torch.zeros_like(h), h * (1 - s.detach()))

    expected = str(snnfast.neuron(step).program)
    try:
        with _modes()[mode]():
            assert str(snnfast.neuron(step).program) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,0,1;input:0 > 0",
        "1,0,1;input:5 > 0;",
        "1,0,1;input:0 state:3 > 0,1;",
        "1,0,1;input:0 dout:0 add,0,1 > 2;",
        "1,0,1;input:0 add,0,7 > 1;",
        "1,0,1;input:0 erf,0 > 1;",
        "1,0,1;input:0 ge,0,0 > 1;",
        "1,0,2;input:0 > 0;",
        "0,0,1;const:0x1p+0 > 0;",
        "1,0,1;input:0 > -;",
        "1,0,1;input:-1 > 0;",
        "1,0,1;input:0 > 0;input:0 input:4 add,0,1 > 2",
    ],
)
def test_a_program_that_is_none_is_refused(text):
    x = torch.randn(4, 3)
    with pytest.raises((ValueError, RuntimeError), match=r"program|step"):
        torch.ops.snnfast.neuron_forward([x], [], [], text, 4, [1, 0], [4.0, 0.0], "cpu", 0, False)


def test_a_row_of_parameters_needs_an_axis_of_channels():
    plan, *_ = adaptive._planned({"rho": torch.rand(3)})
    call = Call(NeuronLayer(plan.step, 2, False, 2.0, 0.0, (0.0, 0.0), 4), 0, "cpu")
    with pytest.raises(ValueError, match="for a parameter"):
        x = torch.randn(4, 3)
        torch.ops.snnfast.neuron_forward([x], [None] * 2, [torch.rand(3)], *call.packed, 0, True)


class Scaled(snnfast.surrogate.Surrogate):
    """Equal to another one, as far as the base class can tell."""

    def __init__(self, scale):
        super().__init__()
        object.__setattr__(self, "scale", scale)

    def gradient(self, x):
        return self.scale / (1 + x * x)


def test_surrogates_that_are_equal_may_have_other_formulas():
    one, three = Scaled(1.0), Scaled(3.0)
    assert one == three
    x = (20 * torch.randn(4, 3)).requires_grad_()
    first, second = (
        torch.autograd.grad(adaptive(x, surrogate=s).sum(), x)[0] for s in (one, three)
    )
    torch.testing.assert_close(3 * first, second)
