"""Inputs and comparisons that the LIF tests share."""

import math

import torch

from snnfast import reference
from snnfast import surrogate as surrogates

TAUS = (1.1, 1.7, 2.0, 5.0, math.inf)
RESETS = (0.0, -0.3, None)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SURROGATES = tuple(surrogates.TABLE)


def reference_layer(x, v0=None, *, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True,
                    detach_reset=False, surrogate="sigmoid"):  # fmt: skip
    """(s, v after every step) straight from the specification; tau may be a tensor."""
    s, states = reference.lif(
        x,
        v0,
        rate=tau,
        divide=True,
        v_threshold=v_threshold,
        v_reset=v_reset,
        decay_input=decay_input,
        detach_reset=detach_reset,
        surrogate=surrogates.resolve(surrogate),
    )
    return s, states[1:]


def off_threshold(steps, count, margin=1e-3, **layer):
    """Float32 input [T, N] whose H keeps ``margin`` away from the threshold, so that float32 and
    float64 see the same spikes."""
    x = torch.randn(steps, 4 * count + 64) * 1.5
    keywords = {"tau": 2.0, "v_reset": 0.0, "decay_input": True, "v_threshold": 1.0} | layer
    r = keywords["v_reset"] or 0.0
    v = torch.full(x.shape[1:], r, dtype=torch.float64)
    keep = torch.ones(x.shape[1], dtype=torch.bool)
    for x_t in x.double():
        h = reference.charge(x_t, v, r, keywords["tau"], True, keywords["decay_input"])
        keep &= (h - keywords["v_threshold"]).abs() > margin
        fired = h >= keywords["v_threshold"]
        soft = h - keywords["v_threshold"] * fired
        v = soft if keywords["v_reset"] is None else torch.where(fired, torch.full_like(h, r), h)
    x = x[:, keep][:, :count]
    assert x.shape[1] == count, "too few neurons stay off the threshold; widen the draw"
    return x.contiguous()


def grads(run, inputs, cotangents):
    """Gradients of run(*inputs), a tensor or tuple, along the cotangents (None where unused)."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = run(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.autograd.grad(outputs, leaves, cotangents)


def assert_as_accurate_as_torch(ours, torch_own, exact):
    """Largest error against float64 at most twice that of the plain PyTorch composition in float32
    (and no test fails over one rounding of the largest value)."""
    exact = exact.double()
    error = (ours.double() - exact).abs().max().item()
    own = (torch_own.double() - exact).abs().max().item()
    floor = torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert error <= 2 * max(own, floor), f"error {error:.3g}, PyTorch's own {own:.3g}"


def assert_two_roundings(ours, exact):
    """Half precision: at most two roundings of its dtype away from float64 on the same inputs."""
    info = torch.finfo(ours.dtype)
    exact = exact.double()
    bound = 2 * info.eps * exact.abs() + 2 * info.tiny * info.eps + 1e-6
    excess = ((ours.double() - exact).abs() - bound).max().item()
    assert excess <= 0, f"beyond two roundings by {excess:.3g}"
