"""A narrow spiking ResNet for handwritten digits, deep enough that timesteps matter.

    conv3x3 of stride 2, BN, LIF - three basic blocks of 8, 16, 32 channels, strides 1, 2, 2 -
    global average pool - Linear        28x28: 14 -> 14 -> 7 -> 4, 19,810 parameters at 10 classes

In eight to 32 channels a binary layer says little at one timestep.
"""

from torch import nn

from snnfast.models.registry import register
from snnfast.models.resnet import ResNet

LAYOUT = {"blocks": (1, 1, 1), "widths": (8, 16, 32), "stem": 8, "hidden": None}


@register("digits_resnet")
class DigitsResNet(ResNet):
    """The ResNet of ``LAYOUT`` behind a stem of stride 2."""

    def __init__(self, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(
            LAYOUT, num_classes, in_channels, image_size, timesteps, aux_head, **neuron
        )
        self.conv1 = nn.Conv2d(in_channels, LAYOUT["stem"], 3, 2, 1, bias=False)
