"""norm_lif's Triton kernels under Triton's interpreter, on the CPU, held to snnfast.reference.

TRITON_INTERPRET must be set before triton is imported, so one process is one mode: the tests start
this file once as a program, which prints one line of JSON for each case; then every case is a test
of its own. Kernels are called through the backend, with statistics given; what is to be seen
through snnfast.norm_lif stands in test_norm_triton_public.py.

Spikes and states must equal the reference's in float32, bit for bit. Gradients are compared with
the reference's in float64: the error may be twice that of PyTorch itself in float32, and two
roundings more where they are stored in half precision. Unwritten results stand out as NaN.
"""

import itertools
import json
import math
import operator
import os
import subprocess
import sys
import traceback

import numpy
import pytest
import torch

from snnfast import reference
from snnfast.backends.spec import DECAY_INPUT, DECAY_STATE, INTEGRATE, Norm, segments
from snnfast.backends.triton import norm_lif as norms
from snnfast.ops.layer import lif_layer
from snnfast.surrogate import resolve

# [B, C, ...]: odd and even rows, several rows a tile and several tiles a row, several tiles of
# channels, one value, one channel.
SHAPES = [
    (3, 5, 7, 3),
    (2, 24, 4, 4),
    (1, 2, 603),
    (1, 3, 24, 24),
    (2, 70, 2),
    (1, 1, 1),
    (3, 1, 5),
    (19, 70),
    (2, 3),
]
EPS = torch.finfo(torch.float32).eps


def cases() -> dict[str, dict]:
    """Name -> arguments of ``check`` or ``check_statistics``."""
    found = []
    options = itertools.cycle(
        itertools.product((None, "scalar", "channel"), (False, True), (0.0, None, -0.2))
    )
    for shape, last, residual in itertools.product(SHAPES, (False, True), (False, True)):
        rate, states, v_reset = next(options)
        if last and len(shape) < 3:
            continue
        dtype = "bfloat16" if residual else "float32"
        found.append(
            dict(shape=shape, last=last, residual=residual, rate=rate, states=states, dtype=dtype)
            | dict(v_reset=v_reset)
        )
    plain = dict(shape=(2, 24, 4, 4))
    for T, last in ((1, False), (3, False), (8, True), (8, False), (20, False), (1, True)):
        rate, states, v_reset = next(options)
        dtype = "float16" if last else "float32"
        found.append(
            dict(**plain, T=T, last=last, residual=last, rate=rate, states=states, dtype=dtype)
            | dict(v_reset=v_reset)
        )
    found.append(dict(**plain, T=9, residual=True, rate="channel", states=True, dtype="bfloat16"))
    for charge, detach_reset in itertools.product(
        (INTEGRATE, DECAY_INPUT, DECAY_STATE), (False, True)
    ):
        found.append(dict(**plain, tau=1.7, charge=charge, detach_reset=detach_reset))
    for T, last in itertools.product((1, 4, 9), (False, True)):
        dtype = "bfloat16" if last else "float32"
        found.append(dict(**plain, T=T, last=last, dtype=dtype, static=True))
    found.append(dict(**plain, padded=True, residual=True))
    found.append(dict(**plain, spikes_used=False, states=True))
    data = itertools.cycle((dict(offset=1e4), dict(offset=-0.7), dict(outlier=300.0)))
    for shape, last in itertools.product(SHAPES, (False, True)):
        if math.prod(shape) > shape[1] and not (last and len(shape) < 3):
            found.append(dict(statistics=shape, last=last, T=3 + last, **next(data)))
    for T, last in itertools.product((1, 9), (False, True)):
        found.append(dict(statistics=(3, 5, 7, 3), last=last, T=T, offset=1e4))
    found.append(dict(statistics=(3, 24, 4, 4), last=False, T=4, outlier=300.0))
    found.append(dict(statistics=(50, 3, 5), last=True, T=2))
    found.append(dict(statistics=(70, 3), last=False, T=2, dtype="bfloat16"))
    return {" ".join(f"{k}={v}" for k, v in case.items()): case for case in found}


def channels_last(y):
    """The same values, each step laid out with the channels last; y is [T, B, C, ...]."""
    order = (0, 1, *range(3, y.dim()), 2)
    return y.permute(order).contiguous().permute(0, 1, -1, *range(2, y.dim() - 1))


def like(tensor, layout):
    """The values of ``tensor`` laid out in memory as ``layout``."""
    made = torch.empty_strided(layout.shape, layout.stride(), dtype=tensor.dtype)
    return made.copy_(tensor)


