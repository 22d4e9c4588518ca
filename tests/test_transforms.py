"""Transforms of torch around the ops: refused in words, or right."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import snnfast
from snnfast import nn

ROWS = {"weight": None, "bias": None, "running_mean": None, "running_var": None}
CALLS = {
    "lif": lambda x: snnfast.lif(x),
    "norm_lif": lambda x: snnfast.norm_lif(x, training=True, **ROWS),
    "twkd_loss": lambda x: snnfast.twkd_loss(x, torch.zeros(3).long(), alpha=0.0),
    "tssd_loss": lambda x: snnfast.tssd_loss(x, torch.zeros(3).long(), x, student_steps=2),
}
TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x])),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    "linearize": lambda f, x: torch.func.linearize(f, x),
}


@pytest.fixture
def x():
    return torch.randn(4, 3, 5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", CALLS)
def test_transforms_of_torch_func_are_refused(op, transform, backend, x):
    with (
        snnfast.backend(backend),
        pytest.raises(NotImplementedError, match=f"{op}: (no tr|forward)"),
    ):
        TRANSFORMS[transform](CALLS[op], x)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_program_that_is_not_traced_yet_is_refused_alike(transform, x):
    beta = torch.rand(()).item()
    with pytest.raises(NotImplementedError, match=r"lif: (no tr|forward)"):
        TRANSFORMS[transform](lambda x: snnfast.lif(x, beta=beta), x)
    with pytest.raises(NotImplementedError, match=r"lif: (no tr|forward)"):  # looked at else
        TRANSFORMS[transform](lambda x: snnfast.lif(x, beta=beta, v_threshold=x.mean()), x)


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_tensors_are_refused(op, requires_grad, x):
    x.requires_grad_(requires_grad)
    with forward_ad.dual_level():
        CALLS[op](x)  # no tangent: nothing to lose
        with pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
            CALLS[op](forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.unpoisoned
def test_a_transform_inside_compile_is_refused(x):
    gradient = torch.compile(torch.func.grad(lambda x: snnfast.lif(x).sum()), backend="aot_eager")
    with pytest.raises(NotImplementedError, match="lif: no transform"):
        gradient(x)


def test_a_closure_over_a_parameter_is_refused_under_vmap(x):
    w = torch.ones(5, requires_grad=True)
    with pytest.raises(NotImplementedError, match="lif: no transform"):
        torch.func.vmap(lambda a: snnfast.lif(a * w))(torch.stack([x, x]))


@pytest.mark.parametrize("op", ["lif", "norm_lif"])
def test_batched_gradients_are_those_of_a_loop(op, x):
    x.requires_grad_()
    s = CALLS[op](x)
    ds = torch.randn(6, *s.shape)
    together = torch.autograd.grad(s, x, ds, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(s, x, d, retain_graph=True)[0] for d in ds]
    torch.testing.assert_close(together, torch.stack(one_by_one))


@pytest.mark.parametrize("training", [False, True])
def test_make_fx_of_a_block_replays_on_other_values(training, x):
    block = nn.BatchNormLIF(5).train(training)
    y = torch.randn(4, 3, 5, 2)

    def gradients(y):
        y = y.detach().requires_grad_()
        s = block(y)
        return s, torch.autograd.grad(s.sum(), y)[0]

    graph = make_fx(gradients)(y)
    for _ in range(2):
        y = torch.randn(4, 3, 5, 2) + 0.3
        torch.testing.assert_close(graph(y), gradients(y))


@pytest.mark.parametrize("traced", [False, True])
def test_packed_spikes_beside_forward_mode_and_lazy_negatives(traced):
    s = (torch.rand(64, 64) < 0.3).float()
    weight = torch.randn(64, 64, requires_grad=True)

    def loss(s, weight):
        return (torch._neg_view(s) @ weight).square().sum()

    expected = torch.autograd.grad(loss(s, weight), weight)[0]
    with snnfast.packed_spikes(), forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch._efficientzerotensor(64, 64))
        got = torch.autograd.grad(loss(s, dual), weight)[0]
    assert torch.equal(got, expected)
    if traced:
        with snnfast.packed_spikes():
            graph = make_fx(lambda s: torch.autograd.grad(loss(s, weight), weight)[0])(s)
        other = (torch.rand(64, 64) < 0.3).float()
        assert torch.equal(graph(other), torch.autograd.grad(loss(other, weight), weight)[0])


def test_a_traced_block_counts_the_values_that_it_is_given():
    def statistics(y, mean, var):
        rows = {"weight": None, "bias": None, "running_mean": mean, "running_var": var}
        return snnfast.norm_lif(y, training=True, **rows)

    def given():
        return torch.zeros(4), torch.ones(4)

    graph = make_fx(statistics, tracing_mode="symbolic")(torch.randn(2, 3, 4), *given())
    y = torch.randn(7, 5, 4)
    traced, eager = given(), given()
    graph(y, *traced), statistics(y, *eager)
    torch.testing.assert_close(traced, eager)
