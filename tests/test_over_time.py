"""What a new user writes first: layers over time, tau of a ParametricLIF, surrogates by name."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import snnfast
from snnfast.surrogate import TABLE, resolve

T, B = 3, 4


def test_over_time_folds_time_into_the_batch():
    layers = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5))
    folded = snnfast.nn.OverTime(*copy.deepcopy(layers))
    assert folded.state_dict().keys() == layers.state_dict().keys()
    x = torch.randn(T, B, 2, 6, 6)
    expected = layers(x.reshape(T * B, 2, 6, 6)).reshape(T, B, 5, 4, 4)
    assert torch.equal(folded(x), expected)
    assert torch.equal(folded[1].running_mean, layers[1].running_mean)


def test_fuse_sees_through_it():
    torch.manual_seed(0)
    block = nn.Sequential(
        snnfast.nn.OverTime(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)),
        snnfast.nn.LIF(),
    )
    report = []
    fused = snnfast.nn.fuse(block, report=report)
    assert [(one.norm, one.neuron, one.reason) for one in report] == [("0.1", "1", None)]
    x = torch.randn(T, B, 2, 6, 6)
    names = [name for name, *_ in snnfast.explain(fused, x)]
    assert names == ["norm_lif"]
    assert (fused(x) != block(x)).double().mean() < 1e-2


def test_plan_sees_through_it():
    torch.manual_seed(0)

    def block(inputs):
        layers = nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8)
        return [snnfast.nn.OverTime(*layers), snnfast.nn.LIF()]

    model, x = nn.Sequential(*block(2), *block(8)), torch.randn(T, B, 2, 6, 6)
    plain = copy.deepcopy(model)
    plan = snnfast.nn.plan(model, x, budget=0.5)
    assert [b.name for b in plan.blocks][:2] == ["0-1", "2-3"] and plan.after < plan.before
    for net in (plain, model):
        net(x).sum().backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_over_time_refuses_what_knows_time():
    layers = nn.Linear(3, 4), nn.BatchNorm1d(4)
    for neuron in (snnfast.nn.LIF(), snnfast.nn.BatchNormLIF(4), snnfast.nn.Leaky()):
        with pytest.raises(ValueError, match="OverTime: neurons must stand behind it"):
            snnfast.nn.OverTime(*layers, neuron)


def test_repr_of_a_parametric_lif_reads_no_number():
    neuron = snnfast.nn.ParametricLIF(channels=3).to("meta")  # which has none to read
    assert "ParametricLIF(" in repr(neuron)


@pytest.mark.parametrize("channels", [None, 3])
def test_tau_of_a_parametric_lif(channels):
    neuron = snnfast.nn.ParametricLIF(init_tau=2.0, channels=channels)
    keys = list(neuron.state_dict())
    neuron.tau = 4.0
    torch.testing.assert_close(neuron.tau, torch.full_like(neuron.w, 4.0))
    assert neuron.w.requires_grad and list(neuron.state_dict()) == keys == ["w"]
    (gradient,) = torch.autograd.grad(neuron.tau.sum(), neuron.w)
    torch.testing.assert_close(gradient, torch.full_like(neuron.w, -3.0))  # -(tau - 1)
    if channels:
        neuron.tau = torch.tensor([1.5, 2.0, 100.0])
        torch.testing.assert_close(neuron.tau, torch.tensor([1.5, 2.0, 100.0]))
    x = torch.randn(T, B, 3)
    expected = snnfast.lif(x, inv_tau=neuron.w.sigmoid())
    assert torch.equal(neuron(x), expected)
    before = neuron.w.detach().clone()
    for wrong in (1.0, 0.5, float("inf"), float("nan"), torch.ones(2) * 3):
        with pytest.raises(ValueError, match="ParametricLIF: tau must be"):
            neuron.tau = wrong
    assert torch.equal(neuron.w, before)


def test_surrogates_in_any_case():
    for name, cls in TABLE.items():
        for spelled in (name.upper(), cls.__name__, cls.__name__.lower(), name.replace("_", "-")):
            assert resolve(spelled) is resolve(name)
    x = torch.randn(T, B)
    assert torch.equal(snnfast.lif(x, surrogate="ATan"), snnfast.lif(x, surrogate="atan"))
    with pytest.raises(ValueError, match="lif: surrogate must be one of"):
        snnfast.lif(x, surrogate="A Tan")


def test_surrogates_of_spikingjelly():
    theirs = pytest.importorskip("spikingjelly.activation_based.surrogate")
    x = torch.linspace(-2, 2, 81)
    found = 0
    for name in {cls.__name__ for cls in TABLE.values()} & set(dir(theirs)):
        function = getattr(theirs, name)()
        ours = resolve(function)
        assert type(ours).__name__ == name
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(given).sum(), given)
        torch.testing.assert_close(ours.gradient(x), gradient, rtol=1e-5, atol=1e-6)
        found += 1
    assert found >= 10
    other = resolve(theirs.ATan(alpha=5.0))
    assert other == snnfast.surrogate.ATan(alpha=5.0)
    assert dataclasses.asdict(resolve(theirs.Sigmoid(alpha=3.0, spiking=False)))["spiking"] is False

    class Own(theirs.ATan):
        pass

    with pytest.raises(TypeError, match="LIF: surrogate must be a name"):
        snnfast.nn.LIF(surrogate=Own())
