"""What only a device can show, beside the tests of tests/ops, which run on it as on any backend.

make gpu
"""

import itertools

import backends
import pytest
import torch
from lif_cases import CHARGES, TAUS

import snnfast
from snnfast import reference
from snnfast.ops.select import implementation

pytestmark = pytest.mark.gpu


@pytest.fixture(params=backends.GPU, ids=str)
def backend(request):
    with request.param.entered():
        yield request.param.name


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_the_backend_is_there(name):
    """One that is not is no failure, but it is said."""
    why_not = implementation(name).available()
    if why_not:
        pytest.skip(f"{name}: {why_not}")


def on_cpu(x, **layer):
    """The same call on the CPU's reference."""
    return snnfast.lif(x.cpu(), **layer, backend="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 9, 20, 100])
@pytest.mark.parametrize("count", [1, 7, 1023, 4096, 40_000])
def test_spikes_and_states_equal_the_reference(backend, dtype, steps, count):
    for layer in CHARGES:
        x = (torch.randn(steps, count, device="cuda") * 1.5).to(dtype)
        s, v = snnfast.lif(x, **layer, return_state="all", backend=backend)
        expected_s, expected_v = on_cpu(x, **layer, return_state="all")
        assert torch.equal(s.cpu(), expected_s), layer
        assert torch.equal(v.cpu(), expected_v), layer


def test_no_spike_differs_over_1e8_neuron_steps(backend):
    for tau in TAUS:
        x = torch.randn(4, 5_000_000, device="cuda") * 1.5
        s = snnfast.lif(x, tau=tau, backend=backend)
        assert torch.equal(s.cpu(), on_cpu(x, tau=tau)), tau


def test_the_reference_gives_the_same_spikes_on_the_device(backend):
    x = torch.randn(6, 1_000_000, device="cuda") * 1.5
    for tau in TAUS:
        ours = snnfast.lif(x, tau=tau, backend=backend)
        assert torch.equal(ours, snnfast.lif(x, tau=tau, backend="reference")), tau


def test_exact_division_in_the_kernel(backend):
    x = torch.randn(1, 20_000_000, device="cuda") * torch.logspace(-6, 6, 20_000_000, device="cuda")
    for tau in (1.0000001, 1.1, 1.7, 3.0, 5.0, 99.9):
        _, v = snnfast.lif(x, tau=tau, v_threshold=1e30, return_state=True, backend=backend)
        rate = torch.tensor(tau, device="cuda")
        assert torch.equal(v, reference.charge(x[0], torch.zeros_like(v), 0.0, rate, True, True))


def test_kept_for_backward(backend):
    for steps, dtype in itertools.product((4, 8, 16), (torch.float32, torch.bfloat16)):
        x = torch.randn(steps, 1 << 20, device="cuda", dtype=dtype, requires_grad=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        s = snnfast.lif(x, backend=backend)
        extra = torch.cuda.memory_allocated() - before - s.numel() * s.element_size()
        assert extra <= (0 if steps <= 8 else x.numel() * 4 // 8) + 4096


def test_captured_in_a_graph(backend):
    x = torch.randn(4, 4096, device="cuda")
    snnfast.lif(x, backend=backend)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s = snnfast.lif(x, backend=backend)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(s.cpu(), on_cpu(x))


def test_errors_name_what_to_do(backend):
    with pytest.raises(ValueError, match="runs on CUDA tensors, got cpu"):
        snnfast.lif(torch.randn(2, 3), backend=backend)
    with pytest.raises(ValueError, match="device cuda:0, got cpu"):
        snnfast.lif(torch.randn(2, 3, device="cuda"), torch.zeros(3), backend=backend)
    assert snnfast.explain(snnfast.lif, torch.randn(2, 3, device="cuda"))[0][1] == "triton"
