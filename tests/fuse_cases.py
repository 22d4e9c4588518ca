"""Models for ``snnfast.nn.fuse``, and how they are compared with what it makes of them."""

import warnings

import torch
from torch import nn

import snnfast
from snnfast.nn import IF, LIF, ParametricLIF, fuse

T, B, C, SIDE = 4, 3, 4, 5


def conv():
    return nn.Conv2d(C, C, 3, padding=1, bias=False)


class Folded(nn.Module):
    """The wrapper that most spiking models have."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """A residual block; where and how it adds is ``add``."""

    def __init__(self, add="after", neuron=LIF):
        super().__init__()
        self.conv1, self.bn1, self.lif1 = conv(), nn.BatchNorm2d(C), LIF(tau=1.7)
        self.conv2, self.bn2, self.lif2 = conv(), nn.BatchNorm2d(C), neuron()
        self.add = add

    def forward(self, x):
        steps, batch, c, h, w = x.shape
        s = self.bn1(self.conv1(x.flatten(0, 1))).view(steps, batch, c, h, w)
        s = self.lif1(s)
        y = self.bn2(self.conv2(s.flatten(0, 1)))
        if self.add == "before":
            return self.lif2((x.flatten(0, 1) + y).reshape(steps, batch, c, h, w))
        y = y.view(steps, batch, c, y.shape[-2], y.size(-1))
        if self.add == "in place":
            y += x
            return self.lif2(y)
        return self.lif2(torch.add(y, x) if self.add == "after" else y)


def folded():
    return nn.Sequential(
        Folded(conv(), nn.BatchNorm2d(C, momentum=None)), ParametricLIF(channels=C),
        Folded(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, affine=False)), IF(v_reset=None),
    )  # fmt: skip


class Down(nn.Module):
    """Two batch norms meet in one addition: the first is fused, the other is what it adds."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.lif = conv(), nn.BatchNorm2d(C), LIF()
        self.down = Folded(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.lif(y + self.down(x.view(y.shape)))


MODELS = {
    "folded": (folded, 2),
    "after": (Block, 2),
    "before": (lambda: Block("before", lambda: ParametricLIF(3.0)), 2),
    "in place": (lambda: Block("in place"), 2),
    "none": (lambda: Block("none"), 2),
    "down": (Down, 1),
    "stack": (lambda: nn.Sequential(Block(), nn.Sequential(Down(), folded())), 5),
}


def build(name):
    torch.manual_seed(7)
    model = MODELS[name][0]()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.affine:
            nn.init.uniform_(m.weight, 0.8, 2.0)
            nn.init.normal_(m.bias)
    return model


def settled(name):
    """In evaluation mode, with the running statistics of one batch, so that neurons fire."""
    model = build(name).double()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model(data())
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    with torch.no_grad():
        assert model.eval()(data(seed=2)).any()
    return model


def data(dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(T, B, C, SIDE, SIDE, generator=g, dtype=torch.float64).to(dtype)


def ops_of(model, x):
    return [op for op, _, _ in snnfast.explain(model, x)]


def why_not(model, norm=None):
    """The reason that the report gives for one batch norm."""
    report = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = fuse(model, report=report)
    (entry,) = [e for e in report if norm in (None, e.norm)]
    assert entry.neuron is None and str(entry) == f"{entry.norm}: not fused: {entry.reason}"
    assert list(fused.state_dict()) == list(model.state_dict())
    return entry.reason


def assert_same_training(ours, theirs, x, **tolerance):
    """Spikes, gradients and running statistics of one step."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(i) for model, i in zip((ours, theirs), inputs)]
    assert torch.equal(*outputs) and 0.02 < outputs[0].mean() < 0.98
    weights = data(x.dtype, seed=5)
    for output in outputs:
        (output * weights).sum().backward()
    pairs = [(i.grad for i in inputs)]
    pairs += zip((p.grad for p in ours.parameters()), (p.grad for p in theirs.parameters()))
    pairs += zip(ours.buffers(), theirs.buffers())
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)


class Custom(nn.Module):
    """bn, lif and a forward that a test writes; ``extra`` is a layer it may use."""

    def __init__(self, forward, extra=None, bn=None, lif=None):
        super().__init__()
        self.bn, self.lif = bn or nn.BatchNorm2d(C), lif or LIF()
        self.extra, self.flag, self.seen = extra, 0.5, []
        self.written = forward

    def forward(self, x):
        return self.written(self, x)
