"""Encoders: values in, spikes out, held to their formulas one element at a time."""

import math

import pytest
import torch

import snnfast
from snnfast.data import encode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rate_spikes_as_often_as_it_says(dtype):
    x = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=dtype)
    spikes = encode.rate(x, 20_000, generator=torch.Generator().manual_seed(0))
    assert spikes.shape == (20_000, 4) and spikes.dtype == dtype
    mean = spikes.double().mean(0)
    assert mean[0] == 0 and mean[3] == 1
    assert (mean - x.double()).abs().max() < 4 * math.sqrt(0.25 / 20_000)
    late, early = spikes[1:, 2].double(), spikes[:-1, 2].double()
    assert abs((late * early).mean() - mean[2] ** 2) < 0.02  # independent of the step before
    again = encode.rate(x, 20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spikes, again)


@pytest.mark.parametrize("function", ["linear", "log", "rc"])
@pytest.mark.parametrize("timesteps", [1, 2, 9])
def test_latency_is_its_formula(function, timesteps):
    x = torch.linspace(0, 1, 23).view(1, 23)
    spikes = encode.latency(x, timesteps, function=function, tau=2.0)
    assert spikes.shape == (timesteps, 1, 23) and torch.equal(spikes.sum(0), torch.ones(1, 23))
    for i, value in enumerate(x[0].tolist()):
        if function == "linear":
            at = (timesteps - 1) * (1 - value)
        elif function == "log":
            at = timesteps - 1 - math.log((math.exp(timesteps - 1) - 1) * value + 1)
        else:
            at = 2.0 * math.log(value / (value - 0.01)) if value > 0.01 else math.inf
        assert spikes[round(min(at, timesteps - 1)), 0, i] == 1
    order = spikes.argmax(0)[0]
    assert (order.diff() <= 0).all()  # the larger, the earlier


def test_latency_is_the_peers():
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    x = torch.rand(5, 7)
    theirs = encoding.LatencyEncoder(6, "log")
    expected = torch.stack([theirs(x) for _ in range(6)])
    assert torch.equal(encode.latency(x, 6, function="log"), expected)


def test_delta_sees_changes():
    x = torch.tensor([0.5, 1.0, 1.125, 0.5, 0.5])[:, None]
    assert encode.delta(x, 0.5).flatten().tolist() == [1, 1, 0, 0, 0]
    assert encode.delta(x, 0.5, off_spikes=True).flatten().tolist() == [1, 1, 0, -1, 0]
    assert encode.delta(torch.zeros(0, 3), 1.0).shape == (0, 3)


def test_direct_is_read_without_a_copy():
    x = torch.randn(3, 5)
    shown = encode.direct(x, 4)
    assert shown.shape == (4, 3, 5) and shown.data_ptr() == x.data_ptr()
    assert torch.equal(snnfast.lif(shown), snnfast.lif(x, timesteps=4))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: encode.rate(torch.tensor([1.5]), 4), ValueError, "rate: x must be in 0..1"),
        (lambda: encode.rate(torch.tensor([math.nan]), 4), ValueError, "rate: x must be in 0..1"),
        (lambda: encode.rate(torch.tensor([1]), 4), TypeError, "rate: x must be floating point"),
        (lambda: encode.rate([0.5], 4), TypeError, "rate: x must be a tensor, got list"),
        (lambda: encode.rate(torch.rand(2), 0), ValueError, "rate: timesteps must be >= 1, got 0"),
        (lambda: encode.direct(torch.rand(2), 2.0), TypeError, "direct: timesteps must be an int"),
        (
            lambda: encode.latency(torch.rand(2), 3, function="exp"),
            ValueError,
            "latency: function must be linear, log or rc, got 'exp'",
        ),
        (
            lambda: encode.latency(torch.rand(2), 3, function="rc", tau=0),
            ValueError,
            "latency: tau must be > 0 and finite, got 0",
        ),
        (lambda: encode.delta(torch.tensor(1.0), 1.0), ValueError, r"delta: x must be \[T, ...\]"),
        (lambda: encode.delta(torch.rand(2), 0), ValueError, "delta: threshold must be > 0"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
