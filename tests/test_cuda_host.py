"""How the CUDA backend launches LIF, seen without a GPU on its module for the host (_cuda_host.py):
a misaligned access, or one outside the tensors, fails. What it computes: ops/test_lif.py.
"""

import ctypes
import itertools
import math
import re

import _cuda_host
import pytest
import torch
from backends import HOST
from lif_cases import TAUS, case, check, forward

import snnfast
from snnfast import surrogate
from snnfast.backends.cuda import distill, launch, norm_lif, nvrtc, spikes
from snnfast.backends.cuda import lif as cuda
from snnfast.backends.layout import DTYPES as DTYPES_OF
from snnfast.ops import select

DTYPES = ("float32", "float16", "bfloat16")
NAMES = list(surrogate.TABLE)


@pytest.fixture(scope="session")
def library():
    return _cuda_host.module()[1]


@pytest.fixture
def shim(monkeypatch):
    monkeypatch.setattr(select, "_refuse", lambda *args: None)
    return _cuda_host.install(monkeypatch)


def calls():
    """Arguments of ``check``: T about the buckets and segments, N that vectors divide and not."""
    for steps, dtype, n, i in itertools.product(
        (1, 2, 3, 4, 7, 8, 9, 20), DTYPES, (1, 7, 1023, 4096), range(3)
    ):
        yield dict(T=steps, shape=(n,), dtype=dtype, seed=30 + i, v0=bool(i),
                   state=(True, "all")[i % 2], tau=(2.0, 1.7, math.inf)[i], decay_input=i != 1,
                   v_reset=(0.0, None, 0.0)[i], detach_reset=i == 2,
                   surrogate=NAMES[(steps + n + i) % len(NAMES)])  # fmt: skip
    state = dict(v0=True, state=True)
    for n, tau, decay_input, v_reset, detach_reset in itertools.product(
        (4096, 1023), TAUS, (True, False), (-0.2, None), (False, True)
    ):
        yield dict(T=20, shape=(n,), tau=tau, decay_input=decay_input, v_reset=v_reset,
                   detach_reset=detach_reset, v_threshold=0.9, **state)  # fmt: skip
    for name, (steps, n), v_reset in itertools.product(
        NAMES, ((4, 4096), (9, 512), (3, 77)), (0.0, None)
    ):
        yield dict(T=steps, shape=(n,), surrogate=name, v_reset=v_reset, **state)
    # Borders are float32 for every dtype: many of them once, a dozen for the others.
    for dtype, steps in zip(DTYPES, (1000, 100, 100), strict=True):
        yield dict(T=steps, shape=(16,), dtype=dtype, tau=1.7, surrogate="atan", **state)
        yield dict(T=steps, shape=(16,), dtype=dtype, tau=1.7, surrogate="atan", v_reset=None)
    for (channels, inner), rate, (steps, dtype), decay_input in itertools.product(
        ((1, 1), (16, 32), (16, 1), (7, 5), (3, 4)), ("tau", "inv_tau"),
        ((3, "float32"), (8, "bfloat16"), (20, "float32")), (True, False),
    ):  # fmt: skip
        shape = (4, channels, inner) if channels > 1 else (32,)
        yield dict(T=steps, shape=shape, dtype=dtype, rate=rate, channels=channels > 1,
                   decay_input=decay_input, **state)  # fmt: skip
    for dtype, steps, n, layout in itertools.product(
        DTYPES, (1, 4, 20), (1024, 77), ("static", "expanded")
    ):
        yield dict(T=steps, shape=(n,), dtype=dtype, layout=layout, **state)
    for each in (True, "all"):
        yield dict(T=9, shape=(512,), v0=True, state=each, spikes_used=False)
    for decay_input, v_reset in itertools.product((True, False), (0.0, None)):
        yield dict(T=6, shape=(512,), values="infinite", tau=1.7, decay_input=decay_input,
                   v_reset=v_reset, state=True)  # fmt: skip


def test_accesses(shim):
    """16 bytes at a time where they divide what there is, and the same results."""
    for arguments in calls():
        check(HOST, **arguments)
        lanes = 16 // getattr(torch, arguments.get("dtype", "float32")).itemsize
        assert shim.last.choices[1] == (math.prod(arguments["shape"]) % lanes == 0), arguments


def test_strides_and_alignment(shim):
    """Time strides of x and ds of their own; what is not aligned goes element by element, to the
    same bits."""
    steps, n = 12, 1024
    wanted, results = case(T=steps, shape=(n,), dtype="bfloat16"), []
    for x_at, ds_at, vector in ((0, n, True), (3, n, False), (0, n - 3, False), (8, n - 8, True)):
        moved = []
        for t, at in ((wanted.inputs["x"], x_at), (wanted.ds, ds_at)):
            moved.append(torch.zeros(steps, 2 * n, dtype=t.dtype)[:, at : at + n].copy_(t))
        ours = forward(snnfast.lif, {"x": moved[0]}, backend="cuda")
        results.append((ours.s, ours.backward(moved[1], None)["x"]))
        assert shim.last.choices[1] == vector
    assert all(all(map(torch.equal, result, results[0])) for result in results)
    x, ds = wanted.inputs["x"].detach()[::2], wanted.ds[:1].expand(6, n)
    results = []
    for each in (x, x.contiguous()):
        ours = forward(snnfast.lif, {"x": each}, backend="cuda")
        results.append(ours.backward(ds if each is x else ds.contiguous(), None)["x"])
        assert shim.last.choices[1]
    assert torch.equal(*results)


def test_inference_writes_nothing_else(shim):
    """No v, no borders: the spikes are the same."""
    wanted = case(T=20, shape=(512,))
    s = snnfast.lif(wanted.inputs["x"].detach(), backend="cuda")
    assert torch.equal(s, wanted.s)
    assert {name for name, moved in shim.last.bytes.items() if moved} == {"x", "s"}


def test_a_failed_launch_raises(shim):
    """The status becomes an error with its text."""
    shim.allows = False
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: an illegal memory"):
        snnfast.lif(torch.randn(4, 64), backend="cuda")


def test_compiled_at_first_use(shim, monkeypatch):
    """Without snnfast._cuda: one kernel a configuration by NVRTC, and the same results."""

    built = _cuda_host.without_module(shim, monkeypatch)
    for steps, n in ((4, 256), (4, 512), (3, 8), (20, 77)):
        check(HOST, T=steps, shape=(n,), dtype="bfloat16", v0=True, state=True)
    assert len(built) == 4  # T = 3 and 4 share kernels, whatever N is
    nvrtc.driver().context = 0  # another thread
    check(HOST, T=20, shape=(77,), dtype="bfloat16", v0=True, state=True)
    shim.allows = False
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: an illegal memory"):
        check(HOST, T=20, shape=(77,), dtype="bfloat16", v0=True, state=True)


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
    snnfast.lif(torch.randn(4, 64), backend="cuda")
    assert (shim.last.device, shim.last.stream) == (shim.DEVICE, shim.STREAM)
    assert shim.library.shim_contexts() == 1 << shim.DEVICE
    shim.DEVICE = 9
    with pytest.raises(RuntimeError, match="lif: the CUDA launch failed: invalid device ordinal"):
        snnfast.lif(torch.randn(4, 64), backend="cuda")


def test_only_addresses_are_new(shim):
    """What a launch has besides them is worked out once for a layer."""
    cuda._plan.cache_clear()
    for turn in range(3):
        check(HOST, shape=(64,), seed=turn)
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
