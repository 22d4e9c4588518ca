"""The Triton kernels under Triton's interpreter, on the CPU, held to snnfast.reference.

TRITON_INTERPRET must be set before triton is imported, so one process is one mode: the tests start
this file once as a program, which runs every case through snnfast.lif(backend="triton") and prints
one line of JSON for each; then every case is a test of its own.

Spikes and states must equal the reference's in float32, bit for bit. Gradients are compared with
the reference's in float64: in float32 the error may be twice that of PyTorch itself in float32; in
half precision, two roundings. Unwritten results stand out as NaN.
"""

import itertools
import json
import math
import os
import subprocess
import sys
import traceback

import pytest
import torch

import snnfast
from snnfast import reference
from snnfast.surrogate import TABLE, resolve

STEPS = (1, 2, 3, 4, 7, 8, 9, 20)
SIZES = (1, 7, 1023)
SHAPES = {1: (1, 1, 1), 7: (1, 7, 1), 341: (1, 11, 31), 1023: (3, 11, 31)}
TAUS = (1.1, 1.7, 2.0, 5.0, math.inf)


def cases() -> dict[str, dict]:
    """Name -> arguments of ``check``."""
    found = []
    options = itertools.cycle(
        itertools.product(
            (2.0, 1.7), (0.0, None, -0.25), (True, False), (False, True), (None, "last", "all")
        )
    )
    dtypes = itertools.cycle(("float32", "float16", "bfloat16"))
    for steps, n in itertools.product(STEPS, SIZES):
        for dtype in [next(dtypes) for _ in range(3 if n == 1023 else 1)]:
            tau, v_reset, decay_input, detach_reset, states = next(options)
            found.append(
                dict(T=steps, n=n, dtype=dtype, tau=tau, v_reset=v_reset, states=states)
                | dict(decay_input=decay_input, detach_reset=detach_reset, v0=states is not None)
            )
    for tau, v_reset, decay_input, detach_reset in itertools.product(
        TAUS, (0.0, None, 0.2), (True, False), (True, False)
    ):
        found.append(
            dict(tau=tau, v_reset=v_reset, states="all")
            | dict(decay_input=decay_input, detach_reset=detach_reset)
        )
    for surrogate, v_reset in itertools.product(TABLE, (0.0, None)):
        found.append(dict(surrogate=surrogate, v_reset=v_reset, n=1023))
    found.append(dict(surrogate=snnfast.surrogate.S2NN(alpha=2.0, beta=0.5)))
    found.append(dict(surrogate=snnfast.surrogate.LeakyKReLU(leak=0.1, k=0.7)))
    for rate, axis, decay_input, steps in itertools.product(
        ("tau", "inv_tau"), ("scalar", "channel"), (True, False), (4, 7, 20)
    ):
        n = 341 if steps == 20 else 1023
        found.append(
            dict(rate=rate, axis=axis, decay_input=decay_input, T=steps, n=n, v0=steps == 20)
        )
    channels_last = dict(axis="channel", layout="channels_last", n=1023)
    found.append(dict(rate="tau", **channels_last, dtype="bfloat16"))
    found.append(dict(rate="inv_tau", **channels_last, v_reset=None, T=9))
    for steps, dtype in itertools.product((1, 3, 8, 9, 20), ("float32", "bfloat16")):
        found.append(dict(layout="static", T=steps, dtype=dtype))
        found.append(dict(layout="stride 0", T=steps, dtype=dtype))
    found.append(dict(layout="static", T=9, rate="inv_tau", axis="scalar", states="all", v0=True))
    found.append(dict(layout="padded", T=9))
    for steps, states in itertools.product((3, 9), ("last", "all")):
        found.append(dict(T=steps, states=states, spikes_used=False, v0=True))
    for surrogate in ("rect", "leaky_k_relu", "piecewise_leaky_relu"):
        found.append(dict(on_threshold=True, surrogate=surrogate, n=1023))
    for v_reset, tau in itertools.product((0.0, None), (2.0, 1.7)):
        found.append(dict(special=True, v_reset=v_reset, tau=tau, states="all"))
    return {" ".join(f"{k}={v}" for k, v in case.items()): case for case in found}


def make_input(shape, layout, dtype, generator):
    """x for snnfast.lif."""
    x = (torch.randn(shape, generator=generator) * 1.5 + 0.6).to(dtype)
    if layout == "static":
        x = x[0]
    elif layout == "stride 0":
        x = x[:1].expand(shape)
    elif layout == "padded":
        x = torch.cat([x, x], dim=1)[:, : shape[1]]
    elif layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    return x


