"""What only a device can show of norm_lif, beside ops/test_norm_lif.py, which runs on it as on any
backend.

make gpu
"""

import backends
import pytest
import torch
from norm_cases import rows

from snnfast import explain, norm_lif

pytestmark = pytest.mark.gpu


@pytest.fixture(params=backends.GPU, ids=str)
def backend(request):
    with request.param.entered():
        yield request.param.name


def made(shape, dtype=torch.float32, residual=True):
    """The arguments of a call on the device, and a gradient of its spikes."""
    tensors = [torch.randn(shape, device="cuda").to(dtype) for _ in range(3)]
    given = rows(shape[2], torch.Generator().manual_seed(0), torch.float32)
    given = {name: t.cuda() for name, t in given.items()}
    given["residual"] = tensors[1].requires_grad_() if residual else None
    for leaf in (given["weight"], given["bias"]):
        leaf.requires_grad_()
    return {"y": tensors[0].requires_grad_(), **given}, tensors[2]


@pytest.mark.parametrize("residual", [False, True])
def test_kept_for_backward(backend, residual):
    """Nothing beside y and the residual, which the caller has: numbers per channel."""
    for dtype in (torch.float32, torch.bfloat16):
        arguments, ds = made((8, 16, 64, 16, 16), dtype, residual)
        torch.autograd.backward(norm_lif(**arguments, training=True, backend=backend), ds)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        s = norm_lif(**arguments, training=True, backend=backend)
        extra = torch.cuda.memory_allocated() - before - s.numel() * s.element_size()
        assert extra <= 16384


@pytest.mark.parametrize("training", [True, False])
def test_captured_in_a_graph(backend, training):
    arguments, ds = made((4, 8, 64, 8, 8))
    leaves = [arguments[name] for name in ("y", "residual", "weight", "bias")]

    def step():
        s = norm_lif(**arguments, training=training, backend=backend)
        return s, *torch.autograd.grad(s, leaves, ds)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        arguments["y"].copy_(torch.randn_like(arguments["y"]))
    graph.replay()
    assert all(map(torch.equal, captured, step()))


def test_chosen_by_itself(backend):
    arguments, _ = made((2, 2, 4, 4, 4))
    ((op, name, reason),) = explain(norm_lif, training=True, **arguments)
    assert (op, name, reason) == ("norm_lif", "triton", "auto: the fastest on cuda")
    with pytest.raises(ValueError, match="runs on CUDA tensors, got cpu"):
        cpu = {k: None if t is None else t.detach().cpu() for k, t in arguments.items()}
        norm_lif(**cpu, training=True, backend=backend)
