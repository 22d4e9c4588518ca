"""ResNets for ImageNet whose shortcuts carry more than spikes.

Pre-activation ResNet-34 (the residual stream is real-valued, as in Hu et al. 2021, arXiv
2112.08954; the layout is that of Yu, Zhao et al., ICML 2025, arXiv 2501.15925):

    stem    conv7x7 of stride 2, BN, max-pool; no neurons
    block   LIF, conv3x3, BN, LIF, conv3x3, BN, + (input or conv1x1, BN)
    head    global average pool of the stream, Linear

SEW ResNet-18 and -34 (Fang et al. 2021, arXiv 2102.04159; the stream is a sum of spikes):

    stem    conv7x7 of stride 2, BN, LIF, max-pool
    block   conv3x3, BN, LIF, conv3x3, BN, LIF, + (input or conv1x1, BN, LIF)
    head    global average pool, Linear

Below 96 pixels both stems are conv3x3 of stride 1, without the max-pool. Weights of convolutions
start as torchvision's ResNets do, whose ImageNet recipes the papers follow. The convolutions of the
first have biases, as published.
"""

from torch import Tensor, nn

from snnfast.models.layers import (
    BatchNorm2d,
    Neurons,
    conv3x3,
    kaiming_fan_out,
    stem_conv,
    stem_pool,
)
from snnfast.models.network import SpikingNetwork
from snnfast.models.registry import register
from snnfast.models.resnet import make_stages
from snnfast.nn.over_time import OverTime, over_time

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)


class PreactBlock(nn.Module):
    """A stream [T, B, inputs, H, W] -> [T, B, outputs, H / stride, W / stride].

    The first block of a network may get the stream of a static image, [B, inputs, H, W], which it
    shows for ``timesteps``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, neurons: Neurons):
        super().__init__()
        self.lif1 = neurons.neuron()
        self.conv1 = conv3x3(inputs, outputs, stride, bias=True)
        self.bn1 = neurons.norm(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs, bias=True), BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride)
            self.downsample = OverTime(conv, BatchNorm2d(outputs))

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        s = self.bn1(over_time(self.conv1, self.lif1(x, timesteps=timesteps)))
        out = over_time(lambda s: self.bn2(self.conv2(s)), s)
        if self.downsample is not None:
            x = self.downsample(x)
        return out + x  # a static x counts for every step


@register("preact_resnet34")
class PreactResNet34(SpikingNetwork):
    """The stem's output is real-valued: of an image it is static until the first block's neurons
    have seen it."""

    def __init__(self, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(timesteps)
        neurons = Neurons(**neuron)
        self.conv1 = stem_conv(in_channels, WIDTHS[0], image_size, bias=True)
        self.bn1, self.maxpool = BatchNorm2d(WIDTHS[0]), stem_pool(image_size)

        def block(inputs, outputs, stride):
            return PreactBlock(inputs, outputs, stride, neurons)

        widths = make_stages(self, block, BLOCKS[34], WIDTHS, WIDTHS[0])
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        kaiming_fan_out(self)
        self.add_head(aux_head, widths, num_classes)

    def stem(self, x: Tensor, timesteps: int | None) -> Tensor:
        def run(x, repeats):
            x = self.bn1(self.conv1(x), repeats)
            return x if self.maxpool is None else self.maxpool(x)

        if timesteps is None:
            return self.layer1[0](over_time(lambda x: run(x, 1), x))
        return self.layer1[0](run(x, timesteps), timesteps)

    def stage(self, name: str, s: Tensor) -> Tensor:
        for i, block in enumerate(getattr(self, name)):
            if i > 0 or name != "layer1":  # which ran in the stem
                s = block(s)
        return s


class SewBlock(nn.Module):
    """Sums of spikes [T, B, inputs, H, W] -> [T, B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, neurons: Neurons):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), neurons.norm(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), neurons.norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.ModuleList([conv, neurons.norm(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        s = self.bn2(over_time(self.conv2, self.bn1(over_time(self.conv1, x))))
        if self.downsample is not None:
            conv, bn = self.downsample
            x = bn(over_time(conv, x))
        return s + x


class SewResNet(SpikingNetwork):
    """``depth``: 18 or 34."""

    def __init__(self, depth, num_classes, in_channels, image_size, timesteps, aux_head, **neuron):
        super().__init__(timesteps)
        neurons = Neurons(**neuron)
        self.conv1 = stem_conv(in_channels, WIDTHS[0], image_size)
        self.bn1, self.maxpool = neurons.norm(WIDTHS[0]), stem_pool(image_size)

        def block(inputs, outputs, stride):
            return SewBlock(inputs, outputs, stride, neurons)

        widths = make_stages(self, block, BLOCKS[depth], WIDTHS, WIDTHS[0])
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        kaiming_fan_out(self)
        self.add_head(aux_head, widths, num_classes)

    def stem(self, x: Tensor, timesteps: int | None) -> Tensor:
        s = super().stem(x, timesteps)
        return s if self.maxpool is None else over_time(self.maxpool, s)


@register("sew_resnet18")
def sew_resnet18(**arguments) -> SewResNet:
    return SewResNet(18, **arguments)


@register("sew_resnet34")
def sew_resnet34(**arguments) -> SewResNet:
    return SewResNet(34, **arguments)
