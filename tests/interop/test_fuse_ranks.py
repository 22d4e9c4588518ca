"""``accelerate(model, fuse=True)`` under DistributedDataParallel trains as one process does that
has all samples, and as ranks whose model was not accelerated."""

import contextlib
import warnings
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from jelly_cases import module, node
from ranks import two
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import snnfast

SAMPLES = (slice(0, 3), slice(3, 4))
"""Of the ranks: not as many."""
FUSED = 4


def layers(*before):
    container = module("2.0.0", "layer").SeqToANNContainer
    return container(*before, nn.BatchNorm2d(6))


class Net(nn.Module):
    """A norm with time in the batch, an element-wise residual block, an addition in front of a
    node, and a branch that nothing runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.first = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), node("2.0.0")
        self.a = layers(nn.Conv2d(6, 6, 3, padding=1, bias=False))
        self.b = layers(nn.Conv2d(6, 6, 3, padding=1, bias=False))
        self.c = layers(nn.Conv2d(6, 6, 1, bias=False))
        self.middle = node("2.0.0", "ParametricLIFNode", detach_reset=True)
        self.second = node("2.0.0", "IFNode", store_v_seq=True)
        self.last, self.head = node("2.0.0", v_reset=None), nn.Linear(6, 5)
        self.idle = nn.Linear(6, 5)

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, (x.shape[0], x.shape[1]))
        s = self.first(y)
        s = self.second(self.b(self.middle(self.a(s)))) + s
        s = self.last(self.c(s) + s)
        return self.head(s.flatten(3).mean(3)).mean(0)


def net():
    torch.manual_seed(0)
    return Net().double()


def backward(net, run, samples, generator):
    x = 2 * torch.randn(3, 4, 2, 6, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    module("2.0.0", "functional").reset_net(net)
    y = run(x[:, samples])
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    (ranks * (y * weights[samples]).sum()).backward()  # DistributedDataParallel gives their mean
    return y.detach()


def trained(net, run=None, samples=slice(0, 4), at_once=True):
    """Outputs, gradients and potentials of the last of three steps, and all parameters and buffers
    behind it. Unless ``at_once`` the first two are one, whose gradients are sent together."""
    run, generator = run or net, torch.Generator().manual_seed(3)
    for step in range(3):
        if step == 0 and not at_once:
            with run.no_sync() if run is not net else contextlib.nullcontext():
                backward(net, run, samples, generator)
            continue
        y = backward(net, run, samples, generator)
        gradients = {f"d{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in net.parameters():
                p -= 0 if p.grad is None else 0.1 * p.grad
                p.grad = None
    potentials = {"v": net.last.v.detach(), "v_seq": net.second.v_seq.detach()}
    return {"y": y, **potentials, **gradients, **net.state_dict()}


def fused(model):
    assert len(snnfast.accelerate(model, fuse=True).fused) == FUSED
    return model


def ddp(model, **options):
    # torch has no kernels of SyncBatchNorm for a CPU and says so here; what is fused has.
    with mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"):
        return DistributedDataParallel(model, **options)


synced, unused = nn.SyncBatchNorm.convert_sync_batchnorm, {"find_unused_parameters": True}
WAYS = {
    "before": lambda: ddp(fused(synced(net())), static_graph=True),
    "behind": lambda: fused(ddp(synced(net()), **unused)),
    "converted behind": lambda: fused(synced(ddp(fused(net()), **unused))),
    "not shared": lambda: ddp(net(), **unused),
    "not shared, before": lambda: ddp(fused(net()), **unused),
    "not shared, behind": lambda: fused(ddp(net(), **unused)),
}


def other_collectives(model):
    """What runs unfused on one rank alone waits for ever: it is told. No samples are refused."""
    with pytest.raises(ValueError, match=r"norm_lif: y must be .* none of them 0"):
        model(torch.zeros(3, 0, 2, 6, 5, dtype=torch.float64))
    model.module.last.register_forward_hook(lambda *_: None)
    for which in ("a block", "Net"):
        unfused = f"fuse: {which} runs unfused: .*; on every rank it must, or they wait"
        with pytest.warns(UserWarning, match=unfused), pytest.raises(ValueError, match="on GPU"):
            model.module(torch.zeros(3, 2, 2, 6, 5, dtype=torch.float64))
        model.module.other = None


def trained_in(rank):
    warnings.filterwarnings("error", message="fuse: ")
    found = {}
    for way, build in WAYS.items():
        model = build()  # a static graph takes no call under no_sync first
        found[way] = trained(model.module, model, SAMPLES[rank], at_once=way == "before")
    other_collectives(WAYS["behind"]())
    return found


def test_two_ranks_are_one_process(tmp_path):
    """Fused before it is wrapped or behind; converted to SyncBatchNorm behind both and fused anew.
    Where statistics are not shared, each rank is what it is without."""
    ranks = two(trained_in, tmp_path)
    buffers = net().state_dict()
    for way in WAYS:
        both = [rank[way] for rank in ranks]
        net().load_state_dict({name: both[0][name] for name in buffers})
        if way.startswith("not shared"):
            expected, found = (rank["not shared"] for rank in ranks), both
        else:
            expected = [trained(net(), at_once=way == "before")]
            found = [dict(both[0])]
            for name, axis in (("y", 0), ("v", 0), ("v_seq", 1)):
                found[0][name] = torch.cat([rank[name] for rank in both], axis)
            assert all(torch.equal(both[1][name], value) for name, value in both[0].items()
                       if name in buffers)  # fmt: skip
        for theirs, ours in zip(expected, found, strict=True):
            assert theirs.keys() == ours.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9,
                                           msg=f"{way}: {name}")  # fmt: skip
