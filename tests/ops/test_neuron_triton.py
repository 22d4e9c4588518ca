"""What the Triton backend fills by the source that it writes of a step, under Triton's interpreter,
held to the step looped over time."""

import backends
import programs
import pytest
import torch
import triton
import triton.language as tl
from snnfast.kernels.lif import channel_of
from step_cases import EXACT, Case

from snnfast import surrogate as surrogates
from snnfast.ops.select import implementation
from snnfast.program.step import Step
from snnfast.program.trace import trace

interpreted = pytest.mark.backends(backends.INTERPRETED)


@interpreted
@pytest.mark.parametrize("name", list(programs.STEPS))
@pytest.mark.parametrize("T, n", ((1, 1), (4, 37), (8, 130), (19, 37)), ids=str)
def test_named_steps(backend, name, T, n):
    Case(programs.named(name), T, n).check(backend, exact=name in EXACT)


@interpreted
@pytest.mark.parametrize(
    "options",
    (
        {"channels": 3},
        {"channels": 3, "T": 19, "every": True},
        {"static": (0,)},
        {"static": (0,), "T": 19, "channels": 3},
        {"every": True, "T": 16},
        {"start": False, "T": 12},
        {"stride": 3, "T": 12},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "T": 12},
        {"surrogate": "sigmoid", "n": 1300},
    ),
    ids=backends.named,
)
@pytest.mark.parametrize("name", ("adaptive_lif", "synaptic"))
def test_choices(backend, name, options):
    options = {"T": 5, "n": 39, **options}
    Case(programs.named(name), options.pop("T"), options.pop("n"), **options).check(backend)


@interpreted
@pytest.mark.parametrize("seed", range(16))
def test_random_steps(backend, seed):
    exact = seed % 2 == 0
    step = programs.random_step(seed, exact)
    static = (0,) if step.inputs > 1 and seed % 3 == 0 else ()
    channels = 3 if seed % 4 < 2 else 0
    Case(step, (3, 8, 11)[seed % 3], 21, channels=channels, static=static, seed=seed).check(
        backend, exact
    )


def functions(x):
    """What is not exact, and what must not lose a NaN."""
    far = torch.abs(x)
    powers = (far**1.5, far**-0.75, x**5, x**-3)
    return (torch.exp(x), torch.log(far), torch.tanh(x), torch.sigmoid(x), *powers,
            torch.minimum(x, 2 * x), torch.maximum(x, 2 * x), torch.sqrt(far), 1 / x)  # fmt: skip


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_are_good_to_two_units(backend):
    program, outputs = trace("functions", functions, 1, 0, (), {})
    step = Step.of(program.pack(), outputs, 1, 0)
    small = torch.logspace(-6, 1.5, 300)
    x = torch.cat([small, -small, torch.tensor([0.0, 90.0, -90.0, 1e-30, torch.inf, -torch.inf])])
    x = torch.cat([x, torch.tensor([torch.nan])])[None]
    got = [torch.empty_like(x) for _ in range(outputs)]
    layer = programs.layer_of(step, surrogates.resolve("atan"), 1)
    implementation("triton").neuron_forward(layer, [x], [], [], got)
    for y, exact in zip(got, functions(x.double()), strict=True):
        want = exact.float()
        unit = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
        near = (y.double() - exact).abs() <= 2 * unit.double()
        good = near | (y == want) | (y.isnan() & want.isnan())
        assert good.all(), (x[~good], y[~good], want[~good])


@triton.jit(do_not_specialize=["channels", "inner"])
def of_a_tile(found, first: tl.int64, channels, inner):
    lane = tl.arange(0, 64)
    tl.store(found + lane, channel_of(first, lane, channels, inner))


@interpreted
@pytest.mark.parametrize("channels, inner", ((1, 1), (7, 1), (5, 3), (3, 64), (3, 1000), (70, 9)))
def test_channels_of_a_tile(backend, channels, inner):
    """Also where more than 2^31 neurons lie between one and the next of its channel."""
    big = 2**29 + 5
    for c, i in ((channels, inner), (channels, inner * big), (channels * big, inner)):
        ends = (0, c * i, i * (c // 2 + 1), 7 * c * i, 3 * 2**31)
        for first in (max(0, end - by) for end in ends for by in (0, 37)):
            found = torch.empty(64, dtype=torch.int64)
            of_a_tile[1,](found, first, c, i)
            assert torch.equal(found, (first + torch.arange(64)) // i % c)
