"""Small networks with the structure of published ones, written against a package's names.

``jelly`` has the modules of a SpikingJelly: one of its releases, or the compatibility layer.
"""

from functools import partial

import torch
from dropin_networks import SpikeElementWise, SpikingTransformer, conv3x3
from torch import nn

T = 4


def spiking_transformer(jelly):
    """Nodes that take all timesteps, attention of their spikes."""
    node = partial(jelly.neuron.MultiStepLIFNode, tau=2.0, detach_reset=True)
    return SpikingTransformer(node, width=16, heads=2, depth=1, steps=T)


def element_wise(jelly, node="MultiStepIFNode", **more):
    """Spikes that are added onto in place, layers in containers."""
    more |= {"detach_reset": True, "surrogate_function": jelly.surrogate.ATan()}
    node = partial(getattr(jelly.neuron, node), **more)
    return SpikeElementWise(node, jelly.layer.SeqToANNContainer, [8, 16], T, stem=3)


def learning(jelly):
    """The same with a leak that is learned."""
    return element_wise(jelly, "MultiStepParametricLIFNode", init_tau=1.5, decay_input=False)


def leaking(jelly):
    """The same from 0.0.0.0.14 on, with a leak that its releases round differently."""
    return element_wise(jelly, "LIFNode", tau=1.25, decay_input=False, step_mode="m")


def merged_node(jelly):
    """A LIFNode whose own forward takes [T B, ...] and begins at rest each time."""

    class MergedNode(jelly.neuron.LIFNode):
        def __init__(self, tau, v_reset):
            super().__init__(tau=tau, decay_input=False, v_reset=v_reset, step_mode="s")
            self.register_memory("trace", 0.0)

        def step(self, x):
            self.v_float_to_tensor(x)
            self.neuronal_charge(x)
            spike = self.neuronal_fire()
            self.neuronal_reset(spike)
            return spike

        def forward(self, x):
            if self.step_mode == "s":
                return self.step(x)
            self.reset()
            return torch.cat([self.step(x_t) for x_t in x.view(self.time_step, -1, *x.shape[1:])])

    return MergedNode


class Merged(nn.Module):
    """Time and batch in one axis; that and how many steps is set on all modules from outside."""

    def __init__(self, jelly, tau=2.0, v_reset=0.0, width=8):
        super().__init__()
        node = merged_node(jelly)
        self.first = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), node(tau, v_reset))
        self.second = nn.Sequential(conv3x3(width, width, 2), nn.BatchNorm2d(width))
        self.shortcut = nn.Conv2d(width, width, 1, 2, bias=False)
        self.node, self.head = node(tau, v_reset), nn.Linear(width, 10)
        for module in self.modules():
            module.time_step, module.step_mode = T, "m"

    def forward(self, x):
        x = self.first(x.repeat(T, 1, 1, 1))
        x = self.node(self.second(x) + self.shortcut(x))
        return self.head(x.flatten(2).mean(2)).unflatten(0, (T, -1)).mean(0)


def rectangle(jelly):
    """A surrogate of one's own: a window that includes its edges."""

    class Window(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, width):
            ctx.save_for_backward(x)
            ctx.width = width
            return jelly.surrogate.heaviside(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * (x.abs() <= ctx.width / 2) / ctx.width, None

    class Rectangle(jelly.surrogate.SurrogateFunctionBase):
        def __init__(self, alpha=1.0, spiking=True):
            super().__init__(alpha, spiking)

        @staticmethod
        def spiking_function(x, alpha):
            return Window.apply(x, alpha)

    return Rectangle


def detached_node(jelly):
    """A LIFNode whose potential enters the next step without gradient."""

    class DetachedNode(jelly.neuron.LIFNode):
        def __init__(self, tau, v_reset=None):
            super().__init__(tau, False, 1.0, v_reset, rectangle(jelly)(), False)

        def neuronal_charge(self, x):
            if type(self.v) is float:
                self.v = x
            else:
                self.v = self.v.detach() * (1 - 1.0 / self.tau) + x

    return DetachedNode


class OnlineInTime(nn.Module):
    """Called one timestep after the other by the caller's loop; activations come first."""

    def __init__(self, jelly, tau=1.1, width=8):
        super().__init__()
        node = detached_node(jelly)
        self.conv, self.bn1, self.node1 = conv3x3(3, width), nn.BatchNorm2d(width), node(tau)
        self.conv2, self.bn2, self.node2 = conv3x3(width, width), nn.BatchNorm2d(width), node(tau)
        self.drop = jelly.layer.Dropout(0.25)
        self.head = nn.Linear(width, 10)

    def step(self, x):
        x = self.node1(self.bn1(self.conv(x)))
        x = x + self.node2(self.bn2(self.conv2(self.drop(x))))
        return self.head(x.flatten(2).mean(2))

    def forward(self, x):
        return sum(self.step(x) for _ in range(T))


class _Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp(min=0)


class HandWritten(nn.Module):
    """A loop over [N, T, ...] that fires above its threshold, not at it."""

    def forward(self, x):
        v, spikes = 0.0, []
        for t in range(x.shape[1]):
            v = v * 0.5 + x[:, t]
            s = _Triangle.apply(v - 1.0)
            v = (1 - s) * v
            spikes.append(s)
        return torch.stack(spikes, dim=1)


class BatchFirst(nn.Module):
    """``spike`` is a module over [N, T, ...]: one without state, called at several places."""

    def __init__(self, spike, width=8):
        super().__init__()
        self.conv, self.bn = conv3x3(3, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.head, self.spike = nn.Linear(width, 10), spike

    def forward(self, x):
        x = x.unsqueeze(1).repeat(1, T, 1, 1, 1)
        for conv, bn in ((self.conv, self.bn), (self.conv2, self.bn2)):
            y = bn(conv(x.flatten(0, 1))).unflatten(0, (-1, T))
            x = self.spike(y + x if y.shape == x.shape else y)
        return self.head(x.flatten(3).mean(3)).mean(1)
