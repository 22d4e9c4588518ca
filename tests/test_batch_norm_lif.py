"""``snnfast.nn.BatchNormLIF``: torch's BatchNorm2d and our neuron as one module."""

import copy
import pickle

import pytest
import torch
from torch import nn

import snnfast
from snnfast.nn import IF, LIF, BatchNormLIF, ParametricLIF

T, B, C, SIDE = 4, 3, 4, 5
NEURON = {"tau": 1.7, "v_reset": -0.1, "decay_input": False, "surrogate": "atan"}


def data(dtype=torch.float64, seed=1, steps=T):
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(steps, B, C, SIDE, SIDE, generator=g, dtype=torch.float64) + 0.3
    return x.to(dtype)


class Unfused(nn.Module):
    """The two modules one after the other; the state_dict is that of the batch norm."""

    def __init__(self, neuron, **norm):
        super().__init__()
        self.norm, self.neuron = nn.BatchNorm2d(C, **norm), neuron

    def forward(self, y, residual=None):
        x = self.norm(y.flatten(0, 1)).view_as(y)
        return self.neuron(x if residual is None else x + residual)


def pair(neuron=None, dtype=torch.float64, **norm):
    theirs = Unfused(neuron or LIF(**NEURON), **norm).to(dtype)
    if theirs.norm.affine:
        torch.manual_seed(2)
        nn.init.uniform_(theirs.norm.weight, 0.5, 2.0), nn.init.normal_(theirs.norm.bias)
    arguments = NEURON if neuron is None else {"neuron": copy.deepcopy(neuron)}
    ours = BatchNormLIF(C, **norm, **arguments).to(dtype)
    missing = ours.load_state_dict(theirs.norm.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("neuron.") for key in missing.missing_keys)
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    "norm",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}],
    ids=str,
)
def test_is_batch_norm_then_lif(norm, with_residual, dtype):
    ours, theirs = pair(dtype=dtype, **norm)
    tolerance = {"rtol": 1e-9, "atol": 1e-10}
    if dtype == torch.float32:
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
    weights = data(dtype, seed=9)
    for step in range(3):
        inputs = [data(dtype, seed=step), data(dtype, seed=10 + step)][: 1 + with_residual]
        copies = [[i.clone().requires_grad_() for i in inputs] for _ in range(2)]
        spikes = [m(*c) for m, c in zip((ours, theirs), copies)]
        assert torch.equal(*spikes) and 0.05 < spikes[0].mean() < 0.95
        for s in spikes:
            (s * weights).sum().backward()
        for a, b in zip(*copies):
            torch.testing.assert_close(a.grad, b.grad, **tolerance)
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a.grad, b.grad, **tolerance)
        for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance["rtol"], atol=1e-6, msg=name)
    ours.eval(), theirs.eval()
    x = data(dtype, seed=20)
    assert torch.equal(ours(x), theirs(x))
    assert ours.num_batches_tracked == (3 if norm.get("track_running_stats", True) else None)


@pytest.mark.parametrize("neuron", [IF(v_reset=None), ParametricLIF(2.5, channels=C)], ids=repr)
def test_takes_another_neuron(neuron):
    ours, theirs = pair(neuron)
    spikes = [m(data()) for m in (ours, theirs)]
    assert torch.equal(*spikes) and spikes[0].any()
    for s in spikes:
        (s * data(seed=3)).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
        assert a.grad.any()


def test_state_dict_is_that_of_batch_norm():
    norm, block = nn.BatchNorm2d(C), BatchNormLIF(C)
    assert list(block.state_dict()) == list(norm.state_dict())
    assert [n for n, _ in block.named_parameters()] == ["weight", "bias"]
    block.load_state_dict(norm.state_dict()), norm.load_state_dict(block.state_dict())
    learnable = BatchNormLIF(C, neuron=ParametricLIF())
    assert list(learnable.state_dict()) == [*norm.state_dict(), "neuron.w"]
    assert not BatchNormLIF(C, affine=False, track_running_stats=False).state_dict()


def test_a_static_input_counts_every_timestep():
    ours, theirs = pair()
    y = data()[0]
    assert torch.equal(ours(y, timesteps=T), theirs(y.expand(T, -1, -1, -1, -1)))
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("return_state", [False, True, "all"])
def test_streaming_carries_the_state(return_state):
    block = BatchNormLIF(C, tau=1.7, return_state=return_state).double()
    spikes = (lambda out: out[0]) if return_state else (lambda out: out)
    x = data(steps=9)
    block(x), block.eval()
    with torch.no_grad():
        whole = spikes(block(x))
        with snnfast.streaming(block):
            parts = [spikes(block(part)) for part in x.split([1, 6, 2])]
        assert torch.equal(torch.cat(parts), whole) and whole.any()
        assert torch.equal(spikes(block(x)), whole)


