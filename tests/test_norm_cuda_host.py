"""norm_lif of the CUDA backend without a GPU: its module on the host (_cuda_host.py), held to the
reference. A misaligned access, or one outside the tensors, fails the launch.
"""

import math
import types

import _cuda_host
import pytest
import torch

from snnfast import norm_lif, reference, surrogate
from snnfast.backends.cuda import lif as cuda
from snnfast.backends.cuda import norm_lif as backend
from snnfast.backends.spec import (
    DECAY_INPUT,
    DECAY_STATE,
    INTEGRATE,
    Norm,
    segments,
)
from snnfast.ops import select
from snnfast.ops.layer import lif_layer

DTYPES = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ONE, ROW, ANY = backend.ONE_CHANNEL, backend.ROW_OF_CHANNELS, backend.ANY_CHANNELS


def forget_plans():
    for cached in (backend.plan, backend._map, cuda._plan):
        cached.cache_clear()


@pytest.fixture
def shim(monkeypatch):
    return _cuda_host.install(monkeypatch)


def nan(*shape, dtype=torch.float32):
    return torch.full(shape, math.nan, dtype=dtype)


def spec_of(steps, *, charge=DECAY_INPUT, tau=2.0, divide=True, hard=True, detach=False,
            name="sigmoid", theta=1.0, reset=0.0, channels=1, inner=1):  # fmt: skip
    layer = lif_layer(steps, v_threshold=theta, detach_reset=detach, surrogate=name,
                      v_reset=reset if hard else None)  # fmt: skip
    charge = INTEGRATE if math.isinf(tau) else charge
    rate = {"divide": divide, "rate": tau if divide else 1 / tau}
    return layer._replace(charge=charge, **rate, channels=channels, inner=inner)


def case(steps, shape, dtype, residual=False, every=False, seed=0):
    """y, ds [T, samples, channels, inner] and what else a layer has, for ``shape`` = (samples,
    channels, inner): contiguous, or with inner = 1 channels-last."""
    g = torch.Generator().manual_seed(seed)
    full = (steps, *shape)

    def normal(*size):
        return torch.randn(*size, generator=g)

    return types.SimpleNamespace(
        y=(2 * normal(*full) + 0.7).to(dtype),
        residual=(torch.rand(full, generator=g) < 0.3).to(dtype) if residual else None,
        norm=Norm(normal(shape[1]), normal(shape[1]).abs() + 0.3, normal(shape[1]), *shape[1:]),
        ds=normal(*full).to(dtype),
        v0=normal(*shape) * 0.5,
        dv=normal(*full) if every else normal(*shape),
        rate=None,
        every=every,
    )


def run(spec, c, *, sum_dx=False, want_dx=True):
    """Forward and backward of the backend, outputs poisoned."""
    steps, *shape = c.y.shape
    s, v = nan(*c.y.shape, dtype=c.y.dtype), nan(*(c.y.shape if c.every else shape))
    borders = nan(segments(steps) - 1, *shape) if steps > 8 else None
    cuda.lif_forward(spec, c.y, c.v0, c.rate, s, v, borders, c.norm, c.residual)
    dx = nan(*(shape if sum_dx else c.y.shape), dtype=c.y.dtype) if want_dx else None
    dv0, sums = nan(*shape), nan(2, shape[1])
    drate = None if c.rate is None else nan(*c.rate.shape)
    cuda.lif_backward(spec, c.y, c.v0, c.rate, borders, c.ds, c.dv, dx, dv0, drate,
                      c.norm, c.residual, sums)  # fmt: skip
    return {"s": s, "v": v, "borders": borders, "dx": dx, "dv0": dv0, "drate": drate,
            "sums": sums}  # fmt: skip


