"""packed_spikes: the gradients of the dense path, bit for bit, in less memory, whatever else
happens to spikes and to hooks.
"""

import contextlib
import gc

import pytest
import torch
import torch.nn.functional as F
from packed_cases import (
    NETS,
    Block,
    TwoReaders,
    assert_same,
    counted,
    gradients,
    kept_bytes,
    sequence,
    within,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast.nn import checkpoint_spikes
from snnfast.ops import packed

# Saved spikes at least; a block's output that nothing learns from is not saved.
PACKED = {"chain": 2, "norm": 1, "residual": 3, "pooled": 4, "two readers": 2, "step by step": 4}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels last"))
def test_gradients_are_the_dense_ones(name, dtype, layout, monkeypatch):
    net, x = NETS[name]().to(dtype), sequence(dtype)
    if layout == "channels last":
        net = net.to(memory_format=torch.channels_last)
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    dense = gradients(net, x)
    with counted(monkeypatch) as found:
        ours = gradients(net, x, snnfast.packed_spikes)
    assert_same(ours, dense)
    assert len(found) >= PACKED[name]
    if layout == "channels last" and name == "chain":
        assert all(not p.contiguous for p in found)


def test_one_spike_tensor_has_its_bits_once(monkeypatch):
    net, x = TwoReaders(16), sequence()
    with counted(monkeypatch) as found:
        gradients(net, x, snnfast.packed_spikes)
    assert len(found) == 2 and found[0].bits is found[1].bits


def test_norm_lif_with_a_residual_of_spikes(monkeypatch):
    x, weight, bias = torch.randn(4, 4, 8, 12, 12), torch.rand(8) + 0.5, torch.randn(8)
    identity = (torch.rand_like(x) < 0.2).float()

    def run(context):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with context():
            r = identity.clone().requires_grad_()
            s = snnfast.norm_lif(
                leaves[0], r, weight=leaves[1], bias=leaves[2], running_mean=None,
                running_var=None, training=True,
            )  # fmt: skip
        return torch.autograd.grad((s * x).sum(), [*leaves, r])

    dense = run(contextlib.nullcontext)
    with counted(monkeypatch) as found:
        ours = run(snnfast.packed_spikes)
    assert_same(ours, dense)
    assert [p.shape for p in found] == [x.shape]


def test_streams_and_static_input(monkeypatch):
    net = nn.Sequential(Block(16, 16), Block(16, 16))
    x = sequence(steps=6)

    def streamed(net, x):
        with snnfast.streaming(net):
            return torch.cat([net(part) for part in x.split([1, 3, 2])])

    def static(net, x):
        s = net[0].lif(net[0].conv(x[0]), timesteps=5)
        return net[1](s)

    for call in (streamed, static):
        dense = gradients(net, x, call=call)
        with counted(monkeypatch) as found:
            assert_same(gradients(net, x, snnfast.packed_spikes, call), dense)
        assert found


# Memory


@pytest.mark.unpoisoned
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_kept_by_a_chain(dtype):
    """Convolution outputs that LIF needs, and one bit for each spike between."""
    net = nn.Sequential(*[Block(16, 16) for _ in range(4)]).to(dtype)
    x = sequence(dtype, side=64)
    b, n = x.element_size(), x.numel()
    dense = kept_bytes(net, x) / n
    ours = kept_bytes(within(snnfast.packed_spikes, net), x) / n
    assert dense == pytest.approx(4 * b + 3 * b, abs=0.05)  # the first input is the caller's
    assert ours == pytest.approx(4 * b + 3 / 8, abs=0.05)


@pytest.mark.unpoisoned
def test_two_readers_keep_one_copy_of_the_bits():
    s = (torch.rand(4, 2, 16, 64, 64) < 0.2).float()
    weights = [torch.randn(4, 16, 1, 1, requires_grad=True) for _ in range(3)]

    def run(x):
        s = snnfast.lif(x * 2)
        return sum(F.conv2d(s.flatten(0, 1), w) for w in weights)

    n = s.numel()
    kept = kept_bytes(within(snnfast.packed_spikes, run), s) / n
    assert kept == pytest.approx(4 + 0.125, abs=0.02)  # the neurons' input, and the bits


@pytest.mark.unpoisoned
def test_backward_frees_bits_and_forgets_storages():
    weight = torch.randn(3, 512, requires_grad=True)
    for _ in range(200):
        with snnfast.packed_spikes():
            y = F.linear(snnfast.lif(torch.randn(4, 512)), weight)
        y.sum().backward()
        del y
    assert len(packed._known.storages) <= 64
    gc.collect()
    assert not any(storage.bits for storage in packed._known.storages.values())


# What changes, and what else has hooks


def test_a_change_between_op_and_save_is_seen():
    x, w = torch.randn(4, 2000), torch.randn(30, 2000)

    def run(context):
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        with context():
            s = snnfast.lif(leaf * 2)
            first = F.linear(s, weight)  # its bits are known now
            s = s.clone() if context is contextlib.nullcontext else s
            s.mul_(0.5)
            second = F.linear(s, weight)
        return torch.autograd.grad((first.sin() + second).sum(), [leaf, weight])

    assert_same(run(snnfast.packed_spikes), run(contextlib.nullcontext), exercised=False)


def test_a_change_after_the_save():
    x = torch.randn(4, 2000)
    weight = torch.randn(30, 2000, requires_grad=True)
    (expected,) = torch.autograd.grad(F.linear(snnfast.lif(x * 2), weight).sum(), weight)
    with snnfast.packed_spikes():
        s = snnfast.lif(x * 2)
        y = F.linear(s, weight)
    s.zero_()  # packed: its bits have been read
    (grad,) = torch.autograd.grad(y.sum(), weight)
    assert torch.equal(grad, expected) and expected.any()

    with snnfast.packed_spikes():
        y = F.linear(x, weight)
    x.mul_(2)  # kept as it is
    with pytest.raises(RuntimeError, match=r"packed_spikes: a tensor.*float32.*2000.*version 1"):
        torch.autograd.grad(y.sum(), weight)


def test_a_parameter_step_before_backward_is_refused():
    layer, x = nn.Linear(2000, 3), torch.randn(2, 2000, requires_grad=True)
    with snnfast.packed_spikes():
        y = layer(x)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="must not be changed in place"):
        y.sum().backward()


