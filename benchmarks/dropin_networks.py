"""Networks as published code writes them for other packages, which bring the neurons.

``node(**arguments)`` makes a multi-step LIF or IF node of SpikingJelly, ``contain(*layers)`` a
container whose layers see time in the batch.
"""

from collections.abc import Callable

from torch import Tensor, nn

Make = Callable[..., nn.Module]


def conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)


class _Image(nn.Module):
    """conv - BN - node [- pool] on [T, B, C, H, W]."""

    def __init__(self, node: Make, channels_in: int, channels: int, pool: bool):
        super().__init__()
        self.conv, self.bn = conv3x3(channels_in, channels), nn.BatchNorm2d(channels)
        self.lif = node()
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.flatten(0, 1)))
        y = self.lif(y.unflatten(0, x.shape[:2]).contiguous())
        return y if self.pool is None else self.pool(y.flatten(0, 1)).unflatten(0, x.shape[:2])


class _Tokens(nn.Module):
    """Linear - BN - node on [T, B, N, C]."""

    def __init__(self, node: Make, width_in: int, width: int):
        super().__init__()
        self.linear, self.bn, self.lif = nn.Linear(width_in, width), nn.BatchNorm1d(width), node()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.lif(y.unflatten(0, x.shape[:2]).contiguous())


class _Attention(nn.Module):
    """Attention of spikes without a softmax, and two layers behind it."""

    def __init__(self, node: Make, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (_Tokens(node, width, width) for _ in range(3))
        self.mixed = node(v_threshold=0.5)
        self.out = _Tokens(node, width, width)
        self.mlp = nn.Sequential(_Tokens(node, width, 4 * width), _Tokens(node, 4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(2, 3).contiguous()
            for layer in (self.q, self.k, self.v)
        )
        y = (q @ k.transpose(-2, -1) * 0.125) @ v
        x = x + self.out(self.mixed(y.transpose(2, 3).flatten(3).contiguous()))
        return x + self.mlp(x)


class SpikingTransformer(nn.Module):
    """Spikformer's structure: an image in patches, their places, blocks of spiking attention."""

    def __init__(self, node: Make, width: int, heads: int, depth: int, steps: int):
        super().__init__()
        self.steps = steps
        widths = [3, width // 8, width // 4, width // 2, width]
        self.patches = nn.Sequential(
            *(_Image(node, widths[i], widths[i + 1], pool=i >= 2) for i in range(4))
        )
        self.place = _Image(node, width, width, pool=False)
        self.blocks = nn.Sequential(*(_Attention(node, width, heads) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))
        x = (self.place(x) + x).flatten(3).transpose(-1, -2)
        return self.head(self.blocks(x).mean(2).mean(0))


class _ElementWise(nn.Module):
    """Two convolutions with their nodes, whose spikes are added in place onto those of the input:
    SEW-ResNet's block with ADD."""

    def __init__(self, node: Make, contain: Make, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = contain(conv3x3(channels_in, channels, stride), nn.BatchNorm2d(channels))
        self.node1 = node()
        self.conv2 = contain(conv3x3(channels, channels), nn.BatchNorm2d(channels))
        self.node2 = node()
        self.downsample = None
        if stride != 1 or channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(contain(conv, nn.BatchNorm2d(channels)), node())

    def forward(self, x: Tensor) -> Tensor:
        y = self.node2(self.conv2(self.node1(self.conv1(x))))
        y += x if self.downsample is None else self.downsample(x)
        return y


class SpikeElementWise(nn.Module):
    """SEW-ResNet's structure: two blocks for each of ``widths``."""

    def __init__(self, node: Make, contain: Make, widths: list[int], steps: int, stem: int = 7):
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(3, widths[0], stem, 2, stem // 2, bias=False)
        self.bn, self.node = nn.BatchNorm2d(widths[0]), node()
        self.pool = contain(nn.MaxPool2d(3, 2, 1))
        blocks, before = [], widths[0]
        for i, width in enumerate(widths):
            blocks.append(_ElementWise(node, contain, before, width, 1 if i == 0 else 2))
            blocks.append(_ElementWise(node, contain, width, width, 1))
            before = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        x.unsqueeze_(0)
        x = self.blocks(self.pool(self.node(x.repeat(self.steps, 1, 1, 1, 1))))
        return self.head(x.flatten(3).mean(3).mean(0))


def convolutional(snntorch, widths: tuple[int, int] = (12, 64), side: int = 28) -> nn.Sequential:
    """The network of snnTorch's sixth tutorial: neurons that hold their state, a timestep a call,
    (spikes, potential) at its end."""
    lif = {
        "beta": 0.5, "spike_grad": snntorch.surrogate.fast_sigmoid(slope=25), "init_hidden": True
    }  # fmt: skip
    left = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(1, widths[0], 5), nn.MaxPool2d(2), snntorch.Leaky(**lif),
        nn.Conv2d(widths[0], widths[1], 5), nn.MaxPool2d(2), snntorch.Leaky(**lif),
        nn.Flatten(), nn.Linear(widths[1] * left**2, 10), snntorch.Leaky(**lif, output=True),
    )  # fmt: skip
