"""A replaced node is one of its own class, and everything that is done to modules goes on."""

import copy
import io
import os
import pickle
import warnings

import pytest
import torch
from jelly_cases import (
    KINDS,
    VERSIONS,
    check_same,
    currents,
    fresh,
    module,
    node,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import snnfast


class Block(nn.Module):
    """[T, B, C, H, W], with time in the batch for the layers between."""

    def __init__(self, version, kind="LIFNode"):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.lif, self.last = node(version, kind), node(version, v_reset=None)

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.last(2 * self.lif(3 * y)).flatten(3).mean(3)


def both(version, kind="LIFNode"):
    torch.manual_seed(0)
    ours, theirs = fresh(Block(version, kind))
    return ours, theirs, snnfast.accelerate(ours)


def reset(*models):
    for model in models:
        for m in model.modules():
            if callable(getattr(m, "reset", None)):
                m.reset()


X = currents(4, 2, 3, 5, 4)


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_the_class_is_theirs(version):
    ours, theirs, report = both(version)
    for a, b in ((ours.lif, theirs.lif), (ours.last, theirs.last)):
        assert isinstance(a, type(b)) and isinstance(a, module(version).BaseNode)
        assert type(a).__name__ == type(b).__name__ and type(a).__module__ == type(b).__module__
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert [e.path for e in report.replaced] == ["lif", "last"]
    assert "2 replaced" in repr(report) and "lif, last" in str(report)
    assert not report.fused and "1 batch norms, which would round otherwise" in str(report)
    again = snnfast.accelerate(ours)  # nothing more happens
    assert again.replaced == report.replaced and type(ours.lif).__mro__[-1] is object
    check_same(ours, theirs, X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_copies(version, kind):
    ours, theirs, _ = both(version, kind)
    with torch.no_grad():
        ours(X), theirs(X)
    kept = io.BytesIO()
    torch.save(ours, kept)
    kept.seek(0)
    copies = (
        copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(kept, weights_only=False)
    )  # fmt: skip
    for other in copies:
        assert type(other.lif) is type(ours.lif) and other.lif is not ours.lif
        check_same(other, copy.deepcopy(theirs), X)  # from the state that it was copied with
    plain = Block(version, kind)
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_checkpoints_hold_nothing_of_ours(version):
    ours, theirs, _ = both(version)
    kept = io.BytesIO()
    torch.save(ours.state_dict(), kept)
    kept.seek(0)
    loaded = torch.load(kept, weights_only=True)
    assert loaded._metadata == theirs.state_dict()._metadata
    theirs.load_state_dict(loaded)


def test_requirement_02_traced_nodes_are_copied_too():
    ours, theirs = fresh(nn.Sequential(Traced()))
    assert len(snnfast.accelerate(ours).traced) == 1
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other[0]) is type(ours[0]) and isinstance(other[0], Traced)
        check_same(other, copy.deepcopy(theirs), currents(4, 8, 5))


class Traced(node("2.0.0").__class__.__mro__[1]):
    """A node of one's own, which pickle finds here."""

    def __init__(self):
        super().__init__(step_mode="m")

    def single_step_functional_forward(self, inputs, states, **kwargs):
        h = 0.5 * states[0] + inputs[0]
        s = self.surrogate_function(h - self.v_threshold)
        return (s,), (h - s * self.v_threshold,)


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_hooks(version):
    ours, theirs, _ = both(version)
    seen = {"ours": [], "theirs": []}
    for name, model in (("ours", ours), ("theirs", theirs)):
        log = seen[name]
        model.lif.register_forward_pre_hook(lambda m, x: (x[0] + 0.5,))
        model.lif.register_forward_hook(lambda m, x, s, log=log: log.append(s.mean().item()))
        model.lif.register_full_backward_hook(lambda m, dx, ds, log=log: log.append(dx[0].shape))
    check_same(ours, theirs, X)
    assert seen["ours"] == seen["theirs"] and len(seen["ours"]) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_layouts_and_dtypes(version):
    ours, theirs, _ = both(version)
    x = X.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, X.shape[:2])
    ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))
    check_same(ours, theirs, x)
    reset(ours, theirs)
    check_same(ours.double(), theirs.double(), X.double())
    reset(ours)
    ours.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(X)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and ours.lif.v.dtype == torch.float32
    assert ours.conv.weight.grad.isfinite().all() and ours.conv.weight.grad.abs().sum() > 0


