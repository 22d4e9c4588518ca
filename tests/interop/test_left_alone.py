"""What looks at a model leaves it as it was: states that SpikingJelly's nodes hold, too."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snnfast


def block(channels: int) -> nn.Sequential:
    return nn.Sequential(layer.Conv2d(channels, 8, 3), layer.BatchNorm2d(8), neuron.LIFNode())


def network(accelerated: bool) -> nn.Module:
    net = nn.Sequential(block(1), block(8), layer.Flatten(), layer.Linear(8 * 4 * 4, 10))
    functional.set_step_mode(net, "m")
    if accelerated:
        snnfast.accelerate(net)
    return net


LOOKS = {
    "plan": lambda net, x: snnfast.nn.plan(net, x, budget=0.9),
    "measure": lambda net, x: snnfast.monitoring.measure(net, [x]),
    "warm_up": lambda net, x: snnfast.warm_up(net, x),
}


@pytest.mark.parametrize("at_rest", [True, False], ids=["at rest", "charged"])
@pytest.mark.parametrize("accelerated", [False, True], ids=["SpikingJelly", "accelerated"])
@pytest.mark.parametrize("look", LOOKS)
def test_states_are_what_they_were(look, accelerated, at_rest):
    net, x = network(accelerated), 3 * torch.rand(4, 2, 1, 8, 8)
    other = copy.deepcopy(net)
    if not at_rest:
        for one in (net, other):
            with torch.no_grad():
                one(x)
    LOOKS[look](other, x)
    assert torch.equal(net(x), other(x))
    for one, two in zip(net.modules(), other.modules(), strict=True):
        if isinstance(one, neuron.LIFNode):
            assert torch.equal(one.v, two.v)
