"""The modes of ``snnfast.lif`` that its program has, on every backend: spikes and states equal to
the equations in a loop, bit for bit, and gradients as near to float64 as float32 lets them."""

import itertools
import math
from functools import partial

import pytest
import torch
from backends import CPU, INTERPRETED, PROGRAMS, REFERENCE, named
from bounds import assert_gradient
from lif_cases import LAYOUTS
from torch import nn

import snnfast

pytestmark = pytest.mark.backends(*PROGRAMS)


class Fire(torch.autograd.Function):
    """A step whose derivative is that of a triangle of height and half-width 1."""

    @staticmethod
    def forward(ctx, h, theta, strict):
        ctx.save_for_backward(h, theta)
        return (h > theta if strict else h >= theta).to(h.dtype)

    @staticmethod
    def backward(ctx, grad):
        h, theta = ctx.saved_tensors
        g = grad * torch.clamp(1 - (h - theta).abs(), min=0)
        return g, -g.sum_to_size(theta.shape), None


def loop(x, v0=None, tau=2.0, inv_tau=None, beta=None, v_rest=None, v_threshold=1.0, v_reset=0.0,
         decay_input=True, fire=">=", detach_reset=False, detach_state=False):  # fmt: skip
    """The equations of ``snnfast.lif``, word for word: (s, V after every step)."""

    def number(value):
        value = torch.as_tensor(value, dtype=x.dtype)
        return value.view(-1, *[1] * (x.dim() - 3)) if value.dim() else value

    r = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x[0], r) if v0 is None else v0
    theta, target = number(v_threshold), r if v_rest is None else v_rest
    spikes, states = [], []
    for x_t in x:
        v = v.detach() if detach_state else v
        if beta is not None:
            h = number(beta) * v + x_t
        elif tau == math.inf:
            h = v + x_t
        else:
            d = x_t - (v - target) if decay_input else v - target
            d = d / number(tau) if inv_tau is None else d * number(inv_tau)
            h = v + d if decay_input else v - d + x_t
        s = Fire.apply(h, theta, fire == ">")
        past = s.detach() if detach_reset else s
        if v_threshold is math.inf:
            v = h
        elif v_reset is None:
            v = h - past * theta
        else:
            v = past * r + (1 - past) * h
        spikes.append(s), states.append(v)
    return torch.stack(spikes), torch.stack(states)


MODES = (
    {"beta": 0.9},
    {"beta": 1 - 1 / 3, "v_reset": None},
    {"beta": "scalar", "fire": ">"},
    {"beta": "channels", "v_reset": 0.3, "detach_reset": True},
    {"fire": ">"},
    {"fire": ">", "v_reset": None, "tau": math.inf},
    {"fire": ">", "inv_tau": "channels", "decay_input": False},
    {"v_rest": 0.2, "tau": 3.0},
    {"v_rest": -0.1, "v_reset": None, "decay_input": False, "tau": 1.5},
    {"detach_state": True, "tau": 1.1},
    {"detach_state": True, "beta": 0.5, "detach_reset": True, "v_reset": None},
    {"v_threshold": "scalar"},
    {"v_threshold": "channels", "v_reset": None, "beta": "scalar", "fire": ">"},
    {"v_threshold": "channels", "v_rest": 0.1, "v_reset": -0.2},
    {"v_threshold": math.inf, "beta": 0.7},
    {"v_threshold": math.inf, "v_reset": None, "decay_input": False},
)


def table():
    shapes = itertools.cycle(((1, 4), (3, 4, 7), (2, 4, 3, 5)))
    states = itertools.cycle((False, "all", True))
    values = itertools.cycle(("random", "grid"))
    dtypes = itertools.cycle(("float32", "bfloat16", "float64"))
    for mode, steps in itertools.product(MODES, (4, 9)):
        yield dict(mode=mode, T=steps, shape=next(shapes), state=next(states), values=next(values),
                   dtype=next(dtypes) if steps == 9 else "float32", v0=steps == 4)  # fmt: skip
    for mode in MODES[::5]:
        yield dict(mode=mode, T=5, layout="channels_last", shape=(2, 4, 3, 5))
        yield dict(mode=mode, T=5, static=True, values="grid")


