"""The models' own BatchNorm2d: static images, and statistics that several processes share."""

import pytest
import torch
import torch.distributed as dist
from ranks import two
from torch import nn

from snnfast.models import create_model, set_process_group
from snnfast.nn import BatchNormLIF
from snnfast.nn.batch_norm import BatchNorm2d
from snnfast.surrogate import ATan

CHANNELS = 3


def norm(dtype=torch.float64):
    torch.manual_seed(4)
    found = BatchNorm2d(CHANNELS)
    nn.init.uniform_(found.weight, 0.5, 2.0), nn.init.normal_(found.bias)
    return found.to(dtype)


def data(batch=6, dtype=torch.float64, seed=5):
    g = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(2, batch, CHANNELS, 4, 5, generator=g, dtype=torch.float64)
    return (3 * x + 1).to(dtype), dy.to(dtype)


def step(bn, x, dy, **arguments):
    """y, the gradients of x, weight and bias, and the statistics afterwards."""
    x = x.clone().requires_grad_()
    y = bn(x, **arguments)
    grads = torch.autograd.grad(y, [x, bn.weight, bn.bias], dy)
    return {
        "y": y.detach(),
        **dict(zip(("x", "weight", "bias"), grads)),
        **{name: buffer.clone() for name, buffer in bn.named_buffers()},
    }


def test_is_torchs_batch_norm():
    ours, theirs = norm(), nn.BatchNorm2d(CHANNELS).double()
    theirs.load_state_dict(ours.state_dict())
    x, dy = data()
    for a, b in zip(step(ours, x, dy).values(), step(theirs, x, dy).values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("shared", [False, True])
def test_repeats_count_every_timestep(shared, one_process):
    """As if the image had been repeated; with two samples a channel the unbiased factor is 2 once
    and 8/7 four times."""
    x, dy = data()
    once, repeated = norm(), norm()
    once.process_group = one_process if shared else None
    found = step(once, x, dy, repeats=4)
    expected = step(repeated, x.repeat(4, 1, 1, 1), dy.repeat(4, 1, 1, 1) / 4)
    expected |= {name: expected[name][: len(x)] for name in ("y", "x")}
    expected["x"] = 4 * expected["x"]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    bn = BatchNorm2d(1, momentum=1.0, process_group=once.process_group)
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    for repeats, var in ((1, 2.0), (4, 8 / 7)):
        bn(x, repeats=repeats)
        assert bn.running_var.item() == pytest.approx(var)
        assert bn.running_mean.item() == pytest.approx(1.0)
    assert bn.num_batches_tracked == 2


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_process_alone_is_torchs_batch_norm(one_process):
    """The shared gradients against autograd's, and against finite differences."""
    x, dy = data()
    alone, shared = norm(), norm()
    shared.process_group = one_process
    for (name, a), b in zip(step(alone, x, dy).items(), step(shared, x, dy).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)
    x = x[:2, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: shared(inputs[0]), (x, shared.weight))
    shared.load_state_dict(alone.state_dict())
    shared.eval(), alone.eval()
    assert torch.equal(shared(x), alone(x))


def test_half_precision_keeps_its_dtype(one_process):
    bn = norm(torch.float32)
    bn.process_group = one_process
    x, dy = data(dtype=torch.bfloat16)
    half = step(bn, x, dy)
    whole = step(norm(), x.double(), dy.double())
    assert half["y"].dtype == half["x"].dtype == torch.bfloat16
    for name in ("y", "x", "weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(half[name].double(), whole[name], rtol=2e-2, atol=2e-2)


def _parts(dtype):
    """Ranks with different numbers of samples."""
    x, dy = data(dtype=dtype)
    return [(x[:4], dy[:4]), (x[4:], dy[4:])]


def _block():
    """A residual block with a batch norm of either kind, on the smooth twin, where a difference in
    rounding stays one."""
    torch.manual_seed(6)
    neuron = {"surrogate": ATan(alpha=2.0, spiking=False), "backend": "cpu"}
    model = create_model("resnet18", num_classes=4, image_size=8, **neuron)
    return model.layer2[0].double()


def _spikes():
    """[T, B, C, H, W]"""
    g = torch.Generator().manual_seed(7)
    return (torch.rand(2, 4, 64, 6, 6, generator=g, dtype=torch.float64) < 0.2).double()


def _step(block, s):
    out = block(s)
    out.square().sum().backward()
    found = {f"grad {name}": p.grad for name, p in block.named_parameters()}
    return {"out": out.detach(), **found, **dict(block.named_buffers())}


def _steps(rank):
    found = {}
    for dtype in (torch.float32, torch.float64):
        bn = norm(dtype)
        bn.process_group = dist.group.WORLD
        found[str(dtype)] = step(bn, *_parts(dtype)[rank])
    block = _block()
    set_process_group(block, dist.group.WORLD)
    found["block"] = _step(block, _spikes()[:, :3] if rank == 0 else _spikes()[:, 3:])
    return found


def test_two_processes_are_one(tmp_path):
    """Outputs, gradients and statistics of a batch norm and of a block; a rank's gradients of
    weights are its share of the sum."""
    ranks = two(_steps, tmp_path)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        both = [r[str(dtype)] for r in ranks]
        whole = step(norm(dtype), *data(dtype=dtype))
        for name, expected in whole.items():
            if name in ("y", "x"):
                found = torch.cat([r[name] for r in both])
            elif name in ("weight", "bias"):
                found = both[0][name] + both[1][name]
            else:
                assert torch.equal(both[0][name], both[1][name])
                found = both[0][name]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=name)
    both = [r["block"] for r in ranks]
    for name, expected in _step(_block(), _spikes()).items():
        if name == "out":
            found = torch.cat([r[name] for r in both], 1)
        elif name.startswith("grad"):
            found = both[0][name] + both[1][name]
        else:
            found = both[0][name]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)


def test_process_groups_are_set_everywhere_or_nowhere():
    model, group = create_model("resnet18", num_classes=4, image_size=8), object()
    set_process_group(model, group)
    norms = [m for m in model.modules() if isinstance(m, (BatchNorm2d, BatchNormLIF))]
    assert len(norms) == 20 and all(m.process_group is group for m in norms)
    set_process_group(model, None)
    assert all(m.process_group is None for m in norms)
    mixed = nn.Sequential(model, nn.BatchNorm2d(3))
    with pytest.raises(TypeError, match=r"set_process_group: batch norms must .* BatchNorm2d '1'"):
        set_process_group(mixed, group)
    assert all(m.process_group is None for m in norms)
