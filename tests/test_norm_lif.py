"""BatchNorm, residual and LIF in one pass, through the public function: against the composition of
the reference's BatchNorm and LIF in float64, and against torch's BatchNorm."""

import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import snnfast
from snnfast import norm_lif

SHAPES = [
    (4, 3, 5, 7, 3),
    (2, 8, 16),
    (9, 2, 40, 4, 4),
    (1, 3, 3, 1, 2),
    (3, 1, 1, 33),
    (5, 2, 700, 3),
]


@pytest.fixture(params=["cpu", "cpu-baseline"])
def kernels(request):
    from snnfast import _C

    _C.use_baseline(request.param == "cpu-baseline")
    yield
    _C.use_baseline(False)


def channels_last(y):
    """The same values, each step laid out with the channels last."""
    if y.dim() < 4:
        return y
    order = (0, 1, *range(3, y.dim()), 2)
    return y.permute(order).contiguous().permute(0, 1, -1, *range(2, y.dim() - 1))


def block(shape, dtype=torch.float64, residual=False, layout=lambda y: y, seed=0, offset=0.7):
    """The arguments of norm_lif by name, in float64 or rounded to ``dtype``; leaves."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    channels = shape[2]

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    y = layout((2 * normal(*shape) + offset).to(dtype)).requires_grad_()
    spikes = layout((torch.rand(shape, generator=g) < 0.3).to(dtype)).requires_grad_()
    return {
        "y": y,
        "residual": spikes if residual else None,
        "weight": (normal(channels).abs() + 0.5).to(wide).requires_grad_(),
        "bias": normal(channels).to(wide).requires_grad_(),
        "running_mean": normal(channels).to(wide),
        "running_var": (normal(channels).abs() + 0.5).to(wide),
    }, normal(*shape).to(dtype)


def double(arguments):
    """The same numbers in float64."""
    return {
        name: None if value is None else value.detach().double().requires_grad_(value.requires_grad)
        for name, value in arguments.items()
    }


def run(arguments, ds, dv=None, **options):
    """Spikes (and state), gradients by name, running statistics."""
    arguments = dict(arguments)
    y = arguments.pop("y")
    leaves = {"y": y, **arguments}
    leaves |= {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    leaves = {n: t for n, t in leaves.items() if t is not None and t.requires_grad}
    out = norm_lif(y, **arguments, **options)
    outputs = out if isinstance(out, tuple) else (out,)
    grads = torch.autograd.grad(outputs, list(leaves.values()), (ds, dv)[: len(outputs)])
    return outputs, dict(zip(leaves, grads, strict=True)), arguments


def relative(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


NEURONS = [
    {},
    {"v_reset": None, "detach_reset": True, "surrogate": "atan", "tau": 1.7},
    {"decay_input": False, "tau": 1.25, "surrogate": "rect", "v_reset": -0.1},
    {"tau": math.inf, "surrogate": "sigmoid"},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [lambda y: y, channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_the_reference(kernels, shape, layout, residual, training):
    for neuron in NEURONS:
        results = []
        for backend in ("reference", "cpu"):
            arguments, ds = block(shape, residual=residual, layout=layout)
            results.append(run(arguments, ds, training=training, backend=backend, **neuron))
        (s, grads, after), (t, other, later) = results
        assert torch.equal(s[0], t[0])
        for name in grads:
            assert relative(other[name], grads[name]) <= 1e-11, (name, neuron)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(later[name], after[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_float32_against_float64(kernels, training, residual):
    """At most twice the error of the same composition in PyTorch, where the spikes agree; a spike
    that does not lies on the threshold."""
    shape = (4, 8, 16, 12, 12)
    arguments, ds = block(shape, torch.float32, residual)
    exact = run(double(arguments), ds.double(), training=training, backend="reference",
                return_state="all", dv=torch.zeros(shape).double())  # fmt: skip
    results = {}
    for backend in ("reference", "cpu"):
        fresh, _ = block(shape, torch.float32, residual)
        results[backend] = run(fresh, ds, training=training, backend=backend)
    ours, torchs = results["cpu"], results["reference"]
    flips = (ours[0][0].double() != exact[0][0]).sum()
    assert flips <= 3  # of 73,728; the statistics of two precisions differ in the last bit
    if flips or (torchs[0][0].double() != exact[0][0]).any():
        pytest.fail("choose another seed: a spike of this one lies on the threshold")
    for name, gradient in exact[1].items():
        error, own = relative(ours[1][name], gradient), relative(torchs[1][name], gradient)
        assert error <= max(2 * own, 2e-7), (name, error, own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("residual", [False, True])
def test_half_precision(kernels, dtype, residual):
    arguments, ds = block((4, 3, 8, 6, 5), dtype, residual)
    exact = run(double(arguments), ds.double(), training=True, backend="reference")
    (s,), grads, _ = run(arguments, ds, training=True, backend="cpu")
    assert s.dtype == dtype and torch.equal(s.double(), exact[0][0])
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert grads["y"].dtype == dtype and grads["weight"].dtype == torch.float32
    for name, gradient in exact[1].items():
        limit = 2 * unit if name in ("y", "residual") else 1e-6
        assert relative(grads[name], gradient) <= limit, name


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 16, 6, 9, 9), (3, 400, 10), (2, 3, 5, 1000)], ids=str)
@pytest.mark.parametrize("layout", [lambda y: y, channels_last], ids=["contiguous", "last"])
def test_running_statistics_are_torchs(kernels, shape, layout, offset):
    for _ in range(2):
        arguments, _ = block(shape, torch.float32, layout=layout, offset=offset)
        y = arguments.pop("y").detach()
        mean, var = arguments["running_mean"].double(), arguments["running_var"].double()
        F.batch_norm(y.double().flatten(0, 1), mean, var, training=True, momentum=0.3)
        norm_lif(y, training=True, momentum=0.3, **arguments)
        torch.testing.assert_close(arguments["running_mean"].double(), mean, rtol=2e-7, atol=1e-7)
        torch.testing.assert_close(arguments["running_var"].double(), var, rtol=1e-6, atol=0)


def test_a_channel_without_variance(kernels):
    arguments, ds = block((4, 3, 5, 6, 6), torch.float32)
    with torch.no_grad():
        arguments["y"][:, :, 2] = 1e4 + 0.1
    (s,), grads, after = run(arguments, ds, training=True)
    assert all(bool(g.isfinite().all()) for g in grads.values())
    x = float(arguments["bias"][2].detach())
    fires = snnfast.lif(torch.full((4, 1), x))
    assert torch.equal(s[:, :, 2], fires.view(4, 1, 1, 1).expand_as(s[:, :, 2]))
    assert after["running_var"].isfinite().all()


def test_evaluation_is_exact_between_instruction_sets_and_layouts():
    from snnfast import _C

    results = []
    for baseline in (False, True):
        _C.use_baseline(baseline)
        for layout in (lambda y: y, channels_last):
            arguments, _ = block((5, 6, 24, 9, 7), torch.float32, True, layout)
            results.append(norm_lif(**arguments, training=False))
    _C.use_baseline(False)
    arguments, _ = block((5, 6, 24, 9, 7), torch.float32, True)
    expected = norm_lif(**arguments, training=False, backend="reference")
    assert all(torch.equal(s, expected) for s in results)
    assert 0.05 < expected.mean() < 0.95


def test_normalisation_is_torchs_to_rounding():
    """The smooth twin shows X itself: float64 against torch's batch_norm and our own lif."""
    twin = snnfast.surrogate.Sigmoid(spiking=False)
    arguments, ds = block((4, 3, 5, 6, 2), residual=True)
    (s,), grads, _ = run(arguments, ds, training=True, surrogate=twin)
    plain, _ = block((4, 3, 5, 6, 2), residual=True)
    n = F.batch_norm(plain["y"].flatten(0, 1), None, None, plain["weight"], plain["bias"], True)
    t = snnfast.lif(n.view_as(plain["y"]) + plain["residual"], surrogate=twin)
    torch.testing.assert_close(s, t, rtol=1e-12, atol=1e-12)
    leaves = {name: plain[name] for name in grads}
    for (name, a), b in zip(
        grads.items(), torch.autograd.grad(t, list(leaves.values()), ds), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=name)


