"""The numbers per channel of a normalisation through Triton, under its interpreter: what several
tiles of a program add up, and what follows from statistics and sums, to the bit."""

import math

import pytest
import torch
from backends import CPU, INTERPRETED

import snnfast
from snnfast.backends.spec import Finished, Prepared
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
    C = 50
    kernels = implementation(backend.name)
    mean, var, weight = (
        torch.randn(C),
        torch.rand(C) * 10 ** torch.randint(-6, 6, (C,)),
        torch.randn(C),
    )
    inv_std, scale = torch.empty(C), torch.empty(C)
    moved = torch.randn(C), torch.rand(C)
    before = [t.double() for t in moved]
    kernels.norm_prepare(mean, var, Prepared(inv_std, scale, weight, *moved, momentum, 1.25, 1e-5))
    exact = 1 / (var + 1e-5).double().sqrt().float()
    assert torch.equal(inv_std, exact) and torch.equal(scale, weight * exact)
    for now, old, new in zip(moved, before, (mean, var * 1.25), strict=True):
        torch.testing.assert_close(
            now.double(), old.lerp(new.double(), momentum), rtol=1e-6, atol=1e-6
        )
    for count in (0, 77):
        sums, outputs = torch.randn(2, C), [torch.empty(C) for _ in range(4)]
        kernels.norm_finish(sums, Finished(scale, inv_std, count, *outputs))
        b, c = scale * inv_std * inv_std * sums[1] / -77, scale * sums[0] / -77
        wanted = (
            (sums[1] * inv_std, sums[0], b, c)
            if count
            else (sums[1] * inv_std, sums[0], 0 * b, 0 * c)
        )
        for one, other in zip(outputs, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-7, atol=0)
