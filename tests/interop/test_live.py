"""The old releases are there, and the one that is installed is not disturbed."""

import importlib
import sys

import pytest
import torch
from live import NAMESPACES, live


@pytest.mark.parametrize("version", NAMESPACES)
def test_modules_of_one_release(version):
    before = {name for name in sys.modules if name.split(".")[0] == "spikingjelly"}
    old = live(version)
    modules = [old.neuron, old.layer, old.functional, old.surrogate, old.base, old.monitor]
    assert all(f"spikingjelly-{version}" in module.__file__ for module in modules)
    assert old.monitor.neuron is old.neuron and old.functional.neuron is old.neuron
    assert {name for name in sys.modules if name.split(".")[0] == "spikingjelly"} == before
    assert importlib.import_module(old.neuron.__name__) is old.neuron
    s = old.neuron.LIFNode(tau=2.0)(torch.full((3,), 3.0))
    assert s.tolist() == [1.0, 1.0, 1.0]


def test_both_namespaces_of_one_wheel():
    old = live("0.0.0.0.14", "clock_driven")
    assert issubclass(old.neuron.MultiStepLIFNode, old.neuron.LIFNode)
    assert old.surrogate is not live("0.0.0.0.12").surrogate
