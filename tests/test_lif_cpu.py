"""The C++ backend against the reference: spikes and states exactly, gradients to rounding."""

import functools
import itertools
import math

import pytest
import torch
from lif_cases import (
    DTYPES,
    RESETS,
    SURROGATES,
    TAUS,
    assert_as_accurate_as_torch,
    assert_two_roundings,
    grads,
    off_threshold,
    reference_layer,
)

import snnfast
from snnfast import _C

UGLY = [(1, (1,)), (2, (7,)), (3, (31,)), (4, (2, 3, 5, 7)), (7, (1023,)), (8, (1024,)),
        (9, (1025,)), (17, (3, 341)), (20, (2, 1500))]  # fmt: skip


@pytest.fixture(params=["best", "baseline"])
def instruction_set(request):
    _C.use_baseline(request.param == "baseline")
    yield
    _C.use_baseline(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "shape"), UGLY, ids=str)
def test_spikes_and_states_equal_the_reference(steps, shape, dtype, instruction_set):
    for tau, v_reset, decay_input in itertools.product(TAUS, RESETS, (True, False)):
        x = (torch.randn(steps, *shape) * 1.5).to(dtype)
        layer = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
        s, v = snnfast.lif(x, **layer, return_state="all", backend="cpu")
        expected_s, expected_v = reference_layer(x, **layer)
        assert torch.equal(s, expected_s), layer
        assert torch.equal(v, expected_v), layer


def test_no_spike_differs_over_1e8_neuron_steps():
    seen = 0
    for tau, v_reset, decay_input in itertools.product(TAUS, RESETS, (True, False)):
        x = torch.randn(4, 850_000) * 1.5
        layer = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
        s = snnfast.lif(x, **layer, backend="cpu")
        assert torch.equal(s, reference_layer(x, **layer)[0]), layer
        seen += s.numel()
    assert seen >= 10**8


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 11])
def test_gradients_in_float32(surrogate, steps, instruction_set):
    for v_reset, detach, (decay_input, tau) in itertools.product(
        RESETS, (True, False), ((True, 1.7), (False, 2.0), (True, math.inf))
    ):
        layer = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
        x = off_threshold(steps, 2003, **layer)
        layer |= {"surrogate": surrogate, "detach_reset": detach}
        ds, dv = torch.randn_like(x), torch.randn(2003)

        def ours(x, layer=layer):
            return snnfast.lif(x, **layer, return_state=True, backend="cpu")

        def plain(x, layer=layer):
            s, v = reference_layer(x, **layer)
            return s, v[-1]

        (dx,) = grads(ours, (x,), (ds, dv))
        (own,) = grads(plain, (x,), (ds, dv))
        (exact,) = grads(plain, (x.double(),), (ds.double(), dv.double()))
        assert_as_accurate_as_torch(dx, own, exact)


def spikes_of_the_reference(x, **layer):
    return reference_layer(x, **layer)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_in_half_precision(dtype, surrogate, instruction_set):
    for v_reset, steps in itertools.product(RESETS, (3, 10)):
        x = off_threshold(steps, 50, margin=0.05, v_reset=v_reset).to(dtype)
        ds = torch.randn(x.shape).to(dtype)
        layer = {"v_reset": v_reset, "surrogate": surrogate}
        ours = functools.partial(snnfast.lif, **layer, backend="cpu")
        plain = functools.partial(spikes_of_the_reference, **layer)
        (dx,) = grads(ours, (x,), (ds,))
        (exact,) = grads(plain, (x.double(),), (ds.double(),))
        assert_two_roundings(dx, exact)