def test_state_in_and_out():
    block = BatchNormLIF(C, return_state=True).double().eval()
    s, v = block(data())
    first, v0 = block(data()[:1])
    rest, last = block(data()[1:], v0=v0)
    assert torch.equal(torch.cat([first, rest]), s) and torch.equal(last, v)


def test_copies():
    block = BatchNormLIF(C, neuron=ParametricLIF()).double()
    block(data())
    block.eval()
    for moved in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(moved(data()), block(data()))
        assert moved.neuron.w is not block.neuron.w


def test_sync_conversion_leaves_it_alone():
    block = BatchNormLIF(C)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(block) is block


def test_attributes_are_those_of_the_neuron():
    x, block = data(torch.float32), BatchNormLIF(C)
    block.return_state, block.v_threshold, block.backend = "all", 0.5, "reference"
    s, v = block(x)
    assert v.shape == x.shape and block.neuron.return_state == "all"
    again = BatchNormLIF(C, return_state="all", v_threshold=0.5, backend="reference")
    assert all(map(torch.equal, (s, v), again(x)))
    assert (block.tau, block.v_reset, block.decay_input) == (2.0, 0.0, True)
    block.tau = 0.5
    with pytest.raises(ValueError, match=r"tau must be >= 1, got 0\.5"):
        block(x)
    with pytest.raises(AttributeError, match="IF has no tau"):
        BatchNormLIF(C, neuron=IF()).tau = 3.0


def test_backend_reaches_the_op():
    block = BatchNormLIF(C, backend="reference")
    ((op, backend, _),) = snnfast.explain(block, data(torch.float32))
    assert (op, backend) == ("norm_lif", "reference")


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_call_that_is_refused_counts_no_batch(momentum):
    block, other = (BatchNormLIF(C, momentum=momentum) for _ in range(2))
    x = data(torch.float32)
    with pytest.raises(ValueError, match="v0 must have shape"):
        block(x, v0=torch.zeros(1))
    assert block.num_batches_tracked == 0
    assert torch.equal(block(x), other(x)) and block.num_batches_tracked == 1
    assert torch.equal(block.running_var, other.running_var)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: BatchNormLIF(C)([data()]),
            TypeError,
            "BatchNormLIF: y must be a tensor, got list",
        ),
        (lambda: BatchNormLIF(C)(data()[:, :, :3]), ValueError, "must have 4 channels on axis 2"),
        (lambda: BatchNormLIF(C)(data()[0, 0]), ValueError, "must have 4 channels on axis 2"),
        (lambda: BatchNormLIF(C)(data()[0, :, :1], timesteps=2), ValueError, "channels on axis 1"),
        (lambda: BatchNormLIF(C)(data()), TypeError, "must be float64 for float64 y, got float32"),
        (lambda: BatchNormLIF(C)(data()[0]), ValueError, r"\[T, B, C, ...\], time first"),
        (lambda: BatchNormLIF(C, eps=0.0), ValueError, "BatchNormLIF: eps must be > 0"),
        (lambda: BatchNormLIF(C, eps="1e-5"), TypeError, "eps must be a number, got str"),
        (lambda: BatchNormLIF(C, momentum=2.0), ValueError, "momentum must be in 0..1, got 2.0"),
        (lambda: BatchNormLIF(C, momentum=True), TypeError, "momentum must be a number, got bool"),
        (lambda: BatchNormLIF(C, affine="no"), TypeError, "affine must be True or False, got str"),
        (lambda: BatchNormLIF(C, track_running_stats=1), TypeError, "track_running_stats must be"),
        (lambda: BatchNormLIF(0), ValueError, "num_features must be >= 1, got 0"),
        (lambda: BatchNormLIF("64"), TypeError, "num_features must be an int, got str"),
        (
            lambda: BatchNormLIF(C)(data().float()[:1, :1, :, :1, :1]),
            ValueError,
            "more than one value per channel",
        ),
        (lambda: BatchNormLIF(C, tau=0.5), ValueError, "tau must be >= 1"),
        (lambda: BatchNormLIF(C, neuron=nn.ReLU()), TypeError, "neuron must be LIF, .* got ReLU"),
        (lambda: BatchNormLIF(C, neuron=IF(), tau=2.0), ValueError, "beside neuron, got tau"),
        (lambda: BatchNormLIF(C, leak=2.0), TypeError, "leak"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
