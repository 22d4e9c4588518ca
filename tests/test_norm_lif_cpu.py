"""norm_lif on the CPU where its bookkeeping is done outside of torch: running statistics that
autograd holds, layouts of the vectors of channels, gradients that share memory with nothing."""

import pytest
import torch

from snnfast import norm_lif, reference


def layer(channels=5, **changed):
    torch.manual_seed(0)
    rows = {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels),
        "running_mean": torch.randn(channels),
        "running_var": torch.rand(channels) + 0.5,
    }
    return rows | {"backend": "cpu"} | changed


def test_a_training_step_between_forward_and_backward_of_an_evaluation():
    y, ds = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    gradients = []
    for between in (False, True):
        arguments, leaf = layer(), y.clone().requires_grad_()
        s = norm_lif(leaf, training=False, **arguments)
        if between:
            norm_lif(leaf, training=True, **arguments)
        gradients.append(torch.autograd.grad(s, leaf, ds)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_vectors_of_channels_with_gaps(name, training):
    y, ds = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    results = []
    for gaps in (False, True):
        arguments = layer()
        if gaps:
            arguments[name] = torch.stack([arguments[name], torch.full((5,), 7.0)], 1)[:, 0]
            assert not arguments[name].is_contiguous()
        leaf = y.clone().requires_grad_()
        s = norm_lif(leaf, training=training, **arguments)
        results.append((s, *torch.autograd.grad(s, leaf, ds), arguments["running_mean"]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("inner", [1, 3, 8, 16, 31, 600])
def test_statistics_and_gradients_of_runs_of_any_length(inner):
    """Channels whose neurons lie in runs shorter and longer than a register and a tile."""
    shape = (9, 5, 7, inner)
    y = torch.randn(shape, dtype=torch.float64) + 3
    ds = torch.randn(shape, dtype=torch.float64)
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        # H stays below the threshold: no spike that rounding could flip.
        arguments = layer(7, bias=torch.full((7,), -9.0), backend=backend)
        arguments = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in arguments.items()}
        leaves = [t.to(dtype).requires_grad_() for t in (y, arguments["weight"], arguments["bias"])]
        arguments |= {"weight": leaves[1], "bias": leaves[2]}
        s = norm_lif(leaves[0], training=True, surrogate="fast_sigmoid", **arguments)
        grads = torch.autograd.grad(s, leaves, ds.to(dtype))
        found.append((*grads, arguments["running_mean"], arguments["running_var"]))
    for ours, exact in zip(*found, strict=True):
        assert float((ours - exact).abs().max() / exact.abs().max()) < 5e-6


def test_gradients_share_no_memory():
    """The gradient of y is written where that of the normalised y was: it must be nobody else's."""
    y, r = (torch.randn(4, 3, 5, 6, requires_grad=True) for _ in range(2))
    arguments = layer()
    for name in ("weight", "bias"):
        arguments[name].requires_grad_()
    s = norm_lif(y, r, training=True, **arguments)
    leaves = (y, r, arguments["weight"], arguments["bias"])
    grads = torch.autograd.grad(s, leaves, torch.randn_like(s))
    assert len({g.untyped_storage().data_ptr() for g in grads}) == 4
    alone = torch.autograd.grad(
        norm_lif(y, r.detach(), training=True, **arguments), y, torch.ones_like(y)
    )
    both = torch.autograd.grad(
        norm_lif(y, r, training=True, **arguments), (y, r), torch.ones_like(y)
    )
    assert torch.equal(alone[0], both[0])


def test_the_inverse_deviation_is_rounded_alike_everywhere():
    var = torch.rand(100_003) * torch.rand(100_003) * 10
    inv_std, _ = torch.ops.snnfast.norm_prepare(var, var, None, 1e-5, "cpu")
    assert torch.equal(inv_std, reference.inverse_std(var, 1e-5))
