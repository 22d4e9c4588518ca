"""``accelerate(model, fuse=True)``: batch norms in one pass with the nodes behind them."""

import copy
import io
import pickle
import re
import warnings
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from jelly_cases import VERSIONS, check_same, currents, fresh, module, node
from network_pairs import F64, SHAPE, gradients, nodes, pair, within_twice_their_error
from torch import nn

import snnfast
from snnfast.interop import accelerate as home

FUSED = {"transformer": 11, "element-wise": 9, "element-wise, 2.0.0": 9, "merged": 2, "online": 0}
X = currents(4, 2, 3, 5, 4)


@pytest.fixture(autouse=True)
def _nothing_runs_unfused():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fuse: ")
        yield


def fused_ops(model, x) -> int:
    """How many batch norms do not run as torch has them."""
    model = copy.deepcopy(model)
    with mock.patch.object(F, "batch_norm", side_effect=F.batch_norm) as torchs:
        model(x)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return norms - torchs.call_count


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "accelerated") for name in FUSED),
        ("transformer", "compatible"),
        ("element-wise, leaking", "compatible"),
    ],
)
def test_networks_are_fused(name, way):
    """From rest, on from there, from rest again; a spike may differ, by a rounding."""
    theirs, reset_theirs, ours, reset_ours = pair(name, way, "random")
    keys = list(ours.state_dict())
    report = snnfast.accelerate(ours, fuse=True)
    assert len(report.fused) == FUSED.get(name, 9) and list(ours.state_dict()) == keys
    torch.manual_seed(1)
    xs = [torch.randn(SHAPE) for _ in range(3)]
    assert name == "online" or fused_ops(ours, xs[0]) == len(report.fused)
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        for call, x in enumerate(xs):
            if call != 1:
                reset_theirs(theirs)
                reset_ours(ours)
            torch.manual_seed(call)
            expected = theirs(x)
            torch.manual_seed(call)
            torch.testing.assert_close(ours(x), expected, rtol=0.02, atol=0.02)
            for (_, a), (_, b) in zip(nodes(ours), nodes(theirs), strict=True):
                assert a.v.shape == b.v.shape and ((a.v - b.v).abs() > 1e-4).float().mean() < 0.01
    for m in ours.modules():
        if callable(getattr(m, "detach", None)):
            m.detach()
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["transformer", "merged"])
def test_gradients_are_within_twice_their_own_error(name):
    theirs, _, ours, _ = pair(name, "accelerated", "random")
    snnfast.accelerate(ours, fuse=True)
    found = []
    for model, dtype in ((ours, None), (theirs, None), (copy.deepcopy(theirs).double(), F64)):
        torch.manual_seed(1)
        found.append(gradients(model, torch.randn(SHAPE).to(dtype).requires_grad_()))
    within_twice_their_error(*found)


class Block(nn.Module):
    """With ``modes`` layers that have a step mode; else time is folded into the batch."""

    def __init__(self, version, modes=False):
        super().__init__()
        layer = module(version, "layer") if modes else nn
        more = {"step_mode": "m"} if modes else {}
        self.modes = modes
        self.conv = layer.Conv2d(3, 6, 3, padding=1, **more)
        self.bn, self.lif = layer.BatchNorm2d(6, **more), node(version)
        self.down, self.bn2 = layer.Conv2d(6, 6, 1, **more), layer.BatchNorm2d(6, **more)
        self.last = node(version, "ParametricLIFNode", v_reset=None)

    def forward(self, x):
        if self.modes:
            s = self.lif(self.bn(self.conv(x)))
            return self.last(self.bn2(self.down(s)) + s)
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        s = self.lif(2 * x.mean() + y if self.modes is None else y)
        y = self.bn2(self.down(s.flatten(0, 1))) + s.flatten(0, 1)
        return self.last(y.reshape(s.shape))


def both(version, modes=False):
    torch.manual_seed(0)
    theirs, ours = fresh(Block(version, modes))
    return ours, theirs, snnfast.accelerate(ours, fuse=True)


def reset(*models):
    for model in models:
        for m in (model.lif, model.last):
            m.reset()


