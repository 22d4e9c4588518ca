"""What ``snnfast.lif`` must do on every backend: spikes and states equal the specification's, bit
for bit, and gradients come as near to float64 as float32 lets them (tests/bounds.py)."""

import itertools
import math

import pytest
import torch
from backends import CPU, HALF, INTERPRETED, KERNELS, REFERENCE, named
from lif_cases import (
    CHARGES,
    LAYOUTS,
    RESETS,
    SURROGATES,
    TAUS,
    assert_same,
    check,
    grads,
    specification,
)

import snnfast
from snnfast import reference

kernels = pytest.mark.backends(*KERNELS)
DTYPES = (torch.float32, *HALF, torch.float64)
# T about the segments of 8 steps and the unrolled powers of two, N that fill no vector.
UGLY = [(1, (1,)), (1, (1, 11, 31)), (2, (7,)), (3, (31,)), (3, (3, 11, 31)), (4, (2, 3, 5, 7)),
        (7, (1023,)), (8, (1, 7, 1)), (8, (1024,)), (9, (1025,)), (17, (3, 341)),
        (20, (1,)), (20, (2, 1500)), (100, (33,))]  # fmt: skip
IMAGE, ODD = (2, 3, 5, 7), (3, 11, 31)


def table():
    """Arguments of ``check``; the surrogate is ATan where none is named."""
    options = itertools.cycle(
        itertools.product(
            (2.0, 1.7), (0.0, None, -0.25), (True, False), (False, True), (False, True, "all")
        )
    )
    dtypes = itertools.cycle(("float32", "float16", "bfloat16"))
    for steps, shape in itertools.product((1, 2, 3, 4, 7, 8, 9, 20), ((1, 1, 1), (1, 7, 1), ODD)):
        for dtype in [next(dtypes) for _ in range(3 if shape == ODD else 1)]:
            tau, v_reset, decay_input, detach_reset, state = next(options)
            yield dict(T=steps, shape=shape, dtype=dtype, tau=tau, v_reset=v_reset, state=state,
                       decay_input=decay_input, detach_reset=detach_reset,
                       v0=bool(state))  # fmt: skip
    for tau, v_reset, decay_input, detach_reset in itertools.product(
        TAUS, (0.0, None, 0.2), (True, False), (True, False)
    ):
        yield dict(tau=tau, v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset,
                   state="all")  # fmt: skip
    for v_reset, v_threshold in itertools.product((-0.2, None), (0.9, 0.0, -0.3)):
        yield dict(T=20, v_reset=v_reset, v_threshold=v_threshold, state="all", v0=True)
    for surrogate, v_reset in itertools.product(SURROGATES, (0.0, None)):
        yield dict(surrogate=surrogate, v_reset=v_reset, shape=ODD)
        yield dict(T=6, shape=(40,), values="infinite", surrogate=surrogate, v_reset=v_reset,
                   state="all")  # fmt: skip
    for surrogate in ("rect", "leaky_k_relu", "piecewise_leaky_relu"):
        yield dict(values="on the threshold", surrogate=surrogate, shape=ODD)
    for v_reset, tau in itertools.product((0.0, None), (2.0, 1.7)):
        yield dict(values="infinite", v_reset=v_reset, tau=tau, state="all")
    yield dict(surrogate=snnfast.surrogate.S2NN(alpha=2.0, beta=0.5))
    yield dict(surrogate=snnfast.surrogate.LeakyKReLU(leak=0.1, k=0.7))
    for rate, channels, decay_input in itertools.product(
        ("tau", "inv_tau"), (False, True), (True, False)
    ):
        common = dict(rate=rate, channels=channels, decay_input=decay_input)
        for steps in (4, 7):
            yield dict(T=steps, shape=ODD, **common)
        yield dict(T=20, shape=(1, 11, 31), v0=True, **common)
        for dtype, layout in itertools.product(
            ("float32", "float64"), ("contiguous", "channels_last")
        ):
            yield dict(T=10, shape=(3, 5, 4, 7), layout=layout, dtype=dtype, v0=True, state="all",
                       **common)  # fmt: skip
    last = dict(channels=True, layout="channels_last", shape=(3, 11, 31, 2))
    yield dict(rate="tau", dtype="bfloat16", **last)
    yield dict(rate="inv_tau", v_reset=None, T=9, **last)
    for steps, dtype in itertools.product((1, 3, 8, 9, 20), ("float32", "bfloat16")):
        yield dict(layout="static", T=steps, dtype=dtype)
        yield dict(layout="expanded", T=steps, dtype=dtype)
    yield dict(layout="static", T=9, rate="inv_tau", state="all", v0=True)
    yield dict(layout="padded", T=9)
    for steps, state in itertools.product((3, 9), (True, "all")):
        yield dict(T=steps, state=state, spikes_used=False, v0=True)

    default = dict(surrogate="sigmoid")
    for layout in LAYOUTS:
        yield dict(T=9, shape=IMAGE, layout=layout, rate="tau", channels=True, v0=True,
                   state="all", **default)  # fmt: skip
    for steps, dtype in itertools.product((1, 4, 20), ("float32", "bfloat16")):
        yield dict(layout="static", T=steps, dtype=dtype, shape=(3, 5, 11), **default)
        yield dict(layout="expanded", T=steps, dtype=dtype, shape=(3, 5, 11), **default)
    yield dict(layout="static", T=12, shape=(3, 1001), **default)
    for state, spikes_used in ((False, True), *itertools.product((True, "all"), (True, False))):
        yield dict(T=10, shape=(33,), v0=True, state=state, spikes_used=spikes_used, **default)
    yield dict(T=12, shape=(), **default)


