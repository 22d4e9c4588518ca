"""``snnfast.nn.fuse``: the same model in fewer passes."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from fuse_cases import (
    MODELS,
    SIDE,
    B,
    Block,
    C,
    Custom,
    Folded,
    T,
    assert_same_training,
    build,
    conv,
    data,
    ops_of,
    settled,
)
from torch import nn

import snnfast
from snnfast.nn import IF, LIF, ParametricLIF, fuse

pytestmark = pytest.mark.filterwarnings("error:fuse")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_the_model_does(name, dtype):
    model = build(name).to(dtype)
    report = []
    fused = fuse(model, report=report)
    assert sum(entry.reason is None for entry in report) == MODELS[name][1]
    x = data(dtype)
    assert ops_of(copy.deepcopy(fused), x).count("norm_lif") == MODELS[name][1]
    tolerance = {torch.float64: (1e-9, 1e-10), torch.float32: (1e-3, 2e-4)}[dtype]
    for _ in range(2):  # the second step starts from running statistics
        assert_same_training(fused, model, x, rtol=tolerance[0], atol=tolerance[1])
    x, model = data(dtype, seed=2), settled(name).to(dtype)
    with torch.no_grad():
        assert torch.equal(fuse(model)(x), model(x))


def exact(model):
    """Numbers with few bits, so that float32 rounds nothing, whatever the order of operations."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 2.0**-16
            m.running_mean.copy_(torch.tensor([0.5, -0.25, 0.0, 1.0]))
            m.running_var.fill_(4 - m.eps)
            nn.init.constant_(m.weight, 2.0), nn.init.constant_(m.bias, 0.25)
        elif isinstance(m, nn.Conv2d):
            m.weight.data = torch.randint(-4, 5, m.weight.shape).float() / 4
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_is_exact_on_the_threshold(dtype):
    """Nothing is rounded, so potentials that equal the threshold are there and must fire."""
    torch.manual_seed(3)
    layers = [Folded(conv(), nn.BatchNorm2d(C)), IF()]
    model = exact(nn.Sequential(*layers)).to(dtype)
    x = torch.randint(-2, 3, (T, B, C, SIDE, SIDE)).to(dtype) / 2
    fused = fuse(model)
    h = layers[0](x)[0]
    assert (h == 1.0).any()
    assert torch.equal(fused(x), model(x)) and ops_of(fused, x) == ["norm_lif"]


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_go_both_ways(name):
    model, fused = settled(name), fuse(build(name).double())
    assert list(fused.state_dict()) == list(model.state_dict())
    fused.load_state_dict(model.state_dict())
    before = fused.eval()(data())
    assert torch.equal(before, model(data())) and before.any()
    fused.train()(data(seed=2))
    model.load_state_dict(fused.state_dict())
    assert torch.equal(fused.eval()(data()), model(data()))
    assert not torch.equal(fused(data()), before)


@pytest.mark.parametrize("move", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_fused_and_on_their_own(move):
    fused = fuse(build("stack").double())
    moved = move(fused)
    assert ops_of(moved, data()).count("norm_lif") == 5
    fused(data())
    assert_same_training(moved, fused, data(), rtol=0, atol=0)
    before = fused(data())
    for p in moved.parameters():
        p.data.zero_()
    assert torch.equal(fused(data()), before) and not moved.eval()(data()).any()
    assert isinstance(moved[0], Block)


def test_in_place_and_twice():
    model = build("after")
    assert fuse(model) is not model and not ops_of(model, data().float()).count("norm_lif")
    assert fuse(model, inplace=True) is model
    report = []
    fuse(model, inplace=True, report=report)
    assert list(map(str, report)) == ["bn1 -> lif1: fused", "bn2 -> lif2: fused"]
    assert ops_of(model, data().float()) == ["norm_lif"] * 2


@pytest.mark.parametrize("name", ["folded", "after", "single"])
def test_streaming_carries_the_state(name):
    model = settled("after" if name == "single" else name)
    if name == "single":
        model = nn.Sequential(model.conv1, model.bn1, model.lif1)
    fused = fuse(model)
    x = data()[:, 0] if name == "single" else data()
    with torch.no_grad():
        whole = fused(x)
        with snnfast.streaming(fused):
            parts = [fused(part) for part in x.split([1, 3])]
        assert torch.equal(torch.cat(parts), whole) and whole.any()
        with snnfast.streaming(model):  # the state has the shape of the model's own
            model(x[:1])
            with snnfast.streaming(fused):
                fused(x[:1])
                for ours, theirs in zip(fused.modules(), model.modules()):
                    if isinstance(ours, LIF):
                        torch.testing.assert_close(ours._v, theirs._v)


@pytest.mark.parametrize("form", ["sequence", "features", "volume"])
def test_without_a_batch_the_first_axis_is_time(form):
    norm, shape = {
        "sequence": (nn.BatchNorm1d(C), (6, C, 7)),
        "features": (nn.BatchNorm1d(C), (6, C)),
        "volume": (nn.BatchNorm3d(C), (6, C, 2, 3, 4)),
    }[form]
    model = nn.Sequential(norm, LIF()).double()
    fused = fuse(model)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert ops_of(copy.deepcopy(fused), x) == ["norm_lif"]
    assert torch.equal(fused(x), model(x))
    for a, b in zip(fused.buffers(), model.buffers()):
        torch.testing.assert_close(a, b)


class Tokens(nn.Module):
    """Channels that are moved to the last axis behind the norm, or image axes that are made of
    one."""

    def __init__(self, last):
        super().__init__()
        self.bn, self.lif, self.last = nn.BatchNorm1d(C), ParametricLIF(), last

    def forward(self, x):
        y = self.bn(x.flatten(0, 1).flatten(2))
        if self.last:
            y = y.transpose(-1, -2).view(x.size(0), x.size(1), SIDE**2, C).contiguous()
            return self.lif(y).view(T, B, SIDE, SIDE, C)
        return self.lif(y.reshape(x.size(0), x.size(1), C, SIDE, SIDE)) * 1.0


@pytest.mark.parametrize("last", [False, True])
def test_other_axes_behind_the_norm(last):
    model = Tokens(last).double()
    fused = fuse(model)
    assert ops_of(copy.deepcopy(fused), data()) == ["norm_lif"]
    with torch.no_grad():
        assert torch.equal(fused(data()), model(data()))
        with snnfast.streaming(model), snnfast.streaming(fused):
            for x in (data(), data(seed=2)):
                assert torch.equal(fused(x), model(x))
            torch.testing.assert_close(fused.lif._v, model.lif._v)
    x = [data().requires_grad_() for _ in range(2)]
    for m, t in zip((fused, model), x):
        (m(t) * data(seed=5).reshape(m(t).shape)).sum().backward()
    torch.testing.assert_close(x[0].grad, x[1].grad)


@pytest.mark.parametrize("tracking", ["never", "not any more"])
def test_batch_statistics_in_evaluation(tracking):
    model = nn.Sequential(nn.BatchNorm2d(C, track_running_stats=tracking != "never"), LIF())
    model.double()(data()[:, 0])
    model[0].track_running_stats = False
    fused = fuse(model)
    for mode in (True, False):
        fused.train(mode), model.train(mode)
        assert torch.equal(fused(data()[:, 1]), model(data()[:, 1]))
    for a, b in zip(fused.buffers(), model.buffers()):
        assert torch.equal(a, b)


def test_a_frozen_norm_in_training():
    model = build("after").double()
    fused = fuse(model)
    for m in (model, fused):
        m(data())
        m.bn1.eval()
    assert_same_training(fused, model, data(), rtol=1e-9, atol=1e-10)
    assert fused.bn1.num_batches_tracked == 1 and fused.bn2.num_batches_tracked == 2


def test_what_else_depends_on_the_mode():
    model = Custom(lambda m, x: F.dropout(m.lif(m.bn(x)), 0.9, m.training)).double()
    fused, x = fuse(model), data()[:, 0]
    for mode in (True, False):
        outputs = []
        for m in (fused.train(mode), model.train(mode)):
            torch.manual_seed(11)
            outputs.append(m(x))
        assert torch.equal(*outputs) and (outputs[0].max() > 9) == mode and outputs[0].any()


def test_sync_batch_norm_of_one_process():
    plain = build("folded").double()
    sync = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)))
    assert ops_of(copy.deepcopy(sync), data()) == ["norm_lif"] * 2
    assert_same_training(sync, plain, data(), rtol=1e-9, atol=1e-10)