@pytest.mark.parametrize("value", (-0.0, 0.5, float("nan"), 2.0))
def test_what_is_no_spike_stays_as_it_is(value, monkeypatch):
    x = (torch.rand(4, 2000) < 0.2).float()
    x[3, 1777] = value
    weight = torch.randn(30, 2000, requires_grad=True)
    with counted(monkeypatch) as found, snnfast.packed_spikes():
        y = F.linear(x, weight)
    assert not found
    (grad,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(grad[0], x.sum(0), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "view",
    (lambda s: s[:, ::2], lambda s: s[:1].expand(4, 4000), lambda s: s.unfold(1, 100, 50)),
    ids=("gaps", "expanded", "overlapping"),
)
def test_views_that_are_no_block_of_memory_stay_as_they_are(view, monkeypatch):
    s = view((torch.rand(4, 4000) < 0.2).float())
    other = torch.randn(s.shape, requires_grad=True)
    with counted(monkeypatch) as found, snnfast.packed_spikes():
        y = s * other
    (grad,) = torch.autograd.grad(y.sum(), other)
    assert not found and torch.equal(grad, s) and s.any()


def test_smooth_twins_and_small_tensors_are_not_packed(monkeypatch):
    with counted(monkeypatch) as found, snnfast.packed_spikes():
        s = snnfast.lif(torch.randn(4, 999, dtype=torch.float64, requires_grad=True),
                        surrogate=snnfast.surrogate.ATan(spiking=False))  # fmt: skip
        (s * s).sum().backward()
        small = snnfast.lif(torch.randn(4, 5, requires_grad=True))
        (small * small).sum().backward()
    assert not found


def test_double_backward():
    x, w = torch.randn(4, 1, 2000), torch.randn(40, 2000)

    def run(context):
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        with context():
            s = snnfast.lif(leaf * 2)
            y = F.linear(s, weight).square()
            first = torch.autograd.grad(y.sum(), [leaf, weight], create_graph=True)
            return [
                *first,
                *torch.autograd.grad(sum(g.square().sum() for g in first), [leaf, weight]),
            ]

    assert_same(run(snnfast.packed_spikes), run(contextlib.nullcontext))


def test_gradients_twice_of_one_graph():
    net, x = nn.Sequential(Block(16, 16), Block(16, 16)), sequence()
    with snnfast.packed_spikes():
        loss = net(x).sum()
    weight = net[1].conv.weight
    once, again = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again) and once.any()


def checkpointed(reentrant):
    def call(net, x):
        for block in net:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    return call


def block_inside(net, x):
    def run(block, x):
        with snnfast.packed_spikes():
            return block(x)

    for block in net:
        x = checkpoint(run, block, x, use_reentrant=False)
    return x


def saved_on_cpu_inside(net, x):
    with torch.autograd.graph.save_on_cpu():
        return net(x)


def saved_on_cpu_outside(net, x):
    with torch.autograd.graph.save_on_cpu(), snnfast.packed_spikes():
        return net(x)


def nested(net, x):
    with snnfast.packed_spikes():
        s = net[0](x)
        with snnfast.packed_spikes():
            s = net[1](s)
        return net[2](s)


