"""Small convolutional networks for handwritten digits: a spiking one and its ANN teacher.

Three blocks of conv3x3, batch norm, activation and 2x2 max-pool, then one linear layer:

    16 - pool - 32 - pool - 64 - pool - linear        28x28: 28 -> 14 -> 7 -> 3

The max-pool of spikes is a spike again, so every layer but the first reads binary input.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.models.layers import StemBatchNorm2d, over_time, timesteps_of
from snnfast.models.registry import register
from snnfast.nn import LIF

WIDTHS = (16, 32, 64)


def _conv(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def _features(image_size: int) -> int:
    """Inputs of the linear layer: what three poolings leave of the image."""
    side = image_size // 2 ** len(WIDTHS)
    if side == 0:
        raise ValueError(f"create_model: image_size must be >= 8, got {image_size}")
    return WIDTHS[-1] * side**2


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


@register("digits_cnn")
class DigitsCNN(nn.Module):
    """The spiking network: LIF neurons after every batch norm, logits [T, B, classes] per step.

    For an image the first convolution and batch norm run once, and the first LIF reads their output
    at every step. Time is folded into the batch everywhere else.
    """

    def __init__(self, num_classes, in_channels, image_size, timesteps, **neuron):
        super().__init__()
        a, b, c = WIDTHS
        self.timesteps = timesteps
        self.conv1, self.bn1, self.lif1 = _conv(in_channels, a), StemBatchNorm2d(a), LIF(**neuron)
        self.conv2, self.bn2, self.lif2 = _conv(a, b), nn.BatchNorm2d(b), LIF(**neuron)
        self.conv3, self.bn3, self.lif3 = _conv(b, c), nn.BatchNorm2d(c), LIF(**neuron)
        self.head = nn.Linear(_features(image_size), num_classes)

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        static, steps = timesteps_of(x, timesteps, self.timesteps)
        if static:
            s = self.lif1(self.bn1(self.conv1(x), repeats=steps), timesteps=steps)
        else:
            s = self.lif1(over_time(lambda x: self.bn1(self.conv1(x)), x))
        s = self.lif2(over_time(lambda s: self.bn2(self.conv2(_pool(s))), s))
        s = self.lif3(over_time(lambda s: self.bn3(self.conv3(_pool(s))), s))
        return over_time(lambda s: self.head(_pool(s).flatten(1)), s)


@register("ann_digits_cnn")
class AnnDigitsCNN(nn.Module):
    """The teacher: the same layers with ReLU in place of LIF and no time, logits [B, classes]."""

    def __init__(self, num_classes, in_channels, image_size, timesteps, **neuron):
        super().__init__()
        if neuron:
            raise TypeError(f"create_model: ann_digits_cnn has no neurons, got {', '.join(neuron)}")
        a, b, c = WIDTHS
        self.conv1, self.bn1 = _conv(in_channels, a), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = _conv(a, b), nn.BatchNorm2d(b)
        self.conv3, self.bn3 = _conv(b, c), nn.BatchNorm2d(c)
        self.head = nn.Linear(_features(image_size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = _pool(F.relu(self.bn1(self.conv1(x))))
        x = _pool(F.relu(self.bn2(self.conv2(x))))
        x = _pool(F.relu(self.bn3(self.conv3(x))))
        return self.head(x.flatten(1))