def expected(spec, c, dtype, sum_dx=False):
    """The same by the reference and autograd, in ``dtype``."""
    cast = lambda t: None if t is None else t.to(dtype)  # noqa: E731
    y, residual = cast(c.y), cast(c.residual)
    rows = [cast(t) for t in c.norm[:3]]
    base = reference.normalise(y[:1] if sum_dx else y, *rows, 2)
    base = (base if residual is None else base + residual).requires_grad_()
    x = base.expand(y.shape) if sum_dx else base
    v0 = (torch.full(y.shape[1:], spec.reset) if c.v0 is None else c.v0).to(dtype).requires_grad_()
    rate = spec.rate
    if c.rate is not None:  # of every neuron, so that its gradient shows what is added up
        rate = cast(c.rate.view(-1, 1) if c.rate.dim() else c.rate).expand(y.shape[1:]).clone()
        rate.requires_grad_()
    charge = (spec.divide, spec.charge != DECAY_STATE)
    chosen = next(cls() for cls in surrogate.TABLE.values() if cls.ID == spec.surrogate)
    s, states = reference.lif(
        x, v0, rate=math.inf if spec.charge == INTEGRATE else rate, divide=charge[0],
        v_threshold=spec.theta, v_reset=spec.reset if spec.hard else None, decay_input=charge[1],
        detach_reset=spec.detach_reset, surrogate=chosen,
    )  # fmt: skip
    v = states[1:] if c.every else states[-1]
    wanted = [base, v0] + ([rate] if c.rate is not None else [])
    ds = torch.zeros_like(s) if c.ds is None else cast(c.ds)
    found = torch.autograd.grad([s, v], wanted, [ds, cast(c.dv)])
    dx = found[0]
    moment = dx * (y[:1] if sum_dx else y).sub(rows[0].view(-1, 1))
    out = {"s": s, "v": v, "dx": dx[0] if sum_dx else dx, "dv0": found[1],
           "sums": torch.stack([dx.sum((0, 1, 3)), moment.sum((0, 1, 3))]),
           "of sums": torch.stack([dx.abs().sum((0, 1, 3)), moment.abs().sum((0, 1, 3))]),
           "states": states}  # fmt: skip
    h = reference.charge(x, states[:-1], spec.reset,
                         math.inf if spec.charge == INTEGRATE else rate, *charge)  # fmt: skip
    out["g"] = chosen.gradient(h - spec.theta)
    if c.rate is not None:
        each = (found[2] * -(rate.double() ** 2) if spec.divide else found[2]).to(dtype)
        axes = (0, 2) if c.rate.dim() else (0, 1, 2)
        out["drate"], out["of drate"] = each.sum(axes), each.abs().sum(axes)
    return {key: t.detach() for key, t in out.items()}


def check(spec, c, *, sum_dx=False, want_dx=True):
    """Spikes, states and borders exactly; gradients against float64 where its spikes agree."""
    same, exact = (expected(spec, c, d, sum_dx) for d in (torch.float32, torch.float64))
    agree = ((same["s"].double() == exact["s"]) & ((same["g"] - exact["g"]).abs() < 1e-3)).all(0)
    if not agree.all():  # a neuron that float64 lets fire otherwise has another function's gradient
        assert agree.float().mean() > 0.9 or agree.numel() < 20
        c.ds, c.dv = (None if t is None else t * agree for t in (c.ds, c.dv))
        same, exact = (expected(spec, c, d, sum_dx) for d in (torch.float32, torch.float64))
    ours = run(spec, c, sum_dx=sum_dx, want_dx=want_dx)
    assert torch.equal(ours["s"].float(), same["s"])
    torch.testing.assert_close(ours["v"], same["v"], rtol=0, atol=0)
    if ours["borders"] is not None:
        torch.testing.assert_close(ours["borders"], same["states"][8:-1:8], rtol=0, atol=0)
    for key in ("dx",) * want_dx + ("dv0", "sums") + ("drate",) * (c.rate is not None):
        assert_gradient(key, ours[key], exact, same)
    return ours


