"""What PyTorch and its users meet of ``snnfast.norm_lif``: memory, registration, compilation,
ranks, selection, refusals. What it computes: test_norm_lif.py."""

import functools

import pytest
import torch
import torch.distributed as dist
from backends import CPU, GPU, INTERPRETED
from norm_cases import call, case
from ranks import two

import snnfast
from snnfast import norm_lif
from snnfast.ops.layer import lif_layer
from snnfast.ops.select import implementation

compiled = pytest.mark.backends(CPU[0], INTERPRETED, *GPU)


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_kept_for_backward(residual):
    """y, and numbers per channel; the residual where there is one."""
    wanted = case(T=8, shape=(4, 16, 16, 16), residual=residual, training=True)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(CPU[0], wanted)
    assert sum(saved.values()) <= 4 * (1 + residual) * wanted.inputs["y"].numel() + 4 * 16 * 8


@compiled
@pytest.mark.unpoisoned
def test_compiles_without_a_graph_break(backend):
    shapes = ((4, 3, 5, 6, 2), (5, 2, 5, 4, 3))
    for training in backend.some((True, False), 0):
        run = functools.partial(norm_lif, training=training, backend=backend.name)
        traced = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
        for wanted in (
            case(T=steps, shape=tuple(shape), residual=True) for steps, *shape in shapes
        ):
            results = []
            for function in (traced, run):
                leaves = {n: t.detach().to(backend.device, copy=True).requires_grad_()
                          for n, t in wanted.inputs.items()}  # fmt: skip
                running = {n: t.to(backend.device, copy=True) for n, t in wanted.running.items()}
                s = function(**leaves, **running)
                found = torch.autograd.grad(s, list(leaves.values()), wanted.ds.to(s))
                results.append((s, *found, *running.values()))
            assert all(map(torch.equal, *results))


@compiled
@pytest.mark.unpoisoned
@pytest.mark.parametrize("static", [False, True])
def test_opcheck(backend, static):
    wanted = case(T=3, shape=(2, 5, 3, 2), residual=not static, static=static)
    y, residual = (wanted.inputs.get(n) for n in ("y", "residual"))
    y, residual, ds = (t if t is None else t.detach().to(backend.device)
                       for t in (y, residual, wanted.ds))  # fmt: skip
    v, w = (torch.rand(5, device=y.device) + 0.5 for _ in range(2))
    layer = (3, *lif_layer(3, surrogate="atan", static=static).pack(), backend.name)
    stats, totals = torch.rand(4, 5, device=y.device) + 0.5, torch.rand(5, 5, device=y.device)
    ops, check, norm, none = torch.ops.snnfast, torch.library.opcheck, (stats, w), (None, None)
    running = (v.clone(), v.clone(), 0.1, 72, 1e-5)
    check(ops.norm_stats.default, (y, w, *running, static, backend.name))
    check(ops.norm_prepare.default, (v, w, None, 1e-5, backend.name))
    check(ops.norm_finish.default, (torch.stack([v, w]), stats, 72, backend.name))
    check(ops.norm_lif_forward.default, (y, residual, *norm, *none, *layer, 1, True))
    gradients = (*none, y.new_empty(0, dtype=torch.float32), ds, None)
    for dx, dy in ((False, True), (True, True), (True, False)):
        wants = (72, dx, dy, False, False)
        check(ops.norm_lif_backward.default, (y, residual, *norm, *gradients, *layer, *wants))
    if static and y.dtype in implementation(backend.name).recomputes_dx:
        check(ops.norm_lif_dy.default, (y, *norm, *gradients, totals, *layer))
    for op in (ops.norm_dy.default, ops.norm_dy_.default):
        check(op, (y, torch.randn_like(y), stats, totals, static, backend.name))


def test_the_backend_asked_for_runs(backend):
    run = functools.partial(call, backend, case(shape=(2, 3, 4), training=True))
    ((op, name, reason),) = snnfast.explain(run)
    assert (op, name, reason) == ("norm_lif", backend.name, "asked for by the backend argument")


SHARED = dict(shape=(6, 5, 6, 3), residual=True, training=True, surrogate="atan")


