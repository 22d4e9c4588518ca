"""LIF of the CUDA backend without a GPU: its module on the host (_cuda_host.py), held to the
reference. A misaligned access, or one outside the tensors, fails the launch.
"""

import ctypes
import math
import re

import _cuda_host
import pytest
import torch

from snnfast import reference, surrogate
from snnfast.backends.cuda import distill, launch, norm_lif, nvrtc, spikes
from snnfast.backends.cuda import lif as cuda
from snnfast.backends.layout import DTYPES as DTYPES_OF
from snnfast.backends.spec import DECAY_INPUT, DECAY_STATE, INTEGRATE, segments
from snnfast.ops.layer import lif_layer

DTYPES = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
NAMES = list(surrogate.TABLE)


@pytest.fixture(scope="session")
def library():
    return _cuda_host.module()[1]


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


def run(spec, x, *, v0=None, rate=None, ds=None, dv=None, every=False, sum_dx=False):
    """Forward and backward of the backend, outputs poisoned. x is [T, ...]; returns a dict."""
    shape, steps = x.shape[1:], spec.steps
    s = nan(steps, *shape, dtype=x.dtype)
    v = nan(steps, *shape) if every else nan(*shape)
    borders = nan(segments(steps) - 1, *shape) if steps > 8 else None
    cuda.lif_forward(spec, x, v0, rate, s, v, borders)
    dx = nan(*(shape if sum_dx else x.shape), dtype=x.dtype)
    dv0 = nan(*shape)
    drate = None if rate is None else nan(*rate.shape)
    cuda.lif_backward(spec, x, v0, rate, borders, ds, dv, dx, dv0, drate)
    return {"s": s, "v": v, "borders": borders, "dx": dx, "dv0": dv0, "drate": drate}


def expected(spec, x, *, v0=None, rate=None, ds=None, dv=None, every=False, sum_dx=False,
             dtype=None):  # fmt: skip
    """The same by reference.lif and autograd, computed in ``dtype`` (by default as x is)."""
    cast = (lambda t: t if t is None else t.detach().to(dtype)) if dtype else (lambda t: t)
    chosen = next(cls() for cls in surrogate.TABLE.values() if cls.ID == spec.surrogate)
    base = cast(x[0] if sum_dx else x).clone().requires_grad_()
    rest = torch.full(x.shape[1:], spec.reset, dtype=dtype or torch.float32)
    v0 = (rest if v0 is None else cast(v0)).clone().requires_grad_()
    rates = spec.rate if rate is None else cast(rate).clone().requires_grad_()
    s, states = reference.lif(
        base,
        v0,
        rate=math.inf if spec.charge == INTEGRATE else rates,
        divide=spec.divide,
        v_threshold=spec.theta,
        v_reset=spec.reset if spec.hard else None,
        decay_input=spec.charge != DECAY_STATE,
        detach_reset=spec.detach_reset,
        surrogate=chosen,
        timesteps=spec.steps if sum_dx else None,
    )
    v = states[1:] if every else states[-1]
    ds = torch.zeros_like(s) if ds is None else cast(ds)
    dv = torch.zeros_like(v) if dv is None else cast(dv)
    wanted = [base, v0] + ([rates] if rate is not None else [])
    found = torch.autograd.grad([s, v], wanted, [ds, dv], allow_unused=True)
    out = {"s": s, "v": v, "dx": found[0], "dv0": found[1], "states": states}
    divisor = rates.view(-1, *[1] * (x.dim() - 3)) if rate is not None and rate.dim() else rates
    decay = (spec.divide, spec.charge != DECAY_STATE)
    divisor = math.inf if spec.charge == INTEGRATE else divisor
    h = reference.charge(cast(x).to(states.dtype), states[:-1], spec.reset, divisor, *decay)
    out["g"] = chosen.gradient(h - spec.theta)
    if rate is not None:
        out["drate"] = found[2] * -(rates.double() ** 2) if spec.divide else found[2]
    return {key: t.detach() for key, t in out.items()}