def test_requirement_02_sync_bn_before_and_after():
    for version in VERSIONS:
        ours, _, _ = both(version)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
        assert isinstance(synced.bn, nn.SyncBatchNorm) and synced.lif is ours.lif
        assert len(snnfast.accelerate(synced).replaced) == 2
        before = nn.SyncBatchNorm.convert_sync_batchnorm(Block(version))
        assert len(snnfast.accelerate(before).replaced) == 2


@pytest.fixture
def gloo():
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    yield
    torch.distributed.destroy_process_group()


def test_requirement_02_distributed(gloo):
    for version in VERSIONS:
        ours, theirs, _ = both(version, "ParametricLIFNode")
        wrapped = DistributedDataParallel(ours)
        check = [m(X).square().sum() for m in (wrapped, theirs)]
        for loss in check:
            loss.backward()
        assert torch.equal(*check)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        reset(wrapped.module)  # what is wrapped already is taken as well
        other = DistributedDataParallel(Block(version))
        assert len(snnfast.accelerate(other).replaced) == 2
    ends = DistributedDataParallel(nn.Sequential(node(version), nn.BatchNorm2d(3)))
    (left,) = snnfast.accelerate(ends, fuse=True).unfused
    assert left.reason == "its output leaves Sequential 'module'"


def test_requirement_02_half_of_a_model_is_never_changed(monkeypatch):
    class Fixed(module("0.0.0.0.12").MultiStepLIFNode):
        def __setattr__(self, name, value):
            if name == "__class__":
                raise TypeError("no other class")
            super().__setattr__(name, value)

    model = nn.Sequential(node("0.0.0.0.12"), Fixed())
    before = [type(m) for m in model]
    with pytest.raises(TypeError, match="no other class"):
        snnfast.accelerate(model)
    assert [type(m) for m in model] == before


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_compiled(version):
    ours, theirs, _ = both(version)
    ours, theirs = ours.eval(), theirs.eval()
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, backend="eager")
        for _ in range(2):
            reset(ours, theirs)
            assert torch.equal(compiled(X), theirs(X))
            assert torch.equal(ours.lif.v, theirs.lif.v)
            assert torch.equal(compiled(X), theirs(X))  # on from there


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_transforms_and_inference_mode(version):
    ours, theirs, _ = both(version, "ParametricLIFNode")
    with torch.inference_mode():
        check_same(ours, theirs, X)
    check_same(ours, theirs, X)  # on from there
    reset(ours, theirs)
    results = []
    for model in (ours, theirs):
        try:
            results.append(torch.func.vmap(model.eval())(X[None])[0])
        except RuntimeError as error:
            results.append(type(error))
        reset(model)
    if isinstance(results[1], torch.Tensor):
        assert torch.equal(*results)
    else:
        assert results[0] is results[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_requirement_02_a_model_without_memory(version):
    with torch.device("meta"):
        ours = Block(version, "ParametricLIFNode")
    assert len(snnfast.accelerate(ours).replaced) == 2
    theirs = Block(version, "ParametricLIFNode")
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    check_same(ours, theirs, X)


def test_requirement_02_compiled_as_one_graph():
    """Also where V goes on from the call before."""
    ours, theirs, _ = both("2.0.0")
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for _ in range(2):
        given = [X.clone().requires_grad_() for _ in range(2)]
        results = compiled(given[0]), theirs(given[1])
        assert torch.equal(*results)
        for s in results:
            s.square().sum().backward()
        assert torch.allclose(given[0].grad, given[1].grad, rtol=1e-4, atol=1e-6)
        for model in (ours, theirs):
            model.lif.detach(), model.last.detach()


@pytest.mark.parametrize(
    ("version", "traced"), [("0.0.0.0.12", False), ("0.0.0.0.12", True), ("2.0.0", False)]
)
def test_requirement_02_in_a_checkpoint_runs_on_from_v_as_theirs(version, traced):
    """The second run begins at the V that the first has left, of which the first kept nothing.
    (That of 0.0.0.0.14 raises there.)"""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(5, 5), node(version))
    if traced:
        charge = {"neuronal_charge": lambda self, x: setattr(self, "v", 0.8 * self.v + x)}
        theirs[1].__class__ = type("Own", (type(theirs[1]),), charge)
    ours = copy.deepcopy(theirs)
    snnfast.accelerate(ours)
    found = []
    for model in (ours, theirs):
        checkpoint(model, currents(4, 3, 5), use_reentrant=False).square().sum().backward()
        found.append(model[0].weight.grad)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)
