"""What ends a reduction of norm_lif, on the CUDA backend without a GPU (_cuda_host.py): the launch
that adds up what blocks have left and makes of it what follows, and how many launches there are.
"""

import math

import _cuda_host
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast import lif, norm_lif, reference
from snnfast.backends.cuda import norm_lif as backend
from snnfast.backends.spec import DWEIGHT, INV_STD, MEAN, MOMENT, SCALE, SUM, VAR, B, C, Channels
from snnfast.ops import select
from snnfast.ops.layer import lif_layer

UNBIAS, EPS = 1.25, 1e-5
cuda = select.implementation("cuda")


@pytest.fixture
def shim(monkeypatch):
    monkeypatch.setattr(select, "_refuse", lambda *args: None)
    return _cuda_host.install(monkeypatch)


def nan(*shape):
    return torch.full(shape, math.nan)


def given(channels, weight, running):
    """Weight and running statistics."""
    g = torch.Generator().manual_seed(channels)
    rows = torch.rand(3, channels, generator=g) + 0.5
    return (rows[0] if weight else None, *(rows[1:].clone() if running else (None, None)))


def assert_prepared(stats, momentum, ours, before):
    """Bit for bit what torch makes of mean and var in separate steps."""
    weight, *running = ours
    inv_std = reference.inverse_std(stats[VAR], EPS)
    assert torch.equal(stats[INV_STD], inv_std)
    assert torch.equal(stats[SCALE], inv_std if weight is None else weight * inv_std)
    if None not in running:
        moved = (stats[MEAN], stats[VAR] * torch.tensor(UNBIAS))
        for now, old, new in zip(running, before[1:], moved, strict=True):
            assert torch.equal(now, old.lerp(new, momentum))


@pytest.mark.parametrize("shape", [(40, 16, 32), (7, 1500, 1), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("weight,running", [(True, True), (False, True), (True, False)])
def test_prepared(shim, shape, weight, running):
    """In the launch that ends the statistics, or in one of its own where they are given."""
    y, where = torch.randn(4, *shape).bfloat16(), Channels(*shape[1:])
    for momentum in (0.1, 0.9):
        ours, again, before = (given(where.count, weight, running) for _ in range(3))
        stats, numbers = nan(4, where.count), (momentum, UNBIAS, EPS)
        cuda.norm_stats(where, *numbers, y, stats, *ours)
        assert_prepared(stats, momentum, ours, before)
        stats[2:] = math.nan
        cuda.norm_prepare(*numbers, stats, *again)
        assert_prepared(stats, momentum, again, before)
    assert shim.names == ["norm_stats", "norm_prepare", "norm_prepare"] * 2
    assert shim.last.bytes["first"] == 4 * 4 * shape[1]  # two rows read, two written


@pytest.mark.parametrize("shape", [(40, 16, 32), (7, 1500, 1), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 4 * 40 * 32])
def test_finished(shim, shape, count):
    """In the launch that ends the sums, or in one of its own where they are given."""
    y, ds, dx = (torch.randn(4, *shape) for _ in range(3))
    where = Channels(*shape[1:])
    stats, bias = torch.rand(4, where.count) + 0.5, torch.rand(where.count) + 0.5
    totals, none = nan(5, where.count), (None, None)
    cuda.norm_lif_backward(
        lif_layer(4), where, count, y, *none, None, ds, None, dx, *none, stats, bias, None, totals,
        None,
    )  # fmt: skip
    again = nan(5, where.count)
    again[:2] = totals[:2]
    cuda.norm_finish(count, stats, again)
    assert shim.names == ["norm_lif_backward", "norm_finish", "norm_finish"]
    inv_std, scale, by = stats[INV_STD], stats[SCALE], -float(count) if count else math.inf
    for found in (totals, again):
        assert torch.equal(found[DWEIGHT], found[MOMENT] * inv_std)
        want_b = scale * inv_std * inv_std * found[MOMENT] / by
        assert torch.equal(found[B], want_b if count else torch.zeros_like(want_b))
        want_c = scale * found[SUM] / by
        assert torch.equal(found[C], want_c if count else torch.zeros_like(want_c))


@pytest.mark.parametrize("steps,samples,channels,inner", [(4, 128, 512, 16), (4, 128, 64, 1024)])
@pytest.mark.parametrize("lanes", [4, 8])
def test_partial_sums_are_few(lanes, steps, samples, channels, inner):
    """Channels-last, layers of a ResNet: a quarter of y where it is small, else a fiftieth; and no
    thread adds up more than 40 of them."""
    neurons, read = samples * channels * inner, samples * channels * inner * steps * 16 // lanes
    for width in (4, 2):
        at = backend.tiles(neurons, lanes, channels, 1, True, width)
        assert at.blocks >= 256
        assert 4 * width * at.blocks * at.slots <= read / (4 if channels == 512 else 30)
        assert at.blocks / (256 / 8) <= 40


class Launching(TorchDispatchMode):
    """The names of torch's own ops that write to memory."""

    QUIET = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "view", "select",
             "_unsafe_view", "alias", "as_strided", "expand", "unbind", "unsqueeze")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in self.QUIET:
            self.names.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.unpoisoned
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("residual", [False, True])
def test_launches_of_a_training_step(shim, residual, last):
    """Three forward, three backward, and none of torch's in between."""
    y = torch.randn(4, 3, 16, 5, 4)
    y = y.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if last else y
    r = torch.ones_like(y).requires_grad_() if residual else None
    y.requires_grad_()
    rows = {n: torch.rand(16) + 0.5 for n in ("weight", "bias", "running_mean", "running_var")}
    rows["weight"].requires_grad_(), rows["bias"].requires_grad_()
    with Launching() as forward:
        s = norm_lif(y, r, training=True, backend="cuda", **rows)
    assert shim.names == ["norm_stats", "norm_prepare", "norm_lif_forward"]
    assert forward.names == []
    ds, leaves = torch.ones_like(s), [y, rows["weight"], rows["bias"], *([r] if residual else ())]
    with Launching() as backward:
        torch.autograd.grad(s, leaves, ds)
    second = "norm_dy" if residual else "norm_lif_backward"  # dX computed again
    assert shim.names[3:] == ["norm_lif_backward", "norm_finish", second]
    assert backward.names == []


@pytest.mark.unpoisoned
def test_launches_of_lif(shim):
    x, ds = torch.randn(4, 3, 16).requires_grad_(), torch.ones(4, 3, 16)
    with Launching() as both:
        torch.autograd.grad(lif(x, backend="cuda"), x, ds)
    assert shim.names == ["lif_forward", "lif_backward"] and both.names == []
