"""What ``snnfast.nn.fuse`` leaves alone, with its reason: the same model untouched."""

import copy
import random
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from fuse_cases import (
    B,
    Block,
    C,
    Custom,
    Folded,
    T,
    assert_same_training,
    build,
    conv,
    data,
    ops_of,
    why_not,
)
from torch import nn

from snnfast.nn import LIF, fuse

pytestmark = pytest.mark.filterwarnings("error:fuse")


class Subclass(nn.BatchNorm2d):
    pass


def _remember(m, x):
    m.last = m.bn(x)
    return m.lif(m.last)


def _count(m, x):
    m.flag += 1
    return m.lif(m.bn(x))


def _without_gradient(m, x):
    with torch.no_grad():
        y = m.bn(x)
    return m.lif(y)


def _random_depth(m, x):
    return m.lif(m.bn(x)) if torch.rand(()) < m.flag else x


def _python_random(m, x):
    return m.lif(m.bn(x) * 1.0) if random.random() < 2 else x


def _late_write(m, x):
    y = m.bn(x)
    x.mul_(2)
    return m.lif(y)


def _late_augmented_write(m, x):
    y, alias = m.bn(x), x
    alias += 1
    return m.lif(y)


def _late_inplace_layer(m, x):
    y = m.bn(x)
    return m.lif(y + m.extra(x))


def _set_data(m, x):
    y = x * 1
    y.data = x.data + 1
    return m.lif(m.bn(y))


def _adds_to_the_other(m, x):
    r = x * 1
    r += m.bn(x)
    return m.lif(r) + r


