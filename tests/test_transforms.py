"""Transforms of torch around the ops: right, each held to a loop over plain calls, or refused in
words."""

import re
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from family_cases import ROWS as FAMILY
from torch import func
from torch.fx.experimental.proxy_tensor import make_fx

import snnfast
from snnfast import nn

ROWS = {"weight": None, "bias": None, "running_mean": None, "running_var": None}
FIXED = {
    "weight": torch.linspace(0.5, 1.5, 3).double(), "bias": torch.linspace(-0.2, 0.4, 3).double(),
    "running_mean": torch.linspace(-0.1, 0.2, 3).double(),
    "running_var": torch.linspace(0.5, 2.0, 3).double(),
}  # fmt: skip
LABELS, TEACHER = torch.tensor([2, 0]), torch.linspace(-1, 1, 6).double().view(2, 3)


@snnfast.neuron
def adaptive(x, v, a, *, tau=2.0, rho=0.9):
    h = v + (x - v) / tau
    s = snnfast.spike(h - (0.7 + a))
    return s, h * (1 - s), rho * a + s


def adaptive_norm(x, **call):
    return snnfast.ops.norm_neuron.norm_neuron(adaptive, x, x / 2, training=True, **ROWS, **call)


def all_states(x, **call):
    return torch.cat(
        snnfast.lif(x, x[0] / 4, tau=x[:, 0].exp().mean() + 1, return_state="all", **call)
    )


CALLS = {
    "lif": lambda x, **call: snnfast.lif(x, **call),
    "lif, soft": lambda x, **call: snnfast.lif(
        x, v_reset=None, detach_reset=True, decay_input=False, surrogate="atan", **call
    ),
    "lif, all states": all_states,
    "lif, static": lambda x, **call: snnfast.lif(x, v_reset=-0.2, timesteps=3, **call),
    "lif, beta": lambda x, **call: snnfast.lif(x, beta=0.9, v_threshold=x.detach().mean(), **call),
    "norm_lif": lambda x, **call: snnfast.norm_lif(x, x.flip(0), training=True, **ROWS, **call),
    "norm_lif, evaluation": lambda x, **call: snnfast.norm_lif(x, training=False, **FIXED, **call),
    "norm_lif, beta": lambda x, **call: snnfast.norm_lif(
        x, beta=0.5, training=False, **FIXED, **call
    ),
    "neuron": lambda x, **call: adaptive(x, **call),
    "norm_neuron": adaptive_norm,
    "twkd_loss": lambda x, **call: snnfast.twkd_loss(x, LABELS, TEACHER, **call),
    "tser_loss": lambda x, **call: snnfast.tser_loss(x, LABELS, TEACHER, **call),
    "tssd_loss": lambda x, **call: snnfast.tssd_loss(x, LABELS, x, student_steps=2, **call),
    "pack_spikes": lambda x, **call: snnfast.pack_spikes((x > 0).double(), **call).double(),
    "unpack_spikes": lambda x, **call: snnfast.unpack_spikes(
        (x.detach() > 0).reshape(-1)[:2].to(torch.uint8), (16,), torch.float64, **call
    ) * x.mean(),
}  # fmt: skip


def total(f):
    return lambda x: (f(x).square() * 1.3).sum()


def by_loop(f, x):
    """The Jacobian [outputs of f, x], row by row."""
    x = x.detach().requires_grad_()
    y = f(x)
    if not y.requires_grad:
        return torch.zeros(*y.shape, *x.shape, dtype=x.dtype)
    rows = [
        torch.autograd.grad(one, x, retain_graph=True, allow_unused=True, materialize_grads=True)
        for one in y.reshape(-1)
    ]
    return torch.stack([row for (row,) in rows]).view(*y.shape, *x.shape)


def curvature(f, x):
    """The product of the Hessian of total(f) with ones."""
    x = x.detach().requires_grad_()
    if not f(x).requires_grad:
        return torch.zeros_like(x)
    (dx,) = torch.autograd.grad(total(f)(x), x, create_graph=True, materialize_grads=True)
    return torch.autograd.grad(dx.sum(), x, materialize_grads=True, allow_unused=True)[0]


def weights(y):
    """Some of y's shape."""
    return torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)


def pulled_back(f, x):
    y, pull = func.vjp(f, x)
    return pull(weights(y))[0]


def pulled_back_by_loop(f, x):
    ds = weights(f(x))
    return torch.tensordot(ds, by_loop(f, x), ds.dim())


def product(j, x, dx):
    return (j.view(-1, x.numel()) @ dx.reshape(-1)).view(j.shape[: j.dim() - x.dim()])