def test_gradcheck_of_the_smooth_twin():
    twin = snnfast.surrogate.Sigmoid(spiking=False)
    arguments, _ = block((3, 2, 3, 2, 2), residual=True)
    tau = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    v0 = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    statistics = {n: arguments.pop(n) for n in ("running_mean", "running_var")}
    for training in (True, False):

        def f(y, residual, weight, bias, tau, v0, training=training):
            return norm_lif(y, residual, weight=weight, bias=bias, tau=tau, v0=v0,
                            training=training, surrogate=twin, return_state=True,
                            **{n: t.clone() for n, t in statistics.items()})  # fmt: skip

        torch.autograd.gradcheck(f, (*arguments.values(), tau, v0))


@pytest.mark.parametrize("rate", ["tau", "inv_tau", "scalar"])
def test_learnable_tau_and_states(kernels, rate):
    shape = (10, 3, 6, 5, 2)
    results = []
    for backend in ("reference", "cpu"):
        arguments, ds = block(shape, residual=True)
        values = {
            "tau": torch.linspace(1.2, 4, 6),
            "inv_tau": torch.linspace(0.2, 0.9, 6),
            "scalar": torch.tensor(1.7),
        }[rate].double().requires_grad_()  # fmt: skip
        v0 = torch.randn(shape[1:], generator=torch.Generator().manual_seed(1)).double()
        neuron = {("inv_tau" if rate == "inv_tau" else "tau"): values, "v0": v0.requires_grad_()}
        results.append(
            run(arguments, ds, torch.ones(shape).double(), training=True, return_state="all",
                surrogate="atan", backend=backend, **neuron)
        )  # fmt: skip
    (out, grads, _), (other, others, _) = results
    assert torch.equal(out[0], other[0])
    torch.testing.assert_close(out[1], other[1], rtol=1e-12, atol=1e-12)
    for name in grads:
        assert relative(others[name], grads[name]) <= 1e-11, name


