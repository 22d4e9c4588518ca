"""Surrogates of one's own: a formula in PyTorch that no kernel knows."""

import copy
import math
import pickle
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import snnfast
from snnfast import surrogate
from snnfast.ops import select
from snnfast.surrogate import ATan, Surrogate


@dataclass(frozen=True)
class Cauchy(Surrogate):
    """ATan's formula once more, so that its kernel says what must come out."""

    alpha: float = 2.0

    def gradient(self, x):
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x) ** 2)

    def primitive(self, x):
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi + 0.5


class Plain(Surrogate):
    """No dataclass, and no call of the base's __init__."""

    def __init__(self, slope):
        self.slope = slope

    def gradient(self, x):
        return self.slope * torch.ones_like(x)


class Half(ATan):
    """Another formula under a name that kernels know."""

    def gradient(self, x):
        return super().gradient(x) / 2


class Numbered(Plain):
    ID = 2


class Cosine(Surrogate):
    """Of an operation that no program has."""

    def gradient(self, x):
        return torch.cos(x).clamp(min=0)


class Nothing(Surrogate):
    pass


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(select, "_warned", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "surrogate: no kernel knows")
        yield


def data(*shape, dtype=torch.float32):
    return (1.5 * torch.randn(shape or (6, 3, 4), dtype=dtype)).requires_grad_()


def gradients(call, x):
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    s = call(x)
    (dx,) = torch.autograd.grad((s * weights).sum(), x)
    return s.detach(), dx


