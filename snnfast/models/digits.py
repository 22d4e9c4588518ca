"""Small convolutional networks for handwritten digits: a spiking one and its ANN teacher.

Three blocks of conv3x3, batch norm, activation and 2x2 max-pool, then one linear layer:

    16 - pool - 32 - pool - 64 - pool - linear        28x28: 28 -> 14 -> 7 -> 3

The max-pool of spikes is a spike again, so every layer but the first reads binary input.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.models.layers import Neurons, conv3x3, flat
from snnfast.models.network import SpikingNetwork
from snnfast.models.registry import register
from snnfast.nn.batch_norm import BatchNorm2d
from snnfast.nn.over_time import over_time

WIDTHS = (16, 32, 64)


def _features(image_size: int) -> int:
    """Inputs of the linear layer: what three poolings leave of the image."""
    side = image_size // 2 ** len(WIDTHS)
    if side == 0:
        raise ValueError(f"create_model: image_size must be >= 8, got {image_size}")
    return WIDTHS[-1] * side**2


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


@register("digits_cnn")
class DigitsCNN(SpikingNetwork):
    """The spiking network: LIF neurons after every batch norm, logits [T, B, classes] per step.

    ``layer1`` to ``layer3`` are the spikes of the three blocks.
    """

    def __init__(self, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(timesteps)
        a, b, c = WIDTHS
        neurons = Neurons(**neuron)
        self.conv1, self.bn1 = conv3x3(in_channels, a), neurons.norm(a)
        self.conv2, self.bn2 = conv3x3(a, b), neurons.norm(b)
        self.conv3, self.bn3 = conv3x3(b, c), neurons.norm(c)
        self.head = nn.Linear(_features(image_size), num_classes)
        self.add_head(aux_head, {"layer1": a, "layer2": b, "layer3": c}, num_classes)

    def stage(self, name: str, s: Tensor) -> Tensor:
        if name == "layer1":  # which is the stem
            return s
        conv, bn = (self.conv2, self.bn2) if name == "layer2" else (self.conv3, self.bn3)
        return bn(over_time(lambda s: conv(_pool(s)), s))

    def classify(self, s: Tensor) -> Tensor:
        return over_time(lambda s: self.head(flat(_pool(s), self.head.in_features)), s)


@register("ann_digits_cnn", ann=True)
class AnnDigitsCNN(nn.Module):
    """The teacher: the same layers with ReLU in place of LIF and no time, logits [B, classes]."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        a, b, c = WIDTHS
        self.conv1, self.bn1 = conv3x3(in_channels, a), BatchNorm2d(a)
        self.conv2, self.bn2 = conv3x3(a, b), BatchNorm2d(b)
        self.conv3, self.bn3 = conv3x3(b, c), BatchNorm2d(c)
        self.head = nn.Linear(_features(image_size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = _pool(F.relu(self.bn1(self.conv1(x))))
        x = _pool(F.relu(self.bn2(self.conv2(x))))
        x = _pool(F.relu(self.bn3(self.conv3(x))))
        return self.head(flat(x, self.head.in_features))
