"""Firing rates, operations and energy against numbers worked out by hand."""

import json

import pytest
import torch
from torch import nn
from train_cases import one_thread

from snnfast.models import create_model
from snnfast.monitoring import energy
from snnfast.monitoring.energy import FIRST, MEANS, REAL, SUMS, measure
from snnfast.nn import LIF
from snnfast.nn.over_time import over_time

T, B = 4, 2


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


class Net(nn.Module):
    """An image through a first convolution once, then spikes, their sums, their means, and real
    numbers through linear layers and convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.lif = LIF(tau=1.0)
        self.spikes = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.sums = nn.Linear(32, 5)
        self.means, self.real = nn.Linear(2, 3), nn.Linear(3, 7)
        nn.init.constant_(self.first.weight, 0.0)
        with torch.no_grad():
            self.first.weight[0, 0, 1, 1] = 1.0  # one channel of two is the image

    def forward(self, x, timesteps=None):
        s = self.lif(self.first(x), timesteps=timesteps or T)
        over_time(self.spikes, s)
        self.sums(2 * s.flatten(2))
        return self.real(self.means(s.mean((3, 4))))


def rows(found):
    return {layer.name: layer for layer in found.layers}


def image():
    """4x4 pixels, of which three reach the threshold in the first sample and one in the other."""
    x = torch.zeros(B, 1, 4, 4)
    x[0, 0, 0, :3] = 1.5
    x[1, 0, 2, 2] = 1.0
    x[1, 0, 3, 3] = 0.5
    return x


def test_by_hand():
    model = Net()
    found = measure(model, [image()], T)
    layer = rows(found)
    assert (found.timesteps, found.samples) == (T, B)
    assert [row.name for row in found.layers] == ["first", "spikes", "sums", "means", "real"]
    # Outputs of one sample times what each is made of.
    assert layer["first"].macs == 2 * 16 * 9 and layer["spikes"].macs == 4 * 4 * 9
    assert [layer[n].macs for n in ("sums", "means", "real")] == [32 * 5, 6, 21]
    assert layer["first"].runs == 1
    assert {layer[n].runs for n in ("spikes", "sums", "means", "real")} == {T}
    # Five pixels of 32 are not 0; four neurons of 64 fire, at every step.
    assert layer["first"].rate == 5 / 32
    assert layer["spikes"].rate == 4 / 64 and layer["sums"].rate == 4 / 64
    assert layer["means"].rate == 1 / 2 and layer["real"].rate == 1
    assert [row.why_mac for row in found.layers] == [FIRST, None, SUMS, MEANS, REAL]
    assert [row.binary for row in found.layers] == [False, True, False, False, False]
    assert layer["spikes"].sops == T * 144 / 16
    energy = [4.6 * 288, 0.9 * 36, 4.6 * T * 160, 4.6 * T * 6, 4.6 * T * 21]
    assert [row.energy_pj for row in found.layers] == pytest.approx(energy)
    assert found.energy_pj == pytest.approx(sum(energy)) and found.sops == 36
    assert found.macs == 288 + 144 + 160 + 6 + 21
    assert found.ann_energy_pj == pytest.approx(4.6 * found.macs)


def test_memory_and_the_ann_of_as_many_bits_by_hand():
    found = measure(Net(), [image()], T)
    sizes = [(16, 32, 18), (32, 16, 36), (32, 5, 160), (2, 3, 6), (3, 7, 21)]
    assert [(row.inputs, row.outputs, row.weights) for row in found.layers] == sizes
    bits = [32, 1, 32, 32, 32]  # of an input: only the second reads spikes
    runs = [1, T, T, T, T]
    rows = zip(runs, bits, sizes, strict=True)
    moved = [run * (2 * b * i + 64 * o + 32 * w) for run, b, (i, o, w) in rows]
    memory = [row.memory_pj(spiking=True) for row in found.layers]
    assert memory == pytest.approx([100 / 64 * m for m in moved])
    assert found.memory_pj == pytest.approx(sum(memory)) and found.spiking
    assert found.ann_memory_pj == 100 / 64 * 32 * sum(2 * i + w for i, _, w in sizes)
    # Four steps tell five counts apart: three bits.
    assert found.bits == 3
    others = 144 + 160 + 6 + 21
    assert found.matched_energy_pj == pytest.approx(4.6 * 288 + 3 * 0.9 * others)
    matched = 32 * (2 * 16 + 18) + sum(2 * 3 * i + 32 * w for i, _, w in sizes[1:])
    assert found.matched_memory_pj == 100 / 64 * matched
    # Many bits are multiplied with, not added one by one.
    assert measure(Net(), [image()], 64).matched_energy_pj == pytest.approx(4.6 * found.macs)
    assert [measure(Net(), [image()], t).bits for t in (1, 2, 3, 7, 8)] == [1, 2, 2, 3, 4]


def test_is_plain_json():
    found = measure(Net(), [image()], 3).asdict()
    assert json.loads(json.dumps(found)) == found
    row = found["layers"][1]
    assert row["name"] == "spikes" and row["sops"] == 27 and row["energy_pj"] == 0.9 * 27
    assert found["timesteps"] == 3 and found["sops"] == 27


def test_batches_add_up():
    """Of different sizes, and with targets beside them."""
    x = image()
    whole = measure(Net(), [x], T)
    assert measure(Net(), [x[:1], x[1:]], T) == whole
    assert measure(Net(), iter([(x, torch.tensor([1, 2]))]), T) == whole
    thrice = measure(Net(), [x[:1], x], T)
    assert thrice.samples == 3 and rows(thrice)["spikes"].rate == pytest.approx(7 / 96)


def test_one_batch_without_spikes_makes_a_layer_multiply():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    nn.init.eye_(model[0].weight)
    spikes, numbers = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.5]])
    assert [row.binary for row in measure(model, [spikes]).layers] == [True, True]
    found = measure(model, [spikes, numbers, spikes])
    # The first layer multiplies whatever it reads.
    assert [row.why_mac for row in found.layers] == [FIRST, MEANS]
    assert [row.rate for row in found.layers] == [1 / 2, 1 / 2]
    assert measure(model, [spikes]).layers[0].why_mac == FIRST


def test_a_loop_over_time_is_counted_as_one_call_is():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return torch.stack([self.b((self.a(x_t) > 0).float()) for x_t in x.flatten(2)])

    found = measure(Loop(), [torch.randn(T, B, 3, 1, 1)])
    assert [(row.macs, row.runs) for row in found.layers] == [(12, T), (8, T)]
    assert found.timesteps == T and found.layers[1].why_mac is None


def test_model_is_left_as_it_was():
    """Modes of single modules, too, after an error as well."""
    model = Net().train()
    model.spikes.eval()
    measure(model, [image()], T)
    with pytest.raises(RuntimeError):
        measure(model, [torch.zeros(1, 7, 4, 4)], T)
    assert model.training and model.first.training and not model.spikes.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "classes", "macs"),
    [
        ("resnet18", 32, 10, 555_422_720),
        ("resnet19", 32, 10, 2_285_373_952),
        ("preact_resnet34", 224, 1000, 3_663_761_408),
        ("ann_resnet18", 32, 10, 555_422_720),
    ],
)
def test_networks(name, size, classes, macs):
    model = create_model(name, num_classes=classes, image_size=size)
    timesteps = None if name.startswith("ann") else 1
    found = measure(model, [torch.rand(1, 3, size, size)], timesteps)
    assert found.macs == macs and found.timesteps == 1


def test_spiking_resnet():
    """Everything but the first layer and the classifier adds; shortcuts are counted."""
    model = create_model("resnet18", num_classes=10, image_size=16, timesteps=3)
    for m in model.modules():
        if hasattr(m, "momentum"):
            m.momentum = 1.0
    x = torch.randn(4, 3, 16, 16)
    model(x)
    found = measure(model, [x])
    why = {row.name: row.why_mac for row in found.layers if row.why_mac}
    assert why == {"conv1": FIRST, "fc": MEANS} and len(found.layers) == 21
    assert {row.runs for row in found.layers} == {1, 3}
    assert 0 < found.sops < 3 * found.macs
    assert found.energy_pj < 3 * found.ann_energy_pj


def test_popcount():
    bits = torch.tensor([0, 1, 3, 255, 128], dtype=torch.uint8)
    assert energy._popcount(bits) == 0 + 1 + 2 + 8 + 1


def test_bad_arguments():
    model = create_model("digits_cnn", num_classes=2, in_channels=1, image_size=8)
    for batches in ([], [torch.zeros(2, 1, 1, 8, 8), torch.zeros(3, 1, 1, 8, 8)]):
        with pytest.raises(ValueError, match="measure: batches must be one or more of the same T"):
            measure(model, batches)
    with pytest.raises(ValueError, match="measure: model must have a convolution or linear layer"):
        measure(nn.ReLU(), [torch.zeros(1, 2)])
    with pytest.raises(TypeError, match="measure: model must be a torch module, got int"):
        measure(3, [])
