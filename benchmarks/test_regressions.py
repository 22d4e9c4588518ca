"""A dozen small cases of each op, to be compared with an earlier run on the same machine.

    pytest benchmarks/test_regressions.py --benchmark-only --benchmark-autosave
    pytest benchmarks/test_regressions.py --benchmark-only --benchmark-compare \
        --benchmark-compare-fail=min:30%

A call is a forward and its backward through the public function, on the default device, on tensors
that fit a cache: what a change of a kernel, a check or an autograd function costs or gains shows in
seconds. How fast an op is, against a copy and the peers, bench_*.py say.
"""

import pytest
import torch

import snnfast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = {"images": (8, 16, 8, 8), "vectors": (32, 512)}
CHANNELS = {"wide": (4, 32, 16, 16), "deep": (4, 256, 4, 4), "last": (4, 32, 16, 16)}

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)


def _random(*shape, dtype=torch.float32, grad=True):
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(shape, device=DEVICE, generator=generator).to(dtype)
    return x.requires_grad_(grad)


def _time(benchmark, group: str, forward, inputs: list) -> None:
    """``forward()`` and the gradients of ``inputs``, if there are any."""
    benchmark.group = group
    ds = torch.ones_like(forward())

    def step():
        out = forward()
        if inputs:
            torch.autograd.grad(out, inputs, ds)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_lif(benchmark, steps, shape, dtype):
    x = _random(steps, *SHAPES[shape], dtype=DTYPES[dtype])
    _time(benchmark, "lif", lambda: snnfast.lif(x), [x])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", CHANNELS)
def test_norm_lif(benchmark, shape, residual, dtype):
    sizes = CHANNELS[shape]
    y = _random(4, *sizes, dtype=DTYPES[dtype], grad=False)
    if shape == "last":
        y = y.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, sizes[0]))
    inputs = [y.requires_grad_()]
    if residual:
        inputs.append(y.detach().clone().requires_grad_())
    channels = torch.ones(sizes[1], device=DEVICE)
    arguments = {
        "weight": channels.clone().requires_grad_(),
        "bias": channels.mul(0.3).requires_grad_(),
    }
    arguments |= {"running_mean": channels.mul(0.0), "running_var": channels.clone()}

    def forward():
        return snnfast.norm_lif(*inputs, **arguments, training=True)

    _time(benchmark, "norm_lif", forward, [*inputs, arguments["weight"], arguments["bias"]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("loss", ["twkd_loss", "tser_loss", "tssd_loss"])
def test_distill(benchmark, loss, classes, dtype):
    z = _random(4, 32, classes, dtype=DTYPES[dtype])
    target = torch.arange(32, device=DEVICE) % classes
    if loss == "tssd_loss":
        third, options = _random(4, 32, classes, dtype=DTYPES[dtype]), {"student_steps": 2}
    else:
        third, options = _random(32, classes, dtype=DTYPES[dtype], grad=False), {}
    inputs = [tensor for tensor in (z, third) if tensor.requires_grad]
    function = getattr(snnfast, loss)
    _time(benchmark, "distill", lambda: function(z, target, third, **options), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["pack", "unpack", "keep"])
def test_spikes(benchmark, op, shape, dtype):
    """``keep``: spikes as bits for the weight's gradient of the layer behind them."""
    x = _random(4, *SHAPES[shape], dtype=DTYPES[dtype])
    weight = _random(8, x.shape[-1], dtype=DTYPES[dtype])
    s = snnfast.lif(x.detach())
    bits = snnfast.pack_spikes(s)

    def keep():
        with snnfast.packed_spikes():
            return torch.nn.functional.linear(snnfast.lif(x), weight)

    runs = {
        "pack": lambda: snnfast.pack_spikes(s),
        "unpack": lambda: snnfast.unpack_spikes(bits, s.shape, s.dtype),
        "keep": keep,
    }
    _time(benchmark, "spikes", runs[op], [x, weight] if op == "keep" else [])
