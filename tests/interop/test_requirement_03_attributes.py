"""Attributes are read at each call, and V is what theirs is."""

import copy
import pickle

import pytest
import torch
from jelly_cases import (
    KINDS,
    VERSIONS,
    check_same,
    check_states,
    currents,
    fresh,
    module,
    node,
)
from torch import nn

import snnfast

OLD = VERSIONS[:2]


def both(version, kind="LIFNode", **options):
    ours, theirs = fresh(nn.Sequential(node(version, kind, **options)))
    snnfast.accelerate(ours)
    return ours, theirs


def put(models, name, value):
    for model in models:
        setattr(model[0], name, value)
        model[0].reset()


CHANGES = (
    ("v_threshold", 0.4), ("v_reset", -0.2), ("v_reset", None), ("detach_reset", True),
    ("tau", 3.5), ("decay_input", False), ("v", 0.7), ("v", torch.full((8, 5), 0.3)),
)  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_numbers_take_effect(version):
    models = both(version)
    for grid in (False, True):
        for name, value in CHANGES:
            for model in models:
                model[0].reset()
                value = value.clone() if isinstance(value, torch.Tensor) else value
                setattr(model[0], name, value)
            check_same(*models, currents(5, 8, 5, grid=grid))


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_the_surrogate_takes_effect(version):
    surrogate = module(version, "surrogate")
    models = both(version)
    for name in ("ATan", "PiecewiseQuadratic", "Erf", "SoftSign"):
        put(models, "surrogate_function", getattr(surrogate, name)())
        check_same(*models, currents(5, 8, 5))
        for model in models:
            model[0].surrogate_function.alpha = 0.7
        check_same(*models, currents(5, 8, 5))
    for model in models:  # the primitive in place of the step is theirs to run
        model[0].reset()
        model[0].surrogate_function.spiking = False
    with pytest.warns(UserWarning, match=r"LIFNode runs as SpikingJelly has it: .*spiking=False"):
        check_same(*models, currents(5, 8, 5))


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_a_surrogate_of_ones_own(version):
    class rectangle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, width):
            ctx.save_for_backward(x)
            ctx.width = width
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            outside = x.abs() > ctx.width / 2
            return (grad / ctx.width).masked_fill_(outside, 0), None

    class Rectangle(nn.Module):
        def __init__(self, alpha, fires=">="):
            super().__init__()
            self.alpha = alpha

        def forward(self, x):
            return rectangle.apply(x, self.alpha)

    ours, theirs = fresh(nn.Sequential(node(version, surrogate_function=Rectangle(0.8))))
    report = snnfast.accelerate(ours)
    assert len(report.replaced) == 1
    assert snnfast.explain(ours, currents(5, 8, 5))[0][1] == "cpu"
    ours[0].reset()
    for width in (0.8, 1.5):
        for model in (ours, theirs):
            model[0].surrogate_function.alpha = width
        check_same(ours, theirs, currents(5, 8, 5, grid=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_a_strict_threshold(version):
    class strict(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            return grad / (1 + ctx.saved_tensors[0].abs()) ** 2

    models = fresh(nn.Sequential(node(version, "IFNode", surrogate_function=strict.apply)))
    assert len(snnfast.accelerate(models[0]).replaced) == 1
    for training in (True, False):  # where 0.0.0.0.14 fires at the threshold
        for model in models:
            model.train(training)
            model[0].reset()
        check_same(*models, (4 * currents(6, 50, 5, grid=True)).round() / 4)


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_a_learned_rate_takes_effect(version):
    models = both(version, "ParametricLIFNode", tau=3.0)
    for decay_input in (True, False):
        for w in (-1.0, 0.3):
            for model in models:
                model[0].reset()
                model[0].decay_input = decay_input
                with torch.no_grad():
                    model[0].w.fill_(w)
            check_same(*models, currents(5, 8, 5, grid=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_v(version, kind):
    ours, theirs = both(version, kind)
    assert type(ours[0].v) is float
    if version != "0.0.0.0.12":
        ours[0].store_v_seq = theirs[0].store_v_seq = True
    x = currents(5, 8, 5).requires_grad_()
    check_same(ours, theirs, x.detach())
    assert ours[0].v.shape == (8, 5) and ours[0].v_seq.shape == x.shape
    assert torch.equal(ours[0].v, ours[0].v_seq[-1]) and ours[0].v._base is None
    a, b = (m(x).sum() + m[0].v.sum() + m[0].v_seq.square().sum() for m in (ours, theirs))
    torch.testing.assert_close(a, b)  # all of them have gradients
    for model, total in ((ours, a), (theirs, b)):
        total.backward()
        model[0].detach()
        assert not model[0].v.requires_grad
    for model in (ours, theirs):
        model[0].reset()
    check_states(ours, theirs)
    assert type(ours[0].v) is float


@pytest.mark.parametrize("version", OLD + VERSIONS[2:])
def test_requirement_03_step_modes(version):
    if version == "0.0.0.0.12":
        models = both(version, mode="s")
        check_same(*models, currents(5, 8, 5), steps=True)
        return
    models = both(version)
    for mode, stored in (("m", False), ("s", False), ("s", True), ("m", True)):
        put(models, "step_mode", mode)
        for model in models:
            model[0].store_v_seq = stored
        for _ in range(2):
            check_same(*models, currents(5, 8, 5), steps=mode == "s")


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_integrators(version):
    models = fresh(nn.Sequential(node(version, "IFNode", v_threshold=float("inf"))))
    assert len(snnfast.accelerate(models[0]).replaced) == 1
    for model in models:
        model(currents(5, 8, 5))
    check_states(*models)


def test_requirement_03_a_closure_takes_effect():
    """A function over a number that changes later is another surrogate then."""

    def cauchy(width):
        class fires(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                ctx.save_for_backward(x)
                ctx.w = w
                return (x >= 0).to(x)

            @staticmethod
            def backward(ctx, grad):
                return grad / (1 + (ctx.saved_tensors[0] / ctx.w).square()), None

        def use(value):
            nonlocal width
            width = value

        return lambda x: fires.apply(x, width), use

    surrogate, use = cauchy(1.0)
    models = [nn.Sequential(node("2.0.0", surrogate_function=surrogate)) for _ in range(2)]
    assert len(snnfast.accelerate(models[0]).replaced) == 1
    for width in (1.0, 0.3):
        use(width)
        check_same(*models, currents(5, 8, 5))


@pytest.mark.parametrize("version", VERSIONS[:1])
def test_requirement_03_v_of_every_step_is_there_when_it_is_looked_at(version):
    """It is computed then, on all the ways there are to look."""
    x = currents(5, 8, 3, grid=True).requires_grad_()
    looks = (
        lambda node: node.v_seq, lambda node: node._memories["v_seq"],
        lambda node: dict(node.named_memories())["v_seq"], lambda node: list(node.memories())[-1],
        lambda node: dict(node._memories)["v_seq"], lambda node: node._memories.get("v_seq"),
        lambda node: copy.deepcopy(node).v_seq, lambda node: pickle.loads(pickle.dumps(node)).v_seq,
        lambda node: node.double().v_seq.float(), lambda node: node._memories.copy()["v_seq"],
    )  # fmt: skip
    for kind in KINDS:
        for number, look in enumerate(looks):
            ours, theirs = both(version, kind)
            for call in range(2):
                for model in (ours, theirs):
                    model(x if number < 2 else x.detach())
                    if number > 5:
                        model[0].requires_grad_(False)
                        model[0].detach()
                a, b = (look(model[0]) for model in (ours, theirs))
                assert torch.equal(a, b) and a.dtype == b.dtype
                if call or number > 1:
                    break
                grads = [torch.autograd.grad(t.square().sum(), x)[0] for t in (a, b)]
                torch.testing.assert_close(*grads)
                for model in (ours, theirs):
                    model[0].detach()
                    assert not model[0].v_seq.requires_grad
            ours[0].reset()
            assert ours[0].v_seq is None


def test_requirement_03_v_of_every_step_is_not_that_of_other_inputs():
    model, _ = both("0.0.0.0.12")
    x = currents(5, 8, 3)
    model(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="v_seq: the input of the call must stay as it was"):
        print(model[0].v_seq)
    with torch.inference_mode():  # where changes are not counted
        x = currents(5, 8, 3)
        model(x)
        wanted = model[0].v.clone()
        x.add_(1)
        assert torch.equal(model[0].v_seq[-1], wanted)


def test_requirement_03_memories_of_the_old_are_read_by_traced_steps():
    """There v_threshold and v_reset are memories, and a V that is a number is double precision."""

    class Own(module("0.0.0.0.12").LIFNode):
        def neuronal_charge(self, x):
            self.v = self.v * 0.7 + x * self.v_threshold

    for v_reset in (0.0, None, -0.2):
        ours, theirs = fresh(nn.Sequential(Own(v_reset=v_reset)))
        assert len(snnfast.accelerate(ours).traced) == 1
        for threshold in (1.0, 0.6):
            for model in (ours, theirs):
                model[0].v_threshold = threshold
            check_same(ours, theirs, currents(5, 8, 5, grid=True), steps=True)
    ours, theirs = both("0.0.0.0.12", tau=3.0, decay_input=False, v_reset=-0.15)
    for model in (ours, theirs):
        model[0].v = 0.1
    with pytest.warns(UserWarning, match="v is the number 0.1"):
        check_same(ours, theirs, currents(5, 8, 5, grid=True))
    check_same(ours, theirs, currents(5, 8, 5, grid=True))


def quarter(node) -> None:
    """Gives it a charge of its own, by the version's name for it."""
    charges = ("neuronal_charge", "single_step_functional_forward")
    name = next(name for name in charges if hasattr(node, name))
    theirs = getattr(node, name)

    def half(x, *rest, **named):
        less = [0.25 * t for t in x] if isinstance(x, (list, tuple)) else 0.25 * x
        return theirs(less, *rest, **named)

    setattr(node, name, half)


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_03_a_method_of_the_node_itself_takes_effect(version):
    ours, theirs = both(version)
    for x in (currents(4, 3, 5), currents(4, 3, 5, seed=1)):
        check_same(ours, theirs, x)
        for model in (ours, theirs):
            quarter(model[0])


def test_requirement_03_a_method_of_a_traced_node_itself_takes_effect():
    class Leaks(module("0.0.0.0.12").LIFNode):
        def neuronal_charge(self, x):
            self.v = 0.75 * self.v + x

    ours, theirs = fresh(nn.Sequential(Leaks()))
    assert snnfast.accelerate(ours).traced
    for model in (ours, theirs):
        model[0].neuronal_fire = lambda node=model[0]: node.surrogate_function(node.v - 0.5)
    for seed in (0, 1):
        check_same(ours, theirs, currents(4, 3, 5, 2, 4, seed=seed), steps=True)


class Softer(module("2.0.0").LIFNode):
    """2.0.0 calls such a step in mode "s" alone, or where V of every step is asked for."""

    def single_step_functional_forward(self, inputs, states, **kwargs):
        h = 0.75 * states[0] + inputs[0]
        s = self.surrogate_function(h - 0.5 * self.v_threshold)
        return (s,), (h - s * self.v_threshold,)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_requirement_03_v_of_every_step_of_a_traced_node(mode):
    ours, theirs = fresh(nn.Sequential(Softer(step_mode=mode, store_v_seq=True)))
    assert snnfast.accelerate(ours).traced
    for store in (True, False, True):
        for model in (ours, theirs):
            model[0].store_v_seq = store
        check_same(ours, theirs, currents(4, 3, 5), steps=mode == "s")