@pytest.mark.parametrize(
    "call",
    (
        checkpointed(False), checkpointed(True), block_inside, saved_on_cpu_inside,
        saved_on_cpu_outside, nested,
    ),
    ids=(
        "checkpoint", "reentrant checkpoint", "block in a checkpoint", "save_on_cpu inside",
        "save_on_cpu outside", "nested",
    ),
)  # fmt: skip
def test_other_hooks(call):
    net, x = nn.Sequential(*[Block(16, 16) for _ in range(3)]), sequence()
    dense = gradients(net, x)
    assert_same(gradients(net, x, snnfast.packed_spikes, call), dense)
    assert_same(gradients(net, x, contextlib.nullcontext, call), dense)


def test_an_error_in_the_block_ends_it(monkeypatch):
    with pytest.raises(ValueError, match="stop"), snnfast.packed_spikes():
        raise ValueError("stop")
    with counted(monkeypatch) as found:
        gradients(NETS["chain"](), sequence())
    assert not found


@pytest.mark.unpoisoned
def test_compile():
    net, x = nn.Sequential(Block(16, 16), Block(16, 16, norm=True)), sequence()
    dense = gradients(net, x)

    def compiled(net, x):
        return torch.compile(net, backend="aot_eager")(x)

    def block_in_compiled(net, x):
        def run(x):
            with snnfast.packed_spikes():
                return net(x)

        return torch.compile(run, backend="aot_eager")(x)

    def checkpoints(net, x):
        net = nn.Sequential(*map(checkpoint_spikes, net))
        return torch.compile(net, backend="aot_eager", fullgraph=True)(x)

    for call in (compiled, block_in_compiled, checkpoints):
        torch._dynamo.reset()
        assert_same(gradients(net, x, snnfast.packed_spikes, call), dense)


# Devices where a look has to wait: what is said of a tensor counts.


@pytest.fixture
def no_look(monkeypatch):
    """As on a GPU; what was looked at all the same is listed."""
    looked = []
    pack = packed.pack_in_memory

    def listing(s, backend, look):
        looked.extend([s.shape] if look else [])
        return pack(s, backend, look)

    monkeypatch.setattr(packed, "_look_is_free", lambda t: False)
    monkeypatch.setattr(packed, "pack_in_memory", listing)
    monkeypatch.setattr(packed, "_known", packed._Known())
    return looked


def test_marks(no_look, monkeypatch):
    x, weight = torch.randn(4, 2000), torch.randn(30, 2000, requires_grad=True)
    with counted(monkeypatch) as found:
        s = snnfast.lif(x * 2)
        packed.mark_spikes(s)  # nobody has asked yet
        assert not packed._known.storages
        with snnfast.packed_spikes():
            F.linear((torch.rand(4, 2000) < 0.5).float(), weight)
            assert not found
            s = snnfast.lif(x * 2)
            packed.mark_spikes(s)
            y = F.linear(s.view(2, 2, 2000), weight)
            z = F.linear(s[1:], weight)
            assert len(found) == 2
            s.mul_(0.5)
            F.linear(s, weight)
            assert len(found) == 2
    assert not no_look
    s = snnfast.lif(x * 2)
    (grad,) = torch.autograd.grad(y.sum() + z.sum(), weight)
    assert torch.equal(grad[0], s.sum(0) + s[1:].sum(0))


PICKS = {
    "max_pool2d": lambda s: F.max_pool2d(s.flatten(0, 1), 2),
    "max_pool1d": lambda s: F.max_pool1d(s.flatten(0, 2), 2),
    "max_pool3d": lambda s: nn.MaxPool3d(2, padding=1)(s),
    "adaptive_max_pool2d": lambda s: F.adaptive_max_pool2d(s[0], 8),
    "amax": lambda s: s.amax(0),
    "max": lambda s: s.max(1).values,
    "maximum": lambda s: torch.maximum(s[0], s[1]),
    "reshape that copies": lambda s: s.transpose(1, 2).reshape(4, -1),
    "flatten of channels last": lambda s: s.movedim(2, 4).flatten(2),
    "contiguous": lambda s: s.mT.contiguous(),
    "clone": lambda s: s.clone().view(-1),
    "bfloat16": lambda s: s.flatten(0, 1).bfloat16(),
    "index": lambda s: s[torch.tensor([2, 0])],
    "mask": lambda s: s[torch.tensor([True, False, True, True])],
    "index_select": lambda s: s.index_select(1, torch.tensor([1])),
    "gather": lambda s: s.gather(0, torch.ones(2, 2, 8, 16, 16, dtype=torch.int64)),
    "cat": lambda s: torch.cat([s, s[:0], s[1:]]),
    "stack": lambda s: torch.stack([*s.unbind()][::-1])[1:],
    "repeat": lambda s: s.repeat(2, 1, 1, 1, 1),
    "flip": lambda s: s.flip(-1),
    "roll": lambda s: s.roll(1, 3),
    "interpolate": lambda s: F.interpolate(s[0], scale_factor=2),
}
OTHERS = {
    "avg_pool2d": lambda s: F.avg_pool2d(s.flatten(0, 1), 2),
    "a sum": lambda s: s + s.flip(0),
    "a product": lambda s: s.clone() * 0.5,
    "joined with others": lambda s: torch.cat([s, s * 2]),
    "max-pool of others": lambda s: F.max_pool2d(s[0] * 2, 2),
    "padded": lambda s: F.pad(s, (1, 1), value=0.5),
    "changed": lambda s: s.clone().mul_(0.5),
    "changed through a view": lambda s: _changed(s.clone(), lambda c: c[0].mul_(0.5)),
    "changed behind autograd": lambda s: _changed_quietly(s.clone()),
    "a view of what changed": lambda s: _changed_quietly(s.clone()).flatten(1),
    "a copy of what changed": lambda s: _changed_quietly(s).clone(),
    "max-pool of what changed": lambda s: F.max_pool2d(_changed_quietly(s)[0], 2),
    "a copy of a copy that changed": lambda s: _changed_quietly(s.clone()).mT.contiguous(),
}


