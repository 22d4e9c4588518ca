"""What ``accelerate`` costs, and what it leaves alone."""

import sys
import time

import pytest
import torch
from jelly_cases import VERSIONS, check_same, currents, fresh, module, node
from torch import nn

import snnfast


class Layers(nn.Module):
    """As many neurons as a ResNet-18 has, each behind a convolution."""

    def __init__(self, make):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(17))
        self.neurons = nn.ModuleList(make(k) for k in range(17))

    def forward(self, x):
        for conv, neuron in zip(self.convs, self.neurons):
            x = neuron(3 * conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return x


def own_charge(self, x):
    self.v = self.v * (1 - 1 / self.tau) + x


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_it_takes_less_than_two_seconds(version):
    base = type(node(version, tau=2.5))
    own = type("Own", (base,), {"neuronal_charge": own_charge})
    more = {} if version == "0.0.0.0.12" else {"step_mode": "m"}
    for make in (lambda k: node(version), lambda k: own(tau=2.0 + k % 3, **more)):
        ours, theirs = fresh(Layers(make))
        begin = time.process_time()
        report = snnfast.accelerate(ours)
        assert time.process_time() - begin < 2.0
        assert len(report.replaced) + len(report.traced) == 17
        with torch.no_grad():
            assert torch.equal(ours(currents(4, 2, 4, 3, 3)), theirs(currents(4, 2, 4, 3, 3)))


def functions_called(run) -> int:
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_costs_little_more_than_that_of_our_module(version):
    """Functions of Python; a dozen are 5 us."""
    x = currents(4, 2, 8)
    plain, model = snnfast.nn.LIF(return_state=True), nn.Sequential(node(version))
    snnfast.accelerate(model)
    ours = model[0]
    for call in (plain, ours):
        call(x)
    ours.reset()
    reference = functions_called(lambda: plain(x))
    ours.reset()
    assert functions_called(lambda: ours(x)) <= reference + 14


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_else_changes(version):
    class Own(module(version).LIFNode):
        def neuronal_charge(self, x):
            self.v = self.v * 0.5 + x

    own = Own() if version == "0.0.0.0.12" else Own(step_mode="m")
    model = nn.Sequential(node(version, "ParametricLIFNode"), node(version, "IFNode"))
    if version != "2.0.0":
        model.append(own if version == "0.0.0.0.14" else nn.Identity())
    ours, theirs = fresh(model)
    x = currents(5, 8, 3)
    for m in (ours, theirs):
        m(x)[-1].sum().backward()
    for m in (*ours, *theirs):
        if hasattr(m, "detach"):
            m.detach()
    state, grads = torch.get_rng_state(), [p.grad.clone() for p in ours.parameters()]
    modes = [m.training for m in ours.modules()]
    snnfast.accelerate(ours)  # in the midst of a sequence
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, g) for p, g in zip(ours.parameters(), grads, strict=True))
    assert [m.training for m in ours.modules()] == modes
    check_same(ours, theirs, x)


def test_where_gradients_are_off():
    own = type("Own", (module("0.0.0.0.14").LIFNode,), {"neuronal_charge": own_charge})
    for off in (torch.no_grad, torch.inference_mode):
        ours, theirs = fresh(nn.Sequential(own(step_mode="m"), node("0.0.0.0.14")))
        with off():
            assert len(snnfast.accelerate(ours).traced) == 1
            assert torch.equal(ours(currents(5, 8, 3)), theirs(currents(5, 8, 3)))
        for m in (*ours, *theirs):
            m.reset()
        check_same(ours, theirs, currents(5, 8, 3))
        ours[0].tau = theirs[0].tau = 3.0
        with off():
            ours[0].reset(), theirs[0].reset()
            assert torch.equal(ours[0](currents(5, 8, 3)), theirs[0](currents(5, 8, 3)))
