"""plan: the memory that it promises, at the same results to the last bit."""

import copy
import pickle
import re
import sys
import time
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from packed_cases import NETS, Block, assert_same, gradients, kept_bytes, sequence
from ranks import two
from torch import nn

import snnfast
from snnfast.models import create_model, set_process_group
from snnfast.nn import LIF, _count, checkpoint_spikes, fuse, plan

KEPT, PACKED, AGAIN = "as it is", "packed", "computed again"


class OverTime(nn.Module):
    """A layer without time, for a Sequential of sequences."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def conv(inputs, outputs):
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.mul_(4).add_(0.02)
    return OverTime(layer)


def flat():
    """Layers, a block and a head in one Sequential."""
    return nn.Sequential(
        conv(16, 16), OverTime(nn.BatchNorm2d(16)), LIF(), Block(16, 16, norm=True),
        conv(16, 16), OverTime(nn.Dropout(0.2)), LIF(), OverTime(nn.MaxPool2d(2)), nn.Flatten(2),
        nn.Linear(1024, 10),
    )  # fmt: skip


def model(name, **more):
    size = {"num_classes": 10, "in_channels": 16, "image_size": 16, "timesteps": 4}
    return create_model(name, **size, **more)


MODELS = {
    "flat": flat,
    **{name: NETS[name] for name in ("chain", "norm", "pooled", "two readers")},
    **{name: lambda name=name: model(name) for name in ("digits_cnn", "digits_resnet", "vgg9")},
    "resnet18": lambda: model("resnet18", tau=1.5),
    "sew_resnet18": lambda: model("sew_resnet18"),
    "preact_resnet34": lambda: model("preact_resnet34"),
}


def choices(found):
    return {block.choice for block in found.blocks}


@pytest.mark.unpoisoned
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in MODELS), *((n, torch.bfloat16) for n in ("flat", "vgg9"))],
    ids=str,
)
def test_what_is_kept_is_what_was_promised(name, dtype):
    net, x = MODELS[name](), sequence()

    def call(x):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return net(x)

    def planned(budget):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return plan(net, x, budget=budget)

    found = planned(1.0)
    before = found.before
    assert choices(found) == {KEPT} and found.after == before and found.ms == 0
    # 64 kB of scratch that a convolution may hold or let go.
    assert kept_bytes(call, x) == pytest.approx(before, rel=0.02, abs=65_536)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        smallest = least(net, x)
    assert smallest < 0.75 * before
    for budget in (smallest, (smallest + before) // 2):
        found = planned(budget)
        assert found.after <= budget == found.budget and found.before == before
        kept = kept_bytes(call, x)
        assert kept == pytest.approx(found.after, rel=0.02, abs=65_536 * (dtype != torch.float32))
        found.undo()
    assert kept_bytes(call, x) == pytest.approx(before, rel=0.02, abs=65_536)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_to_the_last_bit(name):
    net, x = MODELS[name](), sequence()
    dense = gradients(net, x)
    after = torch.rand(3)
    for share in (0.9, 0.7):
        found = plan(net, x, budget=share)
        # `gradients` computes on a copy, to which the choices belong as well.
        assert_same(gradients(net, x), dense, exercised=name in NETS)
        assert torch.equal(torch.rand(3), after), "random numbers"
        found.undo()
    assert_same(gradients(net, x), dense, exercised=False)


def test_blocks_that_run_again_have_the_same_gradients():
    """Twice in a row: running statistics count each batch once."""
    for make in (flat, MODELS["resnet18"], MODELS["sew_resnet18"]):
        net, x = make(), sequence()
        found = plan(net, x, budget=0.3)
        assert AGAIN in choices(found)
        ours, plain = copy.deepcopy(net), copy.deepcopy(net)
        found.undo()
        plain.load_state_dict(net.state_dict())
        results = []
        for one in (net, ours):
            torch.manual_seed(1)
            for _ in range(2):
                one(x).square().sum().backward()
            results.append([*(p.grad for p in one.parameters()), *one.buffers()])
        assert_same(results[1], results[0], exercised=False)
        assert all(g.any() for g in results[0][:3])


def test_counting_leaves_the_model_as_it_was():
    net, x = flat(), sequence()
    before = copy.deepcopy(net.state_dict())
    attributes = [dict(vars(m)) for m in net.modules()]
    torch.manual_seed(3)
    found = plan(net, x, budget=1.0)
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), after)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert all(p.grad is None for p in net.parameters())
    for m, then in zip(net.modules(), attributes):
        assert vars(m).keys() == then.keys() and all(vars(m)[k] is then[k] for k in then)
    assert type(net) is nn.Sequential and type(net[3]) is Block and choices(found) == {KEPT}

    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("fails")

    net.append(Fails())
    with pytest.raises(KeyError, match="fails"):
        plan(net, x, budget=0.5)
    assert type(net) is nn.Sequential and type(net[3]) is Block


@pytest.fixture
def clock(monkeypatch):
    """Time passes in convolutions, by how often they multiply, and a little when it is asked."""
    now, forward = [0.0], nn.Conv2d.forward

    def tell():
        now[0] += 1e-6
        return now[0]

    def convolve(self, x):
        y = forward(self, x)
        now[0] += y.numel() * self.weight[0].numel() * 1e-9
        return y

    monkeypatch.setattr(nn.Conv2d, "forward", convolve)
    monkeypatch.setattr(_count, "time", SimpleNamespace(perf_counter=tell))


def test_the_cheapest_bytes_come_first(clock):
    """Packing costs less than computing again, and both are done no further than they must."""
    net, x = model("resnet18"), sequence()
    found = plan(net, x, budget=0.9)
    assert choices(found) == {KEPT, PACKED} and 0 < found.ms < 20
    found.undo()
    found = plan(net, x, budget=0.4)
    assert choices(found) == {PACKED, AGAIN}
    again = [block for block in found.blocks if block.choice == AGAIN]
    largest = max(block.before - block.after for block in found.blocks if block.choice != AGAIN)
    assert len(again) < 5 and found.ms == pytest.approx(sum(block.ms for block in found.blocks))
    assert all(block.ms > 0 for block in again if "downsample" not in block.name)
    assert max(block.before - block.after for block in again) >= largest


def test_slow_blocks_are_the_last_to_run_again(clock):
    net = nn.Sequential(*(Block(16, 16) for _ in range(4)))
    for i in (0, 2):
        net[i].conv = nn.Conv2d(16, 16, 15, padding=7, bias=False)
        nn.init.normal_(net[i].conv.weight, std=0.05)
    found = plan(net, (sequence() > 1).float(), budget=0.35)
    again = [block.name for block in found.blocks if block.choice == AGAIN]
    assert again == ["1", "3"], found


@pytest.mark.unpoisoned
def test_every_budget_is_met():
    net, x = model("resnet18"), sequence()
    for percent in range(5, 100, 6):
        try:
            found = plan(net, x, budget=percent / 100)
        except ValueError:
            assert percent < 10
            continue
        assert found.after <= percent / 100 * found.before
        assert kept_bytes(net, x) == pytest.approx(found.after, rel=0.02)
        found.undo()


def test_what_is_printed_says_what_is_done():
    net, x = flat(), sequence()
    found = plan(net, x, budget=0.5)
    assert [block.name for block in found.blocks] == ["0-2", "3", "4-6", "7-9", "(between blocks)"]
    lines = str(found).splitlines()
    assert re.match(r"plan: .*B -> .*B kept for backward, budget .*B, about \d+ ms more", lines[0])
    for line, block in zip(lines[1:], found.blocks, strict=True):
        assert block.name in line and block.choice in line
    assert repr(found) == str(found) and "->" in str(found.blocks[0])


def test_undo():
    net, x = model("resnet18"), sequence()
    types = list(map(type, net.modules()))
    found = plan(net, x, budget=0.3)
    assert types != list(map(type, net.modules()))
    with pytest.raises(ValueError, match=r"planned or checkpointed already.*undo"):
        plan(net, x, budget=0.3)
    found.undo()
    found.undo()
    assert types == list(map(type, net.modules()))
    found = plan(net, x, budget=0.3)
    block = next(m for m in net.modules() if "Checkpointed" in type(m).__name__)
    given, block.__class__ = type(block), types[0]
    with pytest.raises(ValueError, match="must be undone before it is changed otherwise"):
        found.undo()
    block.__class__ = given
    found.undo()
    assert types == list(map(type, net.modules()))


def test_copies_have_the_plan():
    net, x = flat(), sequence()
    keys = list(net.state_dict())
    plan(net, x, budget=0.3)
    assert list(net.state_dict()) == keys and isinstance(net, nn.Sequential) and len(net) == 10
    dense = gradients(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(map(type, other.modules())) == list(map(type, net.modules()))
        assert_same(gradients(other, x), dense)
    net.append(nn.Linear(10, 3))  # what was not there when it was planned runs behind the rest
    assert net(x).shape[-1] == 3


class Between(nn.Module):
    """Neurons in a list of a module, and weights that nothing but its own forward runs."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(16, 16), Block(16, 16)])

    def forward(self, x):
        for block in self.blocks:
            x = F.max_pool3d(block(x), (1, 1, 1))
        return x


