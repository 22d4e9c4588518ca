"""What the tests of neurons by definition share: some neurons, and one check of a call against the
reference."""

from typing import Any

import torch
from backends import HALF
from bounds import assert_gradient
from lif_cases import LAYOUTS

import snnfast


@snnfast.neuron
def adaptive(x, v, a, *, tau=20.0, rho=0.95, beta=1.8, theta=1.0):
    h = v + (x - v) / tau
    s = snnfast.spike(h - (theta + beta * a))
    return s, h * (1 - s.detach()), rho * a + s.detach()


@snnfast.neuron(rest=lambda *, v_rest, **_: v_rest)
def resting(x, v, *, v_rest=-0.7, tau=3.0, hard=True):
    """A rest that follows from a parameter, and a choice."""
    h = v + (x - (v - v_rest)) / tau
    s = snnfast.spike(h - 0.5)
    return s, (torch.where(s > 0, v_rest, h) if hard else h - s)


@snnfast.neuron(inputs=2)
def two_compartments(x, y, v, u, *, g=0.3, w=0.5):
    """Two inputs, two outputs; what is computed of ``w`` alone is computed once a call."""
    u = u + (y - u) / 4 + g * (v - u)
    k = 1 / (1 + w * w)
    h = v * k + x + g * (u - v)
    s = snnfast.spike(h - 1.0)
    return s, torch.clamp(u, -1.0, 2.0), h - s * 1.0, u


@snnfast.neuron
def integrator(x, v, *, beta=0.9):
    """Without a spike."""
    v = beta * v + x
    return v, v


@snnfast.neuron
def memoryless(x, *, gain=1.5):
    """Without a state."""
    return snnfast.spike(gain * x, levels=3)


NEURONS = {
    "adaptive": (adaptive, ("tau", "rho", "beta", "theta")),
    "resting": (resting, ("v_rest", "tau")),
    "two_compartments": (two_compartments, ("g", "w")),
    "integrator": (integrator, ("beta",)),
    "memoryless": (memoryless, ("gain",)),
}
"""{name: (the neuron, its parameters that may be tensors)}."""


def flat(results, state) -> list[torch.Tensor]:
    """All tensors of a call's results."""
    parts = results if state else (results,)
    return [t for part in parts for t in (part if isinstance(part, tuple) else (part,))]


def check(backend, neuron="adaptive", *, T=4, shape=(3, 11, 31), dtype="float32", layout=None,
          state: Any = "all", parameters="numbers", static=False, states=True, surrogate="atan",
          seed=0, **options):  # fmt: skip
    """Outputs and states of a call equal the reference's, and gradients are as near to those in
    float64 as ``bounds`` asks."""
    definition, names = NEURONS[neuron]
    generator = torch.Generator().manual_seed(seed)
    io = getattr(torch, dtype)
    full = torch.float64 if io == torch.float64 else torch.float32

    def draw(size, dtype):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    scale = 20.0 if neuron == "adaptive" else 1.5
    given = {}
    for name in definition.inputs:
        x = scale * draw(shape if static else (T, *shape), io)
        given[name] = LAYOUTS[layout](x) if layout else x
    if states:
        given |= {name: draw(shape, full) for name in definition.states}
    if parameters != "numbers":
        size = () if parameters == "scalars" else (shape[1],)
        for name in names:
            default = definition.defaults[name]
            given[name] = default * (1 + 0.1 * draw(size, torch.float64).abs()).to(full)

    def run(tensors, where):
        inputs = [tensors[name] for name in definition.inputs]
        start = tuple(tensors[name] for name in definition.states) if states else None
        named = {name: tensors[name] for name in names if name in tensors}
        results = definition(
            *inputs, states=start, surrogate=surrogate, timesteps=T if static else None,
            return_state=state, backend=where, **named, **options,
        )  # fmt: skip
        return flat(results, state)

    def leaves(dtype=None, device="cpu"):
        return {
            name: t.detach().to(device, dtype or t.dtype).requires_grad_()
            for name, t in given.items()
        }

    ours, own, exact = leaves(device=backend.device), leaves(full), leaves(torch.float64)
    results, wide = run(ours, backend.name), run(exact, "reference")
    expected = run(leaves(), "reference")
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a.cpu(), b) and a.dtype == b.dtype, (a.cpu() - b).abs().max()
    # A neuron whose spikes are others in float64 has another gradient, too.
    plain = run(own, "reference")
    differs = torch.zeros(shape, dtype=torch.bool)
    for a, b in zip(plain, wide, strict=True):
        apart = ~torch.isclose(a.double(), b, rtol=1e-3, atol=1e-3)
        differs |= apart.flatten(0, -len(shape) - 1).any(0) if apart.dim() > len(shape) else apart
    assert differs.float().mean() < 0.02
    cotangents = [draw(t.shape, torch.float64) * ~differs for t in wide]
    cotangents = [c.to(t.dtype) for c, t in zip(cotangents, results, strict=True)]

    def gradients(results, tensors):
        along = [c.to(t.device, t.dtype) for c, t in zip(cotangents, results, strict=True)]
        return torch.autograd.grad(results, list(tensors.values()), along, allow_unused=True)

    triples = zip(
        given, gradients(results, ours), gradients(plain, own), gradients(wide, exact), strict=True
    )
    for name, a, b, c in triples:
        assert (a is None) == (c is None), name
        if a is not None:
            assert a.dtype == given[name].dtype
            assert_gradient(name, a, b, c, slack=1e-6)
    return results


def halves() -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in HALF]
