"""Spiking VGGs: conv3x3, BN, LIF throughout, with 2x2 average pools between stages.

    VGG-9     64 128 | 256 256 | 512 512 | 512 512 |  pool behind each stage, Linear of what is left
    VGG-11    64 | 128 256 | 512 512 | 512 | 512 512  pool between stages, global average, Linear

VGG-9 is the network of Zuo, Ding et al. (2024, arXiv 2406.07862), elsewhere called VGGSNN (Deng et
al. 2022, arXiv 2202.11946). An average of spikes is no spike: the convolution behind a pool reads
quarters.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.models.layers import Neurons, conv3x3, flat
from snnfast.models.network import SpikingNetwork
from snnfast.models.registry import register
from snnfast.nn.over_time import over_time

VGG9 = {"stages": ((64, 128), (256, 256), (512, 512), (512, 512)), "flatten": True}
VGG11 = {"stages": ((64,), (128, 256), (512, 512), (512,), (512, 512)), "flatten": False}
"""``flatten``: the classifier reads what the last pool leaves, else the mean over space."""


def make_layers(model: nn.Module, stages, in_channels: int, layer) -> dict[str, int]:
    """Give ``model`` its stages layer1, layer2, ... of ``layer(inputs, outputs)``; returns their
    widths by name."""
    for i, widths in enumerate(stages, 1):
        layers = []
        for width in widths:
            layers.append(layer(in_channels, width))
            in_channels = width
        setattr(model, f"layer{i}", nn.Sequential(*layers))
    return {f"layer{i}": widths[-1] for i, widths in enumerate(stages, 1)}


def features(layout, image_size: int) -> int:
    """Inputs of the classifier; ValueError where the pools leave nothing of the image."""
    stages = layout["stages"]
    pools = len(stages) - (not layout["flatten"])
    side = image_size // 2**pools
    if side == 0:
        raise ValueError(f"create_model: image_size must be >= {2**pools}, got {image_size}")
    return stages[-1][-1] * (side**2 if layout["flatten"] else 1)


class Layer(nn.Module):
    """conv3x3, BN, neurons: [T, B, inputs, H, W] -> [T, B, outputs, H, W]; with ``timesteps`` of a
    static [B, inputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, neurons: Neurons):
        super().__init__()
        self.conv, self.bn = conv3x3(inputs, outputs), neurons.norm(outputs)

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        if timesteps is not None:
            return self.bn(self.conv(x), timesteps=timesteps)
        return self.bn(over_time(self.conv, x))


class VGG(SpikingNetwork):
    """Both networks; ``layout`` is one of the tables above. A stage's output, and what an auxiliary
    head reads, is that of its pool."""

    def __init__(self, layout, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(timesteps)
        neurons = Neurons(**neuron)
        self.flatten = layout["flatten"]
        widths = make_layers(self, layout["stages"], in_channels, lambda a, b: Layer(a, b, neurons))
        self.fc = nn.Linear(features(layout, image_size), num_classes)
        self.add_head(aux_head, widths, num_classes)

    def stem(self, x: Tensor, timesteps: int | None) -> Tensor:
        return self.layer1[0](x, timesteps)

    def stage(self, name: str, s: Tensor) -> Tensor:
        for i, layer in enumerate(getattr(self, name)):
            if i > 0 or name != "layer1":  # that one is the stem
                s = layer(s)
        if name == self.stages[-1] and not self.flatten:
            return s
        return over_time(lambda s: F.avg_pool2d(s, 2), s)

    def classify(self, s: Tensor) -> Tensor:
        if not self.flatten:
            return super().classify(s)
        return over_time(lambda s: self.fc(flat(s, self.fc.in_features)), s)


@register("vgg9", "vggsnn")
def vgg9(**arguments) -> VGG:
    return VGG(VGG9, **arguments)


@register("vgg11")
def vgg11(**arguments) -> VGG:
    return VGG(VGG11, **arguments)
