"""What the Triton backend launches for one layer, counted where there is no GPU: its own calls are
written down instead of made, and of torch's ops those that would launch something."""

import pytest
import torch

import snnfast
from snnfast.backends.triton import launch
from snnfast.ops import select

# Torch's ops that launch nothing.
STILL = set(
    "empty empty_like empty_strided new_empty view reshape as_strided expand unsqueeze select "
    "slice detach detach_ alias unbind permute to result_type contiguous "
    "resolve_conj resolve_neg".split()
)


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels, as they are called."""
    names = []
    monkeypatch.setattr(launch.Call, "launch", lambda call, _: names.append(call.kernel.__name__))
    refuse = select._refuse
    monkeypatch.setattr(
        select, "_refuse", lambda name, *rest: None if name == "triton" else refuse(name, *rest)
    )
    return names


def taken(names: list) -> list:
    found, names[:] = list(names), []
    return found


def others(profile) -> list:
    """What torch launched itself."""
    names = [event.name for event in profile.events() if event.name.startswith("aten::")]
    return [name for name in names if name.removeprefix("aten::") not in STILL]


def profiled(call):
    with torch.profiler.profile() as profile:
        result = call()
    return result, others(profile)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("T", (4, 16), ids="T={}".format)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels last"))
@pytest.mark.parametrize("residual", (False, True), ids=("alone", "residual"))
def test_norm_lif_is_three_launches_each_way(launched, residual, last, dtype, T):
    y, r, ds = (torch.randn(T, 2, 8, 4, 4).to(dtype) for _ in range(3))
    if last:
        y, r, ds = (
            t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for t in (y, r, ds)
        )
    r = r.requires_grad_() if residual else None
    y.requires_grad_()
    weight, bias = (torch.ones(8, requires_grad=True) for _ in range(2))
    running = dict(running_mean=torch.zeros(8), running_var=torch.ones(8))

    def forward():
        return snnfast.norm_lif(
            y, r, weight=weight, bias=bias, training=True, backend="triton", **running
        )

    s, more = profiled(forward)
    assert taken(launched) == ["norm_stats", "norm_prepare", "lif_forward"] and not more
    inputs = [t for t in (y, r, weight, bias) if t is not None]
    _, more = profiled(lambda: torch.autograd.grad(s, inputs, ds))
    again = not residual and dtype == torch.float32
    second = "lif_backward" if again else "norm_dy"
    assert taken(launched) == ["lif_backward", "norm_finish", second] and not more


@pytest.mark.unpoisoned
def test_lif_is_one_launch_each_way(launched):
    x = torch.randn(4, 2, 8, requires_grad=True)
    s, more = profiled(lambda: snnfast.lif(x, backend="triton"))
    assert taken(launched) == ["lif_forward"] and not more
    ds = torch.randn(4, 2, 8)
    _, more = profiled(lambda: torch.autograd.grad(s, x, ds))
    assert taken(launched) == ["lif_backward"] and not more


@pytest.mark.unpoisoned
def test_evaluation_is_two_launches(launched):
    y = torch.randn(4, 2, 8, 4, 4)
    mean, var, weight, bias = torch.zeros(8), torch.ones(8), torch.ones(8), torch.ones(8)
    arguments = dict(weight=weight, bias=bias, running_mean=mean, running_var=var)
    with torch.no_grad():
        _, more = profiled(
            lambda: snnfast.norm_lif(y, training=False, backend="triton", **arguments)
        )
    assert taken(launched) == ["norm_prepare", "lif_forward"]
    assert set(more) <= {"aten::clone", "aten::copy_"}  # of the running statistics
