"""A batch of another size without a reset: an error that names it, or a new start, as theirs."""

import pytest
import torch
from jelly_cases import VERSIONS, check_same, currents, fresh, module, node
from torch import nn

import snnfast


@pytest.mark.parametrize("sizes", [(8, 4), (1, 8), (8, 1)], ids=str)
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("version", VERSIONS[:2])
def test_requirement_09_the_old_ones_name_reset_net(version, mode, sizes):
    model = nn.Sequential(node(version, mode=mode))
    snnfast.accelerate(model)
    first, second = (currents(*([5] * (mode == "m")), n, 3) for n in sizes)
    model(first)
    v = model[0].v.clone()
    with pytest.raises(ValueError, match=r"LIFNode: v must have the shape of .*reset_net"):
        model(second)
    assert torch.equal(model[0].v, v)
    model[0].reset()
    assert model(second).shape == second.shape


@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_requirement_09_two_starts_anew(kind):
    for mode in ("m", "s"):
        ours, theirs = fresh(nn.Sequential(node("2.0.0", kind, mode, v_reset=-0.2)))
        snnfast.accelerate(ours)
        for n in (8, 4, 1, 8):
            x = currents(5, n, 3, seed=n)
            check_same(ours, theirs, x, steps=mode == "s")


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_requirement_09_traced_ones_too(version):
    base = type(node(version, mode="s"))

    class Own(base):
        def neuronal_charge(self, x):
            self.v = self.v * 0.25 + x

    model = nn.Sequential(Own())
    assert len(snnfast.accelerate(model).traced) == 1
    model(currents(8, 3))
    with pytest.raises(ValueError, match=r"Own: v must have the shape of a timestep .*reset_net"):
        model(currents(1, 3))


def test_requirement_09_a_traced_node_of_the_new_starts_anew():
    class Softer(module("2.0.0").LIFNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            h = 0.75 * states[0] + inputs[0]
            s = self.surrogate_function(h - 0.5 * self.v_threshold)
            return (s,), (h - s * self.v_threshold,)

    ours, theirs = fresh(nn.Sequential(Softer(v_reset=-0.15)))
    assert snnfast.accelerate(ours).traced
    for shape in ((4, 3, 5), (4, 2, 5), (4, 2, 2, 5)):
        check_same(ours, theirs, currents(*shape), steps=True)
