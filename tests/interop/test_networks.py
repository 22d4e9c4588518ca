"""Networks as they are published: ours gives the spikes and gradients of the live packages."""

import copy
import importlib
from functools import partial
from types import SimpleNamespace

import dropin_networks
import networks
import pytest
import torch
from live import live
from peer_neurons import package
from torch import nn

import snnfast
from snnfast.interop.snntorch import multi_step
from snnfast.surrogate import PiecewiseQuadratic

F32, F64 = torch.float32, torch.float64

NETWORKS = {
    "transformer": (networks.spiking_transformer, "0.0.0.0.12"),
    "element-wise": (networks.element_wise, "0.0.0.0.12"),
    "element-wise, learning": (networks.learning, "0.0.0.0.12"),
    "merged": (networks.Merged, "0.0.0.0.14"),
    "merged, soft": (partial(networks.Merged, tau=1.25, v_reset=None), "0.0.0.0.14"),
    "online": (networks.OnlineInTime, "0.0.0.0.12"),
    "element-wise, leaking": (networks.leaking, "0.0.0.0.14"),
    "element-wise, 2.0.0": (networks.leaking, "2.0.0"),
}
SHAPE = (2, 3, 16, 16)
SPIKING = ("BaseNode", "SpikingNeuron", "HandWritten", "Fires")


def package_of(version):
    """The modules of a SpikingJelly that is unpacked, or of the one that is installed."""
    if version != "2.0.0":
        return live(version)
    package("spikingjelly.activation_based.neuron")
    return modules_in("spikingjelly.activation_based")


def modules_in(namespace):
    names = ("neuron", "layer", "surrogate", "functional")
    return SimpleNamespace(**{n: importlib.import_module(f"{namespace}.{n}") for n in names})


def accelerated(theirs, build, version):
    """A copy of theirs, and how theirs are reset."""
    ours = copy.deepcopy(theirs)
    snnfast.accelerate(ours)
    return ours, package_of(version).functional.reset_net


def compatible(theirs, build, version):
    """The same network written against the compatibility layer."""
    jelly = modules_in(f"snnfast.interop.spikingjelly.{live(version).namespace}")
    ours = build(jelly)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, jelly.functional.reset_net


WAYS = {"accelerated": accelerated, "compatible": compatible}
CASES = [
    (name, way)
    for name, (_, version) in NETWORKS.items()
    for way in WAYS
    if (version, way) != ("2.0.0", "compatible")  # that is installed itself
]


def settle(model, weights, seed=0):
    """Weights and statistics: random, or multiples of 1/20 that a norm in eval() leaves exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, low, high):
        on_grid = torch.randint(low, high + 1, tensor.shape, generator=generator) / 20
        random = torch.rand(tensor.shape, generator=generator) * (high - low) / 20 + low / 20
        tensor.data.copy_(on_grid if weights == "grid" else random)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            draw(module.weight, 10, 30)
            draw(module.bias, 4, 16)
            draw(module.running_mean, -4, 4)
            if weights == "grid":
                module.running_var.fill_(1.0)
                module.eps = 1e-20
        elif isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters():
                draw(parameter, -6, 6)
    return model


def inputs(weights, shape=SHAPE, calls=3):
    if weights == "grid":
        return [torch.randint(-20, 41, shape) / 20 for _ in range(calls)]
    return [torch.randn(shape) for _ in range(calls)]


def nodes(model):
    for name, module in model.named_modules():
        if any(cls.__name__ in SPIKING for cls in type(module).__mro__):
            yield name, module


def outputs(y):
    return y[0] if isinstance(y, tuple) else y


def watched(model):
    """A list that fills with what every neuron gives, in order."""
    seen = []
    for name, module in nodes(model):

        def note(module, arguments, y, name=name):
            seen.append((name, outputs(y).detach().clone()))

        module.register_forward_hook(note)
    return seen


def pair(name, way, weights):
    build, version = NETWORKS[name]
    theirs = settle(build(package_of(version)), weights)
    ours, reset = WAYS[way](theirs, build, version)
    settle(ours, weights)
    return theirs, package_of(version).functional.reset_net, ours, reset


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


def gradients(run, x, model=None):
    """Of ``run(x)``; ``model``: whose parameters, if not its own."""
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    parameters = (run if model is None else model).named_parameters()
    return {n: p.grad.double() for n, p in parameters} | {"x": x.grad.double()}


def within_twice_their_error(ours, theirs, exact):
    top = max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        error, own = ((found[name] - gradient).norm() for found in (ours, theirs))
        assert error <= 2 * own + 1e-6 * gradient.norm() + 1e-7 * top, name


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
