"""norm_lif on a GPU: the Triton and CUDA kernels against the reference, on the device and in
float64.

make gpu
"""

import pytest
import torch
import torch.nn.functional as F
from test_norm_lif import block, channels_last, double, relative, run

from snnfast import explain, norm_lif
from snnfast.ops.select import implementation

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
UNIT = {torch.float32: 1e-7, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# [T, B, C, ...]: planes that 16 bytes divide and that they do not, several tiles a plane and
# several planes a tile, one value, after a linear layer.
SHAPES = [
    (4, 3, 5, 7, 3),
    (4, 8, 64, 32, 32),
    (4, 32, 512, 4, 4),
    (8, 4, 40, 14, 14),
    (9, 2, 700, 7, 7),
    (4, 2, 3, 56, 56),
    (20, 3, 24, 8, 8),
    (1, 300, 70),
    (6, 64, 512),
    (3, 1, 1, 33),
]
LAYOUTS = pytest.mark.parametrize("layout", [lambda y: y, channels_last], ids=["first", "last"])
# Each shape in each layout that it can have, and from one to the next another neuron, with and
# without a residual, in training and (one in three) in evaluation.
PLACES = pytest.mark.parametrize(
    ("index", "shape", "layout"),
    [
        (index, shape, channels_last if index % 2 else lambda y: y)
        for index, shape in enumerate(shape for shape in SHAPES for _ in range(2))
        if index % 2 == 0 or len(shape) > 4
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
NEURONS = [
    {},
    {"v_reset": None, "detach_reset": True, "surrogate": "atan", "tau": 1.7},
    {"decay_input": False, "tau": 1.25, "surrogate": "rect", "v_reset": -0.1},
    {"tau": float("inf"), "surrogate": "fast_sigmoid"},
]


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    why_not = implementation(request.param).available()
    if why_not:
        pytest.skip(why_not)
    return request.param


def on_device(arguments):
    """Copies of the leaves there, strides and all."""
    moved = {}
    for name, value in arguments.items():
        moved[name] = value
        if isinstance(value, torch.Tensor):
            copy = value.detach().to(DEVICE).clone()
            moved[name] = copy.requires_grad_(value.requires_grad)
    return moved


def made(shape, dtype, residual, layout=lambda y: y, seed=0, offset=0.7):
    arguments, ds = block(shape, dtype, residual, layout, seed, offset)
    return on_device(arguments), ds.to(DEVICE)


def check(backend, shape, dtype, residual, layout=lambda y: y, training=True, dv=None, **neuron):
    """Every gradient against float64, at most twice PyTorch's own error. A neuron that float64 lets
    fire otherwise lies on the threshold; it gets no gradient, and there are few."""
    results = {}
    arguments, ds = made(shape, dtype, residual, layout)
    others = {"exact": "reference", "single": "reference", "ours": backend}
    keep = torch.ones_like(ds, dtype=torch.bool)
    for sweep in range(2):
        for name, chosen in others.items():
            fresh, d, v, more = on_device(arguments), ds * keep, dv, on_device(neuron)
            if name == "exact":
                fresh, d, v = double(fresh), d.double(), None if dv is None else dv.double()
                tensors = {k: t for k, t in more.items() if isinstance(t, torch.Tensor)}
                more |= double(tensors)
            results[name] = run(fresh, d, v, training=training, backend=chosen, **more)
        if sweep == 0:
            spikes = [results[name][0][0].double() for name in results]
            keep = ((spikes[0] == spikes[1]) & (spikes[0] == spikes[2])).all(0).expand_as(ds)
            assert (~keep[0]).float().mean() <= 1e-4 if keep[0].numel() > 1e4 else keep.any()
            dv = None if dv is None else dv * keep[0]
    _, exact, later = results["exact"]
    of_sums = 4e-7 * len(ds) ** 0.5 * float((ds * keep).double().norm())  # their terms cancel
    for name, want in exact.items():
        own, error = (
            float((results[key][1][name].double() - want).norm()) for key in ("single", "ours")
        )
        floor = 2 * UNIT[dtype] * float(want.norm()) if name in ("y", "residual") else of_sums
        assert error <= max(2 * own, floor), f"{name}: {error:.3g}, PyTorch {own:.3g}"
    for name in ("running_mean", "running_var"):
        ours = results["ours"][2][name].double()
        torch.testing.assert_close(ours, later[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PLACES
def test_spikes_and_states_equal_the_reference_in_evaluation(backend, index, shape, layout, dtype):
    arguments, _ = made(shape, dtype, index % 4 > 1, layout)
    neuron = NEURONS[index % len(NEURONS)]
    found = [
        norm_lif(**arguments, training=False, return_state="all", backend=name, **neuron)
        for name in (backend, "reference")
    ]
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PLACES
def test_gradients(backend, index, shape, layout, dtype):
    neuron = NEURONS[(index + 1) % len(NEURONS)]
    check(backend, shape, dtype, index % 4 < 2, layout, training=index % 3 > 0, **neuron)


@pytest.mark.parametrize("rate", ["tau", "inv_tau"])
@pytest.mark.parametrize("channels", [True, False], ids=["channels", "scalar"])
@LAYOUTS
def test_learnable_time_constant_and_states(backend, layout, channels, rate):
    for shape, residual in (((10, 3, 24, 8, 8), True), ((4, 5, 7, 9, 5), False)):
        values = 1.2 + torch.rand((shape[2],) if channels else (), device=DEVICE)
        values = values if rate == "tau" else 1 / values
        v0, dv = (torch.randn(shape[1:], device=DEVICE) for _ in range(2))
        more = {rate: values.requires_grad_(), "v0": v0.requires_grad_(), "return_state": True}
        check(backend, shape, torch.float32, residual, layout, dv=dv, **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PLACES
def test_running_statistics_are_torchs(backend, index, shape, layout, dtype):
    """To rounding of the spread, wherever the values lie; also where a channel's first one lies 300
    times the spread away."""
    for offset, outlier in ((0.7, 0.0), (1e4, 0.0), (0.0, 600.0)):
        arguments, _ = made(shape, dtype, False, layout, offset=offset)
        y = arguments.pop("y").detach()
        y[(0,) * y.dim()] += outlier
        mean, var = (arguments[f"running_{name}"].double() for name in ("mean", "var"))
        F.batch_norm(y.double().flatten(0, 1), mean, var, training=True, momentum=1.0)
        norm_lif(y, training=True, momentum=1.0, backend=backend, **arguments)
        error = (arguments["running_mean"].double() - mean).abs()
        assert (error <= 2e-7 * mean.abs() + 2e-7 * var.sqrt()).all()
        torch.testing.assert_close(arguments["running_var"].double(), var, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_static_input(backend, training):
    arguments, _ = made((1, 3, 16, 9, 8), torch.float32, False)
    ds = torch.randn(12, 3, 16, 9, 8, device=DEVICE)
    results = []
    for name in (backend, "reference"):
        fresh = {k: t.detach().clone() for k, t in arguments.items() if t is not None}
        y = fresh.pop("y")[0].requires_grad_()
        s = norm_lif(y, training=training, timesteps=12, backend=name, **fresh)
        results.append((s, torch.autograd.grad(s, y, ds)[0], fresh["running_var"]))
    (s, dy, var), (t, dx, other) = results
    same = (s == t).all(0)
    assert same.float().mean() >= 0.999 and (training or same.all())
    assert relative(dy[same], dx[same]) <= 1e-5
    torch.testing.assert_close(var, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@LAYOUTS
def test_the_same_bits_twice(backend, layout, dtype):
    for shape in ((4, 8, 64, 32, 32), (8, 32, 512, 4, 4), (4, 3, 5, 7, 3)):
        runs = []
        for _ in range(2):
            arguments, ds = made(shape, dtype, True, layout)
            (s,), grads, after = run(arguments, ds, training=True, backend=backend)
            runs.append((s, *grads.values(), after["running_mean"], after["running_var"]))
        assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("residual", [False, True])
def test_kept_for_backward(backend, residual):
    """Nothing beside y and the residual, which the caller has: numbers per channel."""
    for dtype in (torch.float32, torch.bfloat16):
        arguments, ds = made((8, 16, 64, 16, 16), dtype, residual)
        torch.autograd.backward(norm_lif(**arguments, training=True, backend=backend), ds)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        s = norm_lif(**arguments, training=True, backend=backend)
        extra = torch.cuda.memory_allocated() - before - s.numel() * s.element_size()
        assert extra <= 16384


@pytest.mark.parametrize("training", [True, False])
def test_captured_in_a_graph(backend, training):
    arguments, ds = made((4, 8, 64, 8, 8), torch.float32, True)
    leaves = [arguments[name] for name in ("y", "residual", "weight", "bias")]

    def step():
        s = norm_lif(**arguments, training=training, backend=backend)
        return s, *torch.autograd.grad(s, leaves, ds)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        arguments["y"].copy_(torch.randn_like(arguments["y"]))
    graph.replay()
    assert all(map(torch.equal, captured, step()))


def test_chosen_by_itself_on_a_gpu(backend):
    arguments, _ = made((2, 2, 4, 4, 4), torch.float32, True)
    ((op, name, reason),) = explain(norm_lif, training=True, **arguments)
    assert (op, name, reason) == ("norm_lif", "triton", "auto: the fastest on cuda")
    with pytest.raises(ValueError, match="runs on CUDA tensors, got cpu"):
        cpu = {k: None if t is None else t.detach().cpu() for k, t in arguments.items()}
        norm_lif(**cpu, training=True, backend=backend)
