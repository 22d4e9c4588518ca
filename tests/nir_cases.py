"""Networks and numbers of NIR graphs, and what comes back from a file."""

import numpy as np
import torch
from peer_neurons import package
from torch import nn

from snnfast.interop.nir import from_nir, to_nir
from snnfast.nn import IF, LIF, BatchNormLIF, OverTime, ParametricLIF

nir = package("nir")


def returned(model, x, tmp_path, **options):
    """``model`` by way of a file."""
    nir.write(tmp_path / "model.nir", to_nir(model, x, **options))
    return from_nir(nir.read(tmp_path / "model.nir"))


def fire_alike(model, other, x):
    with torch.no_grad():
        s = model(x)
        assert torch.equal(other(x), s)
    assert 0.02 < s.mean() < 0.9  # or they would show nothing
    return s


def settled(model, x):
    """With statistics and numbers that are those of no fresh network."""
    for name, p in model.named_parameters():
        if p.dim() == 1 and "lif" not in name:
            nn.init.uniform_(p, *((-0.2, 1.0) if name.endswith("bias") else (0.5, 1.5)))
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.6
    for _ in range(3):
        model(x)
    return model.eval()


def convolutional(neuron=LIF):
    return nn.Sequential(
        OverTime(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)), neuron(3.3, v_threshold=0.3),
        OverTime(nn.AvgPool2d(2), nn.Conv2d(6, 4, 3, padding="same", bias=False)),
        BatchNormLIF(4, neuron=ParametricLIF(2.7)), nn.Dropout(), OverTime(nn.Flatten()),
        OverTime(nn.Linear(64, 10), nn.BatchNorm1d(10)), IF(v_reset=-0.1),
    )  # fmt: skip


IMAGES = (4, 3, 2, 8, 8)


def over(*row):
    """Numbers for neurons [3, 4]: one, or one for each channel."""
    return np.array(row)[:, None] * np.ones((3, 4))


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.lif, self.odd = LIF(), forward

    def forward(self, x):
        return self.odd(self, x)