def masked(t, mask):
    """t with zeros outside of the mask, in place or with the same strides."""
    if t is None or t.stride(0) == 0:
        return t if t is None else (t[:1] * mask).expand_as(t)
    return t.mul_(mask)


def check(shim, spec, x, *, v0=None, rate=None, ds=None, dv=None, **how):
    """Spikes, states and borders exactly; gradients against float64 where its spikes agree."""
    same = expected(spec, x, v0=v0, rate=rate, ds=ds, dv=dv, **how)
    exact = expected(spec, x, v0=v0, rate=rate, ds=ds, dv=dv, dtype=torch.float64, **how)
    # A neuron that float64 lets fire otherwise, or finds on the other side of a jump of g: its
    # gradients are another function's.
    agree = ((same["s"].double() == exact["s"]) & ((same["g"] - exact["g"]).abs() < 1e-3)).all(0)
    assert agree.float().mean() > 0.9 or agree.numel() < 20
    ds, dv = masked(ds, agree), masked(dv, agree)
    ours = run(spec, x, v0=v0, rate=rate, ds=ds, dv=dv, **how)
    torch.testing.assert_close(ours["s"], same["s"], rtol=0, atol=0)
    torch.testing.assert_close(ours["v"], same["v"], rtol=0, atol=0)
    if ours["borders"] is not None:
        torch.testing.assert_close(ours["borders"], same["states"][8:-1:8], rtol=0, atol=0)

    single = same
    if x.dtype != torch.float32 or not agree.all():
        single = expected(spec, x, v0=v0, rate=rate, ds=ds, dv=dv, dtype=torch.float32, **how)
    if not agree.all():
        exact = expected(spec, x, v0=v0, rate=rate, ds=ds, dv=dv, dtype=torch.float64, **how)
    for key in ("dx", "dv0") + (("drate",) if rate is not None else ()):
        want = exact[key] if key == "drate" else exact[key] * agree
        assert_gradient(key, ours[key], want, single[key])
    return ours


def assert_gradient(key, ours, want, single):
    """At most twice PyTorch's own error in fp32, and two roundings of a dtype with fewer bits."""
    error, own = (ours.double() - want).abs(), (single.double() - want).abs().max().item()
    # Where PyTorch happens to be exact (one step, one neuron): four roundings of fp32.
    bound = 2 * own + 4 * 2.0**-24 * max(1.0, want.abs().max().item())
    if ours.dtype != torch.float32:
        bound = bound + 2 * DTYPES[ours.dtype] * want.abs()
    assert (error <= bound).all(), f"{key}: {error.max().item():.3g}, PyTorch {own:.3g}"


def inputs(steps, n, dtype, seed, every=False):
    """x [T, N] around the threshold, v0, ds and dv."""
    torch.manual_seed(seed)
    x = (torch.randn(steps, n) * 1.5 + 0.8).to(dtype)
    dv = torch.randn(steps, n) if every else torch.randn(n)
    return x, torch.randn(n) * 0.5, torch.randn(steps, n).to(dtype), dv


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 9, 20])
def test_shapes(shim, steps, dtype):
    """Every T about the buckets and segments, N that vectors divide and N that they do not."""
    for n in (1, 7, 1023, 4096):
        for seed in range(3):
            every = bool(seed % 2)
            x, v0, ds, dv = inputs(steps, n, dtype, seed, every)
            spec = spec_of(
                steps,
                charge=(DECAY_INPUT, DECAY_STATE, DECAY_INPUT)[seed],
                tau=(2.0, 1.7, math.inf)[seed],
                hard=seed != 1,
                detach=seed == 2,
                name=NAMES[(steps + n + seed) % len(NAMES)],
            )
            check(shim, spec, x, v0=v0 if seed else None, ds=ds, dv=dv, every=every)
            assert shim.last.choices[1] == (n == 4096)


@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("tau", [1.1, 1.7, 2.0, 5.0, math.inf])
@pytest.mark.parametrize("charge", [DECAY_INPUT, DECAY_STATE], ids=["input", "state"])
def test_neurons(shim, charge, tau, hard, detach):
    for n in (4096, 1023):
        x, v0, ds, dv = inputs(20, n, torch.float32, n)
        how = {"tau": tau, "hard": hard, "detach": detach, "theta": 0.9, "reset": -0.2}
        check(shim, spec_of(20, charge=charge, **how), x, v0=v0, ds=ds, dv=dv)


