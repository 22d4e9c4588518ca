"""Networks as they are published: ours gives the spikes and gradients of the live packages."""

import copy

import dropin_networks
import networks
import pytest
import torch
from network_pairs import (
    CASES,
    F32,
    F64,
    SHAPE,
    gradients,
    inputs,
    nodes,
    outputs,
    pair,
    settle,
    within_twice_their_error,
)  # fmt: skip
from peer_neurons import package
from torch import nn

import snnfast
from snnfast.interop.snntorch import multi_step
from snnfast.surrogate import PiecewiseQuadratic


def watched(model):
    """A list that fills with what every neuron gives, in order."""
    seen = []
    for name, module in nodes(model):

        def note(module, arguments, y, name=name):
            seen.append((name, outputs(y).detach().clone()))

        module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("weights", ["random", "grid"])
@pytest.mark.parametrize(("name", "way"), CASES)
def test_spikes_are_equal(name, way, weights):
    """In eval and in train; from rest, on from there, and from rest again."""
    theirs, reset_theirs, ours, reset_ours = pair(name, way, weights)
    of_theirs, of_ours = watched(theirs), watched(ours)
    for training in (False, True):
        theirs.train(training)
        ours.train(training)
        for i, x in enumerate(inputs(weights)):
            if i != 1:
                reset_theirs(theirs)
                reset_ours(ours)
            with torch.set_grad_enabled(training):
                torch.manual_seed(i)
                expected = theirs(x.clone())
                torch.manual_seed(i)
                found = ours(x.clone())
            where = f"training {training}, call {i}"
            assert [name for name, _ in of_ours] == [name for name, _ in of_theirs], where
            for (node, s), (_, ours_s) in zip(of_theirs, of_ours):
                assert torch.equal(ours_s, s), f"{where}, {node}"
            assert torch.equal(found, expected), where
            spikes = torch.cat([s.flatten() for _, s in of_theirs])
            assert 0.01 < spikes.mean() < 0.7, where
            for (node, module), (_, ours_module) in zip(nodes(theirs), nodes(ours)):
                assert torch.equal(ours_module.v, module.v), f"{where}, v of {node}"
            of_theirs.clear()
            of_ours.clear()
    for a, b in zip(ours.buffers(), theirs.buffers()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_gradients_are_within_twice_their_own_error(name, way):
    theirs, _, ours, _ = pair(name, way, "random")
    exact = copy.deepcopy(theirs).double()
    watches = [watched(model) for model in (theirs, ours, exact)]
    found = []
    for model, dtype in ((ours, F32), (theirs, F32), (exact, F64)):
        torch.manual_seed(1)
        x = torch.randn(SHAPE).to(dtype).requires_grad_()
        torch.manual_seed(2)
        found.append(gradients(model, x))
    for (_, a), (_, b), (_, c) in zip(*watches):
        assert torch.equal(a, b) and torch.equal(b.double(), c)  # else the gradients are of others
    within_twice_their_error(*found)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_state_dict_round_trip(name, way):
    theirs, _, ours, _ = pair(name, way, "random")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    again = copy.deepcopy(theirs)
    settle(again, "random", seed=1)
    again.load_state_dict(ours.state_dict(), strict=True)
    settle(ours, "random", seed=2)
    ours.load_state_dict(again.state_dict(), strict=True)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert torch.equal(a, b)


class Fires(nn.Module):
    """The hand-written neuron as one call of ours."""

    def forward(self, x):
        return snnfast.lif(
            x, beta=0.5, fire=">", v_reset=0.0, surrogate=PiecewiseQuadratic(1.0), time_axis=1
        )


@pytest.mark.parametrize("weights", ["random", "grid"])
def test_a_hand_written_neuron_as_one_call(weights):
    theirs = settle(networks.BatchFirst(networks.HandWritten()), weights)
    ours = copy.deepcopy(theirs)
    ours.spike = Fires()
    with pytest.raises(ValueError, match="accelerate: model must have neurons"):
        snnfast.accelerate(copy.deepcopy(theirs))
    same_calls(theirs, ours, inputs(weights))
    if weights == "random":
        exact, x = copy.deepcopy(theirs).double(), torch.randn(SHAPE)
        within_twice_their_error(
            *(gradients(net, x.to(dtype, copy=True).requires_grad_()) for net, dtype in (
                (ours, F32), (theirs, F32), (exact, F64)
            ))
        )  # fmt: skip


def same_calls(theirs, ours, xs):
    of_theirs, of_ours = watched(theirs), watched(ours)
    for training in (False, True):
        theirs.train(training)
        ours.train(training)
        for x in xs:
            assert torch.equal(ours(x), theirs(x))
            for (node, s), (_, found) in zip(of_theirs, of_ours, strict=True):
                assert torch.equal(found, s), node
            assert 0.01 < torch.cat([s.flatten() for _, s in of_theirs]).mean() < 0.7
            of_theirs.clear()
            of_ours.clear()


def over_time(net, x):
    """The caller's loop over a network of snnTorch."""
    return tuple(map(torch.stack, zip(*[net(x_t) for x_t in x])))


def from_rest(net):
    for neuron in (module for module in net if hasattr(module, "reset_mem")):
        neuron.reset_mem()


def convolutional(weights):
    return settle(dropin_networks.convolutional(package("snntorch"), (4, 48), side=16), weights)


@pytest.mark.parametrize("weights", ["random", "grid"])
def test_a_network_of_snntorch(weights):
    theirs, ours = convolutional(weights), convolutional(weights)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (False, True):
        theirs.train(training)
        ours.train(training)
        for call, x in enumerate(inputs(weights, (3 * networks.T, 2, 1, 16, 16))):
            if call != 1:
                from_rest(theirs)
                from_rest(ours)
            with torch.set_grad_enabled(training):
                found, expected = multi_step(ours, x), over_time(theirs, x)
            assert all(map(torch.equal, found, expected))
            assert 0.01 < found[0].mean() < 0.9
            for a, b in zip(ours.buffers(), theirs.buffers()):
                assert torch.equal(a, b)  # the potentials, too


def test_gradients_of_a_network_of_snntorch():
    """Theirs give float32 spikes whatever their input is, so the exact ones are ours in float64."""
    x, found = torch.randn(3 * networks.T, 2, 1, 16, 16), []
    for run, dtype in ((multi_step, F32), (over_time, F32), (multi_step, F64)):
        net = convolutional("random").to(dtype)
        leaf = x.to(dtype, copy=True).requires_grad_()
        found.append(gradients(lambda x, net=net, run=run: sum(run(net, x)), leaf, net))
    within_twice_their_error(*found)
