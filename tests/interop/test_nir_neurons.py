"""Neurons as nodes of NIR graphs: ours keep their numbers, those of others are their equations."""

import copy

import pytest
import torch
from nir_cases import fire_alike, nir, over, returned
from torch import nn

from snnfast.interop.nir import from_nir, to_nir
from snnfast.nn import IF, LIF, CubaLIF, Leaky, ParametricLIF, Synaptic


@pytest.mark.parametrize(
    "neuron",
    [
        LIF(10 / 3, decay_input=False),
        LIF(1.7, v_rest=0.2, v_reset=-0.3, fire=">"),
        LIF(beta=torch.rand(5)),
        LIF(beta=0.83, v_threshold=torch.rand(5) + 0.5),
        IF(v_threshold=0.7, v_reset=0.1),
        ParametricLIF(2.6, channels=5, decay_input=False),
        CubaLIF(tau_syn=7e-3, w_in=1.3, r=2.0, v_leak=0.1, v_reset=-0.2, v_threshold=0.4),
        CubaLIF(tau_mem=nn.Parameter(torch.rand(5) + 0.1), dt=0.07, v_threshold=torch.rand(5)),
        Leaky(beta=0.9, reset_mechanism="zero", reset_delay=False),
        Synaptic(alpha=0.7, beta=torch.rand(5), reset_mechanism="zero", reset_delay=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("dt", [1e-4, 3e-3])
def test_neurons_keep_their_numbers(neuron, dt, tmp_path):
    x = torch.randn(6, 20, 5, 3, 3) * 2
    other = returned(neuron, x, tmp_path, dt=dt)
    fire_alike(neuron, other, x)
    (same,) = other.children()
    same.return_state = "all"
    for a, b in zip(
        states(other(x)), states(type(neuron).forward(with_states(neuron), x)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dt", [1e-4, 3e-3])
def test_a_tau_is_read_as_it_was_typed(dt):
    x = torch.ones(2, 1, 3)
    for tau in (1.1, 3.3, 4.7, 10.0, 12.34):
        assert from_nir(to_nir(LIF(tau), x, dt=dt)).LIF.tau == tau


def with_states(neuron):
    neuron = copy.deepcopy(neuron)
    neuron.return_state = "all"
    return neuron


def states(result):
    """The potential first, which is last in snnTorch's."""
    _, state = result
    return sorted(state, key=lambda v: v.sum().item()) if isinstance(state, tuple) else [state]


def euler(node, x, dt):
    """NIR's equations in steps of dt, float64."""
    at = {name: torch.as_tensor(value) for name, value in vars(node).items() if name in NAMES}
    cuba, i = isinstance(node, nir.CubaLIF), 0
    v, spikes = at["v_leak" if cuba else "v_reset"], []
    for x_t in x.double():
        if cuba:
            i = i + dt / at["tau_syn"] * (at["w_in"] * x_t - i)
        drive = at["r"] * (i if cuba else x_t)
        if isinstance(node, nir.IF):
            h = v + dt * drive
        else:
            h = v + dt / at["tau_mem" if cuba else "tau"] * (at["v_leak"] - v + drive)
        spikes.append(h > at["v_threshold"])
        v = torch.where(spikes[-1], at["v_reset"], h)
    return torch.stack(spikes).float()


NAMES = "tau", "tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"


@pytest.mark.parametrize("kind", ["LIF", "IF", "CubaLIF"])
def test_others_graphs_are_their_equations(kind):
    """Dyadic numbers, on which Euler steps are exact; potentials that meet the threshold."""
    tau, r, threshold = over(1.0, 2.0, 4.0), over(1.0, 0.5, 4.0), over(0.5, 1.0, 0.75)
    node = {
        "LIF": lambda: nir.LIF(tau, r, over(0.25), threshold, over(-0.5)),
        "IF": lambda: nir.IF(r, threshold, over(0.25)),
        "CubaLIF": lambda: nir.CubaLIF(tau, 2 * tau, r, r / 4, threshold, over(0.5), over(2.0)),
    }[kind]()
    x = torch.randint(-8, 17, (8, 6, 3, 4)) / 4
    graph = nir.NIRGraph.from_list(node)
    expected = euler(node, x, 0.5)
    assert torch.equal(from_nir(graph, dt=0.5)(x), expected)
    if kind != "CubaLIF":
        assert not torch.equal(from_nir(graph, dt=0.5, fire=">=")(x), expected)