# By name: what torch.func gives, and the same by plain calls.
TRANSFORMS = {
    "grad": (lambda f, x: func.grad(total(f))(x), lambda f, x: by_loop(total(f), x)),
    "vjp": (pulled_back, pulled_back_by_loop),
    "jvp": (
        lambda f, x: func.jvp(f, (x,), (x.cos(),))[1],
        lambda f, x: product(by_loop(f, x), x, x.cos()),
    ),
    "vmap": (
        lambda f, x: func.vmap(f)(torch.stack([x, x.flip(0)])),
        lambda f, x: torch.stack([f(x), f(x.flip(0))]),
    ),
    "vmap(grad)": (
        lambda f, x: func.vmap(func.grad(total(f)), 1)(torch.stack([x, x.flip(0)], 1)),
        lambda f, x: torch.stack([by_loop(total(f), x), by_loop(total(f), x.flip(0))]),
    ),
    "jacrev": (lambda f, x: func.jacrev(f)(x), by_loop),
    "jacfwd": (lambda f, x: func.jacfwd(f)(x), by_loop),
    "hessian": (
        lambda f, x: func.hessian(total(f))(x).view(x.numel(), -1).sum(1).view(x.shape),
        None,
    ),
    "linearize": (
        lambda f, x: func.linearize(f, x)[1](x.cos()),
        lambda f, x: product(by_loop(f, x), x, x.cos()),
    ),
}  # fmt: skip


def table():
    """Of the page on autograd: {op: {transform: cell}}, {...} of the row of running statistics."""
    page = Path(__file__).resolve().parent.parent / "docs" / "pages" / "autograd.md"
    lines = re.findall(r"^\| (.*) \|$", page.read_text(), re.M)
    head, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    names = {re.sub("[`,].*", "", row[0][1:]) + " that" * ("that" in row[0]): row for row in rows}
    return {name: dict(zip(head[1:], row[1:], strict=True)) for name, row in names.items()}


TABLE = table()


def test_the_page_has_every_op_and_transform():
    assert {op.split(",")[0] for op in CALLS} | {"norm_lif that"} == set(TABLE)
    assert all(set(row) == {*TRANSFORMS, "create_graph"} for row in TABLE.values())
    assert all(cell in ("reference", "refused") for row in TABLE.values() for cell in row.values())