@pytest.mark.parametrize("kind", ["tau scalar", "tau", "inv_tau scalar", "inv_tau"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_learnable_time_constant(kind, decay_input, layout, instruction_set):
    steps, channels = 10, 5
    x = torch.randn(steps, 3, channels, 4, 7)
    if layout == "channels_last":
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    shape = () if "scalar" in kind else (channels,)
    tau = 1.2 + 3 * torch.rand(shape)
    name = "tau" if kind.startswith("tau") else "inv_tau"
    rate = tau if name == "tau" else 1 / tau
    v0 = torch.randn(x.shape[1:])
    ds, dv = torch.randn_like(x), torch.randn_like(x)

    def run(backend):
        def call(x, v0, rate):
            layer = {name: rate, "decay_input": decay_input, "surrogate": "atan"}
            return snnfast.lif(x, v0, **layer, return_state="all", backend=backend)

        return call

    assert all(
        torch.equal(a, b) for a, b in zip(run("cpu")(x, v0, rate), run("reference")(x, v0, rate))
    )
    ours = grads(run("cpu"), (x, v0, rate), (ds, dv))
    own = grads(run("reference"), (x, v0, rate), (ds, dv))
    for a, b in zip(ours, own):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    doubles = [t.double() for t in (x, v0, rate)]
    exact = grads(run("reference"), doubles, (ds.double(), dv.double()))
    for a, b in zip(grads(run("cpu"), doubles, (ds.double(), dv.double())), exact):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck_of_the_smooth_twin(surrogate, backend):
    smooth = type(snnfast.surrogate.resolve(surrogate))(spiking=False)
    for v_reset, decay_input in itertools.product((0.1, None), (True, False)):
        x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
        v0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        tau = torch.tensor([1.5, 2.0, 3.3], dtype=torch.float64, requires_grad=True)

        def run(x, v0, tau, v_reset=v_reset, decay_input=decay_input):
            layer = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
            return snnfast.lif(
                x, v0, **layer, surrogate=smooth, return_state="all", backend=backend
            )

        torch.autograd.gradcheck(run, (x, v0, tau))


def test_smooth_twin_has_the_same_values_on_both_backends():
    smooth = snnfast.surrogate.ATan(spiking=False)
    x = torch.randn(12, 50, dtype=torch.float64)
    a, b = (snnfast.lif(x, surrogate=smooth, backend=n) for n in ("cpu", "reference"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_do_not_depend_on_the_number_of_threads():
    x, ds = torch.randn(4, 2, 3, 41, 43), torch.randn(4, 2, 3, 41, 43)
    tau = 1.5 + torch.rand(3)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(
            grads(lambda x, tau: snnfast.lif(x, tau=tau, backend="cpu"), (x, tau), (ds,))
        )
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def gradient_of_sum(x, backend, **layer):
    s, _ = snnfast.lif(x := x.clone().requires_grad_(), **layer, backend=backend)
    return torch.autograd.grad(s.sum(), x)[0]


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_nan_and_inf_propagate_as_in_the_reference(surrogate):
    x = torch.randn(6, 40)
    x[1, 3], x[0, 5], x[2, 35], x[3, 39] = math.nan, math.inf, -math.inf, 3e38
    for v_reset in (0.0, None):
        layer = {"v_reset": v_reset, "surrogate": surrogate, "return_state": "all"}
        ours, plain = (snnfast.lif(x, **layer, backend=n) for n in ("cpu", "reference"))
        for a, b in zip(ours, plain):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        healthy = x.isfinite().all(0) & (x.abs() < 1e30).all(0)
        a, b = (gradient_of_sum(x, n, **layer) for n in ("cpu", "reference"))
        torch.testing.assert_close(a[:, healthy], b[:, healthy], rtol=1e-5, atol=1e-6)
        assert a[1, 3].isnan() or not b[1, 3].isnan()


@pytest.mark.unpoisoned
def test_more_than_2_to_the_31_elements():
    steps, count = 8, 2**28 + 33
    x = torch.zeros(steps, count, dtype=torch.bfloat16)
    x[:, -40:] = torch.randn(steps, 40) * 2
    x[:, :7] = torch.randn(steps, 7) * 2
    s = snnfast.lif(x, backend="cpu")
    assert s.numel() > 2**31
    for part in (slice(0, 100), slice(count - 100, count)):
        assert torch.equal(s[:, part], reference_layer(x[:, part])[0])
    assert s[-1, -40:].any()
    assert not s[-1, count - 10**6 : count - 40].any()