def _part(rank):
    wanted = case(**SHARED)
    part = slice(0, 4) if rank == 0 else slice(4, 6)  # ranks of different sizes
    inputs = {n: t.detach()[:, part] if t.dim() > 1 else t for n, t in wanted.inputs.items()}
    layer = wanted.layer | {"process_group": dist.group.WORLD}
    ours, running = call(CPU[0], wanted._replace(inputs=inputs, layer=layer))
    with pytest.raises(NotImplementedError, match="norm_lif: process_group must be None where"):
        torch.autograd.grad(ours.s.sum(), ours.leaves["y"], create_graph=True, retain_graph=True)
    return {"s": ours.s.detach(), **ours.backward(wanted.ds[:, part], None), **running}


def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path):
    ranks = two(_part, tmp_path)
    wanted = case(**SHARED)
    ours, running = call(CPU[0], wanted)
    grads = ours.backward(wanted.ds, None)
    assert torch.equal(torch.cat([r["s"] for r in ranks], 1), ours.s)
    for name, expected in grads.items():
        found = [r[name] for r in ranks]
        found = found[0] + found[1] if expected.dim() == 1 else torch.cat(found, 1)
        assert (found - expected).norm() <= 1e-6 * expected.norm(), name
    for name, expected in running.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-6, atol=1e-7)


BAD = [
    ({"y": [1.0]}, TypeError, "y must be a tensor"),
    ({"y": torch.zeros(2, 3)}, ValueError, r"y must be \[T, B, C, ...\]"),
    ({"y": torch.zeros(0, 3, 4)}, ValueError, r"y must be \[T, B, C, ...\], none of them 0"),
    ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(4,\)"),
    ({"weight": 1.0}, TypeError, "weight must be a tensor or None"),
    ({"bias": torch.ones(4).long()}, TypeError, "bias must be floating point"),
    ({"running_mean": torch.zeros(4).double()}, TypeError, "running_mean must be float32 for"),
    ({"running_var": torch.zeros(4).half()}, TypeError, "running_var must be float32 for"),
    ({"running_var": None}, ValueError, "running_mean and running_var must both be given"),
    (
        {"running_mean": torch.zeros(4, device="meta")},
        ValueError,
        "running_mean must be on y's dev",
    ),
    ({"training": 1}, TypeError, "training must be True or False"),
    ({"momentum": 1.5}, ValueError, "momentum must be in 0..1"),
    ({"momentum": None}, TypeError, "momentum must be a number"),
    ({"eps": 0.0}, ValueError, "eps must be > 0"),
    ({"residual": torch.zeros(2, 3, 5)}, ValueError, r"residual must have y's shape \(2, 3, 4\)"),
    ({"residual": torch.zeros(2, 3, 4).half()}, TypeError, "residual must be float32 as y"),
    ({"residual": 1.0}, TypeError, "residual must be a tensor or None"),
    (
        {"y": torch.zeros(3, 4, 5), "residual": torch.zeros(3, 4, 5), "timesteps": 2},
        ValueError,
        "residual must be None where",
    ),
    ({"tau": 0.5}, ValueError, "tau must be >= 1"),
    ({"surrogate": "atam"}, ValueError, "unknown surrogate|surrogate must be"),
    ({"v0": torch.zeros(3, 5)}, ValueError, r"v0 must have shape \(3, 4\)"),
    ({"y": torch.zeros(1, 1, 4)}, ValueError, "y must have more than one value per channel"),
    ({"backend": "triton"}, ValueError, "backend 'triton' cannot be used"),
    ({"process_group": 3}, TypeError, "process_group must be a group of .* or None, got int"),
    ({"process_group": 3, "beta": 0.5}, TypeError, "norm_lif: process_group must be a group"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {
        "y": torch.zeros(2, 3, 4), "weight": torch.ones(4), "bias": torch.zeros(4),
        "running_mean": torch.zeros(4), "running_var": torch.ones(4), "training": True,
    } | change  # fmt: skip
    with pytest.raises(error, match=message):
        norm_lif(arguments.pop("y"), **arguments)
