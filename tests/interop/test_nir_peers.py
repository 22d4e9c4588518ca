"""The same networks in SpikingJelly and snnTorch: the same graphs, read by us and by them.

Weights, inputs and decays are dyadic, so that no order of operations shows and potentials meet the
threshold."""

import numpy as np
import torch
from peer_neurons import package
from torch import nn

from snnfast.interop.nir import from_nir, to_nir
from snnfast.nn import IF, LIF, CubaLIF, Leaky, OverTime, ParametricLIF, Synaptic

nir = package("nir")


def dyadic(*models):
    """The same weights for all of them."""
    torch.manual_seed(1)
    for same in zip(*(model.parameters() for model in models), strict=True):
        if same[0].dim():  # w of ParametricLIF is left alone
            numbers = torch.randint(-8, 9, same[0].shape) / 8
            for p in same:
                p.data.copy_(numbers)


def chain(graph):
    """The nodes of a graph without a fork, in order."""
    then, nodes = dict(graph.edges), []
    name = next(name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    while name in then:
        name = then[name]
        nodes.append(graph.nodes[name])
    return nodes


def same_graphs(a, b):
    for one, other in zip(chain(a), chain(b), strict=True):
        assert type(one) is type(other)
        one, other = one.to_dict(), other.to_dict()
        assert one.keys() == other.keys()
        for name in one.keys() - {"metadata", "type", "input_shape"}:
            numbers = np.asarray(one[name]), np.asarray(other[name])
            np.testing.assert_allclose(*numbers, rtol=1e-6, err_msg=name)


def jelly_networks():
    from spikingjelly.activation_based import functional, layer, neuron

    theirs = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode(v_reset=-0.25),
        layer.AvgPool2d(2), layer.Conv2d(4, 4, 3, bias=False), neuron.LIFNode(2.0, False, 0.5),
        layer.Flatten(), layer.Linear(16, 12), neuron.ParametricLIFNode(2.0, v_threshold=0.25),
        layer.Linear(12, 6), neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75),
    )  # fmt: skip
    functional.set_step_mode(theirs, "m")
    ours = nn.Sequential(
        OverTime(nn.Conv2d(2, 4, 3, padding=1)), IF(v_reset=-0.25),
        OverTime(nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, bias=False)),
        LIF(2.0, decay_input=False, v_threshold=0.5), nn.Flatten(2), nn.Linear(16, 12),
        ParametricLIF(2.0, v_threshold=0.25), nn.Linear(12, 6),
        CubaLIF(tau_syn=2e-3, tau_mem=4e-3, r=4.0, w_in=2.0, v_threshold=0.5),
    )  # fmt: skip
    return theirs, ours


def test_spikingjelly():
    package("spikingjelly")
    from spikingjelly.activation_based import functional, nir_exchange

    theirs, ours = jelly_networks()
    dyadic(theirs, ours)
    x = torch.randint(-4, 13, (8, 5, 2, 8, 8)) / 4
    with torch.no_grad():
        spikes = theirs(x)
        functional.reset_net(theirs)
        graph, own = nir_exchange.export_to_nir(theirs, x), to_nir(ours, x)
        same_graphs(graph, own)
        assert 0.05 < spikes.mean() < 0.9
        for model in (ours, from_nir(own), from_nir(graph, fire=">=")):
            assert torch.equal(model(x), spikes)
        assert not torch.equal(from_nir(graph)(x), spikes)  # ">", as NIR has it
        read, _ = nir_exchange.import_from_nir(own, step_mode="m")(x)
        assert torch.equal(read, spikes)


def test_snntorch():
    snn, writer, reader = (
        package(f"snntorch{name}") for name in ("", ".export_nir", ".import_nir")
    )
    # Their writer wants decays of the neurons' shape; their reader takes Flatten's axes for others.
    size, small = (4, 8, 8), (6, 2, 2)
    options = {"init_hidden": True, "reset_mechanism": "zero"}
    theirs = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        snn.Leaky(torch.full(size, 0.5), torch.ones(size), **options),
        nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, bias=False),
        snn.Synaptic(
            *(torch.full(small, n) for n in (0.5, 0.75, 1.0)), reset_delay=False, **options
        ),
    )  # fmt: skip
    ours = nn.Sequential(
        OverTime(nn.Conv2d(2, 4, 3, padding=1)), Leaky(beta=0.5, reset_mechanism="zero"),
        OverTime(nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, bias=False)),
        Synaptic(alpha=0.5, beta=0.75, reset_mechanism="zero", reset_delay=False),
    )  # fmt: skip
    dyadic(theirs, ours)
    x = torch.randint(-4, 9, (8, 3, 2, 8, 8)) / 4
    with torch.no_grad():
        spikes = torch.stack([theirs(x_t) for x_t in x])
        graph = writer.export_to_nir(theirs, x[0], ignore_dims=[0])
        own = to_nir(ours, x)
        same_graphs(graph, own)
        assert 0.05 < spikes.mean() < 0.9
        for model in (ours, from_nir(own), from_nir(graph)):
            assert torch.equal(model(x), spikes)
        assert not torch.equal(from_nir(graph, fire=">=")(x), spikes)
        read, state, steps = reader.import_from_nir(own), None, []
        for x_t in x:
            s, state = read(x_t, state)
            steps.append(s)
        assert torch.equal(torch.stack(steps), spikes)