def least(net, x):
    """The smallest budget that can be met."""
    with pytest.raises(ValueError, match="plan: budget must be at least") as error:
        plan(net, x, budget=1)
    return int(re.search(r"at least (\d+)", str(error.value)).group(1))


def test_a_sequential_in_parts_that_packs_as_a_whole():
    net = nn.Sequential(conv(16, 16), LIF(), Between(), conv(16, 16), LIF())
    x = sequence()
    dense = gradients(net, x)
    found = plan(net, x, budget=least(net, x))
    assert type(net).__name__ == "PackedPlannedSequential"
    other = pickle.loads(pickle.dumps(net))
    assert type(other) is type(net)
    assert_same(gradients(other, x), dense)
    found.undo()
    assert type(net) is nn.Sequential


def test_streams_go_on_from_where_they_were():
    x = sequence(steps=6)
    net = nn.Sequential(*list(flat())[:5], LIF())
    ours = copy.deepcopy(net)
    found = plan(ours, x, budget=0.3)
    assert AGAIN in choices(found)
    results = []
    for one in (net, ours):
        leaf = x.clone().requires_grad_()
        with snnfast.streaming(one):
            s = torch.cat([one(part) for part in leaf.split([1, 3, 2])])
            s.square().sum().backward()
        results.append([s.detach(), leaf.grad, *(p.grad for p in one.parameters())])
    assert_same(results[1], results[0])


