"""Large results of the C++ backend lie in pages of 2 MiB where the system has such for who asks."""

import os

import pytest
import torch

import snnfast

PAGE = 2 << 20
OFFERED = "/sys/kernel/mm/transparent_hugepage/enabled"


def asked_for(t: torch.Tensor) -> bool:
    """Whether the first whole page of ``t`` was asked for to be a large one ("hg" of its map)."""
    at, inside = -(-t.data_ptr() // PAGE) * PAGE, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            first, *rest = line.split()
            if not first.endswith(":"):
                begin, end = (int(part, 16) for part in first.split("-"))
                inside = begin <= at < end
            elif inside and first == "VmFlags:":
                return "hg" in rest
    raise AssertionError("no map has the tensor")


@pytest.mark.skipif(not os.path.exists(OFFERED), reason="this system has no pages of 2 MiB")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_are_large_pages(dtype):
    x = torch.randn(2, 2 << 20, dtype=dtype, requires_grad=True)
    s, v = snnfast.lif(x, backend="cpu", return_state="all")
    s.backward(torch.ones_like(s))
    program = snnfast.neurons.leaky(x.detach(), beta=0.9, backend="cpu")
    packed = snnfast.pack_spikes(s.detach())
    results = s, v, x.grad, program, snnfast.unpack_spikes(packed, s.shape, dtype)
    assert [asked_for(t) for t in results] == [True] * len(results)
