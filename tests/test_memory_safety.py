"""Nothing that Python can pass makes a kernel touch memory that is not a tensor's: gradients in any
layout, graphs that run on other sizes, hooks that change what autograd kept, ops called by name."""

import contextlib
import importlib

import fuzz_ops
import pytest
import torch

import snnfast
from snnfast.ops.distill import loss_options
from snnfast.ops.layer import lif_layer

READS = {
    "sum over time": lambda v: v.sum(0).square().sum(),
    "mean over everything": lambda v: v.mean(),
    "every other step": lambda v: v[::2].square().sum(),
    "one step": lambda v: v[1].square().sum(),
    "reversed": lambda v: (v.flip(0) * torch.linspace(0, 1, v.numel()).view_as(v)).sum(),
    "joined on axis 1": lambda v: torch.cat([v, 2 * v], 1).square().sum(),
    "negative": lambda v: (-v).square().sum(),
    "transposed": lambda v: (v.transpose(0, -1) * torch.linspace(0, 1, v.numel()).view(
        v.transpose(0, -1).shape)).sum(),
}  # fmt: skip


def states_of(op, x, backend):
    if op == "lif":
        return snnfast.lif(x, tau=1.7, return_state="all", backend=backend)
    channels = x.shape[2]
    rows = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    rows |= {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}
    return snnfast.norm_lif(x, training=False, return_state="all", backend=backend, **rows)


