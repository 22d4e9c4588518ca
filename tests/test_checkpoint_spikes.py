"""checkpoint_spikes: the block's own gradients, from bits at its border and a second forward."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from packed_cases import (
    NETS,
    Block,
    assert_same,
    counted,
    gradients,
    kept_bytes,
    sequence,
    within,
)
from torch import nn

import snnfast
from snnfast.nn import checkpoint_spikes


@pytest.mark.parametrize("name", ("chain", "norm", "residual"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_checkpoints_have_the_dense_gradients(name, dtype):
    net, x = NETS[name]().to(dtype), sequence(dtype)
    dense = gradients(net, x)

    def call(net, x):
        for block in net:
            checkpoint_spikes(block)
        return net(x)

    assert_same(gradients(net, x, call=call), dense)
    assert_same(gradients(net, x, snnfast.packed_spikes, call), dense)


def test_running_statistics_count_a_batch_once():
    plain, x = Block(16, 16, norm=True), sequence()
    ours = checkpoint_spikes(copy.deepcopy(plain))
    for block in (plain, ours):
        for _ in range(3):
            block(x).sum().backward()
    assert ours.bn.num_batches_tracked == 3
    for a, b in zip(ours.buffers(), plain.buffers()):
        assert torch.equal(a, b)
    buffer = ours.bn.running_mean
    loss = ours(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert ours.bn.running_mean is buffer and ours.bn.num_batches_tracked == 4


def test_a_neuron_that_is_traced_inside_of_it():
    """Its trace, made in forward alone, saves nothing of the block's."""

    @snnfast.neuron
    def fresh(x, v, *, leak):
        h = leak * v + x * torch.sigmoid(v)
        s = snnfast.spike(h - 0.5)
        return s, h * (1 - s)

    class Fresh(snnfast.surrogate.Surrogate):
        def gradient(self, x):
            return 1 / (1 + x * x) ** 2

    leak = nn.Parameter(torch.tensor(0.5))
    for neuron in (snnfast.nn.Neuron(fresh, leak=leak), snnfast.nn.LIF(surrogate=Fresh())):
        block = nn.Sequential(nn.Linear(4, 4), neuron)
        x = torch.randn(5, 3, 4, requires_grad=True)
        checkpoint_spikes(block)(x).sum().backward()
        again = torch.autograd.grad(block(x).sum(), x)
        assert torch.equal(x.grad, *again) and x.grad.abs().sum() > 0
        x.grad = None


def test_dropout_draws_the_same_numbers():
    class Dropped(Block):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    net, x = nn.Sequential(Dropped(16, 16), Dropped(16, 16)), sequence()
    dense = gradients(net, x)
    after = torch.rand(3)
    ours = gradients(nn.Sequential(*map(checkpoint_spikes, copy.deepcopy(net))), x)
    assert_same(ours, dense)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("backward_inside", (True, False))
def test_streams_go_on_from_where_they_were(backward_inside):
    net, x = nn.Sequential(Block(16, 16), Block(16, 16)), sequence(steps=6)
    results = []
    for wrap in (lambda block: block, checkpoint_spikes):
        layers = nn.Sequential(*map(wrap, copy.deepcopy(net)))
        leaf = x.clone().requires_grad_()
        with snnfast.streaming(layers):
            s = torch.cat([layers(part) for part in leaf.split([1, 3, 2])])
            if backward_inside:
                states = [block.lif._v for block in layers]
                s.square().sum().backward()
                assert all(block.lif._v is v for block, v in zip(layers, states))
        if not backward_inside:
            s.square().sum().backward()
        assert all(b.lif._v is None and not b.lif._streaming for b in layers)
        results.append([s.detach(), leaf.grad, *(p.grad for p in layers.parameters())])
    assert_same(results[1], results[0])


def test_backward_runs_in_the_mode_of_forward():
    plain, x = Block(16, 16, norm=True), sequence()
    ours = checkpoint_spikes(copy.deepcopy(plain))
    grads = []
    for block in (plain, ours):
        leaf = x.clone().requires_grad_()
        s = block(leaf)
        block.eval()
        grads.append(torch.autograd.grad(s.sum(), [leaf, block.conv.weight]))
        assert not block.training and not block.bn.training
    assert_same(grads[1], grads[0])


def test_the_module_is_the_same_module():
    block = Block(16, 16, norm=True)
    keys, x = list(block.state_dict()), sequence()
    ours = checkpoint_spikes(block)
    assert ours is block and isinstance(ours, Block)
    assert list(ours.state_dict()) == keys
    ours.load_state_dict(Block(16, 16, norm=True).state_dict())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert other.conv.weight.data_ptr() != ours.conv.weight.data_ptr()
        assert_same(gradients(other, x), gradients(ours, x))
        other.conv.weight.data.zero_()
        assert ours.conv.weight.any()


def test_arguments_by_name_and_several_inputs(monkeypatch):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(16, 16)

        def forward(self, x, residual=None, scale=1.0):
            return self.block(x) + scale * residual

    net, x = Sum(), sequence()
    s = (torch.rand_like(x) < 0.2).float()

    def call(net, x):
        return net(x, residual=s.clone().requires_grad_(), scale=0.5)

    dense = gradients(net, x, call=call)
    with counted(monkeypatch) as found:
        assert_same(gradients(checkpoint_spikes(net), x, call=call), dense)
    assert [p.shape for p in found] == [s.shape]


@pytest.mark.parametrize(
    "layer",
    [
        snnfast.nn.LIF(),
        snnfast.nn.Leaky(beta=0.9),
        snnfast.nn.BatchNormLIF(16),
        snnfast.nn.BatchNormNeuron(16, neuron=snnfast.nn.Leaky(beta=0.9)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_forward_may_be_profiled_and_backward_not(layer):
    """Behind the dispatcher once, and past it the other time."""
    block, x = checkpoint_spikes(nn.Sequential(layer)), sequence().requires_grad_()
    with torch.profiler.profile():
        s = block(x)
    s.square().sum().backward()
    assert x.grad.any()


def test_without_gradients_nothing_is_kept(monkeypatch):
    net, x = checkpoint_spikes(Block(16, 16)), sequence()
    monkeypatch.setattr("snnfast.nn.checkpoint.checkpoint", None)
    with torch.no_grad():
        assert net(x).any()


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (3, TypeError, "checkpoint_spikes: block must be a torch module, got int"),
        (checkpoint_spikes(nn.ReLU()), ValueError, "must not be checkpointed already"),
    ],
)
def test_refusals(block, error, message):
    with pytest.raises(error, match=message):
        checkpoint_spikes(block)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("norm", (False, True))
def test_kept_by_checkpointed_blocks(dtype, norm):
    """One bit per element at each border: 1/8 byte, with what a checkpoint keeps of random state
    (5 kB) 0.3 bytes at most."""
    blocks = [checkpoint_spikes(Block(16, 16, norm)) for _ in range(4)]
    net = nn.Sequential(Block(16, 16), *blocks).to(dtype)
    first, x = net[0], sequence(dtype, side=64 if dtype == torch.float32 else 32)
    per_element = (kept_bytes(net, x) - kept_bytes(first, x)) / x.numel()
    assert per_element / len(blocks) <= 0.3
    # The bits before each block, once; and 64 kB of scratch that a convolution may hold or let go.
    slack = (5_000 * len(blocks) + 65_536) / x.numel() + 0.01
    assert per_element == pytest.approx(4 / 8, abs=slack)
    packed_too = kept_bytes(within(snnfast.packed_spikes, net), x) - kept_bytes(first, x)
    assert packed_too / x.numel() == pytest.approx(4 / 8, abs=slack)
