"""checkpoint_spikes around neurons of other packages, which hold a state: the block that runs again
starts where forward did, and leaves the state of forward."""

import copy

import pytest
import torch
from peer_neurons import package
from torch import nn

import snnfast


def layers(node) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), node()) for _ in range(2)))


def jelly(accelerated: bool):
    neuron = package("spikingjelly.activation_based.neuron")
    model = layers(lambda: neuron.LIFNode(step_mode="m", store_v_seq=True))
    if accelerated:
        snnfast.accelerate(model)
    return model, lambda model: [
        getattr(block[1], name) for block in model for name in ("v", "v_seq")
    ]


def leaky():
    snntorch = package("snntorch")
    node = lambda: snnfast.nn.unroll(snntorch.Leaky(beta=0.9, init_hidden=True))  # noqa: E731
    return layers(node), lambda model: [block[1].mem for block in model]


MAKE = {
    "SpikingJelly": lambda: jelly(False),
    "accelerated": lambda: jelly(True),
    "unrolled": leaky,
}


@pytest.mark.parametrize("name", MAKE)
def test_the_block_runs_again_from_the_state_of_forward(name):
    model, states = MAKE[name]()
    plain = copy.deepcopy(model)
    x = torch.rand(5, 3, 6) * 4
    for block in model:
        snnfast.nn.checkpoint_spikes(block)
    for _ in range(2):  # the second goes on from the first
        found = []
        for net in (model, plain):
            s = net(x)
            s = s[0] if isinstance(s, tuple) else s
            (s * torch.linspace(-1, 1, s.numel()).view_as(s)).sum().backward()
            found.append([s, *states(net), *(p.grad for p in net.parameters())])
            net.zero_grad()
            for block in net:
                if name == "unrolled":
                    block[1].mem = block[1].mem.detach()
                else:
                    block[1].detach()
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