CALLS = {
    "lif": lambda surrogate: lambda x: snnfast.lif(x, surrogate=surrogate),
    "module": lambda surrogate: snnfast.nn.ParametricLIF(surrogate=surrogate),
    "norm_lif": lambda surrogate: snnfast.nn.BatchNormLIF(4, surrogate=surrogate),
    "soft reset": lambda surrogate: snnfast.nn.IF(surrogate=surrogate, v_reset=None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_formula_is_used(name):
    x = data()
    ours, theirs = (gradients(CALLS[name](s), x) for s in (Cauchy(), ATan()))
    assert torch.equal(ours[0], theirs[0]) and ours[0].any()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


def test_other_ways_to_write_one():
    x = data()
    plain = gradients(CALLS["lif"](Plain(1.0)), x)[1]
    torch.testing.assert_close(plain, gradients(CALLS["lif"]("straight_through"), x)[1])
    detached = {"detach_reset": True}
    half = gradients(lambda x: snnfast.lif(x, surrogate=Half(), **detached), x[-1:])[1]
    whole = gradients(lambda x: snnfast.lif(x, surrogate="atan", **detached), x[-1:])[1]
    torch.testing.assert_close(2 * half, whole)  # not by ATan's kernel
    numbered = gradients(CALLS["lif"](Numbered(1.0)), x)[1]
    assert torch.equal(numbered, plain)


def test_the_smooth_twin():
    smooth = Cauchy(spiking=False)
    x = data(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(CALLS["lif"](smooth), x)


@pytest.mark.parametrize("op", ["lif", "norm_lif"])
def test_a_formula_that_can_be_traced_is_fused(op):
    ((name, backend, _),) = snnfast.explain(CALLS[op](Cauchy()), data())
    assert (name, backend) == (op, "cpu")


@pytest.mark.parametrize("op", ["lif", "norm_lif"])
def test_auto_takes_the_reference_and_says_once_what_it_costs(op):
    layer, x = CALLS[op](Cosine()), data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ((name, backend, reason),) = snnfast.explain(layer, x)
        layer(x), CALLS["module"](Cosine())(x)
    assert (name, backend) == (op, "reference") and "Cosine" in reason
    (warning,) = caught
    text = str(warning.message)
    assert "Cosine" in text and "reference" in text and "times" in text


@pytest.mark.parametrize("name", ["cpu", "triton", "cuda"])
def test_other_backends_refuse(name):
    message = f"lif: backend '{name}' cannot be used: no kernel knows the surrogate Cosine"
    with pytest.raises(snnfast.BackendUnavailable, match=message):
        snnfast.lif(data(), surrogate=Cosine(), backend=name)
    layer = CALLS["norm_lif"](Cosine())
    with snnfast.backend(name), pytest.raises(snnfast.BackendUnavailable, match=r"norm_lif: .*Cos"):
        layer(data())
    with snnfast.backend("reference"):
        layer(data())


@pytest.mark.parametrize("move", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("surrogate", [Cauchy(alpha=3.0), Plain(0.7)], ids=["dataclass", "plain"])
def test_copies(surrogate, move):
    layer, x = snnfast.nn.LIF(surrogate=surrogate), data()
    moved = move(layer)
    assert vars(moved.surrogate) == vars(surrogate)
    for a, b in zip(gradients(layer, x), gradients(moved, x)):
        assert torch.equal(a, b)


@pytest.mark.unpoisoned
def test_compiles():
    torch._dynamo.reset()  # a tau that was another before is a symbol, which Dynamo cannot lift
    layer, x = snnfast.nn.LIF(surrogate=Cauchy()), data()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for a, b in zip(gradients(compiled, x), gradients(layer, x)):
        torch.testing.assert_close(a, b)


def test_in_a_network():
    model = snnfast.models.create_model(
        "digits_cnn", num_classes=3, in_channels=1, image_size=8, surrogate=Cauchy()
    )
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: snnfast.lif(x, surrogate=Nothing()).sum().backward(), NotImplementedError,
         r"surrogate: Nothing must define gradient\(x\)"),
        (lambda x: snnfast.lif(x, surrogate=Nothing(spiking=False)), NotImplementedError,
         r"surrogate: Nothing must define primitive\(x\) for spiking=False"),
        (lambda x: ATan(spiking="no"), TypeError, "spiking must be True or False, got str"),
        (lambda x: snnfast.nn.LIF(surrogate=Cauchy), TypeError, "must be a name or a snnfast.surr"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(data())


class Constant(snnfast.surrogate.Surrogate):
    """Equal to every other one, for all that a dataclass without fields can tell."""

    def __init__(self, value):
        super().__init__()
        object.__setattr__(self, "value", value)

    def gradient(self, x):
        return torch.full_like(x, self.value)


def test_two_of_a_class_have_each_its_own_formula():
    x = torch.full((1, 1), 0.5, requires_grad=True)
    for value in (1.0, 100.0):
        s = snnfast.lif(x, surrogate=Constant(value), backend="reference")
        assert torch.autograd.grad(s.sum(), x)[0].item() == value / 2


WINDOWS = [
    surrogate.InclusiveRect(alpha=0.8),
    surrogate.TanhWindow(),
    surrogate.InverseQuadratic(alpha=7.0),
    surrogate.MultiGaussian(),
    surrogate.Scaled(surrogate.PiecewiseQuadratic(), 0.3),
    surrogate.Scaled(surrogate.Rect(), offset=0.2),
    surrogate.Scaled(surrogate.MultiGaussian(gamma=0.7), 0.5, 0.1),
]


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_a_window_is_fused_and_has_its_primitive(window):
    u = torch.linspace(-2, 2, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(window.primitive(u).sum(), u)
    edge = (slope - window.gradient(u.detach())).abs() > 1e-9
    assert edge.sum() <= 4 and window.gradient(u.detach()).max() > 0.1
    x = data(9, 3, 4)
    runs = [
        gradients(partial(snnfast.lif, surrogate=window, backend=name), x)
        for name in ("cpu", "reference")
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-5)
    assert pickle.loads(pickle.dumps(window)) == window == copy.deepcopy(window)


def test_what_windows_are():
    """At points that tell them from each other."""
    u = torch.tensor([-0.7, -0.5, 0.0, 0.3, 0.5])
    expected = {
        surrogate.Rect(): [0, 0, 1, 1, 0],
        surrogate.InclusiveRect(): [0, 1, 1, 1, 1],
        surrogate.Scaled(surrogate.Rect(), 0.5, 0.2): [0, 0.5, 0.5, 0, 0],
        surrogate.Scaled(surrogate.PiecewiseQuadratic(2.0), 0.5): [0, 0, 1, 0.4, 0],
        surrogate.InverseQuadratic(4.0): [1 / 2.96, 0.5, 1, 1 / 1.36, 0.5],
    }
    for window, values in expected.items():
        torch.testing.assert_close(window.gradient(u), torch.tensor(values, dtype=torch.float32))
    assert surrogate.TanhWindow().gradient(torch.tensor(0.51)) == 0
    ends = surrogate.TanhWindow().primitive(torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: surrogate.Scaled("rect"), TypeError, "of must be a snnfast.surrogate object"),
        (
            lambda: surrogate.Scaled(ATan(spiking=False)),
            ValueError,
            "of must be spiking, got a smo",
        ),
        (lambda: surrogate.Scaled(ATan(), amplitude="1"), TypeError, "amplitude must be a number"),
        (lambda: surrogate.InclusiveRect(0.0), ValueError, "inclusive_rect must be > 0, got 0"),
        (lambda: surrogate.MultiGaussian(sigma=-1.0), ValueError, "multi_gaussian must be > 0"),
        (lambda: surrogate.TanhWindow(math.inf), ValueError, "t must be finite"),
    ],
)
def test_windows_refuse(make, error, message):
    with pytest.raises(error, match=f"surrogate: .*{message}"):
        make()