@pytest.mark.unpoisoned
def test_compiled():
    net, x = nn.Sequential(conv(16, 16), LIF(), Block(16, 16), conv(16, 16), LIF()), sequence()
    found = plan(net, x, budget=0.35)
    assert AGAIN in choices(found) and type(net) is not nn.Sequential
    results = []
    for wrap in (lambda net: net, partial(torch.compile, backend="aot_eager", fullgraph=True)):
        one = copy.deepcopy(net)
        wrap(one)(x).square().sum().backward()
        results.append([p.grad for p in one.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_without_gradients_and_in_evaluation():
    net, x = flat(), sequence()
    with torch.no_grad():
        plain = copy.deepcopy(net).eval()(x)
        plan(net, x, budget=0.3)
        assert torch.equal(net.eval()(x), plain)


def test_fused_blocks_stay_fused():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(16, 16, norm=True), Block(16, 16, norm=True)

        def forward(self, x):
            return self.second(self.first(x))

    report = []
    net, x = fuse(Named(), report=report), sequence()
    assert [entry.reason for entry in report] == [None, None]
    dense = gradients(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = plan(net, x, budget=0.3)
        assert AGAIN in choices(found)
        assert_same(gradients(net, x), dense)


def test_a_block_with_a_memory_of_its_own_is_not_computed_again():
    class Remembers(Block):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    net, x = nn.Sequential(*(Remembers(16, 16) for _ in range(3))), sequence()
    found = plan(net, x, budget=least(net, x))
    assert choices(found) == {PACKED} and all(block.calls == 0 for block in net)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, sequence(), 0.5), TypeError, "model must be a torch module, got int"),
        ((flat(), [1], 0.5), TypeError, "example must be a tensor or a tuple .*, got list"),
        ((flat(), (4,), 0.5), TypeError, "example must be .* got no tensor in the tuple"),
        ((flat(), sequence().to("meta"), 0.5), ValueError, "example must be on the model's device"),
        ((flat(), sequence(), "1 GB"), TypeError, "budget must be bytes.*got str"),
        ((flat(), sequence(), True), TypeError, "budget must be bytes.*got bool"),
        ((flat(), sequence(), 0), ValueError, "budget must be bytes.*got 0"),
        ((flat(), sequence(), 1.5), ValueError, r"budget must be .*0\.\.1, got 1\.5"),
        ((flat(), sequence(), float("nan")), ValueError, "budget must be .*got nan"),
        ((flat(), sequence(), 0.001), ValueError, r"budget must be at least \d+ bytes, 0\.\d+ of"),
        ((nn.Sequential(nn.ReLU()), sequence(), 0.5), ValueError, "model must have blocks .*got"),
        ((nn.Linear(16, 4), sequence(), 0.5), ValueError, "model must have blocks .* got Linear"),
        ((nn.Sequential(checkpoint_spikes(Block(16, 16))), sequence(), 0.5), ValueError,
         "model must have no block that is planned or checkpointed already"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    net, example, budget = arguments
    with pytest.raises(error, match=f"plan: {message}"):
        plan(net, example, budget=budget)


def test_a_compiled_model_is_refused():
    net = nn.Sequential(Block(16, 16))
    net.add_module("_orig_mod", nn.Identity())  # what torch.compile calls the module it wraps
    with pytest.raises(ValueError, match=r"plan: model must be planned before torch\.compile"):
        plan(net, sequence(), budget=0.5)


def choices_of(rank):
    torch.manual_seed(0)
    net = model("digits_resnet")
    set_process_group(net, dist.group.WORLD)
    torch.manual_seed(rank)
    x = sequence()
    if rank:  # for it all blocks take as long as they want
        module = sys.modules["snnfast.nn._count"]
        module.time = type("Clock", (), {"perf_counter": lambda: time.perf_counter() * -50})
    found = plan(net, x, budget=0.4)
    net(x).square().sum().backward()
    with pytest.raises(ValueError):
        plan(net, x, budget=1)
    return [block.choice for block in found.blocks]


def test_ranks_that_share_statistics_have_one_plan(tmp_path):
    first, second = two(choices_of, tmp_path)
    assert first == second and AGAIN in first


def test_what_a_fused_module_runs_itself_is_no_block():
    class Front(nn.Module):
        """Neurons, a convolution and a batch norm, whose neurons are elsewhere."""

        def __init__(self):
            super().__init__()
            self.lif, self.conv, self.bn = LIF(), conv(16, 16), nn.BatchNorm2d(16)

        def forward(self, x):
            return self.bn(self.conv(self.lif(x)).flatten(0, 1))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.lif, self.last = Front(), LIF(), Block(16, 16)

        def forward(self, x):
            return self.last(self.lif(self.front(x).unflatten(0, (4, 2))))

    net, x = fuse(Whole()), sequence()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = plan(net, x, budget=least(net, x))
        assert [b.name for b in found.blocks] == ["front.conv", "(between blocks)"]
        net(x).sum().backward()
