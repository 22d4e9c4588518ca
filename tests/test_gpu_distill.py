"""The losses on a GPU: what only a device can show, beside the tests of ops/test_distill.py, which
run on it as on any backend.

make gpu
"""

from types import SimpleNamespace

import pytest
import torch
from backends import GPU, parameters
from distill_cases import LOSSES, check, problem, run
from torch.autograd import DeviceType

from snnfast import twkd_loss

on_a_gpu = pytest.mark.parametrize("backend", parameters(GPU))
DTYPES = ["float32", "float16", "bfloat16"]


def inputs(loss, shape, dtype=torch.float32):
    z, y, teacher, w = (t.detach().cuda() for t in problem(*shape))
    return z.to(dtype), y, (w if "tssd" in loss else teacher).to(dtype)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["labels", "probabilities"])
@pytest.mark.parametrize("shape", [(6, 128, 100), (4, 512, 1000), (10, 32, 10), (3, 2, 5000)])
def test_batches_that_fill_the_device(backend, shape, target, dtype):
    for loss in LOSSES:
        check(backend, loss=loss, shape=shape, dtype=dtype, target=target, label_smoothing=0.1)


@on_a_gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_captured_in_a_graph(backend, loss):
    z, y, other = inputs(loss, (4, 64, 100))

    def step():
        result = run(loss, z, y, other, backend=backend.name)
        return [result.loss, *result.gradients.values()]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    z.copy_(torch.randn_like(z))
    graph.replay()
    assert all(map(torch.equal, captured, step()))


def launched(events) -> list[str]:
    """What ran on the device, by name, but for the poison of uninitialised memory."""
    names = [event.name for event in events if event.device_type == DeviceType.CUDA]
    return [name for name in names if "FillFunctor" not in name]


def test_the_poison_is_no_launch_of_ours():
    fill = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, 1>"
    events = [(fill, DeviceType.CUDA), ("stepwise_rows", DeviceType.CUDA), (fill, DeviceType.CUDA),
              ("finish", DeviceType.CUDA), ("snnfast::stepwise_loss", DeviceType.CPU)]  # fmt: skip
    events = [SimpleNamespace(name=name, device_type=where) for name, where in events]
    assert launched(events) == ["stepwise_rows", "finish"]


@on_a_gpu
def test_two_launches_forward_and_one_backward(backend):
    from torch.profiler import ProfilerActivity, profile

    for steps in (1, 4, 40):
        z, y, teacher = inputs("twkd", (steps, 64, 100))
        one = torch.ones((), device="cuda")
        z.requires_grad_()
        twkd_loss(z, y, teacher, backend=backend.name).backward()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as forward:
            loss = twkd_loss(z, y, teacher, backend=backend.name)
            torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as backward:
            torch.autograd.grad(loss, z, one)
            torch.cuda.synchronize()
        assert len(launched(forward.events())) == 2, launched(forward.events())
        assert len(launched(backward.events())) == 1, launched(backward.events())