@pytest.mark.parametrize("version", VERSIONS)
def test_classes_copies_and_the_report(version):
    ours, theirs, report = both(version)
    assert report.fused == [("bn", "lif", None, False), ("bn2", "last", None, True)]
    assert "2 fused" in str(report) and "bn2 -> last" in str(report) and not report.unfused
    assert isinstance(ours, Block) and repr(ours) == repr(theirs)
    check_same(ours, theirs, X, rtol=1e-4, kept=False)
    kept = io.BytesIO()
    torch.save(ours, kept)
    kept.seek(0)
    for other in (
        copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(kept, weights_only=False)
    ):  # fmt: skip
        assert fused_ops(other, X) == 2 and other.bn is not ours.bn
        check_same(other, copy.deepcopy(theirs), X, rtol=1e-4, kept=False)
    assert snnfast.accelerate(ours, fuse=True).fused == report.fused
    plain = Block(version)
    plain.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_layers_with_a_step_mode(version):
    ours, theirs, report = both(version, modes=True)
    assert len(report.fused) == 2 and fused_ops(ours, X) == 2
    for x in (X, currents(4, 2, 3, 5, 4, grid=True)):
        check_same(ours, theirs, x, rtol=1e-4, kept=False)
    other = Block(version, modes=True)
    other.lif.step_mode = "s"
    report = snnfast.accelerate(other, fuse=True)
    assert [entry.norm for entry in report.unfused] == ["bn"]
    assert "its step_mode is 'm', that of LIFNode 's'" in str(report)


class InCalls(nn.Module):
    """Folds time into the batch by the package's function, of one layer and of many."""

    def __init__(self, version):
        super().__init__()
        self.conv, self.bn, self.lif = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), node(version)
        self.version = version

    def forward(self, x):
        functional = module(self.version, "functional")
        y = functional.seq_to_ann_forward(x, self.conv)
        return self.lif(functional.seq_to_ann_forward(y, (self.bn,)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_function_that_folds_time(version):
    theirs, ours = InCalls(version), InCalls(version)
    ours.load_state_dict(theirs.state_dict())
    function = module(version, "functional").seq_to_ann_forward
    assert len(snnfast.accelerate(ours, fuse=True).fused) == 1 and fused_ops(ours, X) == 1
    assert module(version, "functional").seq_to_ann_forward is function
    check_same(ours, theirs, X, rtol=1e-4, kept=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_timestep_a_call(version):
    def make():
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), node(version, mode="s"))

    ours, theirs = fresh(make())
    snnfast.accelerate(ours, fuse=True)
    assert fused_ops(ours, X[0]) == 1
    check_same(ours, theirs, X, steps=True, rtol=1e-4, kept=False)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_traced_node_in_both_modes(mode):
    class Own(module("0.0.0.0.14").LIFNode):
        def neuronal_charge(self, x):
            self.v = 0.75 * self.v + x

    node = Own(step_mode=mode, store_v_seq=mode == "m", v_reset=None)
    ours, theirs = fresh(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), node))
    ours[2].surrogate_function.alpha = theirs[2].surrogate_function.alpha = 2.0
    report = snnfast.accelerate(ours, fuse=True)
    assert len(report.traced) == len(report.fused) == fused_ops(ours, X[0]) == 1
    for x in X[:2]:
        check_same(ours, theirs, x, rtol=1e-4, kept=False)
        torch.testing.assert_close(ours[2].v, theirs[2].v)
    if mode == "m":
        torch.testing.assert_close(ours[2].v_seq, theirs[2].v_seq)


def test_v_of_every_step_is_that_of_the_call():
    """Looked at after the weights have changed, and after another batch."""
    ours, theirs, _ = both("0.0.0.0.12")
    for training in (True, False):
        for m in (ours, theirs):
            m.train(training)(X)
        reset_to = {k: v.clone() for k, v in ours.state_dict().items()}
        with torch.no_grad():
            for row in (ours.bn.weight, ours.bn.running_mean, ours.bn2.bias):
                row.add_(1.0)
        before = {k: v.clone() for k, v in ours.state_dict().items()}
        for name in ("lif", "last"):
            v_seq = getattr(ours, name).v_seq
            torch.testing.assert_close(v_seq, getattr(theirs, name).v_seq, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
        ours.load_state_dict(reset_to)
        reset(ours, theirs)


@pytest.mark.parametrize("part", ["bn", "lif"])
def test_hooks_on_a_pair(part):
    torch.manual_seed(0)
    ours, theirs = fresh(Block("2.0.0"))
    for m in (ours, theirs):
        getattr(m, part).register_forward_hook(lambda m, x, y: 0.5 * y)
    report = snnfast.accelerate(ours, fuse=True)
    assert [(e.norm, e.neuron) for e in report.fused] == [("bn2", "last")]
    (left,) = report.unfused
    assert left.norm == "bn" and "has hooks" in left.reason and "has hooks" in str(report)
    check_same(ours, theirs, X, rtol=1e-4, kept=False)
    for m in (ours, theirs):
        m.last.register_forward_pre_hook(lambda m, x: (x[0] + 0.5,))
    with pytest.warns(UserWarning, match="runs unfused: ParametricLIFNode has hooks"):
        check_same(ours, theirs, X, rtol=1e-4, kept=False)


def test_sync_batch_norm_before_and_after():
    ours, theirs, _ = both("0.0.0.0.14")
    before = snnfast.accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(theirs), fuse=True)
    assert len(before.fused) == 2
    ours, theirs, _ = both("0.0.0.0.14")
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    with pytest.warns(UserWarning, match="runs unfused: an attribute or a submodule was changed"):
        check_same(ours, theirs, X, rtol=1e-4, kept=False)
    assert len(snnfast.accelerate(ours, fuse=True).fused) == fused_ops(ours, X) == 2
    check_same(ours, theirs, X, rtol=1e-4, kept=False)