def sums_close(result, single, exact, terms):
    """Sums of ``terms``, which T steps of rounding have gone into, and the rounding of 1/tau, which
    goes into all of them alike."""
    own = (single.double() - exact).abs().max().item()
    steps = max(1, terms.numel() // terms[0].numel())
    bound = 2 * max(own, EPS * terms.norm().item() * math.sqrt(steps)) + EPS * exact.abs().max()
    excess = ((result.double() - exact).abs() - bound).max().item()
    assert excess <= 0, f"a sum is beyond the bound by {excess:.3g}"


def close(result, single, exact):
    """Elements, each of them rounded to its dtype."""
    own = max((single.double() - exact).abs().max().item(), EPS * exact.abs().max().item())
    bound = 2 * own
    if result.dtype != torch.float32:
        info = torch.finfo(result.dtype)
        bound = bound + info.eps * exact.abs() + info.smallest_normal * info.eps
    excess = ((result.double() - exact).abs() - bound).max().item()
    assert excess <= 0, f"a gradient is beyond the bound by {excess:.3g}"


def composition(wide, y, residual, norm, v0, rate, ds, dv, spec, static, states):
    """Spikes, states and gradients of X, of v0 and of every neuron's 1/tau by the reference, all in
    dtype ``wide``."""
    mean, scale, bias = (p.to(wide) for p in norm[:3])
    x = reference.normalise(y.to(wide), mean, scale, bias, 2)
    if residual is not None:
        x = x + residual.to(wide)
    x = (x[0] if static else x).detach().requires_grad_()
    v0 = None if v0 is None else v0.to(wide).requires_grad_()
    value = math.inf if spec.charge == INTEGRATE else spec.rate
    if rate is not None:
        value = rate.to(wide).view(-1, *[1] * (y.dim() - 3)).expand(y.shape[1:]).clone()
        value.requires_grad_()
    s, v = reference.lif(
        x, v0, rate=value, divide=True, v_threshold=1.0, v_reset=spec.reset if spec.hard else None,
        decay_input=spec.charge == DECAY_INPUT, detach_reset=spec.detach_reset,
        surrogate=resolve("atan"), timesteps=spec.steps if static else None,
    )  # fmt: skip
    outputs = ([s] if ds is not None else []) + ([v[1:]] if states else [])
    cotangents = ([ds.to(s.dtype)] if ds is not None else []) + ([dv.to(wide)] if states else [])
    leaves = {"dx": x, "dv0": v0, "drate": None if rate is None else value}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    grads = dict(zip(leaves, found, strict=True))
    if rate is not None:  # from that of tau to that of 1/tau
        grads["drate"] = grads["drate"] * -(value.detach() ** 2)
    return s.detach(), v[1:].detach(), grads


def check(
    shape,
    T=4,
    last=False,
    residual=False,
    rate=None,
    states=False,
    dtype="float32",
    v_reset=0.0,
    tau=2.0,
    charge=DECAY_INPUT,
    detach_reset=False,
    static=False,
    padded=False,
    spikes_used=True,
):
    """One layer with given statistics, forward and both passes of backward."""
    from snnfast.backends.triton import lif as backend

    g = torch.Generator().manual_seed(len(shape) + T)
    dtype, channels = getattr(torch, dtype), shape[1]
    layout = channels_last if last else lambda y: y
    inner = 1 if last else math.prod(shape[2:])

    def normal(*size, dtype=torch.float32):
        return torch.randn(size, generator=g).to(dtype)

    y = layout((2 * normal(T, *shape) + 0.7).to(dtype))
    if padded:
        y = torch.cat([y, y], dim=1)[:, : shape[0]]
    if static:
        y = y[:1].expand(T, *shape)
    r = layout((torch.rand((T, *shape), generator=g) < 0.3).to(dtype)) if residual else None
    norm = Norm(normal(channels), normal(channels).abs() + 0.2, normal(channels), channels, inner)
    v0 = like(normal(*shape), y[0]) if states else None
    rates = {
        None: None,
        "scalar": torch.tensor(1.7),
        "channel": 1.1 + 3 * torch.rand(channels, generator=g),
    }[rate]
    ds = layout(normal(T, *shape).to(dtype)) if spikes_used else None
    dv = layout(normal(T, *shape)) if states else None
    spec = lif_layer(T, v_reset=v_reset, detach_reset=detach_reset, surrogate="atan")
    place = {"channels": channels, "inner": inner}
    spec = spec._replace(charge=charge, divide=True, rate=tau, **place)

    s, v = torch.empty_like(layout(y.contiguous())), torch.empty_like(layout(y.float()))
    borders = None
    if T > 8:
        borders = torch.empty_like(v[: segments(T) - 1])
    backend.lif_forward(spec, y, v0, rates, s, v, borders, norm, r)
    arguments = (y, r, norm, v0, rates, ds, dv, spec, static, states)
    s_single, v_single, single = composition(torch.float32, *arguments)
    assert torch.equal(s.float(), s_single), f"{int((s.float() != s_single).sum())} spikes differ"
    torch.testing.assert_close(v, v_single, rtol=0, atol=0)
    s_double, _, exact = composition(torch.float64, *arguments)
    assert torch.equal(s_double.float(), s_single), "choose inputs off the threshold"

    dx = torch.empty_like(y[0] if static else s)
    dv0 = None if v0 is None else torch.empty_like(v0)
    drate = None if rates is None else torch.empty_like(rates)
    sums, again = torch.empty(2, channels), torch.empty(2, channels)
    head = (spec, y, v0, rates, borders, ds, dv)
    backend.lif_backward(*head, dx, dv0, drate, norm, r, sums)
    close(dx, single["dx"], exact["dx"])
    if v0 is not None:
        close(dv0, single["dv0"], exact["dv0"])
    if rates is not None:
        over = [d for d in range(len(shape)) if d != 1 or not rates.dim()]
        terms = exact["drate"]
        sums_close(drate, single["drate"].sum(over), terms.sum(over), terms)
    backend.lif_backward(*head, None, dv0, drate, norm, r, again)
    if not static:
        assert torch.equal(again, sums), "sums differ where dx is not wanted"
    axis = 1 if static else 2
    over = [d for d in range(dx.dim()) if d != axis]
    wide = [-1 if d == axis else 1 for d in range(dx.dim())]
    source = y[0] if static else y
    centred = source.double() - norm.mean.double().view(wide)
    for i, weight in enumerate((torch.ones(()), centred)):
        terms = exact["dx"] * weight
        own = (single["dx"] * weight.float()).sum(over)
        sums_close(sums[i], own, terms.sum(over), terms)
        sums_close(again[i], own, terms.sum(over), terms)

    a, b, c = normal(channels), normal(channels), normal(channels)

    def affine(d):
        a_, b_, c_ = (p.to(d.dtype).view(wide) for p in (a, b, c))
        return a_ * d + b_ * centred.to(d.dtype) + c_

    if r is None:
        dy = torch.empty_like(dx)
        backend.norm_lif_dy(*head, dy, norm, a, b, c)
        close(dy, affine(single["dx"]), affine(exact["dx"]))
    dy = torch.empty_like(dx)
    steps = (source[None], dx[None], dy[None]) if static else (y, dx, dy)
    norms.norm_dy(*steps[:2], norm, a, b, c, steps[2])
    close(dy, affine(dx.float()), affine(dx.double()))


def check_statistics(statistics, T, last, offset=0.0, outlier=0.0, dtype="float32"):
    """Mean and variance of every channel; an offset costs no digits, nor does a first element that
    lies far from all others."""

    g = torch.Generator().manual_seed(0)
    channels = statistics[1]
    y = 2 * torch.randn((T, *statistics), generator=g) + 0.7 + offset
    y[:, :, channels - 1] = y[0, 0, channels - 1].flatten()[0]
    y[0, 0].view(channels, -1)[: channels - 1, 0] += 2 * outlier
    y = y.to(getattr(torch, dtype))
    y = channels_last(y) if last else y
    mean, var = torch.empty(channels), torch.empty(channels)
    norms.norm_stats(y, channels, 1 if last else math.prod(statistics[2:]), mean, var)
    exact_mean, exact_var = reference.channel_stats(y.double(), 2)
    bound = 2e-7 * exact_mean.abs() + EPS * exact_var.sqrt().clamp(min=2.0)
    assert ((mean.double() - exact_mean).abs() <= bound).all(), "a mean is beyond the bound"
    torch.testing.assert_close(var[:-1].double(), exact_var[:-1], rtol=1e-6, atol=0)
    assert 0 <= var[-1] <= 1e-5, "a channel of one value has no variance"


@pytest.fixture(scope="module")
def outcomes():
    """Name -> None, or the traceback of the case."""
    return run_interpreted(__file__)


@pytest.mark.parametrize("name", cases())
def test_interpreted(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


def run_interpreted(file) -> dict:
    """Runs a file of tests as a program under the interpreter; what it printed."""
    done = subprocess.run(
        [sys.executable, file],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def report(runs) -> None:
    """Prints for each (name, function, arguments) its name and the traceback, if any; unwritten
    memory is NaN, and tiles are added up as a GPU does."""
    torch.set_num_threads(1)
    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, poison(getattr(torch, name)))
    torch.Tensor.new_empty = poison(torch.Tensor.new_empty)
    add_up_by_halves()
    for name, run, arguments in runs:
        try:
            run(**arguments)
            error = None
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([name, error]), flush=True)


def poison(make):
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    return made


def add_up_by_halves():
    """tl.sum adds the halves of a tile, theirs, and so on. NumPy, which the interpreter asks, adds
    up the first axis element by element: over 256 rows that alone costs three bits."""
    from triton.runtime.interpreter import ReduceOps

    plain = ReduceOps.sum

    def halves(self, tile):
        if self.axis is not None:
            data = tile.handle.data
            while data.shape[self.axis] > 1:
                data = operator.add(*numpy.split(data, 2, self.axis))
            tile = self.to_tensor(data, tile.dtype)
        return plain(self, tile)

    ReduceOps.sum = halves


if __name__ == "__main__":
    report(
        (name, check_statistics if "statistics" in case else check, case)
        for name, case in cases().items()
    )
