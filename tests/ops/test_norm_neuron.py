"""A batch normalisation in front of any neuron: ``snnfast.nn.BatchNormNeuron`` on every backend."""

import itertools

import pytest
import torch
from backends import PROGRAMS, named
from bounds import assert_gradient
from lif_cases import LAYOUTS
from neuron_cases import adaptive, two_compartments
from torch import nn

import snnfast

pytestmark = pytest.mark.backends(*PROGRAMS)


@snnfast.neuron
def plain(x, v, *, tau=2.0):
    """LIF with hard reset to 0."""
    h = v + (x - v) / tau
    s = snnfast.spike(h - 1.0)
    return s, h * (1 - s)


def both(make, y, residual, training, timesteps, dtype):
    """(results, gradients along what has that dtype, running statistics), on leaves of its own."""
    module, leaves = make(), [t.detach().clone().requires_grad_() for t in (y, residual) if
                              t is not None]  # fmt: skip
    module.train(training)
    s = module(*leaves, timesteps=timesteps)
    generator = torch.Generator().manual_seed(1)
    ds = torch.randn(s.shape, generator=generator, dtype=torch.float64)
    ds = ds.to(dtype).to(s.device, s.dtype)
    gradients = torch.autograd.grad(s, [*leaves, *module.parameters()], ds)
    return s.detach().cpu(), gradients, (module.running_mean.cpu(), module.running_var.cpu())


def table():
    dtypes = itertools.cycle(("float32", "bfloat16", "float16", "float64"))
    for training, residual, steps in itertools.product((True, False), (True, False), (1, 4, 9)):
        yield dict(training=training, residual=residual, steps=steps, dtype=next(dtypes))
    for layout, residual in itertools.product(("channels_last", "every second step"), (0, 1)):
        yield dict(layout=layout, residual=bool(residual), steps=4)
    yield dict(static=True, steps=5)
    yield dict(static=True, steps=5, training=False, dtype="bfloat16")


@pytest.mark.parametrize("arguments", list(table()), ids=named)
def test_lif_is_batch_norm_lif(backend, arguments):
    """By its definition as by the tuned kernels."""
    dtype = getattr(torch, arguments.get("dtype", "float32"))
    backend.skip_unless(dtype)
    steps, static = arguments["steps"], arguments.get("static", False)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.randn(steps, 3, 5, 4, 6, dtype=torch.float64).to(dtype) * 2
    y = y[0] if static else LAYOUTS[arguments.get("layout", "contiguous")](y)
    residual = torch.randn_like(y) if arguments.get("residual") else None
    weight, bias = 0.5 + torch.rand(5), torch.randn(5) / 2

    def of(cls, neuron, dtype=full, device="cpu"):
        def make():
            module = cls(5, neuron=neuron()).to(device, dtype)
            with torch.no_grad():
                module.weight.copy_(weight), module.bias.copy_(bias)
                module.running_var.fill_(2.0)
            return module

        return make

    def run(make, y, residual):
        training = arguments.get("training", True)
        return both(make, y, residual, training, steps if static else None, dtype)

    here = {"surrogate": "atan", "backend": backend.name}
    ours = of(snnfast.nn.BatchNormNeuron, lambda: snnfast.nn.Neuron(plain, **here),
              device=backend.device)  # fmt: skip
    tuned = of(snnfast.nn.BatchNormLIF, lambda: snnfast.nn.LIF(**here), device=backend.device)
    there = {"surrogate": "atan", "backend": "reference"}
    wide, looped = (
        of(snnfast.nn.BatchNormNeuron, lambda: snnfast.nn.Neuron(plain, **there), dtype)
        for dtype in (torch.float64, full)
    )
    moved = [None if t is None else t.to(backend.device) for t in (y, residual)]
    s, gradients, running = run(ours, *moved)
    expected, _, statistics = run(tuned, *moved)
    assert torch.equal(s, expected)
    for a, b in zip(running, statistics, strict=True):
        assert torch.equal(a, b)
    own = run(looped, *(None if t is None else t.to(full) for t in (y, residual)))
    exact = run(wide, *(None if t is None else t.double() for t in (y, residual)))
    if torch.equal(own[0].double(), exact[0]):
        reads = [None] * len(gradients)
        if not static:  # the gradient of X, from which that of y is made
            zero = torch.zeros_like(y).double() if residual is None else residual.double()
            reads[0] = run(wide, y.double(), zero)[1][1] * weight.view(-1, 1, 1)
        for a, b, c, read in zip(gradients, own[1], exact[1], reads, strict=True):
            assert_gradient("gradient", a, b, c, slack=1e-6, read=read)


def test_parameters_of_the_neuron_learn(backend):
    y = 20 * torch.randn(9, 3, 5, 4, device=backend.device)
    results = []
    for name in ("reference", backend.name):
        rho = nn.Parameter(torch.full((5,), 0.9, device=backend.device))
        neuron = snnfast.nn.Neuron(adaptive, rho=rho, backend=name, return_state=True)
        block = snnfast.nn.BatchNormNeuron(5, neuron, affine=False).to(backend.device)
        s, (v, a) = block(y)
        (s.sum() + v.sum() + a.sum()).backward()
        results.append(rho.grad)
        assert "neuron.rho" in block.state_dict()
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"neuron must be a snnfast\.nn\.Neuron, got LIF"):
        snnfast.nn.BatchNormNeuron(5, snnfast.nn.LIF())
    with pytest.raises(ValueError, match="neuron must have one input, got 2"):
        snnfast.nn.BatchNormNeuron(5, snnfast.nn.Neuron(two_compartments))
    block = snnfast.nn.BatchNormNeuron(5, snnfast.nn.Neuron(adaptive))
    with pytest.raises(ValueError, match="y must have 5 channels on axis 2"):
        block(torch.randn(4, 5, 3))
    with pytest.raises(ValueError, match="norm_neuron of adaptive: residual must have y's shape"):
        block(torch.randn(4, 3, 5), torch.randn(4, 2, 5))


def test_streams_and_splits():
    block = snnfast.nn.BatchNormNeuron(5, snnfast.nn.Neuron(adaptive)).eval()
    y = 20 * torch.randn(12, 2, 5, 3)
    whole = block(y)
    with snnfast.streaming(block):
        assert torch.equal(torch.cat([block(part) for part in y.split([1, 8, 3])]), whole)


@pytest.mark.parametrize("fold", [True, False])
def test_fuse_finds_it(fold):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(5) if fold else nn.BatchNorm3d(5)
            self.neuron = snnfast.nn.Neuron(adaptive, surrogate="atan")

        def forward(self, x, r):
            if not fold:
                return self.neuron(self.norm(x) + r)
            return self.neuron(self.norm(x).unflatten(0, (4, -1)) + r)

    block, report = Block(), []
    fused = snnfast.nn.fuse(block, report=report)
    assert str(report[0]) == "norm -> neuron: fused"
    x = 20 * torch.randn(8, 5, 3, 3) if fold else 20 * torch.randn(4, 5, 2, 3, 3)
    r = torch.randn(4, 2, 5, 3, 3) if fold else torch.randn(4, 5, 2, 3, 3)
    for mode in (True, False):
        a, b = block.train(mode)(x, r), fused.train(mode)(x, r)
        assert (a != b).float().mean() < 0.01
        assert len(snnfast.explain(fused, x, r)) == 1
    with snnfast.streaming(fused):
        fused(x, r)