@pytest.mark.parametrize("name", NAMES)
def test_surrogates(shim, name):
    for steps, n in ((4, 4096), (9, 512), (3, 77)):
        for hard in (True, False):
            x, v0, ds, dv = inputs(steps, n, torch.float32, n)
            check(shim, spec_of(steps, hard=hard, name=name), x, v0=v0, ds=ds, dv=dv)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long(shim, dtype):
    x, v0, ds, dv = inputs(1000, 16, dtype, 5)
    check(shim, spec_of(1000, tau=1.7, name="atan"), x, v0=v0, ds=ds, dv=dv)
    check(shim, spec_of(1000, tau=1.7, name="atan", hard=False), x, ds=ds)


@pytest.mark.parametrize("divide", [True, False], ids=["tau", "inv_tau"])
@pytest.mark.parametrize("channels,inner", [(1, 1), (16, 32), (16, 1), (7, 5), (3, 4)])
def test_rates(shim, channels, inner, divide):
    """A learnable rate, one for all or one a channel; contiguous (inner > 1), channels-last."""
    for steps, dtype in ((3, torch.float32), (8, torch.bfloat16), (20, torch.float32)):
        for charge in (DECAY_INPUT, DECAY_STATE):
            n = 4 * channels * inner * (8 if channels == 1 else 1)
            x, v0, ds, dv = inputs(steps, n, dtype, steps)
            tau = 1.1 + 3 * torch.rand(channels)
            rate = (tau if divide else 1 / tau).reshape(channels if channels > 1 else ())
            spec = spec_of(steps, charge=charge, divide=divide, channels=channels, inner=inner)
            shaped = [t.view(*t.shape[:-1], 4, -1, inner) for t in (x, ds)]
            if channels == 1:
                check(shim, spec, x, v0=v0, rate=rate, ds=ds, dv=dv)
                continue
            states = [t.view(4, channels, inner) for t in (v0, dv)]
            check(shim, spec, shaped[0], v0=states[0], rate=rate, ds=shaped[1], dv=states[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_static_input(shim, steps, dtype):
    """Time stride 0: dx summed over time in one rounding, or kept for every step."""
    for n in (1024, 77):
        x, v0, ds, dv = inputs(steps, n, dtype, 3)
        x = x[:1].expand(steps, n)
        check(shim, spec_of(steps), x, v0=v0, ds=ds, dv=dv, sum_dx=True)
        check(shim, spec_of(steps), x, v0=v0, ds=ds, dv=dv)


def test_strides_and_alignment(shim):
    """Time strides of x and ds of their own; what is not aligned goes element by element."""
    steps, n = 12, 1024
    x, _, ds, _ = inputs(steps, 2 * n, torch.bfloat16, 4)
    plain = check(shim, spec_of(steps), x[:, :n].contiguous(), ds=ds[:, n:].contiguous())
    for x_at, ds_at, vector in ((0, n, True), (3, n, False), (0, n - 3, False), (8, n - 8, True)):
        again = check(shim, spec_of(steps), x[:, x_at : x_at + n], ds=ds[:, ds_at : ds_at + n])
        assert shim.last.choices[1] == vector
        if (x_at, ds_at) == (0, n):
            torch.testing.assert_close(again["dx"], plain["dx"], rtol=0, atol=0)
    check(shim, spec_of(6), x[::2, :n], ds=ds[:1, :n].expand(6, n))
    assert shim.last.choices[1]


def test_without_spike_gradient(shim):
    """ds None is zeros: only the state's gradient flows."""
    for every in (False, True):
        x, v0, _, dv = inputs(9, 512, torch.float32, 8, every)
        check(shim, spec_of(9), x, v0=v0, dv=dv, every=every)


def test_inference_writes_nothing_else(shim):
    """No v, no borders: the spikes are the same."""
    x, v0, _, _ = inputs(20, 512, torch.float32, 8)
    spec = spec_of(20)
    s = nan(20, 512)
    cuda.lif_forward(spec, x, v0, None, s, None, None)
    torch.testing.assert_close(s, expected(spec, x, v0=v0)["s"], rtol=0, atol=0)


def test_not_finite(shim):
    """NaN and Inf in x go where the reference lets them go."""
    for charge in (DECAY_INPUT, DECAY_STATE):
        for hard in (True, False):
            x, _, ds, _ = inputs(6, 512, torch.float32, 8)
            x[1, ::3], x[2, 1::3], x[3, 2::5] = math.nan, math.inf, -math.inf
            spec = spec_of(6, charge=charge, hard=hard, tau=1.7)
            want, ours = expected(spec, x, ds=ds), run(spec, x, ds=ds)
            torch.testing.assert_close(ours["s"], want["s"], rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(ours["v"], want["v"], rtol=0, atol=0, equal_nan=True)


def test_same_bits_again(shim):
    """drate is a fixed sequence of additions."""
    x, v0, ds, dv = inputs(20, 4096, torch.float32, 8)
    rate = torch.tensor(2.3)
    first, again = (run(spec_of(20), x, v0=v0, rate=rate, ds=ds, dv=dv) for _ in range(2))
    assert torch.equal(first["drate"], again["drate"])


def test_a_failed_launch_raises(shim):
    """The status becomes an error with its text."""
    x, v0, _, _ = inputs(4, 64, torch.float32, 8)
    shim.allows = False
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: an illegal memory"):
        cuda.lif_forward(spec_of(4), x, v0, None, nan(4, 64), None, None)


def test_compiled_at_first_use(shim, monkeypatch):
    """Without snnfast._cuda: one kernel a configuration by NVRTC, and the same results."""

    built = _cuda_host.without_module(shim, monkeypatch)
    for steps, n in ((4, 256), (4, 512), (3, 8), (20, 77)):
        x, v0, ds, dv = inputs(steps, n, torch.bfloat16, n)
        check(shim, spec_of(steps), x, v0=v0, ds=ds, dv=dv)
    assert len(built) == 4  # T = 3 and 4 share kernels, whatever N is
    nvrtc.driver().context = 0  # another thread
    check(shim, spec_of(20), x, v0=v0, ds=ds, dv=dv)
    shim.allows = False
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: an illegal memory"):
        run(spec_of(20), x, v0=v0, ds=ds, dv=dv)


def test_structs(shim):
    """The packed structs are those of csrc/cuda/*_args.h: each has the size of its namesake."""
    mirrored = {
        name: kind
        for op in (cuda, norm_lif, distill, spikes)
        for name, kind in vars(op).items()
        if name in shim.SIZES
    }
    assert {name: launch.layout(kind).size for name, kind in mirrored.items()} == shim.SIZES


def test_fields_are_those_of_the_headers():
    """By name and in order."""
    text = "".join(header.read_text() for header in _cuda_host.CUDA.glob("*_args.h"))
    text = re.sub(r"//.*", "", text)
    for op in (cuda, norm_lif, distill, spikes):
        for name, kind in vars(op).items():
            body = re.search(rf"struct {name} {{(.*?)}};", text, re.S)
            if body and hasattr(kind, "_fields"):
                lists = re.findall(r"[\w:]+\*? ((?:\w+(?:\[\d\])?,? ?)+);", body[1])
                fields = [field for each in lists for field in each.split(", ")]
                named = [re.sub(r"_\d$", "", field) for field in kind._fields]
                assert [f.split("[")[0] for f in fields] == list(dict.fromkeys(named)), name


def test_device_and_stream(shim):
    """A launch happens on its device and stream, and no other device is waken up."""
    shim.library.shim_contexts()
    x, _, _, _ = inputs(4, 64, torch.float32, 8)
    cuda.lif_forward(spec_of(4), x, None, None, nan(4, 64), None, None)
    assert (shim.last.device, shim.last.stream) == (shim.DEVICE, shim.STREAM)
    assert shim.library.shim_contexts() == 1 << shim.DEVICE
    shim.DEVICE = 9
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: invalid device ordinal"):
        cuda.lif_forward(spec_of(4), x, None, None, nan(4, 64), None, None)


def test_only_addresses_are_new(shim):
    """What a launch has besides them is worked out once for a layer."""
    cuda._plan.cache_clear()
    for turn in range(3):
        x, v0, ds, _ = inputs(4, 64, torch.float32, turn)
        run(spec_of(4), x, v0=v0, ds=ds)
    assert cuda._plan.cache_info()[:2] == (4, 2) and len(shim.launches) == 6


def test_another_device_is_put_back_by_torch(monkeypatch):
    """Nothing where the device is current: torch alone knows which others have a context."""
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda index: ("torch.cuda.device", index))
    assert launch.on(0) == ("torch.cuda.device", 0)
    with launch.on(1) as nothing:
        assert nothing is None


CHOICES = {
    "stepwise_rows": (0, True, 32, 1024),
    "tssd_rows": (2, False, 32, 64),
    "scale_gradient": (3,),
    "pack_spikes": (4,),
    "unpack_spikes": (2,),
} | dict.fromkeys(("norm_prepare", "norm_finish", "finish_loss"), ())


def modules():
    """snnfast._cuda on the host, and the one that nvcc made where there is one."""
    found = [pytest.param(lambda: _cuda_host.module()[0], id="host")]
    return found + [pytest.param(launch.ahead_of_time, id="nvcc")] * (launch.not_built() is None)


@pytest.mark.parametrize("module", modules())
def test_structs_of_zeros_get_a_status(module):
    """From each function of the bindings, wherever it runs: nothing to do is refused."""
    module = module()
    for name, kinds in _cuda_host.STRUCTS.items():
        zeros = (bytes(module.SIZES[kind.__name__]) for kind in kinds)
        status = getattr(module, name)(*CHOICES.get(name, (3, True)), 0, 0, *zeros)
        assert status and module.error_string(status), name
    names = set(dir(module)) - {"probe", "error_string", "SIZES"}
    assert {name for name in names if not name.startswith("_")} == set(_cuda_host.STRUCTS)
    assert isinstance(module.probe(0), int)


def test_the_module_refuses(shim):
    """Structs of another size, and what is no dtype of a GPU."""
    for choices, structs, message in (
        ((0, True), (bytes(3), bytes(36)), "expected 104 bytes of arguments, got 3"),
        ((1, True), (bytes(104), bytes(36)), "no such dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            shim.module.lif_forward(*choices, 0, 0, *structs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding(library, dtype):
    """The host's stand-ins for the conversion instructions: to nearest even, subnormals, NaN."""
    torch.manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (1_000_000,)).to(torch.int32).view(torch.float32)
    ties = torch.arange(2**16).to(torch.int16).view(dtype).float()
    x = torch.cat([x, ties, (ties[:-1] + ties[1:]) / 2, torch.randn(100_000) * 1e-6])
    ours = x.clone()
    at, count = ctypes.c_void_p(ours.data_ptr()), ctypes.c_int64(len(ours))
    library.shim_round(DTYPES_OF[dtype], at, count)
    torch.testing.assert_close(ours, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("tau_max", [1.001, 2.0, 100.0])
def test_exact_quotient(shim, tau_max):
    """The multiply and two FMAs give IEEE division's quotient of all from 2^-102 on, tau from
    1.0000001; below it is next to it."""
    assert shim.library.shim_wrong_quotients(10_000_000, 88172645463325252, tau_max) == 0
    small = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 2.0**-104
    for d in torch.cat([small, small * 2.0**-16, small * 2.0**-40]):
        ours = torch.tensor(shim.library.shim_quotient(d.item(), tau_max))
        exact = d / torch.tensor(tau_max)
        assert ours in (exact, *(torch.nextafter(exact, to) for to in torch.tensor([-1.0, 1.0])))


def test_exact_quotient_of_infinities(shim):
    for d in (math.inf, -math.inf):
        assert shim.library.shim_quotient(d, 1.7) == d
    assert math.isnan(shim.library.shim_quotient(math.nan, 1.7))
    assert shim.library.shim_quotient(3.0, math.inf) == 0
