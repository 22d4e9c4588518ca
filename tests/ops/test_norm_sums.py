"""The numbers per channel of a normalisation through Triton, under its interpreter: what several
tiles of a program add up, and what follows from statistics and sums, to the bit."""

import math

import pytest
import torch
from backends import CPU, INTERPRETED

import snnfast
from snnfast.backends.spec import DWEIGHT, INV_STD, SCALE, B, C
from snnfast.ops.select import implementation


def channels_last(t):
    return t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


@pytest.mark.backends(INTERPRETED)
@pytest.mark.parametrize(("T", "C"), ((4, 5), (8, 70)), ids=str)
def test_programs_of_several_tiles_add_up_the_same(backend, T, C, monkeypatch):
    """As many as channels last takes of a large batch; the last of them past the end of memory."""
    from snnfast.backends.triton import norm_lif

    y, r, ds = (channels_last(torch.randn(T, 2, C, 7, 11)) for _ in range(3))
    weight, bias, rate = torch.rand(C) + 0.5, torch.randn(C), 0.2 + torch.rand(C) / 2
    found = []
    for programs in (math.inf, 1):
        monkeypatch.setattr(norm_lif, "_SUM_PROGRAMS", programs)
        implementation(backend.name).forget()
        leaves = [t.clone().requires_grad_() for t in (weight, bias, rate)]
        inputs = [channels_last(t).requires_grad_() for t in (y, r)]
        s = snnfast.norm_lif(
            *inputs, weight=leaves[0], bias=leaves[1], running_mean=torch.zeros(C),
            running_var=torch.ones(C), training=True, inv_tau=leaves[2], backend=backend.name,
        )  # fmt: skip
        found.append((s, *torch.autograd.grad(s, [*inputs, *leaves], ds)))
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(many, one, rtol=2e-5, atol=2e-5)


@pytest.mark.backends(CPU[0], INTERPRETED)
@pytest.mark.parametrize("momentum", (0.1, 0.9))
def test_what_follows_is_the_same_to_the_bit(backend, momentum):
    """Root and quotient are IEEE's, so that evaluation has the same spikes everywhere."""
    channels = 50
    kernels = implementation(backend.name)
    stats, weight = torch.full((4, channels), math.nan), torch.randn(channels)
    stats[:2] = torch.rand(2, channels) * 10 ** torch.randint(-6, 6, (channels,))
    mean, var = stats[:2].clone()
    moved = torch.randn(channels), torch.rand(channels)
    before = [t.double() for t in moved]
    kernels.norm_prepare(momentum, 1.25, 1e-5, stats, weight, *moved)
    exact = 1 / (var + 1e-5).double().sqrt().float()
    for row, wanted in enumerate((mean, var, exact, weight * exact)):
        assert torch.equal(stats[row], wanted)
    for now, old, new in zip(moved, before, (mean, var * 1.25), strict=True):
        torch.testing.assert_close(
            now.double(), old.lerp(new.double(), momentum), rtol=1e-6, atol=1e-6
        )
    inv_std, scale = stats[INV_STD], stats[SCALE]
    for count in (0, 77):
        totals = torch.full((5, channels), math.nan)
        total, moment = totals[:2] = torch.randn(2, channels)
        kernels.norm_finish(count, stats, totals)
        slope, shift = scale * inv_std * inv_std * moment / -77, scale * total / -77
        wanted = {DWEIGHT: moment * inv_std, B: slope, C: shift}
        assert torch.equal(totals[:2], torch.stack((total, moment)))
        for row, expected in wanted.items():
            if row != DWEIGHT and not count:
                expected = 0 * expected
            assert torch.equal(totals[row], expected)