def of_mode(mode: dict, dtype) -> tuple[dict, dict]:
    """(its tensors, its other arguments)."""
    ranges = {"beta": (0.2, 0.7), "inv_tau": (0.2, 0.6), "v_threshold": (0.7, 0.6)}
    tensors, others = {}, dict(mode)
    for name, value in mode.items():
        if value in ("scalar", "channels"):
            low, width = ranges[name]
            drawn = torch.rand(() if value == "scalar" else (4,), dtype=torch.float64)
            tensors[name] = (low + width * drawn).to(dtype)
            del others[name]
    return tensors, others


def check(backend, mode, T, shape=(3, 4, 7), state: "bool | str" = "all", values="random",
          dtype="float32", v0=False, layout=None, static=False):  # fmt: skip
    io = getattr(torch, dtype)
    full = torch.float64 if io == torch.float64 else torch.float32
    tensors, others = of_mode(mode, full)
    x = torch.randn(*([] if static else [T]), *shape, dtype=torch.float64) + 0.4
    x = (20 * x).round() / 20 if values == "grid" else x
    x = LAYOUTS[layout](x.to(io)) if layout else x.to(io)
    tensors = {"x": x, **tensors} | ({"v0": torch.randn(shape, dtype=full)} if v0 else {})

    def leaves(dtype=None, device="cpu"):
        return {
            name: t.detach().to(device, dtype or t.dtype).requires_grad_()
            for name, t in tensors.items()
        }

    def looped(leaves):
        x, *_ = leaves.values()
        s, v = loop(**leaves | {"x": x.expand(T, *x.shape) if static else x}, **others)
        return (s, v) if state == "all" else (s, v[-1]) if state else (s,)

    ours, own, exact = leaves(device=backend.device), leaves(full), leaves(torch.float64)
    found = snnfast.lif(
        **ours, **others, surrogate="triangle", return_state=state, backend=backend.name,
        timesteps=T if static else None,
    )  # fmt: skip
    found, plain, wide = found if state else (found,), looped(own), looped(exact)
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a.cpu(), b.to(a.dtype))
    agree = (plain[0] == wide[0]).all(0)
    assert agree.float().mean() > (0.5 if values == "grid" else 0.9)
    along = [torch.randn(t.shape, dtype=torch.float64) * agree for t in wide]

    def gradients(results, tensors):
        pairs = [(t, a.to(t.device, t.dtype)) for t, a in zip(results, along) if t.requires_grad]
        wanted = tensors.values()
        outputs, drawn = zip(*pairs)
        got = torch.autograd.grad(outputs, list(wanted), drawn, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, got, strict=True)]

    if not any(t.requires_grad for t in found):
        return
    for name, *three in zip(
        tensors, gradients(found, ours), gradients(plain, own), gradients(wide, exact), strict=True
    ):
        assert_gradient(name, *three, slack=2e-6 if io != torch.bfloat16 else 2e-2)


@pytest.mark.backends(*(b for b in PROGRAMS if not b.slow))
@pytest.mark.parametrize("arguments", list(table()), ids=named)
def test_equals_the_equations(backend, arguments):
    backend.skip_unless(getattr(torch, arguments.get("dtype", "float32")))
    check(backend, **arguments)


@pytest.mark.backends(INTERPRETED)
@pytest.mark.parametrize("arguments", list(table())[::4], ids=named)
def test_equals_the_equations_where_it_is_slow(backend, arguments):
    test_equals_the_equations(backend, arguments)


class Cauchy(snnfast.surrogate.Surrogate):
    """One that no kernel knows: ATan's formula once more."""

    def gradient(self, x):
        return 1 / (1 + (math.pi * x) ** 2)