def assert_gradient(key, ours, exact, single):
    """At most twice PyTorch's own error in fp32 (or four roundings of fp32, of the sum of what is
    added up), and two roundings of a dtype with fewer bits."""
    want, scale = exact[key], exact.get(f"of {key}", exact[key].abs().max())
    error, own = (ours.double() - want).abs(), (single[key].double() - want).abs().max()
    bound = 2 * own + 4 * 2.0**-24 * scale.clamp(min=1.0)
    if ours.dtype != torch.float32:
        bound = bound + 2 * DTYPES[ours.dtype] * want.abs()
    assert (error <= bound).all(), f"{key}: {error.max().item():.3g}, PyTorch {own.item():.3g}"


NEURONS = [
    {},
    {"charge": DECAY_STATE, "tau": 1.7, "hard": False, "name": "atan"},
    {"tau": math.inf, "detach": True, "name": "rect"},
    {"charge": DECAY_STATE, "reset": -0.2, "tau": 3.0},
    {"tau": 1.3, "hard": False, "detach": True, "theta": 0.8, "name": "fast_sigmoid"},
    {"tau": math.inf, "hard": False},
]

# (samples, channels, inner), and how fp32 and half precision go about it: None is by element.
SHAPES = [
    ((2, 3, 5), None, None),
    ((3, 16, 49), ANY, ANY),
    ((2, 5, 64), ONE, ONE),
    ((1, 3, 1024), ONE, ONE),
    ((70, 16, 1), ROW, ROW),
    ((4, 700, 1), ROW, ANY),
    ((304, 3, 1), ANY, ANY),
    ((2, 1500, 1), ROW, ANY),
    ((64, 1, 9), ANY, ANY),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape,wide,half", SHAPES, ids=str)
def test_shapes(shim, shape, wide, half, dtype):
    layout = wide if dtype == torch.float32 else half
    for i, steps in enumerate((1, 4, 5, 8, 9)):
        neuron = NEURONS[(i + len(shape)) % len(NEURONS)]
        c = case(steps, shape, dtype, residual=i % 2 == 0, every=i == 1, seed=i)
        check(spec_of(steps, **neuron), c)
        backward = shim.launches[-2]
        assert backward.choices[1] == (layout is not None)
        assert layout is None or backward.structs["NormArgs"].at.layout == layout
        assert shim.names == ["norm_lif_forward", "norm_lif_backward", "norm_finish"] * (i + 1)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_neurons(shim, neuron):
    for shape in ((2, 16, 32), (7, 3, 5)):
        for residual in (False, True):
            c = case(20, shape, torch.float32, residual)
            check(spec_of(20, **neuron), c)
            c.v0, c.ds = None, None
            check(spec_of(20, **neuron), c)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("shape", [(40, 16, 32), (400, 24, 1), (701, 5, 3), (999, 20, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_tiles_a_block(shim, monkeypatch, dtype, shape, blocks):
    """Blocks that go from sample to sample add up as many of them as are."""
    monkeypatch.setattr(backend, "_BLOCKS", blocks)
    forget_plans()
    for residual in (False, True):
        check(spec_of(3), case(3, shape, dtype, residual))
        at = shim.last.structs["TotalArgs"].at
        assert at.blocks < at.tiles
    forget_plans()


@pytest.mark.parametrize("divide", [True, False], ids=["tau", "inv_tau"])
@pytest.mark.parametrize("shape", [(4, 16, 32), (32, 16, 1), (4, 7, 5)], ids=str)
def test_rates(shim, shape, divide):
    """A learnable rate, one for all or one a channel."""
    for steps, dtype in ((3, torch.float32), (8, torch.bfloat16), (20, torch.float32)):
        for charge in (DECAY_INPUT, DECAY_STATE):
            for per_channel in (False, True):
                c = case(steps, shape, dtype, residual=steps != 3, seed=steps)
                tau = 1.1 + 3 * torch.rand(shape[1] if per_channel else ())
                c.rate = tau if divide else 1 / tau
                places = {"channels": shape[1], "inner": shape[2]} if per_channel else {}
                check(spec_of(steps, charge=charge, divide=divide, **places), c)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_static_input(shim, steps, dtype):
    """Time stride 0: dx and the sums of it over time, or kept for every step."""
    for shape in ((2, 16, 32), (3, 5, 7)):
        c = case(1, shape, dtype)
        g = torch.Generator().manual_seed(1)
        c.y, c.ds = c.y.expand(steps, *shape), torch.randn(steps, *shape, generator=g).to(dtype)
        check(spec_of(steps), c, sum_dx=True)
        check(spec_of(steps), c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_alone(shim, dtype):
    """Without dx: nothing of it is written, the sums are the same."""
    for steps in (4, 9):
        c = case(steps, (2, 16, 32), dtype, residual=True)
        alone, both = (check(spec_of(steps), c, want_dx=want) for want in (False, True))
        assert torch.equal(alone["sums"], both["sums"])
        assert torch.equal(alone["dv0"], both["dv0"])


def through(c, dx, rows, wide):
    """a dx + b (y - mean) + c in the dtype ``wide``."""
    a, b, shift, mean = (t.to(wide).view(-1, 1) for t in (*rows, c.norm.mean))
    return a * dx.to(wide) + b * (c.y.to(wide) - mean) + shift


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 32), (3, 16, 49), (64, 16, 1), (3, 5, 7)], ids=str)
def test_gradient_through(shim, shape, dtype):
    """dy = a dX + b (y - mean) + c, dX computed again; and from dX in memory."""
    for steps in (4, 9):
        c = case(steps, shape, dtype, seed=steps)
        a, b, shift = torch.randn(3, shape[1])
        spec = spec_of(steps)
        same, exact = (expected(spec, c, d) for d in (torch.float32, torch.float64))
        if not torch.equal(same["s"].double(), exact["s"]):
            pytest.fail("choose another seed: a spike of this one lies on the threshold")
        borders = nan(segments(steps) - 1, *shape) if steps > 8 else None
        cuda.lif_forward(spec, c.y, c.v0, None, nan(*c.y.shape, dtype=dtype), None, borders, c.norm)

        dy = nan(*c.y.shape, dtype=dtype)
        cuda.norm_lif_dy(spec, c.y, c.v0, None, borders, c.ds, c.dv, dy, c.norm, a, b, shift)
        single, want = (
            through(c, same["dx"], (a, b, shift), torch.float32),
            through(c, exact["dx"], (a, b, shift), torch.float64),
        )
        assert_gradient("dx", dy, {"dx": want}, {"dx": single})
        again = nan(*c.y.shape, dtype=dtype)
        dx = same["dx"].to(dtype)
        backend.norm_dy(c.y, dx, c.norm, a, b, shift, again)
        exact, single = (
            {"dx": through(c, dx, (a, b, shift), wide)} for wide in (torch.float64, torch.float32)
        )
        assert_gradient("dx", again, exact, single)
        backend.norm_dy(c.y, dx, c.norm, a, b, shift, dx)
        assert torch.equal(dx, again)


def test_gradient_through_a_static_input(shim):
    for shape in ((2, 16, 32), (3, 5, 7), (16, 16, 1)):
        c = case(1, shape, torch.bfloat16, seed=4)
        c.y, c.ds = c.y.expand(4, *shape), torch.randn(4, *shape).bfloat16()
        a, b, shift = torch.randn(3, shape[1])
        exact = expected(spec_of(4), c, torch.float64, sum_dx=True)
        dy = nan(*shape, dtype=torch.bfloat16)
        cuda.norm_lif_dy(spec_of(4), c.y, c.v0, None, None, c.ds, c.dv, dy, c.norm, a, b, shift)
        rows = [t.double().view(-1, 1) for t in (a, b, shift, c.norm.mean)]
        want = rows[0] * exact["dx"] + rows[1] * (c.y[0].double() - rows[3]) + rows[2]
        assert ((dy.double() - want).abs() <= 2.0**-7 * want.abs() + 1e-5).all()


STATS = [
    (6, 16, 81),
    (400, 24, 1),
    (3, 1500, 1),
    (2, 3, 1000),
    (5, 1, 7),
    (16, 64, 64),
    (300, 3, 1),
]


@pytest.mark.parametrize("blocks", [1024, 2, 1])
@pytest.mark.parametrize("shape", STATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stats(shim, monkeypatch, dtype, shape, blocks):
    """Relative to the spread of the values: with the mean 1e4 of it away, and where a channel's
    first element lies far from all others, however few threads share the channel."""
    monkeypatch.setattr(backend, "_BLOCKS", blocks)
    forget_plans()
    g = torch.Generator().manual_seed(3)
    for steps, offset, outlier in ((4, 0.0, 0.0), (9, 1e4, 0.0), (3, 0.0, 300.0), (1, -7.0, 3e3)):
        y = (torch.randn(steps, *shape, generator=g) + offset).to(dtype)
        y[0, 0, :, 0] += outlier
        mean, var = nan(shape[1]), nan(shape[1])
        backend.norm_stats(y, *shape[1:], mean, var)
        exact_var, exact_mean = torch.var_mean(y.double(), (0, 1, 3), correction=0)
        assert ((mean - exact_mean).abs() <= 2.0**-23 * y.double().abs().amax((0, 1, 3))).all()
        torch.testing.assert_close(var.double(), exact_var, rtol=1e-6, atol=1e-30)
    forget_plans()


def test_stats_of_a_constant(shim):
    for shape in ((3, 4, 50), (70, 8, 1)):
        y = torch.full((4, *shape), 1e4 + 0.1)
        mean, var = nan(shape[1]), nan(shape[1])
        backend.norm_stats(y, *shape[1:], mean, var)
        assert torch.equal(mean, torch.full_like(mean, 1e4 + 0.1)) and not var.any()
        y[2, 1, 1, 0] = math.nan
        backend.norm_stats(y, *shape[1:], mean, var)
        assert mean.isnan().nonzero().tolist() == var.isnan().nonzero().tolist() == [[1]]


@pytest.mark.parametrize("shape", [(40, 16, 32), (130, 24, 1), (10, 5, 63)], ids=str)
def test_same_bits_in_any_order(shim, monkeypatch, shape):
    """Threads run forwards or backwards: sums are a fixed sequence of additions."""
    monkeypatch.setattr(backend, "_BLOCKS", 4)
    forget_plans()
    results = []
    for backwards in (False, True):
        shim.library.shim_backwards(backwards)
        c = case(4, shape, torch.float32)
        out = run(spec_of(4), c)
        mean, var = nan(shape[1]), nan(shape[1])
        backend.norm_stats(c.y, *shape[1:], mean, var)
        results.append((out["sums"], out["dx"], mean, var))
    shim.library.shim_backwards(0)
    forget_plans()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_bytes(shim, steps, dtype):
    """Every element is read and written once in each pass; numbers per channel are few."""
    for shape in ((16, 16, 64), (128, 128, 1)):
        for residual in (False, True):
            c = case(steps, shape, dtype, residual)
            tensor = c.y.numel() * c.y.element_size()
            border = (segments(steps) - 1) * c.v0.numel() * 4
            streams = {"x": tensor} | ({"residual": tensor} if residual else {})
            borders = {"borders": border} if border else {}
            small, spec = c.y[0].numel() * 4, spec_of(steps)
            run(spec, c)
            backward = shim.launches[-2]
            few = {n: backward.bytes.pop(n) for n in ("mean", "scale", "bias", "parts")}
            assert backward.bytes == streams | borders | {"ds": tensor, "dx": tensor, "v0":
                                                      small * segments(steps) // segments(steps),
                                                      "dv": small, "dv0": small}  # fmt: skip
            assert few["parts"] == 8 * backward.blocks * backward.structs["NormArgs"].at.slots
            assert few["parts"] <= tensor / 30 or shape[2] == 1
            s = torch.empty_like(c.y)
            cuda.lif_forward(spec, c.y, None, None, s, None, None, c.norm, c.residual)
            assert {n: shim.last.bytes[n] for n in (*streams, "s")} == streams | {"s": tensor}
    a = torch.ones(128)
    backend.norm_dy(c.y, s, c.norm, a, a, a, torch.empty_like(s))
    assert all(shim.last.bytes[n] == tensor for n in ("x", "dx", "dy"))
    cuda.norm_lif_dy(spec, c.y, None, None, c.v0[None].expand(max(1, segments(steps) - 1), *shape)
                       .contiguous(), c.ds, None, s, c.norm, a, a, a)  # fmt: skip
    assert all(shim.last.bytes[n] == tensor for n in ("x", "ds", "dx"))
    backend.norm_stats(c.y, 128, 1, a.clone(), a.clone())
    assert (
        tensor <= shim.launches[-2].bytes["x"] <= tensor * 1.3
    )  # and an element or two for each neuron


def test_strides_and_alignment(shim):
    """Time strides of their own; what is not aligned goes element by element, to the same bits."""
    steps, n = 5, 512
    wide = case(steps, (1, 4, 3 * n // 4), torch.bfloat16, True)
    flat = [t.reshape(steps, -1) for t in (wide.y, wide.ds, wide.residual)]
    results = []
    for at in (0, 8, 3):
        c = case(steps, (1, 4, n // 4), torch.bfloat16, True)
        for name, t, source in zip(("y", "ds", "residual"), (c.y, c.ds, c.residual), flat):
            view = source[:, at : at + n].view_as(t)
            view.copy_(t)
            setattr(c, name, view)
        results.append(check(spec_of(steps), c))
        assert shim.launches[-2].choices[1] == (at % 8 == 0)
    assert all(torch.equal(r["dx"], results[0]["dx"]) for r in results)
    c = case(4, (6, 16, 1), torch.float32)
    rows = torch.cat([torch.zeros(1), c.norm.mean])[1:]
    assert rows.data_ptr() % 16
    c.norm = c.norm._replace(mean=rows)
    check(spec_of(4), c)
    assert shim.launches[-2].choices[1] and shim.last.structs["TotalArgs"].at.layout == ANY


def test_not_finite(shim):
    """NaN and Inf in y go where the reference lets them go."""
    for neuron in NEURONS:
        c = case(6, (2, 16, 16), torch.float32)
        y = c.y.view(6, -1)
        y[1, ::3], y[2, 1::3], y[3, 2::5] = math.nan, math.inf, -math.inf
        spec = spec_of(6, **neuron)
        want, ours = expected(spec, c, torch.float32), run(spec, c)
        torch.testing.assert_close(ours["s"], want["s"], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours["v"], want["v"], rtol=0, atol=0, equal_nan=True)


def test_a_failed_launch_raises(shim):
    c = case(4, (2, 16, 16), torch.float32)
    shim.allows = False
    with pytest.raises(RuntimeError, match="norm_lif: the CUDA launch failed: an illegal memory"):
        run(spec_of(4), c)


@pytest.fixture
def public(monkeypatch):
    """backend="cuda" runs on CPU tensors: on the shim."""
    monkeypatch.setattr(select, "_refuse", lambda *args: None)
    yield
    forget_plans()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_public_function(shim, public, last, residual, training):
    """Forward, statistics and every gradient through snnfast.norm_lif, against float64."""
    shape = (4, 3, 6, 5, 4)
    results = []
    for name, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
        g = torch.Generator().manual_seed(5)
        y, ds = (torch.randn(shape, generator=g) * 2 for _ in range(2))
        r = (torch.rand(shape, generator=g) < 0.3).float()
        if last:
            y, ds, r = (t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
                        for t in (y, ds, r))  # fmt: skip
        leaves = [t.to(dtype).requires_grad_() for t in (y, r, torch.rand(6, generator=g) + 0.5,
                  torch.randn(6, generator=g), torch.rand(6, generator=g) + 1.2)]  # fmt: skip
        mean, var = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
        y, r, weight, bias, tau = leaves
        s = norm_lif(y, r if residual else None, weight=weight, bias=bias, running_mean=mean,
                     running_var=var, training=training, tau=tau, backend=name)  # fmt: skip
        wanted = leaves if residual else [y, weight, bias, tau]
        results.append((s, torch.autograd.grad(s, wanted, ds.to(dtype)), mean, var))
    (s, grads, *running), (t, exact, *others) = results
    assert torch.equal(s.double(), t)
    for ours, want in zip(grads, exact, strict=True):
        assert float((ours.double() - want).norm() / want.norm()) <= 1e-6
    for ours, want in zip(running, others, strict=True):
        torch.testing.assert_close(ours.double(), want, rtol=1e-6, atol=1e-7)
    assert ("norm_stats" in shim.names) == training


def test_the_spikes_of_all_backends_are_the_same(shim, public):
    g = torch.Generator().manual_seed(6)
    for shape in ((5, 6, 24, 9, 7), (3, 40, 64)):
        y, r = (torch.randn(shape, generator=g) * 1.5 for _ in range(2))
        rows = {name: torch.rand(shape[2], generator=g) + 0.3
                for name in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        found = [norm_lif(y, r, training=False, tau=1.7, backend=name, **rows)
                 for name in ("cuda", "cpu", "reference")]  # fmt: skip
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert 0.05 < found[0].mean() < 0.95


def test_compiled_at_first_use(shim, monkeypatch):
    """Without snnfast._cuda: one kernel a configuration by NVRTC, and the same results."""

    built = _cuda_host.without_module(shim, monkeypatch)
    for steps, shape in ((4, (2, 16, 32)), (3, (9, 16, 1)), (20, (1, 7, 11))):
        c = case(steps, shape, torch.bfloat16, residual=True)
        check(spec_of(steps), c)
        mean, var = nan(shape[1]), nan(shape[1])
        backend.norm_stats(c.y, *shape[1:], mean, var)
        backend.norm_dy(c.y, c.ds, c.norm, mean, mean, mean, torch.empty_like(c.y))
        assert not mean.isnan().any() and not var.isnan().any()
    # T = 3 and 4 share theirs: two pairs of scans, of stats and of dy; two add up.
    assert len(built) == 10


def test_constants_are_those_of_the_headers():
    """The constants are those of the headers."""
    text = (_cuda_host.CUDA / "norm_lif_args.h").read_text()
    assert f"kTotalThreads = {backend._TOTAL_THREADS};" in text
    for name, value in (("kAnyChannels", ANY), ("kOneChannel", ONE), ("kRowOfChannels", ROW)):
        assert f"  {name} = {value}," in text
    text = (_cuda_host.CUDA / "lif_args.h").read_text()
    for name, value in (("kHasDx", cuda.HAS_DX), ("kHasResidual", cuda.HAS_RESIDUAL),
                        ("kRecompute", cuda.RECOMPUTE)):  # fmt: skip
        assert f"  {name} = {value}," in text
    assert cuda._THREADS == backend._THREADS


@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_tiles(lanes):
    """Each block's tiles hold the same channels at the same places; slots hold all of a tile's."""
    for channels in (1, 3, 64, 100, 512, 2048):
        for inner in (1, 16, 49, 64, 1024, 3136):
            for samples in (1, 37, 4096):
                neurons = samples * channels * inner
                at = backend.tiles(neurons, lanes, channels, inner, True, 4)
                tile = 128 * lanes
                assert at.tiles == -(-neurons // tile) and 0 < at.blocks <= at.tiles
                assert at.blocks == at.tiles or at.blocks * tile % (channels * inner) == 0
                if at.tiles > 2048 + channels * inner:
                    assert at.blocks <= 2048 + channels * inner
                for block in (0, at.blocks // 2, at.blocks - 1):
                    first = block * tile
                    touched = (first + tile - 1) // inner - first // inner + 1
                    assert min(touched, channels) <= at.slots <= channels
                assert at.group * at.slots <= 128 or at.group == 1