REFUSALS = {
    "two readers": (lambda m, x: m.lif(y := m.bn(x)) + y, "read by 2 operations"),
    "relu": (lambda m, x: m.lif(F.relu(m.bn(x))), "read by relu"),
    "a layer": (lambda m, x: m.lif(m.extra(m.bn(x))), "read by Conv2d"),
    "two additions": (lambda m, x: m.lif(m.bn(x) + x + x), "read by add"),
    "itself": (lambda m, x: m.lif((y := m.bn(x)) + y), "read by add"),
    "a number": (lambda m, x: m.lif(m.bn(x) + 1), "read by add"),
    "alpha": (lambda m, x: m.lif(torch.add(m.bn(x), x, alpha=2)), "read by add"),
    "output": (lambda m, x: (m.bn(x), m.lif(x)), "its output leaves Custom"),
    "called twice": (lambda m, x: m.lif(m.bn(x)) + m.lif(m.bn(x)), "called more than once"),
    "static": (lambda m, x: m.lif(m.bn(x), timesteps=3), "neuron is called with more than"),
    "v0": (lambda m, x: m.lif(m.bn(x), x[0].double()), "neuron is called with more than"),
    "branch": (lambda m, x: m.lif(m.bn(x)) if x.sum() > 0 else x, "cannot be traced: symbolically"),
    "remembers": (_remember, "cannot be traced"),
    "counts": (_count, "writes to the attributes"),
    "collects": (lambda m, x: m.lif(m.seen.append(x) or m.bn(x)), "writes to the attributes"),
    "no_grad": (_without_gradient, "changes the gradient mode"),
    "grad mode": (
        lambda m, x: m.lif(m.bn(x)) if torch.is_grad_enabled() else x,
        "depends on the gradient mode",
    ),
    "torch random": (_random_depth, "computes aten.rand"),
    "python random": (_python_random, "draws random numbers"),
    "training": (lambda m, x: m.lif(m.bn(x)) if m.training else x, "in training than in eval"),
    "late write": (_late_write, "mul_ between it and the neuron"),
    "late +=": (_late_augmented_write, "iadd.* between it and the neuron"),
    "late layer": (_late_inplace_layer, "extra between it and the neuron"),
    "sets data": (_set_data, "sets data of a tensor"),
    "adds to the other": (_adds_to_the_other, "read by iadd"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_left_alone(name):
    forward, reason = REFUSALS[name]
    extra = nn.ReLU(inplace=True) if name == "late layer" else conv()
    model = Custom(forward, extra).double()
    assert re.search(reason, why_not(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fuse: nothing was fused")
        fused = fuse(model)
    x, state = data()[:, 0], torch.get_rng_state()
    expected = model(x.clone())
    torch.set_rng_state(state)
    for a, b in zip(*(o if isinstance(o, tuple) else (o,) for o in (fused(x.clone()), expected))):
        assert torch.equal(a, b)
    assert hasattr(fused, "last") == (name == "remembers")  # from its one call, not from fuse
    assert fused.flag == (1.5 if name == "counts" else 0.5)
    assert len(fused.seen) == (name == "collects") and fused.training


class Keeps(nn.Module):
    first = 0.0

    def __init__(self):
        super().__init__()
        self.mean = 0.0
        self.register_buffer("row", torch.zeros(()))

    def forward(self, x):
        self.mean = self.first = self.later = self.row = x.mean()
        return x


def _changes_the_residual(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    r.add_(100.0)
    return z


def _changes_a_view_of_it(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    view = r.flatten(1)
    view *= 2.0
    return z


def _changes_other_tensors(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    other = m.extra(r)
    other += r
    return z + F.relu(other.flatten(1), inplace=True).sum() * 0.0


@pytest.mark.parametrize("forward", [_changes_the_residual, _changes_a_view_of_it])
def test_what_is_changed_in_place_behind_the_neuron(forward):
    def folding(model):
        return nn.Sequential(nn.Flatten(0, 1), model, nn.Unflatten(0, (T, B)))

    model = Custom(forward, conv()).double()
    assert re.search("(add_|imul).* behind the neuron may change a tensor", why_not(model))
    with pytest.warns(UserWarning, match="nothing was fused"):
        fused = fuse(model)
    assert_same_training(folding(fused), folding(model), data())
    other = Custom(_changes_other_tensors, conv()).double()
    assert ops_of(copy.deepcopy(fuse(other)), data()[:, 0]) == ["norm_lif"]
    assert_same_training(folding(fuse(other)), folding(other), data(), rtol=1e-9, atol=1e-10)


READS = {
    "an attribute": lambda m, x: m.lif(m.bn(m.extra(x))) + m.extra.mean,
    "that of the class": lambda m, x: m.lif(m.bn(m.extra(x))) + m.extra.first,
    "a buffer": lambda m, x: m.lif(m.bn(x)) + m.extra.row + m.extra(x) + m.extra.row,
    "none yet": lambda m, x: m.lif(m.bn(m.extra(x))) + getattr(m.extra, "later", 0.0),
}


@pytest.mark.parametrize("name", READS)
def test_a_forward_that_reads_what_another_changes(name):
    model, report = Custom(READS[name], Keeps()).double(), []
    with pytest.warns(UserWarning, match="nothing was fused"):
        fused = fuse(model, report=report)
    assert re.search(r"the forward of Custom reads \w+ of Keeps", report[0].reason)
    for _ in range(2):
        assert torch.equal(fused(data()[:, 0]), model(data()[:, 0]))


def test_a_forward_may_read_what_no_call_changes():
    """Weights, the layers of torch, its own attributes."""

    def forward(m, x):
        scale = m.flag * m.extra.out_channels / m.bn.num_features
        return m.lif(m.bn(x * m.extra.weight.mean() * scale))

    model = Custom(forward, conv()).double()
    assert ops_of(fuse(model), data()[:, 0]) == ["norm_lif"]
    reads = Custom(lambda m, x: ((y := m.bn(x)), m.bn.running_mean.sum() + m.lif(y))[1]).double()
    assert "bn.running_mean is read between" in why_not(reads)


def test_modules_that_are_left_alone():
    simple = lambda m, x: m.lif(m.bn(x))  # noqa: E731
    assert "Subclass is not one of" in why_not(Custom(simple, bn=Subclass(C)))
    assert "eps must be > 0" in why_not(Custom(simple, bn=nn.BatchNorm2d(C, eps=0.0)))
    assert "momentum must be" in why_not(Custom(simple, bn=nn.BatchNorm2d(C, momentum=2.0)))
    assert "returns its state" in why_not(Custom(simple, lif=LIF(return_state=True)))
    for part in ("bn", "lif"):
        for hook in ("register_forward_hook", "register_full_backward_hook"):
            model = Custom(simple)
            getattr(getattr(model, part), hook)(lambda *_: None)
            assert "has hooks" in why_not(model)
        model = Custom(simple)
        getattr(model, part).forward = lambda x: x
        assert "has a forward of its own" in why_not(model)
    model = Custom(simple)
    model.forward = lambda x: x
    assert "not that of its class" in why_not(model)
    wrapped = nn.Sequential(Folded(conv(), nn.BatchNorm2d(C)), LIF())
    wrapped[0].register_forward_hook(lambda *_: None)
    assert "its output leaves Folded '0', which has hooks" in why_not(wrapped)
    assert "no call of it" in why_not(Custom(lambda m, x: m.lif(x)))
    assert "another fused batch norm adds" in why_not(build("down"), "down.layers.1")


def test_an_untraceable_part_does_not_stop_the_rest():
    class Choosy(Folded):
        def forward(self, x):
            return super().forward(x) if x.dim() == 5 else x

    layers = [Choosy(conv(), nn.BatchNorm2d(C)), Choosy(LIF())]
    model = nn.Sequential(*layers, Block(), Folded(nn.BatchNorm2d(C)), LIF())
    report = []
    fused = fuse(model, report=report)
    assert [e.reason is None for e in report] == [False, True, True, True]
    assert "forward of Choosy '0' cannot be traced" in report[0].reason
    assert ops_of(fused, data().float()) == ["lif", "norm_lif", "norm_lif", "norm_lif"]


def test_bad_arguments():
    with pytest.raises(TypeError, match="fuse: model must be a torch module, got int"):
        fuse(3)
    with pytest.raises(TypeError, match="fuse: report must be a list or None, got dict"):
        fuse(nn.ReLU(), report={})
    with pytest.warns(
        UserWarning, match="nothing was fused: 0: not fused: its output is read by ReLU"
    ):
        fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    assert fuse(nn.Sequential(nn.Linear(2, 2), LIF())) is not None  # nothing to fuse, no warning