@pytest.mark.parametrize("op", ["lif", "norm_lif"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("read", READS)
def test_gradients_of_every_state_in_any_layout(op, channels_last, read):
    x = torch.randn(5, 2, 3, 4, 5)
    if channels_last:
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    gradients = []
    for backend in ("cpu", "reference"):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        s, v = states_of(op, leaf, backend)
        (READS[read](v) + READS[read](s)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.unpoisoned
def test_gradients_of_every_state_under_compile():
    x = torch.randn(6, 3, 8)

    def loss(x, backend="cpu"):
        _, v = snnfast.lif(x, return_state="all", backend=backend)
        return v.sum(0).square().sum()

    a, b = (x.clone().requires_grad_() for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(a).backward()
    loss(b, "reference").backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("traced, run", [(64, 1), (4, 8), (8, 4), (16, 9)])
def test_a_traced_graph_takes_the_length_that_it_is_given(traced, run):
    def layer(x):
        return snnfast.lif(x, return_state="all")

    graph = torch.jit.trace(layer, torch.randn(traced, 3, 5), check_trace=False)
    x = torch.randn(run, 3, 5)
    for got, expected in zip(graph(x), layer(x), strict=True):
        assert torch.equal(got, expected)


def test_a_traced_graph_refuses_another_state():
    v0 = torch.zeros(3, 5)
    layer = torch.jit.trace(lambda x, v0: snnfast.lif(x, v0), (torch.randn(4, 3, 5), v0))
    with pytest.raises(RuntimeError, match=r"v0 must be float32 \[4000, 5\]"):
        layer(torch.randn(4, 4000, 5), v0)


CHANGES = {
    "dtype": lambda t: t.double(),
    "half": lambda t: t.half(),
    "fewer steps": lambda t: t[: t.shape[0] // 2].clone(),
    "fewer neurons": lambda t: t[..., :1].clone(),
    "flat": lambda t: t.reshape(-1)[:1].clone(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("op", ["lif", "norm_lif", "twkd_loss"])
def test_hooks_that_change_what_is_kept(op, change):
    x = torch.randn(20, 4, 6, requires_grad=True)

    def spoil(t):
        return CHANGES[change](t) if t.dim() > 1 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, spoil):
        if op == "twkd_loss":
            out = snnfast.twkd_loss(x, torch.zeros(4, dtype=torch.int64), alpha=0.0)
        else:
            out = states_of("norm_lif", x, "cpu")[0] if op == "norm_lif" else snnfast.lif(x)
    try:
        out.sum().backward()
    except (ValueError, RuntimeError):
        return
    assert op == "twkd_loss"  # a gradient is only scaled: its hook may give another one


def test_numbers_beyond_float32_are_refused():
    x = torch.randn(4, 3)
    for name in ("v_threshold", "v_reset", "tau"):
        with pytest.raises(ValueError, match=rf"lif: {name} must be in float32's range"):
            snnfast.lif(x, **{name: 1e300})
    with pytest.raises(ValueError, match="twkd_loss: temperature must be > 0"):
        snnfast.twkd_loss(
            torch.randn(2, 3, 4), torch.zeros(3).long(), alpha=0.0, temperature=1e-300
        )


def by_name():
    """Every op, and arguments that it takes."""
    x, z, rows = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 7), torch.rand(5) + 0.5
    stats, totals = torch.rand(4, 5) + 0.5, torch.rand(5, 5)
    step, empty, labels = x[0].clone(), x.new_empty(0), torch.tensor([1, 2])
    for static, y in ((False, x), (True, step)):
        layer = (3, *lif_layer(3, tau=1.7, static=static).pack(), "cpu")
        residual, kept = None if static else x.clone(), (empty, x.clone(), step.clone())
        yield "lif_forward", (y, step, rows, *layer, 1, True)
        yield "lif_backward", (y, step, rows, *kept, *layer, True, True)
        yield "norm_lif_forward", (y, residual, stats, rows, step, rows, *layer, 1, True)
        norm, wanted = (stats, rows), (24, True, True, True, True)
        yield "norm_lif_backward", (y, residual, *norm, step, rows, *kept, *layer, *wanted)
        yield "norm_stats", (y, rows, rows.clone(), rows.clone(), 0.1, 24, 1e-5, static, "cpu")
        yield "norm_dy", (y, y.clone(), stats, totals, static, "cpu")
        yield "norm_dy_", (y, y.clone(), stats, totals, static, "cpu")
    yield "norm_prepare", (rows, rows.clone(), rows, 1e-5, "cpu")
    yield "norm_finish", (torch.stack([rows, rows]), stats, 24, "cpu")
    twkd, tssd = loss_options(snnfast.twkd_loss), loss_options(snnfast.tssd_loss, student_steps=2)
    yield "stepwise_loss", (z, labels, z[0].clone(), "twkd_loss", *twkd.pack(), True, "cpu")
    yield "tssd_loss", (z, labels, z.clone(), "tssd_loss", 2, *tssd.pack(), True, True, "cpu")
    yield "scale_gradient", (z, torch.tensor(1.0), torch.tensor(1.0), "cpu")
    yield "pack_spikes", ((z > 0).float(), "cpu")
    yield "unpack_spikes", (torch.zeros(6, dtype=torch.uint8), [6, 7], torch.float32, "cpu")


@pytest.mark.parametrize(("name", "arguments"), list(by_name()))
def test_ops_called_by_name(name, arguments):
    """With other axes, lists and numbers they are refused, and on a device that is not theirs."""
    for module in ("lif", "norm_lif", "spikes"):
        importlib.import_module(f"snnfast.ops.{module}")
    op = getattr(torch.ops.snnfast, name)
    op(*arguments)

    def refused(place, value):
        with contextlib.suppress(ValueError, TypeError, RuntimeError):  # others can be right
            op(*arguments[:place], value, *arguments[place + 1 :])

    for place, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            for shape in ((), (0,), (3,), (3, 5), (3, 2, 5), (1, 1, 1, 1, 1), (3, 0, 5)):
                refused(place, torch.ones(shape, dtype=argument.dtype))
        elif isinstance(argument, list):
            for value in ([], argument[:-1], [*argument, 1]):
                refused(place, value)
        elif type(argument) is int:
            for value in (-1, 0, 1, 2**40, -(2**63)):
                refused(place, value)
    at = arguments.index("cpu")
    for other in ("cuda", "triton"):
        with pytest.raises(snnfast.BackendUnavailable, match="it runs on CUDA tensors, got cpu"):
            op(*arguments[:at], other, *arguments[at + 1 :])


def test_backends_are_those_of_the_table():
    with pytest.raises(ValueError, match="backend must be one of"):
        torch.ops.snnfast.pack_spikes(torch.ones(8), "os")


@pytest.mark.unpoisoned
def test_random_calls_between_guard_pages():
    assert fuzz_ops.run(seconds=6, seed=0) == []


@pytest.mark.parametrize("name", ["y", "residual", "weight", "bias", "v0", "ds"])
def test_lazy_negatives_have_their_sign(name):
    """What lies in memory is minus their values; torch's dispatcher knows."""
    torch.manual_seed(0)
    step, whole = (4, 3), (9, 4, 3)
    shapes = {"y": whole, "residual": whole, "weight": (3,), "bias": (3,), "v0": step, "ds": whole}
    values = {key: torch.randn(shape) for key, shape in shapes.items()}

    def gradients(**changed):
        own = {key: t.detach().requires_grad_() for key, t in (values | changed).items()}
        ds, leaves = own.pop("ds").detach(), list(own.values())
        stats = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
        s = snnfast.norm_lif(**own, **stats, training=True)
        return s, *torch.autograd.grad(s, leaves, ds)

    lazy = torch._neg_view(-values[name])
    assert lazy.is_neg() and torch.equal(lazy, values[name])
    for ours, expected in zip(gradients(**{name: lazy}), gradients(), strict=True):
        assert torch.equal(ours, expected)
