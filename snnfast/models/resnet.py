"""Spiking ResNet-18 and ResNet-19: basic blocks that end in neurons, behind the sum.

    stem    conv3x3, BN, LIF    (from 96 pixels up conv7x7 of stride 2, BN, LIF, max-pool)
    block   conv3x3, BN, LIF, conv3x3, BN, + (input or conv1x1, BN), LIF
    head    global average pool, Linear; ResNet-19: Linear to 256, LIF, Linear

The layouts are those of Yu, Zhao et al. (ICML 2025, arXiv 2501.15925), and for ResNet-19 of Zheng
et al. (2021, arXiv 2011.05280). The keys are torchvision's where the layers are.
"""

from torch import Tensor, nn

from snnfast.models.layers import (
    BatchNorm2d,
    Neurons,
    conv3x3,
    pooled,
    stem_conv,
    stem_pool,
)
from snnfast.models.network import SpikingNetwork
from snnfast.models.registry import register
from snnfast.nn.over_time import OverTime, over_time

RESNET18 = {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "stem": 64, "hidden": None}
RESNET19 = {"blocks": (3, 3, 2), "widths": (128, 256, 512), "stem": 128, "hidden": 256}
"""``hidden``: the width of a layer between pooling and classifier."""

RATE = 0.2
"""Root mean square of the rates that a fresh network's pool gives: what makes the spread of the
hidden layer's input one, as a batch norm would."""


class BasicBlock(nn.Module):
    """Spikes [T, B, inputs, H, W] -> [T, B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, neurons: Neurons):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), neurons.norm(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), neurons.norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = OverTime(conv, BatchNorm2d(outputs))

    def forward(self, s: Tensor) -> Tensor:
        out = self.bn1(over_time(self.conv1, s))
        residual = s if self.downsample is None else self.downsample(s)
        return self.bn2(over_time(self.conv2, out), residual)


def make_stages(model: nn.Module, block, blocks, widths, inputs: int) -> dict[str, int]:
    """Give ``model`` its stages layer1, layer2, ... of ``block(inputs, outputs, stride)``, halving
    the side from the second on; returns their widths by name."""
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        stride = 1 if i == 1 else 2
        first = block(inputs, width, stride)
        rest = [block(width, width, 1) for _ in range(count - 1)]
        setattr(model, f"layer{i}", nn.Sequential(first, *rest))
        inputs = width
    return {f"layer{i}": width for i, width in enumerate(widths, 1)}


class ResNet(SpikingNetwork):
    """Both networks; ``layout`` is one of the tables above."""

    def __init__(self, layout, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(timesteps)
        neurons = Neurons(**neuron)
        width = layout["stem"]
        self.conv1, self.bn1 = stem_conv(in_channels, width, image_size), neurons.norm(width)
        self.maxpool = stem_pool(image_size)

        def block(inputs, outputs, stride):
            return BasicBlock(inputs, outputs, stride, neurons)

        widths = make_stages(self, block, layout["blocks"], layout["widths"], width)
        self.lif = None
        if layout["hidden"] is None:
            self.fc = nn.Linear(layout["widths"][-1], num_classes)
        else:
            self.fc1 = nn.Linear(layout["widths"][-1], layout["hidden"])
            # Its inputs are rates, and no batch norm follows: by torch's weights the neurons behind
            # it are silent, and under a surrogate of bounded width they would stay so.
            nn.init.normal_(self.fc1.weight, std=1 / (RATE * self.fc1.in_features**0.5))
            self.lif = neurons.neuron()
            self.fc = nn.Linear(layout["hidden"], num_classes)
        self.add_head(aux_head, widths, num_classes)

    def stem(self, x: Tensor, timesteps: int | None) -> Tensor:
        s = super().stem(x, timesteps)
        return s if self.maxpool is None else over_time(self.maxpool, s)

    def classify(self, s: Tensor) -> Tensor:
        if self.lif is None:
            return super().classify(s)
        return self.fc(self.lif(self.fc1(pooled(s))))


@register("resnet18")
def resnet18(**arguments) -> ResNet:
    return ResNet(RESNET18, **arguments)


@register("resnet19")
def resnet19(**arguments) -> ResNet:
    return ResNet(RESNET19, **arguments)