@pytest.mark.parametrize("arguments", [{"surrogate": "atan"} | a for a in table()], ids=named)
def test_equals_the_specification(backend, arguments):
    backend.skip_unless(getattr(torch, arguments.get("dtype", "float32")))
    check(backend, **arguments)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "shape"), UGLY, ids=str)
def test_spikes_and_states(backend, steps, shape, dtype):
    backend.skip_unless(dtype)
    for layer in backend.some(CHARGES, UGLY.index((steps, shape)) * 7 + DTYPES.index(dtype)):
        x = (torch.randn(steps, *shape) * 1.5).to(dtype)
        state = {"return_state": "all", "backend": backend.name}
        ours = snnfast.lif(x.to(backend.device), **layer, **state)
        for a, b in zip(ours, specification(x, **layer)):
            assert_same(a, b)


NEURONS = [
    {"v_reset": v_reset, "detach_reset": detach, "tau": tau, "decay_input": decay_input}
    for v_reset, detach, (decay_input, tau) in itertools.product(
        RESETS, (True, False), ((True, 1.7), (False, 2.0), (True, math.inf))
    )
]


@kernels
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_gradients_in_float32(backend, steps, surrogate):
    count = 203 if backend.slow else 2003
    for layer in backend.some(NEURONS, SURROGATES.index(surrogate) + steps):
        check(backend, T=steps, shape=(count,), seed=3, surrogate=surrogate, state=True, **layer)


@kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_in_half_precision(backend, surrogate, dtype):
    sizes = [*itertools.product((3, 10), (50,), RESETS), (10, 4001, 0.0)]
    for steps, count, v_reset in backend.some(sizes, SURROGATES.index(surrogate)):
        check(backend, T=steps, shape=(count,), v_reset=v_reset, surrogate=surrogate, dtype=dtype)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates_alone(backend, surrogate):
    """One step of IF from rest, where H is X."""
    h = torch.cat(
        [torch.linspace(-6, 6, 601 if backend.slow else 9001), torch.tensor([1e30, -1e30])]
    )
    (g,) = grads(
        lambda x: snnfast.lif(x, tau=math.inf, surrogate=surrogate, backend=backend.name),
        [(h + 1).to(backend.device)[None]],
        [torch.ones(1, len(h), device=backend.device)],
    )
    expected = snnfast.surrogate.resolve(surrogate).gradient((h + 1 - 1).double())
    torch.testing.assert_close(g[0].cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_split_sequence_gives_the_same_spikes(backend):
    x = torch.randn(23, 40, device=backend.device)
    layer = {"tau": 1.7, "return_state": True, "backend": backend.name}
    whole, v_end = snnfast.lif(x, **layer)
    parts, v = [], None
    for part in x.split([1, 8, 9, 5]):
        s, v = snnfast.lif(part, v, **layer)
        parts.append(s)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(v, v_end)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (0, 2, 3, 4), (4, 2, 0, 3)], ids=str)
@pytest.mark.parametrize("state", [False, True, "all"])
def test_empty_input(backend, shape, state):
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    v0 = torch.randn(shape[1:], device=backend.device, requires_grad=True)
    out = snnfast.lif(x, v0, return_state=state, backend=backend.name)
    s, v = out if state else (out, None)
    assert s.shape == x.shape
    if state is True:
        assert torch.equal(v, v0) if shape[0] == 0 else v.shape == v0.shape
    if state == "all":
        assert v.shape == x.shape
    total = s.sum() + (v.sum() if v is not None else 0)
    if total.requires_grad:
        dx, dv0 = torch.autograd.grad(total, (x, v0), allow_unused=True)
        assert dx is None or dx.shape == x.shape
        if state is True and shape[0] == 0:
            assert torch.equal(dv0, torch.ones_like(v0))