@pytest.fixture
def x():
    return torch.randn(3, 2, 3, dtype=torch.float64) + 0.4


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", CALLS)
def test_transforms_are_right(op, transform, x):
    ours, loop = TRANSFORMS[transform]
    f, found = CALLS[op], []
    calls = snnfast.explain(lambda: found.append(ours(f, x)))
    ran = {backend for of, backend, _ in calls if of != "lif" or op.startswith("lif")}
    if transform == "linearize":
        ran.discard("cpu")  # its value is that of a plain call
    assert ran <= {TABLE[op.split(",")[0]][transform]} and (ran or "pack" in op)
    wanted = loop(f, x) if loop else curvature(lambda x: f(x, backend="reference"), x)
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("op", CALLS)
def test_forward_mode_is_right(op, x):
    f = CALLS[op]
    with forward_ad.dual_level():
        f(x)  # no tangent: nothing to lose
        found = forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent
    wanted = product(by_loop(f, x), x, x.cos())
    found = torch.zeros_like(wanted) if found is None else found
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("op", CALLS)
def test_gradients_have_a_graph(op, x):
    """That of the kernels' backward, under create_graph, and its derivative."""
    f = CALLS[op]
    found, wanted = curvature(f, x), curvature(lambda x: f(x, backend="reference"), x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    leaf = x.clone().requires_grad_()
    if f(leaf).requires_grad:
        once, again = (
            torch.autograd.grad(total(f)(leaf), leaf, create_graph=graph)[0]
            for graph in (False, True)
        )
        torch.testing.assert_close(again, once, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_under_transforms(name):
    neuron, x = getattr(snnfast.neurons, name), torch.rand(3, 2, 3, dtype=torch.float64)
    x = FAMILY[name].scale * x
    found = func.jvp(lambda h: neuron(h * x), (x.new_ones(()),), (x.new_ones(()),))[1]
    jacobian = by_loop(lambda h: neuron(h * x), x.new_ones(()))
    torch.testing.assert_close(found, jacobian, rtol=1e-7, atol=1e-9)
    per_sample = func.vmap(func.grad(lambda x: neuron(x).sum()), 1)(x[:, None].flip(0))
    torch.testing.assert_close(
        per_sample[0], by_loop(lambda x: neuron(x).sum(), x.flip(0)), rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(
        curvature(neuron, x), curvature(lambda x: neuron(x, backend="reference"), x)
    )


LAYERS = {
    "LIF": lambda: nn.LIF(v_threshold=0.5),
    "ParametricLIF": lambda: nn.ParametricLIF(v_threshold=0.5),
    "BatchNormLIF": lambda: nn.BatchNormLIF(3, v_threshold=0.5).eval(),
    "BatchNormNeuron": lambda: nn.BatchNormNeuron(3, nn.Neuron(adaptive)).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_each_sample(name):
    """As Opacus has them: vmap(grad) of functional_call over the parameters of a network."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), LAYERS[name]())
    parameters = {k: p.detach() for k, p in net.named_parameters()}
    x = torch.randn(2, 5, 1, 4)

    def loss(parameters, x):
        return func.functional_call(net, parameters, (x,)).square().sum()

    found = func.vmap(func.grad(loss), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        own = torch.autograd.grad(net(sample).square().sum(), list(net.parameters()))
        for (key, every), wanted in zip(found.items(), own, strict=True):
            torch.testing.assert_close(every[n], wanted, msg=key)


def test_gradients_of_all_that_norm_lif_reads_have_a_graph(x):
    rows = {"running_mean": None, "running_var": None, "training": True}
    weight, bias, v0 = FIXED["weight"], FIXED["bias"], x[0] / 4

    def twice(**call):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias, v0)]
        y, w, b, v = leaves
        run = snnfast.norm_lif
        s, after = run(y, weight=w, bias=b, v0=v, return_state=True, **rows, **call)
        first = torch.autograd.grad((s * after).sum(), leaves, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for modes in ({}, {"beta": 0.8}):
        if modes:  # whose v0 is a state
            assert all(g.abs().sum() > 0 for g in twice(**modes))
        torch.testing.assert_close(twice(**modes), twice(backend="reference", **modes))


def test_a_tangent_of_any_argument_counts(x):
    """Of the rows of a normalisation, too, in front of a program as in front of a tuned neuron."""
    for modes in ({}, {"beta": 0.5}):

        def run(weight, modes=modes):
            return snnfast.norm_lif(x, training=False, **FIXED | {"weight": weight}, **modes)

        weight = FIXED["weight"]
        with forward_ad.dual_level():
            s = run(forward_ad.make_dual(weight, weight))
            found = forward_ad.unpack_dual(s).tangent
        torch.testing.assert_close(found, product(by_loop(run, weight), weight, weight))


def test_a_backend_asked_for_refuses(x):
    for op, call in CALLS.items():
        with pytest.raises(snnfast.BackendUnavailable, match=r"backend 'cpu'.*no transform of"):
            func.vmap(lambda x, call=call: call(x, backend="cpu"))(torch.stack([x, x])), op


def test_values_are_looked_at_all_the_same(x):
    with pytest.raises(ValueError, match=r"lif: tau must be >= 1 and finite, got \[2.0, 0.5\]"):
        func.vmap(lambda tau: snnfast.lif(x, tau=tau))(torch.tensor([2.0, 0.5]).double())
    with pytest.raises(ValueError, match=r"twkd_loss: target must be in 0..2.*got 7"):
        func.vmap(lambda y: snnfast.twkd_loss(x, y, alpha=0.0))(torch.tensor([[0, 1], [7, 1]]))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_is_refused_where_running_statistics_are_updated(transform, x):
    def run(x):
        rows = {"running_mean": torch.zeros(3).double(), "running_var": torch.ones(3).double()}
        return snnfast.norm_lif(x, training=True, weight=None, bias=None, **rows)

    ours, loop = TRANSFORMS[transform]
    if TABLE["norm_lif that"][transform] == "refused":
        with pytest.raises(NotImplementedError, match="norm_lif: running_mean and running_var"):
            ours(run, x)
    else:
        wanted = loop(run, x) if loop else curvature(run, x)
        torch.testing.assert_close(ours(run, x), wanted, rtol=1e-9, atol=1e-11)


def test_running_statistics_move_under_grad(x):
    def run(x, mean, var):
        rows = {"weight": None, "bias": None, "running_mean": mean, "running_var": var}
        return snnfast.norm_lif(x, training=True, **rows).sum()

    found, wanted = ([torch.zeros(3).double(), torch.ones(3).double()] for _ in range(2))
    func.grad(lambda x: run(x, *found))(x), run(x, *wanted)
    assert not torch.equal(wanted[0], torch.zeros(3).double())
    torch.testing.assert_close(found, wanted)


def test_a_loss_whose_logits_are_gone_says_so(x):
    leaf = x.requires_grad_()
    loss = snnfast.twkd_loss(leaf * 2, LABELS, TEACHER)
    with pytest.raises(RuntimeError, match="twkd_loss: its arguments must be there, unchanged"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.unpoisoned
def test_a_transform_inside_compile(x):
    for f in (CALLS["lif"], CALLS["norm_lif"]):
        gradient = func.grad(total(f))
        compiled = torch.compile(gradient, backend="aot_eager")
        torch.testing.assert_close(compiled(x), gradient(x))


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
