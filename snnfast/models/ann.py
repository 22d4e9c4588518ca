"""The ANN teachers: the layouts of the spiking networks with ReLU in place of neurons and no time.

Where a spiking network has the same layers, the state_dict keys are the same, too; those of the
ResNet-18 and -34 are torchvision's, so from 96 pixels up its published weights load.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from snnfast.models import resnet, vgg
from snnfast.models.layers import conv3x3, flat, pooled, stem_conv, stem_pool
from snnfast.models.registry import register
from snnfast.nn.batch_norm import BatchNorm2d

RESNET34 = resnet.RESNET18 | {"blocks": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """conv3x3, BN, ReLU, conv3x3, BN, + (input or conv1x1, BN), ReLU (He et al. 2016, arXiv
    1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class AnnResNet(nn.Module):
    """Images [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, layout, num_classes, in_channels, image_size):
        super().__init__()
        width = layout["stem"]
        self.conv1, self.bn1 = stem_conv(in_channels, width, image_size), BatchNorm2d(width)
        self.maxpool = stem_pool(image_size)
        widths = resnet.make_stages(self, BasicBlock, layout["blocks"], layout["widths"], width)
        self.stages, last = tuple(widths), layout["widths"][-1]
        hidden = layout["hidden"]
        self.fc1 = None if hidden is None else nn.Linear(last, hidden)
        self.fc = nn.Linear(hidden or last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.maxpool is None else self.maxpool(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        x = pooled(x)
        return self.fc(x if self.fc1 is None else F.relu(self.fc1(x)))


class Layer(nn.Module):
    """conv3x3, BN, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.bn = conv3x3(inputs, outputs), BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class AnnVGG(nn.Module):
    """Images [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, layout, num_classes, in_channels, image_size):
        super().__init__()
        self.flatten = layout["flatten"]
        self.stages = tuple(vgg.make_layers(self, layout["stages"], in_channels, Layer))
        self.fc = nn.Linear(vgg.features(layout, image_size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.stages:
            x = getattr(self, name)(x)
            if name != self.stages[-1] or self.flatten:
                x = F.avg_pool2d(x, 2)
        return self.fc(flat(x, self.fc.in_features) if self.flatten else pooled(x))


@register("ann_resnet18", ann=True)
def ann_resnet18(**arguments) -> AnnResNet:
    return AnnResNet(resnet.RESNET18, **arguments)


@register("ann_resnet19", ann=True)
def ann_resnet19(**arguments) -> AnnResNet:
    return AnnResNet(resnet.RESNET19, **arguments)


@register("ann_resnet34", ann=True)
def ann_resnet34(**arguments) -> AnnResNet:
    return AnnResNet(RESNET34, **arguments)


@register("ann_vgg9", "ann_vggsnn", ann=True)
def ann_vgg9(**arguments) -> AnnVGG:
    return AnnVGG(vgg.VGG9, **arguments)


@register("ann_vgg11", ann=True)
def ann_vgg11(**arguments) -> AnnVGG:
    return AnnVGG(vgg.VGG11, **arguments)