def _changed(s, change):
    change(s)
    return s


def _changed_quietly(s):
    with torch.no_grad():
        return _changed(s, lambda s: s.mul_(0.5))


def _picked(pick, monkeypatch):
    """What ``pick`` makes of marked spikes, packed as on a GPU, and whether the gradients of its
    square, which backward computes from what was kept, are those without packing."""
    x = torch.randn(4, 2, 8, 16, 16) * 2

    def run(context):
        leaf, weight = x.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
        with context():
            made = pick(snnfast.lif(leaf))
            with counted(monkeypatch) as found:
                loss = (made * weight.to(made.dtype)).float().sin().sum()
        return made, found, torch.autograd.grad(loss, [leaf, weight])

    _, _, dense = run(contextlib.nullcontext)
    made, found, ours = run(snnfast.packed_spikes)
    for a, b in zip(ours, dense, strict=True):
        assert torch.equal(a, b) and b.any()
    return [p.shape for p in found] == [made.shape]


@pytest.mark.parametrize("name", PICKS)
def test_what_one_op_picks_from_spikes_is_known(name, no_look, monkeypatch):
    assert _picked(PICKS[name], monkeypatch)
    assert not no_look


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_be_no_spikes_is_kept(name, no_look, monkeypatch):
    assert not _picked(OTHERS[name], monkeypatch)
    assert not no_look


def test_readers_of_what_was_pooled_share_its_bits(no_look, monkeypatch):
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    weight = torch.randn(5, 8, 3, 3, requires_grad=True)
    with counted(monkeypatch) as found, snnfast.packed_spikes():
        s = snnfast.lif(x * 2)
        pooled = F.max_pool2d(s, 2)
        F.conv2d(pooled, weight) + F.conv2d(pooled, weight)
    assert [p.shape for p in found] == [s.shape, pooled.shape, pooled.shape]
    assert found[1].bits is found[2].bits and not no_look


WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


@pytest.mark.unpoisoned
def test_a_training_step_waits_for_nothing(no_look, monkeypatch):
    model = snnfast.models.create_model("resnet18", num_classes=10, image_size=96, timesteps=2)
    x, target = torch.randn(2, 3, 96, 96), torch.tensor([1, 2])
    criterion = snnfast.distill.TWKD(alpha=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    with counted(monkeypatch) as found, torch.profiler.profile() as profile:
        with snnfast.packed_spikes():
            loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
    called = {
        event.name().removeprefix("aten::") for event in profile.profiler.kineto_results.events()
    }
    assert "convolution_backward" in called
    assert not called & WAITS and not no_look
    # The stem's spikes, what was pooled from them (twice), and those of all layers but the last.
    assert len(found) >= 1 + 2 + 15


def test_ops_mark_what_they_make(no_look, monkeypatch):
    x = torch.randn(4, 2, 8, 12, 12)
    weight = torch.randn(5, 8, 3, 3, requires_grad=True)
    norm = {"weight": None, "bias": None, "running_mean": None, "running_var": None}
    with counted(monkeypatch) as found, snnfast.packed_spikes():
        for s in (
            snnfast.lif(x.clone().requires_grad_()),
            snnfast.lif(x, return_state=True)[0],
            snnfast.norm_lif(x.clone().requires_grad_(), **norm, training=True),
        ):
            F.conv2d(s.flatten(0, 1), weight)
    assert len(found) == 3 and not no_look