@pytest.mark.parametrize("op", ["lif", "norm_lif"])
def test_a_surrogate_of_ones_own_is_fused(backend, op):
    x = torch.randn(9, 2, 3, 5, device=backend.device, requires_grad=True)
    layer = {"return_state": "all", "backend": backend.name}

    def call(x, surrogate):
        if op == "lif":
            return snnfast.lif(x, surrogate=surrogate, **layer)
        none = dict.fromkeys(("weight", "bias", "running_mean", "running_var"))
        return snnfast.norm_lif(x, training=True, surrogate=surrogate, **none, **layer)

    results = [call(x, surrogate) for surrogate in (Cauchy(), "atan")]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    ds = torch.randn_like(x)
    gradients = [torch.autograd.grad(s, x, ds)[0] for s, _ in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert snnfast.explain(call, x, Cauchy())[0][:2] == (op, backend.name)


@pytest.mark.parametrize("mode", MODES[::3], ids=str)
def test_norm_lif_is_the_norm_and_lif(backend, mode):
    """With constant statistics, so that the same numbers reach the neurons."""
    tensors, others = of_mode(mode, torch.float32)
    y, residual = torch.randn(2, 5, 3, 4, 2)
    rows = [torch.rand(4) + 0.5 for _ in range(4)]
    y, residual, *rows = (t.to(backend.device).requires_grad_() for t in (y, residual, *rows))
    weight, bias, mean, var = rows
    tensors = {k: t.to(backend.device).requires_grad_() for k, t in tensors.items()}
    mean, var = mean.detach(), var.detach()
    call = {"surrogate": "atan", "backend": backend.name, **tensors, **others}
    s = snnfast.norm_lif(
        y, residual, weight=weight, bias=bias, running_mean=mean, running_var=var, training=False,
        **call,
    )  # fmt: skip
    scale = weight * (1 / (var + 1e-5).double().sqrt()).float()
    x = (y - mean.view(-1, 1)) * scale.view(-1, 1) + bias.view(-1, 1) + residual
    expected = snnfast.lif(x, **call)
    assert (s != expected).float().mean() < 0.01
    if s.requires_grad and torch.equal(s, expected):
        leaves = [y, residual, weight, bias, *tensors.values()]
        ds = torch.randn_like(s)
        for a, b in zip(*(torch.autograd.grad(t, leaves, ds) for t in (s, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


AXES = {"[B, T, ...]": 1, "time last": -1, "third": 2, "merged": "merged", "first": 0}


@pytest.mark.backends(REFERENCE, *(b for b in PROGRAMS if not b.slow))
@pytest.mark.parametrize("mode", [{}, {"beta": 0.8, "fire": ">"}, {"tau": "channels"}], ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_time_axis(backend, axis, mode):
    """Views of what the call gives with time first, in the caller's layout."""
    first = torch.randn(6, 3, 4, 5, device=backend.device)
    tau = {"tau": torch.rand(4, device=backend.device) + 1.5} if "tau" in mode else mode
    call = {"backend": backend.name, "v0": torch.randn_like(first[0]), **tau}
    axis = AXES[axis]
    where = {"time_axis": axis} | ({"timesteps": 6} if axis == "merged" else {})

    def theirs(t):
        return t.flatten(0, 1) if axis == "merged" else t.movedim(0, axis)

    x, y = theirs(first).contiguous().requires_grad_(), first.clone().requires_grad_()
    ds = torch.randn_like(first)
    for state in (False, True, "all"):
        found = snnfast.lif(x, return_state=state, **where, **call)
        wanted = snnfast.lif(y, return_state=state, **call)
        found, wanted = (r if state else (r,) for r in (found, wanted))
        assert torch.equal(found[0], theirs(wanted[0])) and found[0].shape == x.shape
        if state:
            assert torch.equal(found[1], theirs(wanted[1]) if state == "all" else wanted[1])
        (dx,), (dy,) = (
            torch.autograd.grad(s, t, d)
            for s, t, d in ((found[0], x, theirs(ds)), (wanted[0], y, ds))
        )
        assert torch.equal(dx, theirs(dy))
    if axis != "merged":
        static = snnfast.lif(first[0], timesteps=4, time_axis=axis, **call)
        assert torch.equal(static, theirs(snnfast.lif(first[0], timesteps=4, **call)))


@pytest.mark.backends(REFERENCE, *(b for b in PROGRAMS if not b.slow))
@pytest.mark.parametrize("axis", AXES)
def test_norm_lif_over_a_time_axis(backend, axis):
    axis = AXES[axis]
    first = torch.randn(2, 6, 3, 4, 5, device=backend.device)
    timesteps = 6 if axis == "merged" else None

    def theirs(t):
        return t.flatten(0, 1) if axis == "merged" else t.movedim(0, axis)

    blocks = [
        snnfast.nn.BatchNormLIF(4, backend=backend.name, time_axis=a).to(backend.device)
        for a in (axis, 0)
    ]
    found = blocks[0](*map(theirs, first), timesteps=timesteps)
    assert torch.equal(found, theirs(blocks[1](*first)))
    with pytest.raises(ValueError, match="y must have 4 channels on axis"):
        blocks[0](torch.randn(6, 5, 5, 5), timesteps=timesteps)


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("state", [False, True, "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "mode", [{}, {"tau": "channels"}, {"fire": ">"}, {"beta": "channels", "v_threshold": "scalar"}],
    ids=str,
)  # fmt: skip
def test_batch_first_is_read_and_written_as_it_lies(
    backend, monkeypatch, mode, memory, dtype, state
):
    """[B, T, ...] of large samples: the same bits as time first, and no copy on the way."""
    monkeypatch.setattr(snnfast.backends.layout, "SAMPLE", 1)
    tensors = {k: (4,) if v == "channels" else () for k, v in mode.items() if v != ">"}
    tensors = {k: 1.2 + torch.rand(shape) for k, shape in tensors.items()}
    if "beta" in tensors:
        tensors["beta"] = tensors["beta"] / 3
    tensors = {k: t.requires_grad_() for k, t in tensors.items()}
    first = LAYOUTS[memory](torch.randn(11, 3, 4, 5, 6))
    x = LAYOUTS[memory](first.movedim(0, 1).contiguous()).to(dtype).requires_grad_()
    y = first.to(dtype).requires_grad_()
    v0 = torch.randn(3, 4, 5, 6, requires_grad=True)
    call = {"return_state": state, "backend": backend.name, **mode, **tensors}
    found = snnfast.lif(x, v0, time_axis=1, **call)
    wanted = snnfast.lif(y, v0, **call)
    found, wanted = (r if state else (r,) for r in (found, wanted))
    assert found[0].stride() == x.stride()
    moved = [partial(torch.movedim, source=1, destination=0)]
    moved.append(moved[0] if state == "all" else torch.clone)
    for a, b, move in zip(found, wanted, moved, strict=False):
        assert torch.equal(move(a), b)
    ds = [torch.randn(r.shape).to(r.dtype) for r in found]
    theirs = [move(d) for d, move in zip(ds, moved, strict=False)]
    dx, *ours = torch.autograd.grad(found, (x, v0, *tensors.values()), ds)
    dy, *others = torch.autograd.grad(wanted, (y, v0, *tensors.values()), theirs)
    assert torch.equal(dx.movedim(1, 0), dy) and torch.equal(ours[0], others[0])
    assert dx.stride() == x.stride()
    for a, b in zip(ours[1:], others[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("mode", [{}, {"beta": 0.9}], ids=str)
def test_large_samples_are_not_copied(mode):
    x = torch.randn(2, 9, 16, 16, 16, requires_grad=True)
    snnfast.lif(x, time_axis=1, backend="cpu", **mode).sum().backward()  # traces what is new
    with torch.profiler.profile() as profile:
        s = snnfast.lif(x, time_axis=1, backend="cpu", **mode)
        torch.autograd.grad(s, x, torch.ones_like(x))
    assert s.is_contiguous()
    assert not any("copy" in e.name or "contiguous" in e.name for e in profile.events())


def test_a_merged_axis_is_no_copy():
    x = torch.randn(12, 4, 5)
    s = snnfast.lif(x, time_axis="merged", timesteps=4)
    assert s._base is not None and s.is_contiguous() and s._base.shape == (4, 3, 4, 5)


# As modules


def test_modules_hold_their_tensors():
    theta, beta = nn.Parameter(torch.full((4,), 0.8)), torch.tensor(0.7)
    layer = snnfast.nn.LIF(beta=beta, v_threshold=theta, fire=">", detach_state=True)
    assert [*layer.state_dict()] == ["v_threshold", "beta"]
    assert [name for name, _ in layer.named_parameters()] == ["v_threshold"]
    x = torch.randn(9, 3, 4, 5)
    s = layer(x)
    assert torch.equal(s, snnfast.lif(x, beta=beta, v_threshold=theta, fire=">", detach_state=True))
    s.sum().backward()
    assert theta.grad.abs().sum() > 0
    assert "beta=[], v_threshold=[4]" in repr(layer) and "fire=>" in repr(layer)
    half = snnfast.nn.LIF(v_threshold=nn.Parameter(torch.tensor(0.5))).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with snnfast.streaming(layer):
        assert torch.equal(torch.cat([layer(part) for part in x.split([1, 8])]), s)
    assert "fire" not in repr(snnfast.nn.LIF()) and not snnfast.nn.LIF().state_dict()


@pytest.mark.parametrize("axis", AXES)
def test_a_stream_goes_on_where_all_states_are_returned(axis):
    """As many timesteps at a time as there are samples, so that no shape tells them apart."""
    axis = AXES[axis]
    first = torch.randn(12, 3, 4, 5)
    at = {"timesteps": 3} if axis == "merged" else {}

    def theirs(t):
        return t.flatten(0, 1) if axis == "merged" else t.movedim(0, axis)

    layer = snnfast.nn.LIF(tau=4.0, time_axis=axis, return_state="all")
    s, v = snnfast.lif(first, tau=4.0, return_state="all")
    with snnfast.streaming(layer):
        for k in range(0, 12, 3):
            found = layer(theirs(first[k : k + 3]), **at)
            assert torch.equal(found[0], theirs(s[k : k + 3]))
            assert torch.equal(found[1], theirs(v[k : k + 3]))


def test_modules_with_modes_equal_the_function():
    x = torch.randn(9, 3, 4, 5)
    plif = snnfast.nn.ParametricLIF(3.0, channels=4, v_rest=0.1, fire=">", v_reset=None)
    wanted = snnfast.lif(x, inv_tau=plif.w.sigmoid(), v_rest=0.1, fire=">", v_reset=None)
    assert torch.equal(plif(x), wanted)
    assert torch.equal(snnfast.nn.IF(fire=">")(x), snnfast.lif(x, tau=math.inf, fire=">"))
    block = snnfast.nn.BatchNormLIF(4, beta=0.9, v_threshold=nn.Parameter(torch.tensor(0.5)))
    assert "neuron.v_threshold" in block.state_dict() and block.beta == 0.9
    block(x).sum().backward()
    assert block.neuron.v_threshold.grad is not None
    plain = nn.Sequential(nn.BatchNorm3d(4), snnfast.nn.LIF(beta=0.9, fire=">"))
    report = []
    y = torch.randn(9, 4, 2, 3, 3)
    fused = snnfast.nn.fuse(plain, report=report)
    assert str(report[0]) == "0 -> 1: fused"
    assert (fused(y) != plain(y)).float().mean() < 0.01
    for axis in (1, "merged"):
        apart = nn.Sequential(nn.BatchNorm3d(4), snnfast.nn.LIF(time_axis=axis))
        with pytest.warns(UserWarning, match="LIF has time_axis="):
            snnfast.nn.fuse(apart)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("sample", [1, 4096])
def test_compiles(monkeypatch, sample):
    monkeypatch.setattr(snnfast.backends.layout, "SAMPLE", sample)
    torch._dynamo.reset()
    theta = nn.Parameter(torch.full((4,), 0.8))
    layer = snnfast.nn.LIF(beta=0.9, v_threshold=theta, fire=">", time_axis=1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for steps in (3, 9):
        x = torch.randn(2, steps, 4, 5, requires_grad=True)
        results = []
        for f in (compiled, layer):
            s = f(x)
            results.append((s, *torch.autograd.grad(s.sum(), (x, theta))))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_the_smooth_twin_fires_alike_at_the_threshold():
    """What ``fire`` decides is the step, which the twin does not have."""
    x, twin = torch.randint(-20, 41, (4, 64)) / 20, snnfast.surrogate.ATan(spiking=False)
    x[0, :2] = 1.0
    found = [snnfast.lif(x, tau=math.inf, surrogate=twin, fire=fire) for fire in (">=", ">")]
    assert torch.equal(*found)
    s = snnfast.neurons.leaky(x[:1], surrogate=twin)
    torch.testing.assert_close(s, torch.atan(math.pi * (x[:1] - 1)) / math.pi + 0.5)
