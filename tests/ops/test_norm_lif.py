"""What ``snnfast.norm_lif`` must do on every backend. With statistics that are given, spikes and
states equal the specification's, bit for bit; with those of the batch, wherever rounding them does
not decide. Gradients come as near to float64 as float32 lets them (tests/bounds.py)."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, GPU, HOST, KERNELS, REFERENCE, named
from lif_cases import assert_same, grads, permuted
from norm_cases import NEURONS, call, case, check, check_statistics, rows, specification

import snnfast
from snnfast import norm_lif, reference
from snnfast.backends.spec import INV_STD

kernels = pytest.mark.backends(*KERNELS)
here = pytest.mark.backends(*CPU, HOST)
"""What computes fast enough without a GPU, and compiles nothing with one."""
quick = pytest.mark.backends(*CPU, HOST, *GPU)
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")
# [B, C, ...]: odd and even rows, several rows a tile and several tiles a row, several tiles of
# channels, one value, one channel, after a linear layer.
SHAPES = [(3, 5, 7, 3), (2, 24, 4, 4), (1, 2, 603), (1, 3, 24, 24), (2, 70, 2), (1, 1, 1),
          (3, 1, 5), (19, 70), (2, 3)]  # fmt: skip
PLAIN = (2, 24, 4, 4)


def layouts(shape):
    """Those that differ."""
    return LAYOUTS[: 1 + (len(shape) > 2)]


def table():
    """Arguments of ``check``, for every backend."""
    options = itertools.cycle(
        itertools.product((None, "scalar", "channel"), (False, True), (0.0, None, -0.2))
    )

    def drawn(steps=4):
        rate, states, v_reset = next(options)
        return dict(T=steps, rate=rate and "tau", channels=rate == "channel", v0=states,
                    state="all", state_used=states, v_reset=v_reset, surrogate="atan")  # fmt: skip

    for shape, layout, residual in itertools.product(SHAPES, LAYOUTS, (False, True)):
        neuron = drawn()
        if layout in layouts(shape):
            yield dict(shape=shape, layout=layout, residual=residual, **neuron,
                       dtype="bfloat16" if residual else "float32")  # fmt: skip
    for steps, last in ((1, 0), (3, 0), (8, 1), (8, 0), (20, 0), (1, 1)):
        yield dict(shape=PLAIN, layout=LAYOUTS[last], residual=bool(last), **drawn(steps),
                   dtype="float16" if last else "float32")  # fmt: skip
    common = dict(shape=PLAIN, state="all", surrogate="atan")
    yield dict(T=9, residual=True, rate="tau", channels=True, v0=True, dtype="bfloat16", **common)
    yield dict(spikes_used=False, v0=True, **common)
    common |= dict(state_used=False)
    for (tau, decay_input), detach_reset in itertools.product(
        ((math.inf, True), (1.7, True), (1.7, False)), (False, True)
    ):
        yield dict(tau=tau, decay_input=decay_input, detach_reset=detach_reset, **common)
    for steps, last in itertools.product((1, 4, 9), (0, 1)):
        yield dict(T=steps, layout=LAYOUTS[last], static=True, dtype=DTYPES[2 * last], **common)
    yield dict(T=9, layout="expanded", **common)
    yield dict(layout="padded", residual=True, **common)
    yield dict(fixed=("y",))
    yield dict(fixed=("weight", "bias"), dtype="bfloat16")
    for affine, tracked in ((False, True), (True, False), (False, False)):
        yield dict(shape=(3, 5, 6), affine=affine, tracked=tracked)
    for layout in LAYOUTS:
        yield dict(T=5, shape=(3, 24, 9, 7), layout=layout, residual=True, tau=1.7)

    shapes = [(4, 3, 5, 7, 3), (4, 16, 24), (9, 2, 10, 4, 4), (3, 1, 1, 33)]
    for (i, shape), last, training in itertools.product(enumerate(shapes), (0, 1), (True, False)):
        if not last or len(shape) > 4:
            yield dict(T=shape[0], shape=shape[1:], layout=LAYOUTS[last], training=training,
                       residual=(i + training) % 2 == 0,
                       **NEURONS[(i + last + training) % 3])  # fmt: skip
    for last, rate, (steps, residual) in itertools.product(
        (0, 1), ("tau", "inv_tau"), ((4, True), (9, False))
    ):
        yield dict(T=steps, shape=(2, 6, 5, 3), layout=LAYOUTS[last], residual=residual,
                   training=not last, v0=True, state=True, rate=rate, channels=True)  # fmt: skip
    for dtype, residual in itertools.product(DTYPES[1:], (False, True)):
        yield dict(dtype=dtype, residual=residual, layout=LAYOUTS[residual], training=True)
    yield dict(residual=True, fixed=("residual",), training=True, dtype="bfloat16")
    for training in (True, False):
        yield dict(T=5, shape=(3, 6, 5, 4), static=True, training=training)


def doubles():
    """Arguments of ``check`` in float64."""
    shapes = [(4, 3, 5, 7, 3), (2, 8, 16), (9, 2, 40, 4, 4), (1, 3, 3, 1, 2), (3, 1, 1, 33),
              (5, 2, 700, 3)]  # fmt: skip
    for shape, residual, training, neuron in itertools.product(
        shapes, (False, True), (True, False), NEURONS[:4]
    ):
        for layout in layouts(shape[1:]):
            yield dict(T=shape[0], shape=shape[1:], layout=layout, residual=residual,
                       training=training, **neuron)  # fmt: skip
    for rate, channels in (("tau", True), ("inv_tau", True), ("tau", False)):
        yield dict(T=10, shape=(3, 6, 5, 2), residual=True, training=True, rate=rate, v0=True,
                   channels=channels, state="all", surrogate="atan")  # fmt: skip
    for training in (True, False):
        yield dict(T=5, shape=(3, 6, 5, 4), static=True, training=training)


def more():
    """Arguments of ``check``: every dtype and neuron with every shape."""
    for training, residual in itertools.product((True, False), (False, True)):
        yield dict(shape=(8, 16, 12, 12), training=training, residual=residual)
    for dtype, residual in itertools.product(DTYPES[1:], (False, True)):
        yield dict(shape=(3, 8, 6, 5), training=True, residual=residual, dtype=dtype)
    for inner in (1, 3, 8, 16, 31, 600):
        yield dict(T=9, shape=(5, 7, inner), training=True, surrogate="fast_sigmoid")
    for layout in LAYOUTS:
        yield dict(T=5, shape=(6, 24, 9, 7), layout=layout, residual=True)
    yield dict(T=3, shape=(40, 64), residual=True, tau=1.7)
    for layout, residual, training in itertools.product(LAYOUTS, (False, True), (True, False)):
        yield dict(shape=(3, 6, 5, 4), layout=layout, residual=residual, training=training,
                   rate="tau", channels=True)  # fmt: skip

    # Of channels in planes and side by side, in whole vectors and not.
    state = dict(v0=True, state=True)
    shapes = [(2, 3, 5), (3, 16, 49), (2, 5, 64), (1, 3, 1024), (70, 16, 1), (4, 700, 1),
              (304, 3, 1), (2, 1500, 1), (64, 1, 9)]  # fmt: skip
    for shape, dtype, (i, steps) in itertools.product(shapes, DTYPES, enumerate((1, 4, 5, 8, 9))):
        neuron = state | {"state": "all"} if i == 1 else state
        yield dict(T=steps, shape=shape, dtype=dtype, residual=i % 2 == 0, seed=i, **neuron,
                   **NEURONS[4 + (i + 3) % 6])  # fmt: skip
    for neuron, shape, residual, whole in itertools.product(
        NEURONS[4:], ((2, 16, 32), (7, 3, 5)), (False, True), (True, False)
    ):
        yield dict(T=20, shape=shape, residual=residual, v0=whole, state=True, spikes_used=whole,
                   **neuron)  # fmt: skip
    for rate, shape, (steps, dtype), decay_input, channels in itertools.product(
        ("tau", "inv_tau"), ((4, 16, 32), (32, 16, 1), (4, 7, 5)),
        ((3, "float32"), (8, "bfloat16"), (20, "float32")), (True, False), (False, True),
    ):  # fmt: skip
        yield dict(T=steps, shape=shape, dtype=dtype, residual=steps != 3, rate=rate, **state,
                   channels=channels, decay_input=decay_input)  # fmt: skip
    for dtype, steps, shape in itertools.product(DTYPES, (1, 4, 20), ((2, 16, 32), (3, 5, 7))):
        yield dict(T=steps, shape=shape, dtype=dtype, static=True, **state)
        yield dict(T=steps, shape=shape, dtype=dtype, layout="expanded", **state)
    for dtype, steps, shape in itertools.product(
        DTYPES, (4, 9), ((2, 16, 32), (3, 16, 49), (64, 16, 1), (3, 5, 7))
    ):
        yield dict(T=steps, shape=shape, dtype=dtype, training=True, **state)
    for shape in ((2, 16, 32), (3, 5, 7), (16, 16, 1)):
        yield dict(shape=shape, dtype="bfloat16", static=True, training=True, **state)


@pytest.mark.parametrize("arguments", [*table()], ids=named)
def test_equals_the_specification(backend, arguments):
    check(backend, **arguments)


@here
@pytest.mark.parametrize("arguments", [*more()], ids=named)
def test_equals_the_specification_everywhere(backend, arguments):
    check(backend, **arguments)


# [T, B, C, ...] of networks: planes that 16 bytes divide and that they do not.
LAYERS = [(4, 8, 64, 32, 32), (4, 32, 512, 4, 4), (8, 4, 40, 14, 14), (9, 2, 700, 7, 7),
          (4, 2, 3, 56, 56), (20, 3, 24, 8, 8), (1, 300, 70), (6, 64, 512)]  # fmt: skip


@pytest.mark.backends(CPU[0], *GPU)
@pytest.mark.parametrize(
    ("index", "shape", "layout"),
    [(i, shape, layout) for i, shape in enumerate(LAYERS) for layout in layouts(shape[1:])],
    ids=str,
)
def test_layers_of_networks(backend, index, shape, layout):
    """In every dtype on a GPU; every other one with a residual, two in three in training."""
    index = 2 * index + LAYOUTS.index(layout)
    for i, dtype in enumerate(DTYPES if backend in GPU else DTYPES[index % 3 :][:1]):
        check(backend, T=shape[0], shape=shape[1:], layout=layout, dtype=dtype, state="all",
              residual=(index + i) % 4 < 2, training=index % 3 > 0,
              **NEURONS[(index + i) % 4])  # fmt: skip
        check_statistics(backend, shape[0], shape[1:], layout, 0.0, 300.0 * i, dtype)


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("arguments", [*doubles()], ids=named)
def test_equals_the_specification_in_float64(backend, arguments):
    check(backend, dtype="float64", **arguments)


def statistics():
    """T, shape, layout, offset, outlier and dtype, for every backend."""
    data = itertools.cycle(((1e4, 0.0), (-0.7, 0.0), (0.0, 300.0)))
    for shape, layout in itertools.product(SHAPES, LAYOUTS):
        if layout in layouts(shape):
            yield 3 + LAYOUTS.index(layout), shape, layout, *next(data), "float32"
    for steps, layout in itertools.product((1, 9), LAYOUTS):
        yield steps, (3, 5, 7, 3), layout, 1e4, 0.0, "float32"
    yield 4, (3, 24, 4, 4), "contiguous", 0.0, 300.0, "float32"
    yield 2, (50, 3, 5), "channels_last", 0.0, 0.0, "float32"
    yield 2, (70, 3), "contiguous", 0.0, 0.0, "bfloat16"
    yield 4, (3, 6, 5, 5), "channels_last", 1e4, 0.0, "float32"
    yield 3, (30, 10), "contiguous", 1e4, 0.0, "float32"
    yield 2, (3, 5, 300), "channels_last", 0.0, 0.0, "float32"


def more_statistics():
    for shape, dtype in itertools.product(
        ((6, 16, 81), (400, 24, 1), (3, 1500, 1), (2, 3, 1000), (5, 1, 7), (16, 64, 64),
         (300, 3, 1)), DTYPES,
    ):  # fmt: skip
        for steps, offset, outlier in (
            (4, 0.0, 0.0),
            (9, 1e4, 0.0),
            (3, 0.0, 300.0),
            (1, -7.0, 3e3),
        ):
            yield steps, shape, "contiguous", offset, outlier, dtype
    for dtype in DTYPES[1:]:  # rounded in one direction where what is subtracted has more bits
        yield 4, (2, 3, 56, 56), "contiguous", 0.0, 0.0, dtype
    for shape, offset in itertools.product(((4, 16, 6, 9, 9), (3, 400, 10), (2, 3, 5, 1000)),
                                           (0.0, 1e4)):  # fmt: skip
        for layout in layouts(shape[1:]):
            yield shape[0], shape[1:], layout, offset, 0.0, "float32"


@pytest.mark.parametrize("of", [*statistics()], ids=str)
def test_statistics(backend, of):
    check_statistics(backend, *of)


@here
@pytest.mark.parametrize("of", [*more_statistics()], ids=str)
def test_statistics_everywhere(backend, of):
    check_statistics(backend, *of)


def layer(backend, channels=5, **changed):
    torch.manual_seed(0)
    given = rows(channels, torch.Generator().manual_seed(0), torch.float32)
    return {n: t.to(backend.device) for n, t in given.items()} | {"backend": backend.name} | changed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_of_one_value_and_one_of_none(backend, layout):
    """The first fires as its bias says; NaN stays in its channel."""
    arguments = layer(backend, momentum=1.0)
    y = torch.randn(4, 3, 5, 6, 6)
    y[:, :, 2], y[2, 1, 1, 0, 0] = 1e4 + 0.1, math.nan
    y = (permuted(y, [0, 1, 3, 4, 2]) if layout == "channels_last" else y).to(backend.device)
    s = norm_lif(y.requires_grad_(), training=True, **arguments)
    fires = snnfast.lif(arguments["bias"][2].expand(4, 1), backend=backend.name)
    assert torch.equal(s[:, :, 2], fires.view(4, 1, 1, 1).expand_as(s[:, :, 2]))
    (dy,) = torch.autograd.grad(s, y, torch.randn_like(s))
    for found in (arguments["running_mean"], arguments["running_var"], dy.sum((0, 1, 3, 4))):
        assert found.cpu().isnan().nonzero().tolist() == [[1]]
    torch.testing.assert_close(arguments["running_mean"][2].item(), 1e4 + 0.1, rtol=1e-7, atol=0)
    assert 0 <= arguments["running_var"][2] <= 1e-5


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_behind_an_atypical_start(backend, layout):
    """Whatever the first values of a channel are, which sums may be taken around."""
    arguments = layer(backend, momentum=1.0)
    y = torch.randn(4, 2, 5, 64, 64)
    y[0, 0, :, 0, :16] += 100
    y = (permuted(y, [0, 1, 3, 4, 2]) if layout == "channels_last" else y).to(backend.device)
    norm_lif(y, training=True, **arguments)
    exact = y.double().transpose(1, 2).transpose(0, 1).flatten(1)
    found = [arguments[name].double() for name in ("running_mean", "running_var")]
    torch.testing.assert_close(found[1], exact.var(1), rtol=3e-6, atol=0)
    torch.testing.assert_close(found[0], exact.mean(1), rtol=0, atol=1e-6 * exact.std().item())


@pytest.mark.backends(REFERENCE, *CPU)
def test_normalisation_is_torchs_to_rounding(backend):
    """The smooth twin shows X itself: float64 against torch's batch norm and our own lif."""
    twin = snnfast.surrogate.Sigmoid(spiking=False)
    wanted = case(shape=(3, 5, 6, 2), residual=True, training=True, dtype="float64", surrogate=twin)
    ours, _ = call(backend, wanted)
    y, residual, weight, bias = (t.detach().requires_grad_() for t in wanted.inputs.values())
    n = F.batch_norm(y.flatten(0, 1), None, None, weight, bias, True).view_as(y)
    expected = snnfast.lif(n + residual, surrogate=twin)
    torch.testing.assert_close(ours.s, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(expected, (y, residual, weight, bias), wanted.ds)
    for (name, a), b in zip(ours.backward(wanted.ds, None).items(), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.backends(REFERENCE, *CPU)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_of_the_smooth_twin(backend, training):
    twin = snnfast.surrogate.Sigmoid(spiking=False)
    wanted = case(T=3, shape=(2, 3, 2, 2), residual=True, training=training, dtype="float64",
                  v0=True, rate="tau", channels=True, state=True, surrogate=twin)  # fmt: skip

    def run(*tensors):
        leaves = dict(zip(wanted.inputs, tensors, strict=True))
        running = {name: t.clone() for name, t in wanted.running.items()}
        return norm_lif(**leaves, **running, **wanted.layer, backend=backend.name)

    torch.autograd.gradcheck(run, [t.detach().requires_grad_() for t in wanted.inputs.values()])


@pytest.mark.parametrize("training", [True, False])
def test_static_input_is_the_repeated_one(backend, training):
    dtype = torch.float64 if backend.doubles else torch.float32
    near = {"rtol": 1e-10, "atol": 1e-12} if backend.doubles else {"rtol": 1e-5, "atol": 1e-6}
    arguments = layer(backend, 6, training=training)
    y, ds = torch.randn(3, 6, 5, 4, dtype=dtype), torch.randn(5, 3, 6, 5, 4, dtype=dtype)
    found = []
    for static in (True, False):
        given = {n: t.to(dtype, copy=True) if isinstance(t, torch.Tensor) else t
                 for n, t in arguments.items()}  # fmt: skip
        leaf = y.to(backend.device, copy=True).requires_grad_()
        x = {"y": leaf, "timesteps": 5} if static else {"y": leaf.expand(5, -1, -1, -1, -1)}
        s = norm_lif(**x, **given)
        found.append((torch.autograd.grad(s, leaf, ds.to(s))[0], given["running_var"], s))
    (*ours, s), (*others, t) = found
    assert torch.equal(s, t)
    torch.testing.assert_close(ours, others, **near)


def test_a_split_sequence_gives_the_same_spikes_in_evaluation(backend):
    arguments = layer(backend, training=False)
    y = torch.randn(7, 3, 5, 6).to(backend.device)
    whole = norm_lif(y, **arguments)
    one, v = norm_lif(y[:3], return_state=True, **arguments)
    assert torch.equal(torch.cat([one, norm_lif(y[3:], v0=v, **arguments)]), whole)


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_every_time(backend, layout):
    """Whatever the number of threads."""
    shape = (3, 5, 7, 3) if backend.slow else (8, 16, 20, 20)
    wanted = case(shape=shape, layout=layout, residual=True, training=True)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 3):
        torch.set_num_threads(count)
        ours, running = call(backend, wanted, layout)
        found = ours.backward(wanted.ds.to(backend.device), None)
        results.append([ours.s, *found.values(), *running.values()])
    torch.set_num_threads(threads)
    assert all(all(map(torch.equal, result, results[0])) for result in results[1:])


@kernels
def test_what_is_not_finite(backend):
    """NaN and infinities go where the specification lets them go."""
    for neuron in NEURONS[4:]:
        wanted = case(T=6, shape=(2, 16, 16), state="all", **neuron)
        inputs = {name: t.clone() for name, t in wanted.inputs.items()}
        y = inputs["y"].view(6, -1)
        y[1, ::3], y[2, 1::3], y[3, 2::5] = math.nan, math.inf, -math.inf
        ours, _ = call(backend, wanted._replace(inputs=inputs))
        s, v = specification(**inputs, residual=torch.zeros(()), **neuron, return_state="all",
                             statistics=tuple(wanted.running.values()))  # fmt: skip
        assert_same(ours.s, s)
        assert_same(ours.v, v)


@quick
def test_what_is_not_aligned(backend):
    """The same bits, and so for time strides of their own."""
    steps, shape, width = 5, (1, 4, 128), 1536
    wanted = case(T=steps, shape=shape, dtype="bfloat16", residual=True, fixed=("weight", "bias"))
    results = []
    for at in (None, 0, 8, 3):

        def moved(t, at=at):
            t = t.to(backend.device)
            if at is None:
                return t
            wide = torch.zeros(steps, width, dtype=t.dtype, device=t.device)
            view = wide[:, at : at + 512].view_as(t)
            return view.copy_(t)

        inputs = {name: moved(t) for name, t in wanted.inputs.items()}
        fixed = {n: torch.cat([t[:1], t])[1:] if at == 3 else t for n, t in wanted.fixed.items()}
        ours, _ = call(backend, wanted._replace(inputs=inputs, fixed=fixed))
        results.append([ours.s, *ours.backward(moved(wanted.ds), None).values()])
    assert all(all(map(torch.equal, result, results[0])) for result in results[1:])


@quick
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_vectors_of_channels_with_gaps(backend, name):
    y, ds = (torch.randn(4, 3, 5, 6).to(backend.device) for _ in range(2))
    for training in (True, False):
        results = []
        for gaps in (False, True):
            arguments = layer(backend, training=training)
            if gaps:
                row = arguments[name]
                arguments[name] = torch.stack([row, torch.full_like(row, 7.0)], 1)[:, 0]
            leaf = y.clone().requires_grad_()
            s = norm_lif(leaf, **arguments)
            results.append((s, *torch.autograd.grad(s, leaf, ds), arguments["running_mean"]))
        assert all(map(torch.equal, *results))


@quick
def test_a_training_step_between_forward_and_backward_of_an_evaluation(backend):
    y, ds = (torch.randn(4, 3, 5, 6).to(backend.device) for _ in range(2))
    gradients = []
    for between in (False, True):
        arguments, leaf = layer(backend), y.clone().requires_grad_()
        s = norm_lif(leaf, training=False, **arguments)
        if between:
            norm_lif(leaf, training=True, **arguments)
        gradients.append(torch.autograd.grad(s, leaf, ds)[0])
    assert torch.equal(*gradients)


@quick
def test_gradients_share_no_memory(backend):
    """That of y is written where that of the normalised y was: it must be nobody else's."""
    y, r = (torch.randn(4, 3, 5, 6).to(backend.device).requires_grad_() for _ in range(2))
    arguments = layer(backend, training=True)
    leaves = (y, r, *(arguments[name].requires_grad_() for name in ("weight", "bias")))
    s = norm_lif(y, r, **arguments)
    found = torch.autograd.grad(s, leaves, torch.randn_like(s))
    used = sorted((g.data_ptr(), g.data_ptr() + g.numel() * g.element_size()) for g in found)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(used))
    run = lambda y, r: norm_lif(y, r, **layer(backend, training=True))  # noqa: E731
    along = [torch.ones_like(y)]
    (alone,) = grads(lambda y: run(y, r.detach()), [y], along)
    assert torch.equal(alone, grads(run, [y, r], along)[0])


@kernels
def test_the_inverse_deviation_is_rounded_alike_everywhere(backend):
    count = 1003 if backend.slow else 100_003
    var = torch.rand(count) * torch.rand(count) * 10
    moved = var.to(backend.device)
    stats = torch.ops.snnfast.norm_prepare(moved, moved, None, 1e-5, backend.name)
    assert torch.equal(stats[INV_STD].cpu(), reference.inverse_std(var, 1e-5))
