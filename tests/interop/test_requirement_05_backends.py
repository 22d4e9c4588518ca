"""Backends that scripts name are accepted without what they were made of; an unknown one is
named."""

import jelly_pairs as pairs
import pytest
import torch
from torch import nn

import snnfast
from snnfast.interop.spikingjelly import activation_based as ab
from snnfast.interop.spikingjelly import clock_driven as cd

NAMES = ("torch", "cupy", "triton", "lava")


@pytest.mark.parametrize("backend", NAMES)
def test_a_known_backend_runs(backend):
    x = pairs.inputs("grid")
    plain = cd.neuron.MultiStepLIFNode(tau=2.0)(x)
    assert torch.equal(cd.neuron.MultiStepLIFNode(tau=2.0, backend=backend)(x), plain)
    for mode, inputs in (("m", x), ("s", x[0])):
        node = ab.neuron.LIFNode(tau=2.0, step_mode=mode, backend=backend)
        assert node.backend == backend and node.supported_backends == NAMES
        assert torch.equal(node(inputs), plain if mode == "m" else plain[0])
    cd.neuron.check_backend(backend)
    ab.base.check_backend_library(backend)


def test_set_backend_reaches_the_nodes_and_passes_by_what_knows_it_not():
    net = nn.Sequential(ab.layer.Linear(7, 7), ab.layer.Dropout(0.5), ab.neuron.LIFNode())
    ab.functional.set_backend(net, "cupy", instance=ab.neuron.LIFNode)
    assert net[2].backend == "cupy" and net[1].backend == "torch"
    ab.functional.set_backend(net, "cupy")
    assert net[1].backend == "torch"


def test_an_unknown_backend_is_named():
    said = "backend must be one of torch, cupy, triton, lava, got 'numpy'"
    with pytest.raises(ValueError, match=said):
        cd.neuron.MultiStepIFNode(backend="numpy")
    with pytest.raises(ValueError, match=f"LIFNode: {said}"):
        ab.neuron.LIFNode(backend="numpy")
    with pytest.raises(ValueError, match=said):
        ab.functional.set_backend(ab.neuron.LIFNode(), "numpy")
    with pytest.raises(ValueError, match="Dropout: backend must be one of torch, got 'cupy'"):
        ab.layer.Dropout().backend = "cupy"


def test_snnfast_itself_knows_them_not():
    with pytest.raises(ValueError, match="backend"):
        snnfast.nn.LIF(backend="cupy")
