"""A node of SpikingJelly's and ours, on the same input."""

import torch
from live import live

from snnfast.interop.spikingjelly import activation_based, clock_driven

OURS = {"0.0.0.0.12": clock_driven, "0.0.0.0.14": activation_based}
VERSIONS = tuple(OURS)


def both(version: str, kind: str, surrogate: str = "Sigmoid", **arguments):
    """(theirs, ours) of a class of ``neuron`` that takes all timesteps a call, each with a
    surrogate of its own package."""
    made = []
    for package in (live(version), OURS[version]):
        name = f"MultiStep{kind}" if version == "0.0.0.0.12" else kind
        own = dict(arguments) if version == "0.0.0.0.12" else arguments | {"step_mode": "m"}
        own["surrogate_function"] = getattr(package.surrogate, surrogate)()
        made.append(getattr(package.neuron, name)(**own))
    return made


def inputs(kind: str, shape=(6, 4, 5, 7), seed=0, dtype=torch.float32):
    """Random input, or multiples of 1/20, on which sums meet thresholds exactly."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.5).to(dtype)
    steps = torch.randint(-20, 45, shape, generator=generator)
    return (steps.double() / 20).to(dtype)


def run(node, x, weights=None):
    """(spikes, v, gradients of x and of the parameters) of one call."""
    x = x.detach().clone().requires_grad_()
    s = node(x)
    if not s.requires_grad:
        return s, node.v, []
    weights = torch.linspace(-1, 1, s.numel()).view_as(s) if weights is None else weights
    leaves = [x, *node.parameters()]
    return s, node.v, torch.autograd.grad((s * weights.to(s)).sum(), leaves)


def close(ours, theirs, exact):
    """Whether gradients are within twice the error that theirs have in float32 themselves."""
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        error = (other - true).abs().max()
        bound = 2 * error + 1e-6 * true.abs().max()
        assert (mine - true).abs().max() <= bound
