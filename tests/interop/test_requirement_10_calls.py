"""How often and with what shapes a node is called is the model's affair."""

import pytest
import torch
from jelly_cases import VERSIONS, check_same, currents, fresh, node
from torch import nn

import snnfast


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_10_without_a_batch_axis(version):
    """As in dense blocks, whose multi-step nodes get time and batch as one axis."""
    ours, theirs = fresh(nn.Sequential(node(version, "ParametricLIFNode"), node(version)))
    snnfast.accelerate(ours)
    for shape in ((6, 5, 4, 3), (6, 5), (1, 7)):
        check_same(ours, theirs, currents(*shape, grid=True))
        for model in (ours, theirs):
            for m in model:
                m.reset()
    single = fresh(nn.Sequential(node(version, mode="s")))
    snnfast.accelerate(single[0])
    check_same(*single, currents(6, 5), steps=True)


class Odd(nn.Module):
    """One node called twice, one in two places, one never, one on another shape in between."""

    def __init__(self, version):
        super().__init__()
        self.twice, self.never = node(version), node(version)
        self.left, self.right = nn.Sequential(node(version)), nn.Sequential(nn.Identity())
        self.right[0] = self.left[0]

    def forward(self, x):
        y = self.twice(x) + self.twice(2 * x)
        return self.right(y) + self.left(y + x)


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_10_twice_shared_never(version):
    ours, theirs = fresh(Odd(version))
    report = snnfast.accelerate(ours)
    assert [e.path for e in report.replaced] == ["twice", "never", "left.0"]
    assert ours.left[0] is ours.right[0]
    for grid in (False, True):
        check_same(ours, theirs, currents(5, 8, 3, grid=grid))
    assert type(ours.never.v) is float


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_10_what_cannot_be_ours_is_theirs(version):
    """Integers, for example, and no timestep at all."""
    ours, theirs = fresh(nn.Sequential(node(version, "IFNode")))
    snnfast.accelerate(ours)
    x = torch.randint(0, 3, (5, 8, 3))
    for model in (ours, theirs):
        try:
            model.result = model(x)
        except Exception as error:
            model.result = type(error)
    a, b = ours.result, theirs.result
    assert a is b if isinstance(b, type) else torch.equal(a, b)
