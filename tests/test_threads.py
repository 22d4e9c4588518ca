"""Threads of the kernels on a CPU."""

import os
import sys

import pytest
import torch

import snnfast


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def of_the_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed by Linux alone")
def test_no_thread_is_ended_and_started_again(four_threads):
    # Work for all four, and for two of them.
    tensors = [torch.randn(4, 8, 16, 64, size, requires_grad=True) for size in (64, 5)]
    channels = dict(weight=torch.ones(16), bias=torch.ones(16), running_mean=None, running_var=None)
    logits = [torch.randn(6, rows, 10, requires_grad=True) for rows in (512, 40)]
    seen = set()
    for count in range(4):
        for x, z in zip(tensors, logits, strict=True):
            torch.add(x, 1)
            snnfast.lif(x, backend="cpu").sum().backward()
            snnfast.norm_lif(x, **channels, training=True, backend="cpu").sum().backward()
            snnfast.neurons.klif(x, backend="cpu").sum().backward()
            snnfast.pack_spikes((x > 0).float())
            target = torch.randint(10, z.shape[1:2])
            snnfast.mean_cross_entropy(z, target, backend="cpu").backward()
        if count:  # what the first round started
            seen |= of_the_process()
    assert seen == of_the_process()
