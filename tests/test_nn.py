"""Modules and streaming."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import snnfast
from snnfast import surrogate
from snnfast.nn import BatchNormLIF


def test_modules_call_the_op_with_their_arguments():
    x, v0 = torch.randn(6, 3, 4), torch.randn(3, 4)
    common = {"v_threshold": 0.8, "v_reset": -0.1, "detach_reset": True, "surrogate": "rect"}
    layer = snnfast.nn.LIF(tau=1.7, decay_input=False, **common)
    assert torch.equal(layer(x), snnfast.lif(x, tau=1.7, decay_input=False, **common))
    s, v = snnfast.nn.LIF(return_state="all")(x, v0)
    assert all(map(torch.equal, (s, v), snnfast.lif(x, v0, return_state="all")))
    assert torch.equal(snnfast.nn.IF(**common)(x), snnfast.lif(x, tau=math.inf, **common))
    static = x[0]
    assert torch.equal(snnfast.nn.LIF()(static, timesteps=5), snnfast.lif(static, timesteps=5))
    assert not snnfast.nn.LIF().state_dict()


@pytest.mark.parametrize("channels", [None, 3])
def test_parametric_lif(channels):
    layer = snnfast.nn.ParametricLIF(init_tau=3.0, channels=channels)
    assert list(layer.state_dict()) == ["w"]
    torch.testing.assert_close(1 / layer.w.sigmoid(), torch.full_like(layer.w, 3.0))
    x = torch.randn(5, 2, 3, 4)
    s = layer(x)
    assert torch.equal(s, snnfast.lif(x, inv_tau=layer.w.sigmoid(), backend="reference"))
    s.sum().backward()
    ours, layer.w.grad = layer.w.grad, None
    with snnfast.backend("reference"):
        layer(x).sum().backward()
    torch.testing.assert_close(ours, layer.w.grad, rtol=1e-4, atol=1e-5)
    assert ours.abs().max() > 0
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_every_forward_starts_from_rest():
    layer, x = snnfast.nn.LIF(), torch.randn(4, 9)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("return_state", [False, True, "all"])
def test_streaming_carries_the_state(return_state):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 7), snnfast.nn.LIF(tau=1.7), nn.Linear(7, 5, bias=False),
        snnfast.nn.ParametricLIF(return_state=return_state),
    )  # fmt: skip
    spikes = (lambda out: out[0]) if return_state else (lambda out: out)
    net[2].weight.data.abs_().mul_(4)  # so that the last layer spikes, too
    x = 8 * torch.randn(19, 3, 6)
    with torch.no_grad():
        whole = spikes(net(x))
        with snnfast.streaming(net):
            parts = [spikes(net(part)) for part in x.split([1, 9, 0, 5, 4])]
        assert torch.equal(torch.cat(parts), whole)
        assert whole.any()
        assert torch.equal(spikes(net(x)), whole)  # the state is dropped on exit
        with snnfast.streaming(net):
            assert torch.equal(spikes(net(x[:3])), whole[:3])  # and rests on entry


def test_streaming_drops_the_state_after_an_error():
    layer = snnfast.nn.LIF()
    with pytest.raises(RuntimeError, match="stop"), snnfast.streaming(layer):
        layer(torch.ones(2, 3))
        raise RuntimeError("stop")
    assert layer._v is None and not layer._streaming


NEURONS = (snnfast.nn.LIF, snnfast.nn.IF, snnfast.nn.ParametricLIF, partial(BatchNormLIF, 4))
WRONG = [
    ({"v_reset": "soft"}, TypeError, r"v_reset must be a number \(hard reset\) or None \(soft\)"),
    ({"v_reset": False}, TypeError, r"v_reset must be a number \(hard.* got bool"),
    ({"v_reset": math.nan}, ValueError, "v_reset must be finite, got nan"),
    ({"v_threshold": "1"}, TypeError, r"v_threshold must be a number or .*, got str"),
    ({"v_threshold": True}, TypeError, r"v_threshold must be a number or .*, got bool"),
    ({"v_threshold": -math.inf}, ValueError, "v_threshold must be finite, got -inf"),
    ({"fire": ">>"}, ValueError, "fire must be '>=' or '>', got '>>'"),
    ({"detach_state": 0}, TypeError, "detach_state must be True or False, got int"),
    ({"time_axis": "last"}, ValueError, "time_axis must be an int or 'merged', got 'last'"),
    ({"detach_reset": 1}, TypeError, "detach_reset must be True or False, got int"),
    ({"surrogate": 3}, TypeError, "surrogate must be a name or a"),
    ({"return_state": "last"}, ValueError, "return_state must be False, True or 'all', got 'last'"),
    ({"backend": "cupy"}, ValueError, "backend must be one of auto, .*cuda, got 'cupy'"),
    (
        {"surrogate_function": 0},
        TypeError,
        r"got surrogate_function \(did you mean 'surrogate'",
    ),
    ({"v_th": 1.0}, TypeError, r"got v_th \(did you mean 'v_threshold'\?\)"),
    ({"detatch_reset": True}, TypeError, r"\(did you mean 'detach_reset'\?\)"),
    ({"step_mode": "m"}, TypeError, r"got step_mode \(here: nothing: a call takes all timesteps"),
    ({"v_threshold": torch.tensor(1)}, TypeError, "v_threshold must be floating point, got int64"),
    (
        {"v_threshold": torch.ones(4, 1)},
        ValueError,
        r"must be of shape \[\] or \[C\], got \(4, 1\)",
    ),
    (
        {"v_threshold": torch.tensor(0.5, requires_grad=True)},
        ValueError,
        "v_threshold must be an nn.Parameter to learn, got a tensor that requires gradient",
    ),
    ({"learn_beta": True}, TypeError, r"got learn_beta \(here: snnfast.nn.ParametricLIF"),
    ({"timesteps": 0}, TypeError, r"got timesteps \(here: timesteps, in the call\)"),
    ({"leak": 0}, TypeError, "arguments must be among .*return_state, backend, got leak$"),
]


@pytest.mark.parametrize("make", NEURONS, ids=lambda m: getattr(m, "__name__", "BatchNormLIF"))
@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=str)
def test_arguments_are_checked_at_construction(make, arguments, error, message):
    with pytest.raises(error, match=rf"^(LIF|IF|ParametricLIF): .*{message}"):
        make(**arguments)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: snnfast.nn.LIF(decay_input="no"), TypeError, "LIF: decay_input must be True or"),
        (lambda: snnfast.nn.LIF(beta=torch.ones(2, 2)), ValueError, r"LIF: beta must be of shape"),
        (lambda: snnfast.nn.LIF(tau=True), TypeError, "LIF: tau must be a number, got bool"),
        (lambda: snnfast.nn.ParametricLIF(decay_input=0), TypeError, "decay_input must be True or"),
        (lambda: snnfast.nn.ParametricLIF(channels=0), ValueError, "channels must be >= 1, got 0"),
        (lambda: snnfast.nn.ParametricLIF(channels="3"), TypeError, "channels must be an int"),
        (
            lambda: snnfast.nn.ParametricLIF(tau=2.0),
            TypeError,
            r"got tau \(did you mean 'init_",
        ),
        (lambda: snnfast.nn.LIF(init_tau=2.0), TypeError, r"got init_tau \(did you mean 'tau'"),
        (lambda: snnfast.nn.IF(tau=2.0), TypeError, "IF: arguments must be among .*, got tau$"),
        (lambda: snnfast.nn.LIF(tau=0.5), ValueError, "LIF: tau must be >= 1, got 0.5"),
        (lambda: snnfast.nn.LIF(tau="2"), TypeError, "LIF: tau must be a number, got str"),
        (lambda: snnfast.nn.LIF(surrogate="x"), ValueError, "LIF: surrogate must be one of"),
        (lambda: snnfast.nn.ParametricLIF(init_tau=1.0), ValueError, "init_tau must be > 1"),
        (lambda: snnfast.streaming(3).__enter__(), TypeError, "must be a torch module, got int"),
        (lambda: snnfast.streaming(nn.ReLU()).__enter__(), ValueError, "must contain neurons"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_nested_streaming_is_refused():
    layer = snnfast.nn.LIF()
    with snnfast.streaming(layer), pytest.raises(ValueError, match="nested"):
        snnfast.streaming(layer).__enter__()


@pytest.mark.parametrize("name", list(surrogate.TABLE))
def test_surrogate_is_the_derivative_of_its_primitive(name):
    cls = surrogate.TABLE[name]
    x = torch.linspace(-2.03, 2.0137, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cls().primitive(x).sum(), x)
    torch.testing.assert_close(slope, cls().gradient(x.detach()), rtol=1e-9, atol=1e-9)
    assert surrogate.resolve(name) == cls()


def test_info_says_what_was_built():
    text = snnfast.info()
    assert "available, " in text and "instructions" in text
    assert "cuda backend" in text