def test_compiles_in_one_graph():
    model = settled("stack")
    fused = fuse(model)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(data()), model(data()))
    fused[0].add = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = fused(data())
        assert not torch.equal(expected, model(data()))
        with pytest.raises(torch._dynamo.exc.Unsupported, match="warn"):  # it was seen
            compiled(data())


def test_trains_compiled():
    fused = fuse(build("after").double())
    compiled = torch.compile(copy.deepcopy(fused), backend="aot_eager", fullgraph=True)
    assert_same_training(compiled, fused, data(), rtol=1e-9, atol=1e-10)


def test_fused_blocks_can_be_checkpointed():
    fused = fuse(build("stack").double())
    kept = copy.deepcopy(fused)
    kept[0] = snnfast.nn.checkpoint_spikes(kept[0])
    kind, kept = type(kept[0]), copy.deepcopy(kept)
    assert type(kept[0]) is kind
    assert ops_of(copy.deepcopy(kept), data()).count("norm_lif") == 5
    assert_same_training(kept, fused, data(), rtol=1e-9, atol=1e-10)


def test_evaluation_in_inference_mode():
    model = settled("stack")
    with torch.inference_mode():
        assert torch.equal(fuse(model)(data()), model(data()))


class Path(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.lif = norm, LIF()

    def forward(self, x):
        return self.lif(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class Shared(nn.Module):
    """One batch norm on two paths, before neurons and before nothing."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(5)
        self.spiking, self.plain = Path(norm), nn.Sequential(norm)

    def forward(self, x):
        return self.spiking(x) + self.plain(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_shared_norm_with_one_path_fused_is_trained_before_backward():
    report = []
    model = fuse(Shared(), report=report)
    assert report[0].reason is None
    x = torch.randn(4, 3, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(model.eval().spiking(x).sum(), x)
    both, fused = model(x), model.spiking(x)
    model.train()(x)
    both.sum().backward()  # torch's own path takes the running statistics as they are now
    assert torch.equal(torch.autograd.grad(fused.sum(), x)[0], expected)


class Halved(nn.Module):
    """Sizes that are computed, and by ``int`` whole again."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.lif = nn.Conv2d(C, C, 2, stride=2), nn.BatchNorm2d(C), LIF()
        self.rest: float | int = 0

    def forward(self, x):
        steps, batch, c, h, w = x.shape
        y = self.bn(self.conv(x.flatten(0, 1)))
        rest = self.rest if isinstance(self.rest, int) else int("7")
        return self.lif(y.reshape(steps, batch, c, int(h / 2) + rest, int(w / 2)))


def test_sizes_that_are_made_whole():
    torch.manual_seed(7)
    model = Halved().double()
    fused = fuse(model)
    assert ops_of(fused, data()) == ["norm_lif"]
    for x in (data(), data()[..., 1:]):  # a size is not one of the trace
        assert torch.equal(fused(x), model(x))