def test_what_a_subclass_does_around_the_step_is_done():
    class Loud(module("0.0.0.0.14").LIFNode):
        def forward(self, x):
            return super().forward(2 * x)

    ours, theirs = fresh(nn.Sequential(nn.BatchNorm2d(3), Loud(step_mode="m")))
    report = snnfast.accelerate(ours, fuse=True)
    assert "Loud: its class has its own forward" in report.unfused[0].reason
    check_same(ours, theirs, X[0])


class Reads(nn.Module):
    """Beside the spikes what ``what`` finds in its nodes, before and after they are called."""

    def __init__(self, version, what):
        super().__init__()
        self.bn, self.lif, self.out = nn.BatchNorm2d(3), node(version), node(version)
        self.what = what

    def forward(self, x):
        before = self.what(self)
        s = self.lif(self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return s, before, self.out(s), self.what(self)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "what",
    [
        lambda m: m.lif.v,
        lambda m: m.out.v,
        lambda m: m.out.reset(),
        lambda m: getattr(m.lif, "v_seq", None),
    ],
)
def test_a_forward_that_reads_the_state_of_a_node(version, what):
    torch.manual_seed(0)
    ours, theirs = fresh(Reads(version, what))
    (left,) = snnfast.accelerate(ours, fuse=True).unfused
    assert re.search(r"the forward of Reads reads \w+ of (MultiStep)?LIFNode", left.reason)
    for x in (X, X):
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert type(a) is type(b)
            torch.testing.assert_close(a, b)


def test_a_forward_that_reads_a_step_mode():
    """It is fused, until the step mode is another."""
    functional = module("2.0.0", "functional")

    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            layer = module("2.0.0", "layer")
            self.bn, self.lif = layer.BatchNorm2d(3), node("2.0.0")
            self.pool = layer.AdaptiveAvgPool2d(1)
            functional.set_step_mode(self, "m")

        def forward(self, x):
            s = self.pool(self.lif(self.bn(x)))
            return s.flatten(2) if self.pool.step_mode == "m" else s.flatten(1)

    ours, theirs = fresh(Pools())
    snnfast.accelerate(ours, fuse=True)
    assert fused_ops(ours, X) == 1
    check_same(ours, theirs, X, rtol=1e-4, kept=False)
    for m in (ours, theirs):
        functional.reset_net(m)
        functional.set_step_mode(m, "s")
    with pytest.warns(UserWarning, match="runs unfused: an attribute or a submodule was changed"):
        check_same(ours, theirs, X[0], rtol=1e-4, kept=False)


def test_a_node_put_in_place_of_another_is_reset():
    functional = module("2.0.0", "functional")
    net = nn.Sequential(nn.BatchNorm2d(3), node("2.0.0"))
    assert snnfast.accelerate(net, fuse=True).fused
    net(X[0])
    functional.reset_net(net)
    net[1] = node("2.0.0", tau=4.0, v_threshold=0.5)
    with pytest.warns(UserWarning, match="runs unfused: an attribute or a submodule was changed"):
        net(X[0])
    functional.reset_net(net)
    assert isinstance(net[1].v, float) and net[1].v == 0.0


def test_a_call_that_is_none_of_ours():
    """A node that is given a method of its own later, and a tensor as its tau."""
    ours, theirs, _ = both("0.0.0.0.14")
    for m in (ours, theirs):
        m.lif.tau = torch.tensor(3.0)
        m.last.neuronal_fire = lambda m=m.last: (m.v >= 2.0).float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="accelerate: ")
        check_same(ours.eval(), theirs.eval(), X, rtol=1e-4, kept=False)


def test_nothing_half_way(monkeypatch):
    def fails(model):
        fuse(model)
        raise RuntimeError("half-way")

    fuse = home.fuse_all
    monkeypatch.setattr(home, "fuse_all", fails)
    model = Block("2.0.0")
    before = [(type(m), set(vars(m))) for m in model.modules()]
    with pytest.raises(RuntimeError, match="half-way"):
        snnfast.accelerate(model, fuse=True)
    assert [(type(m), set(vars(m))) for m in model.modules()] == before


def test_it_has_to_be_asked_for():
    model = Block("2.0.0")
    report = snnfast.accelerate(model)
    assert not report.fused and not report.unfused and fused_ops(model, X) == 0
    with pytest.raises(TypeError, match="accelerate: fuse must be True or False, got int"):
        snnfast.accelerate(model, fuse=1)