@pytest.mark.parametrize("training", [True, False])
def test_static_input_is_the_repeated_one(kernels, training):
    steps = 5
    arguments, ds = block((1, 3, 6, 5, 4))
    ds = torch.randn(steps, *ds.shape[1:], dtype=torch.float64)
    repeated = {n: t.detach().clone() if t is not None else None for n, t in arguments.items()}
    leaf = arguments["y"].detach()[0].requires_grad_()
    arguments["y"] = leaf
    for backend in ("reference", "cpu"):
        fresh = dict(arguments)
        for name in ("running_mean", "running_var"):
            fresh[name] = fresh[name].clone()
        y = fresh.pop("y")
        s = norm_lif(y, training=training, timesteps=steps, backend=backend, **fresh)
        (dy,) = torch.autograd.grad(s, leaf, ds)
        plain = {n: t.clone() if t is not None else None for n, t in repeated.items()}
        x = plain.pop("y").expand(steps, -1, -1, -1, -1).requires_grad_()
        t = norm_lif(x, training=training, backend="reference", **plain)
        assert torch.equal(s, t)
        (dx,) = torch.autograd.grad(t, x, ds)
        torch.testing.assert_close(dy, dx.sum(0), rtol=1e-10, atol=1e-12)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(fresh[name], plain[name], rtol=1e-12, atol=0)


def test_without_weight_bias_or_running_statistics(kernels):
    for backend in ("reference", "cpu"):
        arguments, ds = block((4, 3, 5, 6), torch.float32)
        arguments |= {"weight": None, "bias": None, "running_mean": None, "running_var": None}
        (s,), grads, _ = run(arguments, ds, training=False, backend=backend)
        n = F.batch_norm(arguments["y"].flatten(0, 1), None, None, training=True)
        assert (snnfast.lif(n.view(4, 3, 5, 6)) != s).sum() <= 1
        assert list(grads) == ["y"]


def test_splitting_a_sequence_gives_the_same_spikes_in_evaluation(kernels):
    arguments, _ = block((7, 3, 5, 6), torch.float32)
    y = arguments.pop("y").detach()
    whole = norm_lif(y, training=False, **arguments)
    one, v = norm_lif(y[:3], training=False, return_state=True, **arguments)
    two = norm_lif(y[3:], training=False, v0=v, **arguments)
    assert torch.equal(torch.cat([one, two]), whole)


def test_same_bits_on_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments, ds = block((4, 8, 16, 20, 20), torch.float32, True)
        results.append(run(arguments, ds, training=True))
    torch.set_num_threads(before)
    for (s,), grads, after in results[1:]:
        assert torch.equal(s, results[0][0][0])
        assert all(torch.equal(grads[name], results[0][1][name]) for name in grads)
        assert torch.equal(after["running_var"], results[0][2]["running_var"])


