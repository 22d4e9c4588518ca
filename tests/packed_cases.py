"""Networks, gradients and kept bytes, for the tests of packed and of checkpointed spikes."""

import contextlib
import copy
import gc

import torch
from torch import nn

from snnfast.nn import LIF, ParametricLIF
from snnfast.ops import packed


class Block(nn.Module):
    """conv -> [BN] -> LIF on [T, B, C, H, W], so driven that it spikes and rests."""

    def __init__(self, inputs, outputs, norm=False, neuron=LIF):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.lif = neuron(surrogate="atan")
        with torch.no_grad():
            self.conv.weight.mul_(4).add_(0.05)

    def forward(self, x):
        return self.lif(self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]))


class Residual(nn.Module):
    """Two consumers of each spike tensor, one of them a sum."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = Block(width, width), Block(width, width)
        self.lif = LIF()

    def forward(self, x):
        return self.lif(self.second(self.first(x)) + x)


def over_time(layer):
    return lambda x: layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Pooled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, width), Block(width, width)])
        self.linear = nn.Linear(width * 16, 50)
        self.lif = LIF()

    def forward(self, x):
        for block in self.blocks:
            x = over_time(nn.MaxPool2d(2))(block(x))
        return self.lif(self.linear(x.flatten(2)))


class TwoReaders(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = Block(width, width, neuron=ParametricLIF)
        self.left, self.right = Block(width, width), nn.Conv2d(width, width, 1)
        self.lif = LIF()

    def forward(self, x):
        s = self.block(x)
        return self.lif(self.left(s) + over_time(self.right)(s))


class StepByStep(nn.Module):
    """A time loop over views s[t]."""

    def __init__(self, width):
        super().__init__()
        self.block, self.conv, self.lif = Block(width, width), nn.Conv2d(width, width, 3), LIF()
        with torch.no_grad():
            self.conv.weight.mul_(8)

    def forward(self, x):
        return self.lif(torch.stack([self.conv(s_t) for s_t in self.block(x)]))


NETS = {
    "chain": lambda: nn.Sequential(
        Block(16, 16), Block(16, 24, neuron=ParametricLIF), Block(24, 8)
    ),
    "norm": lambda: nn.Sequential(Block(16, 16, norm=True), Block(16, 16, norm=True)),
    "residual": lambda: nn.Sequential(Residual(16), Residual(16)),
    "pooled": lambda: Pooled(16),
    "two readers": lambda: TwoReaders(16),
    "step by step": lambda: StepByStep(16),
}


def sequence(dtype=torch.float32, steps=4, width=16, side=16):
    return (torch.randn(steps, 2, width, side, side) * 2).to(dtype)


def gradients(net, x, context=contextlib.nullcontext, call=None):
    """Gradients of x and of the parameters, the output, and the buffers afterwards."""
    net = copy.deepcopy(net)
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with context():
        s = (call or (lambda net, x: net(x)))(net, x)
    weights = torch.linspace(-1, 1, s.numel(), dtype=s.dtype).view(s.shape)
    (s * weights).sum().backward()
    return [s.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers()]


def assert_same(ours, dense, exercised=True):
    assert len(ours) == len(dense)
    for a, b in zip(ours, dense):
        assert torch.equal(a, b)
    assert not exercised or all(bool(g.any()) for g in dense[:3]), "the test must see gradients"


@contextlib.contextmanager
def counted(monkeypatch):
    """How many saved tensors were packed, and the bits that were made for them."""
    found = []
    as_bits = packed._as_bits

    def counting(t):
        result = as_bits(t)
        found.extend([] if result is None else [result])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(packed, "_as_bits", counting)
        yield found


def kept_bytes(call, x):
    """Net allocations over s = call(x) where only s's graph survives, less s itself."""
    call(x.clone().requires_grad_())
    gc.collect()
    leaf = x.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        s = call(leaf)
    events = profile.profiler.kineto_results.events()
    return sum(e.nbytes() for e in events if e.name() == "[memory]") - s.untyped_storage().nbytes()


def within(context, net):
    def call(x):
        with context():
            return net(x)

    return call
