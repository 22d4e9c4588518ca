"""What a call costs the host, as far as it can be counted: functions of ours that a step of a layer
calls. And that what is remembered of calls is right, bounded, and keeps no tensor."""

import gc
import sys
from pathlib import Path

import _triton_driver
import host_time
import pytest
import torch

import snnfast
from snnfast.backends import contract
from snnfast.ops import validation
from snnfast.ops.select import implementation

pytestmark = pytest.mark.unpoisoned
OURS = str(Path(snnfast.__file__).parent)
MOST = {
    ("cpu", "lif"): 62,
    ("cpu", "norm_lif"): 99,
    ("triton", "lif"): 60,
    ("triton", "norm_lif"): 106,
}
"""With checks and plans made anew at every call they were 80, 172, 150 and 396."""


@pytest.fixture
def backend(request):
    if request.param == "cpu":
        yield "cpu"
        return
    with _triton_driver.installed():
        yield "triton"


def calls_of(function) -> int:
    """How many functions of the package run within, comprehensions too."""
    count = 0

    def note(frame, event, _):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(OURS)

    function()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(("backend", "op"), MOST, indirect=["backend"])
def test_a_step_takes_few_calls(backend, op):
    cases = {name: case for name, *case in host_time.cases(backend)}
    _, leaves, ds, _, call = cases[op]
    with snnfast.packed_spikes():  # from then on an op notes what is spikes, one call more
        pass
    count = calls_of(lambda: torch.autograd.grad(call(), leaves, ds))
    assert count <= MOST[backend, op]


def step(y, backend, **options):
    weight, bias = (torch.ones(y.shape[2], requires_grad=True) for _ in range(2))
    stats = {"running_mean": torch.zeros(y.shape[2]), "running_var": torch.ones(y.shape[2])}
    options = {"training": True, **stats, **options}
    s = snnfast.norm_lif(y, weight=weight, bias=bias, backend=backend, **options)
    torch.autograd.grad(s.sum(), (y, weight, bias))


def tensors() -> int:
    while gc.collect():  # what other tests have left takes several rounds
        pass
    return sum(type(t) in (torch.Tensor, torch.nn.Parameter) for t in gc.get_objects())


@pytest.mark.parametrize("backend", ["cpu", "triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tensor_is_kept(backend, dtype):
    step(torch.randn(3, 2, 5, 7, dtype=dtype, requires_grad=True), backend)
    implementation(backend).forget()
    before = tensors()
    for training in (True, False):
        step(torch.randn(3, 2, 5, 7, dtype=dtype, requires_grad=True), backend, training=training)
    assert len(implementation(backend)._plans) == 5
    assert tensors() == before


def test_what_is_remembered_is_bounded(monkeypatch):
    kernels, most = implementation("cpu"), 10
    monkeypatch.setattr(contract, "PLANS", most)
    monkeypatch.setattr(validation, "REMEMBERED", most)
    kernels.forget()
    for size in range(1, 3 * most):
        x = torch.randn(2, size, requires_grad=True)
        torch.autograd.grad(snnfast.lif(x, backend="cpu").sum(), x)
        assert 0 < len(kernels._plans) <= most


def test_equal_options_of_another_type_are_refused_all_the_same():
    """1 equals True, and so do their hashes."""
    y = torch.randn(3, 2, 5, 7, requires_grad=True)
    step(y, "cpu", training=True)
    with pytest.raises(TypeError, match="norm_lif: training must be True or False, got int"):
        step(y, "cpu", training=1)
    snnfast.lif(y, v_threshold=1.0)
    with pytest.raises(TypeError, match="lif: v_threshold must be a number"):
        snnfast.lif(y, v_threshold=True)


@pytest.mark.parametrize("change", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
def test_another_kind_of_tensor_is_checked_anew(change):
    y = torch.randn(3, 2, 5, 7, requires_grad=True)
    step(y, "cpu")
    with pytest.raises((TypeError, ValueError), match="norm_lif: running_mean must be"):
        step(y, "cpu", running_mean=torch.zeros(5, **change))
    kernels, s = implementation("cpu"), torch.empty(3, 2, 5, 7)
    layer = snnfast.ops.layer.lif_layer(3)
    kernels.lif_forward(layer, y, None, None, s)
    with pytest.raises(ValueError, match="backend: s must be float32"):
        kernels.lif_forward(layer, y, None, None, s[..., :1])
    logits = torch.randn(4, 3, 5)
    one, more = torch.empty(()), torch.empty(2)
    kernels.scale_gradient(logits, one, one, logits)
    for wrong in ((one, one, logits[:1]), (one, more, logits), (more, one, logits)):
        with pytest.raises(ValueError, match=r"backend: (scaled|unit|grad_output) must be"):
            kernels.scale_gradient(logits, *wrong)


def test_a_plan_serves_any_number_of_threads():
    """How many there are may change between two calls."""
    y = torch.randn(4, 8, 64, 32, 32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(snnfast.lif(y, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
