"""Any reset_net resets the nodes, and one that remembers its modules remembers the right ones."""

import pytest
import torch
from jelly_cases import VERSIONS, check_states, currents, fresh, module, node
from torch import nn

import snnfast


def vendored(net):
    """As the copies have it that repositories carry."""
    for m in net.modules():
        if hasattr(m, "reset"):
            m.reset()


RESETS = {
    "vendored": lambda version: vendored,
    **{v: lambda version, v=v: module(v, "functional").reset_net for v in VERSIONS},
}


@pytest.mark.parametrize("by", RESETS)
@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_04_any_reset_net(version, by):
    ours, theirs = fresh(nn.Sequential(node(version), nn.Sequential(node(version, v_reset=-0.5))))
    reset = RESETS[by](version)
    reset(ours)  # may remember what it found
    snnfast.accelerate(ours)
    x = currents(5, 8, 5)
    first = ours(x)
    assert isinstance(ours[0].v, torch.Tensor)
    reset(ours)
    assert ours[0].v == 0.0 and ours[1][0].v == -0.5 and type(ours[0].v) is float
    assert torch.equal(ours(x), first) and torch.equal(theirs(x), first)
    check_states(ours, theirs)


def test_requirement_04_what_a_reset_brings_back():
    """In 0.0.0.0.12 the threshold is a memory, and gets its first value back."""
    for version in VERSIONS:
        ours, theirs = fresh(nn.Sequential(node(version)))
        snnfast.accelerate(ours)
        for model in (ours, theirs):
            model[0].v_threshold = 0.3
            vendored(model)
            model(currents(5, 8, 5))
        assert ours[0].v_threshold == theirs[0].v_threshold
        check_states(ours, theirs)


def test_requirement_04_a_part_and_a_wrapper():
    model = nn.Sequential(node("2.0.0"), node("2.0.0"))
    snnfast.accelerate(model)
    model(currents(5, 8, 5))
    reset = module("2.0.0", "functional").reset_net
    reset(model[0])
    assert model[0].v == 0.0 and isinstance(model[1].v, torch.Tensor)
    reset(nn.DataParallel(model).module)
    assert model[1].v == 0.0
