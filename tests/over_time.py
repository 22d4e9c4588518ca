"""A loop over timesteps and one call over all of them, compared."""

import torch


def looped(neuron, x, *states):
    """Each output of the loop over x, stacked."""
    steps = []
    for x_t in x:
        out = neuron(x_t, *states)
        steps.append(out if isinstance(out, tuple) else (out,))
        states = out[1:] if states else ()
    return tuple(torch.stack(parts) for parts in zip(*steps, strict=True))


def equal(ours, theirs) -> None:
    ours = ours if isinstance(ours, tuple) else (ours,)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def gradients(results, leaves):
    """Along random directions, 0 where one has no part."""
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(r.shape, generator=generator) for r in results]
    pairs = [(r, a) for r, a in zip(results, along, strict=True) if r.requires_grad]
    results, along = zip(*pairs, strict=True)
    found = torch.autograd.grad(results, leaves, along, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def close(ours, theirs, bound: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=10 * bound, atol=bound * (1 + scale))


def inputs(data: str, *shape) -> torch.Tensor:
    x = 2 * torch.randn(shape)
    return (20 * x).round() / 20 if data == "grid" else x
