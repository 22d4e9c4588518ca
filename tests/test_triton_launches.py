"""What the Triton backend launches for one layer, counted where there is no GPU: its own calls are
written down instead of made, and of torch's ops those that would launch something."""

import pytest
import torch
from neuron_cases import adaptive

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
    select.implementation("triton").forget()
    yield names
    select.implementation("triton").forget()


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
    assert set(more) <= {"aten::stack", "aten::cat"}  # of the running statistics, one


def one_of_each(calls: list) -> list:
    """The calls that all ops make."""
    y = torch.randn(4, 2, 8, 4, 4, requires_grad=True)
    weight, mean, var = torch.ones(8), torch.zeros(8), torch.ones(8)
    with snnfast.backend("triton"):
        for training in (True, False):
            for r in (None, y):
                s = snnfast.norm_lif(
                    y, r, weight=weight, bias=weight, running_mean=mean, running_var=var,
                    training=training,
                )  # fmt: skip
                s.sum().backward()
        adaptive(y, rho=weight.requires_grad_(), return_state=True)[0].sum().backward()
        snnfast.unpack_spikes(snnfast.pack_spikes(s.detach()), s.shape, s.dtype)
        logits, target = y.flatten(2), torch.zeros(2).long()
        for loss in (snnfast.twkd_loss, snnfast.tser_loss):
            loss(logits, target, torch.zeros(2, 128)).backward()
        snnfast.tssd_loss(logits, target, logits, student_steps=2).backward()
        many = torch.zeros(4, 2, 5000)
        snnfast.twkd_loss(many, target, many[0])
    made, calls[:] = list(calls), []
    return made


@pytest.fixture
def calls(launched, monkeypatch):
    made = []
    monkeypatch.setattr(launch.Call, "launch", lambda call, _: made.append(call))
    return made


@pytest.mark.unpoisoned
def test_constants_are_the_same_dicts_at_every_step(calls):
    """By which a launch finds its kernel; equal ones would have to be compared."""
    first, second = one_of_each(calls), one_of_each(calls)
    assert len(first) == len(second) and len({call.kernel for call in first}) == 15
    different = [a.kernel.__name__ for a, b in zip(first, second) if a.constants is not b.constants]
    assert not different


@pytest.mark.unpoisoned
def test_no_number_is_built_into_a_kernel(calls):
    """Triton would make a kernel of its own for 1, were the number not of a type or left alone."""
    for call in one_of_each(calls):
        for parameter, argument in zip(call.kernel.params, call.arguments):
            if type(argument) is int:
                typed = parameter.do_not_specialize or parameter.annotation_type
                assert typed, f"{call.kernel.__name__}: {parameter.name}"