@pytest.mark.backends(REFERENCE, *CPU)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradcheck_of_the_smooth_twin(backend, surrogate):
    smooth = type(snnfast.surrogate.resolve(surrogate))(spiking=False)
    x = torch.randn(12, 50, dtype=torch.float64)
    s = snnfast.lif(x, surrogate=smooth, backend=backend.name)
    expected = specification(x, surrogate=smooth)[0]
    torch.testing.assert_close(s, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    for v_reset, decay_input in itertools.product((0.1, None), (True, False)):
        layer = {"v_reset": v_reset, "decay_input": decay_input, "surrogate": smooth}
        x, v0 = torch.randn(3, 2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        tau = torch.tensor([1.5, 2.0, 3.3], dtype=torch.float64)

        def run(x, v0, tau, layer=layer):
            return snnfast.lif(x, v0, tau=tau, **layer, return_state="all", backend=backend.name)

        torch.testing.assert_close(run(x, v0, tau), specification(x, v0, tau=tau, **layer))
        torch.autograd.gradcheck(run, [t.requires_grad_() for t in (x, v0, tau)])


@pytest.mark.parametrize("dtype", (torch.float32, *HALF))
@pytest.mark.parametrize(
    "layer",
    (
        {"surrogate": "sigmoid", "tau": 3.0},
        {"surrogate": "sigmoid", "v_reset": None, "decay_input": False},
        {"surrogate": "atan", "v_reset": -0.25, "detach_reset": True},
        {"surrogate": "atan", "tau": math.inf},
        {"surrogate": "superspike", "tau": torch.tensor((1.5, 2.0, 4.0))},
    ),
)
def test_every_instruction_set_of_the_cpu_computes_the_same(layer, dtype):
    """Spikes and states bit for bit, gradients to rounding; with a tile that is full."""
    from snnfast import _C

    x, ds = (torch.randn(9, 2, 3, 11, 31).to(dtype) for _ in range(2))
    x, v0 = x.requires_grad_(), torch.randn(x.shape[1:], requires_grad=True)
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    found = []
    try:
        for name in _C.instruction_sets():
            _C.use_instruction_set(name)
            assert _C.instruction_set() == name
            s, v = snnfast.lif(x, v0, **layer, return_state=True, backend="cpu")
            gradients = torch.autograd.grad((s, v), (x, v0), (ds, torch.ones_like(v)))
            found.append((s.detach(), v.detach(), *gradients))
    finally:
        _C.use_instruction_set(_C.instruction_sets()[-1])
    for s, v, *gradients in found[1:]:
        assert torch.equal(s, found[0][0]) and torch.equal(v, found[0][1])
        for ours, others in zip(gradients, found[0][2:], strict=True):
            torch.testing.assert_close(ours, others, **near)


@kernels
def test_gradients_are_the_same_bits_every_time(backend):
    """Whatever the number of threads."""
    shape = (4, 2, 3, 11, 13) if backend.slow else (4, 2, 3, 41, 43)
    x, ds = (torch.randn(shape, device=backend.device) for _ in range(2))
    tau = 1.5 + torch.rand(3, device=backend.device)
    threads, results = torch.get_num_threads(), []
    for count, rate in itertools.product((1, 2, 5), (tau, tau[0])):
        torch.set_num_threads(count)
        run = lambda x, tau: snnfast.lif(x, tau=tau, backend=backend.name)  # noqa: E731
        results.append(grads(run, (x, rate), (ds,)))
    torch.set_num_threads(threads)
    for i, result in enumerate(results[2:]):
        assert all(map(torch.equal, result, results[i % 2]))


@pytest.mark.backends(*(b for b in KERNELS if b is not INTERPRETED))
def test_no_spike_differs_over_1e8_neuron_steps(backend):
    seen = 0
    for layer in CHARGES if backend.id == "cpu" else CHARGES[::6]:
        x = torch.randn(4, 850_000) * 1.5
        s = snnfast.lif(x.to(backend.device), **layer, backend=backend.name)
        assert torch.equal(s.cpu(), specification(x, **layer)[0]), layer
        seen += s.numel()
    assert seen >= 10**8 or backend.id != "cpu"


@pytest.mark.unpoisoned
@pytest.mark.backends(CPU[0])
def test_more_than_2_to_the_31_elements(backend):
    steps, count = 8, 2**28 + 33
    x = torch.zeros(steps, count, dtype=torch.bfloat16)
    x[:, -40:] = torch.randn(steps, 40) * 2
    x[:, :7] = torch.randn(steps, 7) * 2
    s = snnfast.lif(x, backend=backend.name)
    assert s.numel() > 2**31
    for part in (slice(0, 100), slice(count - 100, count)):
        assert torch.equal(s[:, part], specification(x[:, part])[0])
    assert s[-1, -40:].any()
    assert not s[-1, count - 10**6 : count - 40].any()


@kernels
def test_the_division_is_exact(backend):
    count = 4096 if backend.slow else 2**17
    for tau in (1.0000001, 1.1, 1.7, 3.0, 5.0, 99.9):
        x = torch.randn(1, count) * torch.logspace(-6, 6, count)
        layer = {"tau": tau, "v_threshold": 1e30, "return_state": True}
        _, v = snnfast.lif(x.to(backend.device), **layer, backend=backend.name)
        rest = torch.zeros(count)
        assert torch.equal(v.cpu(), reference.charge(x[0], rest, 0.0, tau, True, True))
