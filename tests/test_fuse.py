"""``snnfast.nn.fuse``: the same model in fewer passes, or the same model untouched."""

import copy
import gc
import pickle
import random
import re
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snnfast
from snnfast.nn import IF, LIF, ParametricLIF, fuse

T, B, C, SIDE = 4, 3, 4, 5


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fuse: ")
        yield


def conv():
    return nn.Conv2d(C, C, 3, padding=1, bias=False)


class Folded(nn.Module):
    """The wrapper that most spiking models have."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """A residual block; where and how it adds is ``add``."""

    def __init__(self, add="after", neuron=LIF):
        super().__init__()
        self.conv1, self.bn1, self.lif1 = conv(), nn.BatchNorm2d(C), LIF(tau=1.7)
        self.conv2, self.bn2, self.lif2 = conv(), nn.BatchNorm2d(C), neuron()
        self.add = add

    def forward(self, x):
        steps, batch, c, h, w = x.shape
        s = self.bn1(self.conv1(x.flatten(0, 1))).view(steps, batch, c, h, w)
        s = self.lif1(s)
        y = self.bn2(self.conv2(s.flatten(0, 1)))
        if self.add == "before":
            return self.lif2((x.flatten(0, 1) + y).reshape(steps, batch, c, h, w))
        y = y.view(steps, batch, c, y.shape[-2], y.size(-1))
        if self.add == "in place":
            y += x
            return self.lif2(y)
        return self.lif2(torch.add(y, x) if self.add == "after" else y)


def folded():
    return nn.Sequential(
        Folded(conv(), nn.BatchNorm2d(C, momentum=None)), ParametricLIF(channels=C),
        Folded(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, affine=False)), IF(v_reset=None),
    )  # fmt: skip


class Down(nn.Module):
    """Two batch norms meet in one addition: the first is fused, the other is what it adds."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.lif = conv(), nn.BatchNorm2d(C), LIF()
        self.down = Folded(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.lif(y + self.down(x.view(y.shape)))


MODELS = {
    "folded": (folded, 2),
    "after": (Block, 2),
    "before": (lambda: Block("before", lambda: ParametricLIF(3.0)), 2),
    "in place": (lambda: Block("in place"), 2),
    "none": (lambda: Block("none"), 2),
    "down": (Down, 1),
    "stack": (lambda: nn.Sequential(Block(), nn.Sequential(Down(), folded())), 5),
}


def build(name):
    torch.manual_seed(7)
    model = MODELS[name][0]()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.affine:
            nn.init.uniform_(m.weight, 0.8, 2.0)
            nn.init.normal_(m.bias)
    return model


def settled(name):
    """In evaluation mode, with the running statistics of one batch, so that neurons fire."""
    model = build(name).double()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model(data())
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    with torch.no_grad():
        assert model.eval()(data(seed=2)).any()
    return model


def data(dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(T, B, C, SIDE, SIDE, generator=g, dtype=torch.float64).to(dtype)


def ops_of(model, x):
    return [op for op, _, _ in snnfast.explain(model, x)]


def why_not(model, norm=None):
    """The reason that the report gives for one batch norm."""
    report = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = fuse(model, report=report)
    (entry,) = [e for e in report if norm in (None, e.norm)]
    assert entry.neuron is None and str(entry) == f"{entry.norm}: not fused: {entry.reason}"
    assert list(fused.state_dict()) == list(model.state_dict())
    return entry.reason


def assert_same_training(ours, theirs, x, **tolerance):
    """Spikes, gradients and running statistics of one step."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(i) for model, i in zip((ours, theirs), inputs)]
    assert torch.equal(*outputs) and 0.02 < outputs[0].mean() < 0.98
    weights = data(x.dtype, seed=5)
    for output in outputs:
        (output * weights).sum().backward()
    pairs = [(i.grad for i in inputs)]
    pairs += zip((p.grad for p in ours.parameters()), (p.grad for p in theirs.parameters()))
    pairs += zip(ours.buffers(), theirs.buffers())
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)


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


# --- what is left alone ---------------------------------------------------------------------------


class Custom(nn.Module):
    """bn, lif and a forward that a test writes; ``extra`` is a layer it may use."""

    def __init__(self, forward, extra=None, bn=None, lif=None):
        super().__init__()
        self.bn, self.lif = bn or nn.BatchNorm2d(C), lif or LIF()
        self.extra, self.flag, self.seen = extra, 0.5, []
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


class Subclass(nn.BatchNorm2d):
    pass


def _remember(m, x):
    m.last = m.bn(x)
    return m.lif(m.last)


def _count(m, x):
    m.flag += 1
    return m.lif(m.bn(x))


def _without_gradient(m, x):
    with torch.no_grad():
        y = m.bn(x)
    return m.lif(y)


def _random_depth(m, x):
    return m.lif(m.bn(x)) if torch.rand(()) < m.flag else x


def _python_random(m, x):
    return m.lif(m.bn(x) * 1.0) if random.random() < 2 else x


def _late_write(m, x):
    y = m.bn(x)
    x.mul_(2)
    return m.lif(y)


def _late_augmented_write(m, x):
    y, alias = m.bn(x), x
    alias += 1
    return m.lif(y)


def _late_inplace_layer(m, x):
    y = m.bn(x)
    return m.lif(y + m.extra(x))


def _set_data(m, x):
    y = x * 1
    y.data = x.data + 1
    return m.lif(m.bn(y))


def _adds_to_the_other(m, x):
    r = x * 1
    r += m.bn(x)
    return m.lif(r) + r


REFUSALS = {
    "two readers": (lambda m, x: m.lif(y := m.bn(x)) + y, "read by 2 operations"),
    "relu": (lambda m, x: m.lif(F.relu(m.bn(x))), "read by relu"),
    "a layer": (lambda m, x: m.lif(m.extra(m.bn(x))), "read by Conv2d"),
    "two additions": (lambda m, x: m.lif(m.bn(x) + x + x), "read by add"),
    "itself": (lambda m, x: m.lif((y := m.bn(x)) + y), "read by add"),
    "a number": (lambda m, x: m.lif(m.bn(x) + 1), "read by add"),
    "alpha": (lambda m, x: m.lif(torch.add(m.bn(x), x, alpha=2)), "read by add"),
    "output": (lambda m, x: (m.bn(x), m.lif(x)), "its output leaves Custom"),
    "called twice": (lambda m, x: m.lif(m.bn(x)) + m.lif(m.bn(x)), "called more than once"),
    "static": (lambda m, x: m.lif(m.bn(x), timesteps=3), "neuron is called with more than"),
    "v0": (lambda m, x: m.lif(m.bn(x), x[0].double()), "neuron is called with more than"),
    "branch": (lambda m, x: m.lif(m.bn(x)) if x.sum() > 0 else x, "cannot be traced: symbolically"),
    "remembers": (_remember, "cannot be traced"),
    "counts": (_count, "writes to the attributes"),
    "collects": (lambda m, x: m.lif(m.seen.append(x) or m.bn(x)), "writes to the attributes"),
    "no_grad": (_without_gradient, "changes the gradient mode"),
    "grad mode": (
        lambda m, x: m.lif(m.bn(x)) if torch.is_grad_enabled() else x,
        "depends on the gradient mode",
    ),
    "torch random": (_random_depth, "computes aten.rand"),
    "python random": (_python_random, "draws random numbers"),
    "training": (lambda m, x: m.lif(m.bn(x)) if m.training else x, "in training than in eval"),
    "late write": (_late_write, "mul_ between it and the neuron"),
    "late +=": (_late_augmented_write, "iadd.* between it and the neuron"),
    "late layer": (_late_inplace_layer, "extra between it and the neuron"),
    "sets data": (_set_data, "sets data of a tensor"),
    "adds to the other": (_adds_to_the_other, "read by iadd"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_left_alone(name):
    forward, reason = REFUSALS[name]
    extra = nn.ReLU(inplace=True) if name == "late layer" else conv()
    model = Custom(forward, extra).double()
    assert re.search(reason, why_not(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fuse: nothing was fused")
        fused = fuse(model)
    x, state = data()[:, 0], torch.get_rng_state()
    expected = model(x.clone())
    torch.set_rng_state(state)
    for a, b in zip(*(o if isinstance(o, tuple) else (o,) for o in (fused(x.clone()), expected))):
        assert torch.equal(a, b)
    assert hasattr(fused, "last") == (name == "remembers")  # from its one call, not from fuse
    assert fused.flag == (1.5 if name == "counts" else 0.5)
    assert len(fused.seen) == (name == "collects") and fused.training


class Keeps(nn.Module):
    first = 0.0

    def __init__(self):
        super().__init__()
        self.mean = 0.0
        self.register_buffer("row", torch.zeros(()))

    def forward(self, x):
        self.mean = self.first = self.later = self.row = x.mean()
        return x


def _changes_the_residual(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    r.add_(100.0)
    return z


def _changes_a_view_of_it(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    view = r.flatten(1)
    view *= 2.0
    return z


def _changes_other_tensors(m, x):
    r = x.clone()
    z = m.lif(m.bn(m.extra(x)) + r)
    other = m.extra(r)
    other += r
    return z + F.relu(other.flatten(1), inplace=True).sum() * 0.0


@pytest.mark.parametrize("forward", [_changes_the_residual, _changes_a_view_of_it])
def test_what_is_changed_in_place_behind_the_neuron(forward):
    def folding(model):
        return nn.Sequential(nn.Flatten(0, 1), model, nn.Unflatten(0, (T, B)))

    model = Custom(forward, conv()).double()
    assert re.search("(add_|imul).* behind the neuron may change a tensor", why_not(model))
    with pytest.warns(UserWarning, match="nothing was fused"):
        fused = fuse(model)
    assert_same_training(folding(fused), folding(model), data())
    other = Custom(_changes_other_tensors, conv()).double()
    assert ops_of(copy.deepcopy(fuse(other)), data()[:, 0]) == ["norm_lif"]
    assert_same_training(folding(fuse(other)), folding(other), data(), rtol=1e-9, atol=1e-10)


READS = {
    "an attribute": lambda m, x: m.lif(m.bn(m.extra(x))) + m.extra.mean,
    "that of the class": lambda m, x: m.lif(m.bn(m.extra(x))) + m.extra.first,
    "a buffer": lambda m, x: m.lif(m.bn(x)) + m.extra.row + m.extra(x) + m.extra.row,
    "none yet": lambda m, x: m.lif(m.bn(m.extra(x))) + getattr(m.extra, "later", 0.0),
}


@pytest.mark.parametrize("name", READS)
def test_a_forward_that_reads_what_another_changes(name):
    model, report = Custom(READS[name], Keeps()).double(), []
    with pytest.warns(UserWarning, match="nothing was fused"):
        fused = fuse(model, report=report)
    assert re.search(r"the forward of Custom reads \w+ of Keeps", report[0].reason)
    for _ in range(2):
        assert torch.equal(fused(data()[:, 0]), model(data()[:, 0]))


def test_a_forward_may_read_what_no_call_changes():
    """Weights, the layers of torch, its own attributes."""

    def forward(m, x):
        scale = m.flag * m.extra.out_channels / m.bn.num_features
        return m.lif(m.bn(x * m.extra.weight.mean() * scale))

    model = Custom(forward, conv()).double()
    assert ops_of(fuse(model), data()[:, 0]) == ["norm_lif"]
    reads = Custom(lambda m, x: ((y := m.bn(x)), m.bn.running_mean.sum() + m.lif(y))[1]).double()
    assert "bn.running_mean is read between" in why_not(reads)


def test_a_replaced_module_is_no_longer_held():
    model = fuse(build("folded"))
    gc.disable()
    try:
        for holder, name in ((model, "1"), (model[0].layers, "1"), (model, "2")):
            old = weakref.ref(holder[int(name)])
            holder[int(name)] = copy.deepcopy(holder[int(name)])
            assert old() is None
    finally:
        gc.enable()


def test_modules_that_are_left_alone():
    simple = lambda m, x: m.lif(m.bn(x))  # noqa: E731
    assert "Subclass is not one of" in why_not(Custom(simple, bn=Subclass(C)))
    assert "eps must be > 0" in why_not(Custom(simple, bn=nn.BatchNorm2d(C, eps=0.0)))
    assert "momentum must be" in why_not(Custom(simple, bn=nn.BatchNorm2d(C, momentum=2.0)))
    assert "returns its state" in why_not(Custom(simple, lif=LIF(return_state=True)))
    for part in ("bn", "lif"):
        for hook in ("register_forward_hook", "register_full_backward_hook"):
            model = Custom(simple)
            getattr(getattr(model, part), hook)(lambda *_: None)
            assert "has hooks" in why_not(model)
        model = Custom(simple)
        getattr(model, part).forward = lambda x: x
        assert "has a forward of its own" in why_not(model)
    model = Custom(simple)
    model.forward = lambda x: x
    assert "not that of its class" in why_not(model)
    wrapped = nn.Sequential(Folded(conv(), nn.BatchNorm2d(C)), LIF())
    wrapped[0].register_forward_hook(lambda *_: None)
    assert "its output leaves Folded '0', which has hooks" in why_not(wrapped)
    assert "no call of it" in why_not(Custom(lambda m, x: m.lif(x)))
    assert "another fused batch norm adds" in why_not(build("down"), "down.layers.1")


def test_an_untraceable_part_does_not_stop_the_rest():
    class Choosy(Folded):
        def forward(self, x):
            return super().forward(x) if x.dim() == 5 else x

    layers = [Choosy(conv(), nn.BatchNorm2d(C)), Choosy(LIF())]
    model = nn.Sequential(*layers, Block(), Folded(nn.BatchNorm2d(C)), LIF())
    report = []
    fused = fuse(model, report=report)
    assert [e.reason is None for e in report] == [False, True, True, True]
    assert "forward of Choosy '0' cannot be traced" in report[0].reason
    assert ops_of(fused, data().float()) == ["lif", "norm_lif", "norm_lif", "norm_lif"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.bn1.register_forward_hook(lambda m, i, o: 2 * o), "has hooks"),
        (lambda m: m.lif2.register_forward_hook(lambda m, i, o: 2 * o), "has hooks"),
        (lambda m: setattr(m, "add", "none"), "an attribute"),
        (lambda m: setattr(m, "bn1", nn.Identity()), "an attribute"),
        (lambda m: setattr(m.bn1, "momentum", 2.0), "momentum must be"),
    ],
)
def test_changes_after_fusing_are_seen(change, why):
    model = build("after").double()
    fused = fuse(model)
    change(model), change(fused)
    with pytest.warns(UserWarning, match=f"runs unfused: .*{why}"):
        ours = fused(data())
    assert torch.equal(ours, model(data()))


def test_changes_within_an_inlined_module_are_seen():
    changes = {
        "hook": lambda m: m[0].register_forward_hook(lambda m, i, o: 2 * o),
        "attribute": lambda m: m[0].layers.append(nn.ReLU()),
        "training mode": lambda m: m[0].eval(),
        "submodule": lambda m: snnfast.nn.checkpoint_spikes(m[0]),
    }
    for why, change in changes.items():
        model = build("folded").double()
        fused = fuse(model)
        change(model), change(fused)
        with pytest.warns(UserWarning, match=f"runs unfused: .*{why}"):
            ours = fused(data())
        assert torch.equal(ours, model(data()))


def test_calls_that_the_op_cannot_take_run_unfused():
    def run(model, x, why):
        model = model.double()
        fused = fuse(model)
        with pytest.warns(UserWarning, match=f"runs unfused: .*{why}"):
            ours = fused(x)
        assert torch.equal(ours, model(x))

    x = data()[:, 0]
    per_channel = ParametricLIF(channels=SIDE)
    with torch.no_grad():
        per_channel.w.copy_(torch.linspace(-1, 1, SIDE))
    run(Custom(lambda m, x: m.lif(m.bn(x)), lif=per_channel), x, "a parameter per channel")
    run(Custom(lambda m, x: m.lif(m.bn(x) + x[:, :1])), x, "must not be broadcast")
    run(Custom(lambda m, x: m.lif(m.bn(x) + x.float())), x, "must be a tensor of torch.float64")
    run(Custom(lambda m, x: m.lif(m.bn(x).reshape(2, -1))), x, "more than split time")
    run(Custom(lambda m, x: m.lif(m.bn(x))).eval(), x[:0], "the input is empty")
    half = Custom(lambda m, x: m.lif(m.bn(x))).bfloat16()
    with pytest.warns(UserWarning, match="running statistics must be torch.float32"):
        fuse(half)(x.bfloat16())


def test_optional_arguments_run_the_original_forward():
    class Optional(Custom):
        def forward(self, x, residual=None):
            y = self.bn(x)
            return self.lif(y if residual is None else y + residual)

    model = Optional(None).double()
    fused = fuse(model)
    x = data()[:, 0]
    assert ops_of(fused, x) == ["norm_lif"]
    model(x)
    with pytest.warns(UserWarning, match="called with other than 1 tensors"):
        ours = fused(x, x)
    assert torch.equal(ours, model(x, x))


def test_bad_arguments():
    with pytest.raises(TypeError, match="fuse: model must be a torch module, got int"):
        fuse(3)
    with pytest.raises(TypeError, match="fuse: report must be a list or None, got dict"):
        fuse(nn.ReLU(), report={})
    with pytest.warns(
        UserWarning, match="nothing was fused: 0: not fused: its output is read by ReLU"
    ):
        fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    assert fuse(nn.Sequential(nn.Linear(2, 2), LIF())) is not None  # nothing to fuse, no warning


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
