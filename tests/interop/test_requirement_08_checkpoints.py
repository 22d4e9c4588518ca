"""Checkpoints of all releases load, also those whose containers had other keys, and strictly."""

import jelly_pairs as pairs
import pytest
import torch
from torch import nn

from snnfast.interop.spikingjelly import activation_based as ab
from snnfast.interop.spikingjelly import clock_driven as cd
from snnfast.interop.spikingjelly import module_keys

CONTAINERS = [
    (layer, name)
    for layer in (cd.layer, ab.layer)
    for name in ("SeqToANNContainer", "MultiStepContainer")
]


class Older(nn.Module):
    """A container as before 0.0.0.0.8, and as many repositories carry it."""

    def __init__(self, *content):
        super().__init__()
        self.module = content[0] if len(content) == 1 else nn.Sequential(*content)


def _contents():
    return {
        "one": [nn.Linear(3, 3)],
        "several": [nn.Linear(3, 4), nn.BatchNorm1d(4)],
        "a sequence": [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))],
    }


def _net(container, content, inner=None):
    content = _contents()[content]
    inside = content if inner is None else [inner(*content), nn.Linear(2, 2)]
    return nn.ModuleDict({"first": container(*inside), "last": nn.Linear(2, 2)})


@pytest.mark.parametrize(("layer", "name"), CONTAINERS)
@pytest.mark.parametrize("content", _contents())
@pytest.mark.parametrize("nested", [False, True])
def test_the_older_keys_load_and_are_given_back(layer, name, content, nested):
    container = getattr(layer, name)
    old = _net(Older, content, Older if nested else None)
    new = _net(container, content, container if nested else None)
    assert list(old.state_dict()) != list(new.state_dict())
    assert str(new.load_state_dict(old.state_dict())) == "<All keys matched successfully>"
    for mine, theirs in zip(new.state_dict().values(), old.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    back = module_keys(new)
    assert list(back) == list(old.state_dict())
    _net(Older, content, Older if nested else None).load_state_dict(back)
    _net(container, content, container if nested else None).load_state_dict(new.state_dict())


@pytest.mark.parametrize(("layer", "name"), CONTAINERS)
def test_keys_that_do_not_belong_are_refused(layer, name):
    new = _net(getattr(layer, name), "several")
    state = _net(Older, "several").state_dict()
    state["first.module.2.weight"] = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.2\.weight"):
        new.load_state_dict(state)
    del state["first.module.2.weight"], state["first.module.0.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.0\.bias"):
        new.load_state_dict(state)
    assert new.load_state_dict(state, strict=False).missing_keys == ["first.0.bias"]


@pytest.mark.parametrize("version", pairs.VERSIONS)
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_nodes_have_the_keys_of_theirs(version, kind):
    theirs, ours = pairs.both(version, kind)
    x = pairs.inputs("grid")
    theirs(x), ours(x)  # the state is in no checkpoint
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if kind == "ParametricLIFNode":
        theirs.w.data.fill_(0.3)
        ours.load_state_dict(theirs.state_dict())
        theirs.reset(), ours.reset()
        assert torch.equal(ours(x), theirs(x))
        with pytest.raises(RuntimeError, match=r"Missing key.*w"):
            ours.load_state_dict({})