def run(forward, leaves, to, ds, dv, states):
    """s, v and the gradients of the leaves (x, v0 and rate, each where it is given)."""
    leaves = [None if leaf is None else leaf.detach().to(to or leaf.dtype) for leaf in leaves]
    inputs = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
    s, v = forward(*leaves)
    results, grads = [], []
    if ds is not None:
        results, grads = [s], [ds.to(s.dtype)]
    if states is not None:
        results, grads = [*results, v], [*grads, dv.to(v.dtype)]
    return s, v, torch.autograd.grad(results, inputs, grads)


def check(
    T=4,
    n=341,
    dtype="float32",
    tau=2.0,
    v_reset=0.0,
    decay_input=True,
    detach_reset=False,
    surrogate="atan",
    rate=None,
    axis=None,
    layout="dense",
    states=None,
    v0=False,
    spikes_used=True,
    on_threshold=False,
    special=False,
):
    """One layer, forward and backward, against the reference."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, dtype)
    shape = (T, *SHAPES[n], 2) if layout == "channels_last" else (T, *SHAPES[n])
    x = make_input(shape, layout, dtype, generator)
    if on_threshold:
        x = (2 * x).round() / 2
    if special:
        x.view(-1)[::17] = math.inf
        x.view(-1)[::19] = -math.inf
        x.view(-1)[::23] = math.nan
    leaves = [x, torch.randn(shape[1:], generator=generator) if v0 else None, None]
    if rate:
        leaves[2] = torch.rand(() if axis == "scalar" else shape[2], generator=generator)
        leaves[2] = 1.1 + 3 * leaves[2] if rate == "tau" else 0.1 + 0.8 * leaves[2]
    ds = torch.randn(shape, generator=generator).to(dtype) if spikes_used else None
    dv = torch.randn(shape if states == "all" else shape[1:], generator=generator)
    steps = T if layout == "static" else None
    neuron = dict(v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)

    def ours(x, v0, rate_tensor):
        rates = {rate: rate_tensor} if rate else {"tau": tau}
        result = snnfast.lif(
            x, v0, **rates, **neuron, surrogate=surrogate, timesteps=steps, backend="triton",
            return_state={None: False, "last": True, "all": "all"}[states],
        )  # fmt: skip
        return result if states else (result, None)

    def theirs(x, v0, rate_tensor):
        s, v = reference.lif(
            x, v0, rate=rate_tensor if rate else tau, divide=rate != "inv_tau", v_threshold=1.0,
            **neuron, surrogate=resolve(surrogate), timesteps=steps,
        )  # fmt: skip
        return s, v[1:] if states == "all" else v[-1]

    s, v, grads = run(ours, leaves, None, ds, dv, states)
    s_single, v_single, grads_single = run(theirs, leaves, torch.float32, ds, dv, states)
    assert s.dtype == dtype and s.shape == torch.Size(shape)
    assert torch.equal(s.float(), s_single), f"{int((s.float() != s_single).sum())} spikes differ"
    if states:
        torch.testing.assert_close(v, v_single, rtol=0, atol=0, equal_nan=True)
    if special:
        for grad, grad_single in zip(grads, grads_single):
            assert torch.equal(grad.isfinite(), grad_single.isfinite())
        return
    s_double, _, grads_double = run(theirs, leaves, torch.float64, ds, dv, states)
    assert torch.equal(s_double.float(), s_single), "choose inputs off the threshold"
    scales = [exact.abs().max().item() for exact in grads_double]
    if rate:
        # A sum over neurons and steps is as uncertain as its terms are large, however small it is.
        per_neuron = leaves[2].view(-1, *[1] * (len(shape) - 3)).expand(shape[1:])
        terms = run(theirs, [*leaves[:2], per_neuron], torch.float64, ds, dv, states)[2][-1]
        scales[-1] = terms.norm().item() * math.sqrt(T)
    for grad, grad_single, exact, scale in zip(grads, grads_single, grads_double, scales):
        assert grad.shape == exact.shape
        close(grad, grad_single, exact, scale)


def close(grad, grad_single, exact, scale):
    own = max((grad_single - exact).abs().max().item(), torch.finfo(torch.float32).eps * scale)
    bound = 2 * own
    if grad.dtype != torch.float32:
        # A rounding is half an eps; below the normal numbers it is half of the smallest one.
        info = torch.finfo(grad.dtype)
        bound = bound + info.eps * exact.abs() + info.smallest_normal * info.eps
    excess = ((grad - exact).abs() - bound).max().item()
    assert excess <= 0, f"error beyond the bound by {excess:.3g} (gradients up to {scale:.3g})"


@pytest.fixture(scope="module")
def outcomes():
    """Name -> None, or the traceback of the case."""
    done = subprocess.run(
        [sys.executable, __file__],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", cases())
def test_interpreted(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


def poison(make):
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    return made


def main():
    torch.set_num_threads(1)
    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, poison(getattr(torch, name)))
    torch.Tensor.new_empty = poison(torch.Tensor.new_empty)
    for name, case in cases().items():
        try:
            check(**case)
            error = None
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([name, error]))


if __name__ == "__main__":
    main()