def test_what_is_kept_for_backward():
    """y, and numbers per channel; the residual where there is one."""
    for residual, limit in ((False, 4), (True, 8)):
        arguments, _ = block((8, 4, 16, 16, 16), torch.float32, residual)
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            norm_lif(**arguments, training=True)
        assert sum(saved.values()) <= limit * arguments["y"].numel() + 4 * 16 * 8


@pytest.mark.unpoisoned
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(training):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(arguments, residual):
        return norm_lif(residual=residual, training=training, **arguments)

    for shape in ((4, 3, 5, 6, 2), (5, 2, 5, 4, 3)):
        results = []
        for call in (f, norm_lif):
            arguments, ds = block(shape, torch.float32, True)
            residual = arguments.pop("residual")
            if call is f:
                s = f(arguments, residual)
            else:
                s = norm_lif(residual=residual, training=training, **arguments)
            leaves = (arguments["y"], residual, arguments["weight"])
            results.append((s, *torch.autograd.grad(s, leaves, ds), arguments["running_mean"]))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.unpoisoned
def test_opcheck():
    from snnfast.ops.layer import lif_layer

    arguments, ds = block((4, 3, 5, 6, 2), torch.float32, True)
    y, residual = arguments["y"].detach(), arguments["residual"].detach()
    layer = (4, *lif_layer(4, surrogate="atan").pack(), "cpu")
    mean, var = torch.zeros(5), torch.ones(5)
    ops, check = torch.ops.snnfast, torch.library.opcheck
    norms = (0.1, 72, 1e-5, False, "cpu")
    check(ops.norm_stats.default, (y, var, mean.clone(), var.clone(), *norms))
    check(ops.norm_prepare.default, (mean, var, None, 1e-5, "cpu"))
    check(ops.norm_finish.default, (torch.randn(2, 5), var, var, 72, "cpu"))
    head = (y, residual, mean, var, mean)
    check(ops.norm_lif_forward.default, (*head, None, None, *layer, 1, True))
    gradients = (var, None, None, torch.empty(0), ds, None)
    wanted = (72, True, False, False)
    check(ops.norm_lif_backward.default, (*head, *gradients, *layer, *wanted))
    check(ops.norm_dy.default, (y, ds, mean, var, mean, mean, False, "cpu"))


def test_gradients_are_taken_once():
    arguments, _ = block((4, 3, 5, 6))
    s = norm_lif(**arguments, training=True)
    with pytest.raises(RuntimeError, match="norm_lif: gradients must be taken once"):
        torch.autograd.grad(s.sum(), arguments["y"], create_graph=True)


def _rank(rank, path, result):
    store = dist.FileStore(path, 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    arguments, ds = block((4, 6, 5, 6, 3), torch.float32, residual=True)
    part = slice(0, 4) if rank == 0 else slice(4, 6)  # ranks of different sizes
    for name in ("y", "residual"):
        arguments[name] = arguments[name].detach()[:, part].requires_grad_()
    (s,), grads, after = run(
        arguments, ds[:, part], training=True, process_group=dist.group.WORLD, surrogate="atan"
    )
    result[rank] = {
        "s": s.detach(),
        **grads,
        **{n: after[n] for n in ("running_mean", "running_var")},
    }
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path):
    with mp.Manager() as manager:
        result = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "store"), result), nprocs=2)
        ranks = [dict(result[r]) for r in (0, 1)]
    arguments, ds = block((4, 6, 5, 6, 3), torch.float32, residual=True)
    (s,), grads, after = run(arguments, ds, training=True, surrogate="atan")
    assert torch.equal(torch.cat([r["s"] for r in ranks], 1), s)
    for name in ("y", "residual"):
        assert relative(torch.cat([r[name] for r in ranks], 1), grads[name]) <= 1e-6
    for name in ("weight", "bias"):
        assert relative(ranks[0][name] + ranks[1][name], grads[name]) <= 1e-6
    for name in ("running_mean", "running_var"):
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], after[name], rtol=1e-6, atol=1e-7)


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
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {
        "y": torch.zeros(2, 3, 4), "weight": torch.ones(4), "bias": torch.zeros(4),
        "running_mean": torch.zeros(4), "running_var": torch.ones(4), "training": True,
    } | change  # fmt: skip
    with pytest.raises(error, match=message):
        norm_lif(arguments.pop("y"), **arguments)
