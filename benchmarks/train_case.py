"""One point of the training benchmark: data, the networks that compete, and their steps.

All contenders are one network, the ResNet-18 of snnfast.models, with the same weights under the
same names, and one objective, TWKD with the teacher's logits given. All run the stem's convolution
and batch norm once, for the image stands still, though SpikingJelly's own ResNets run it at every
step. The neuron is that of the TWKD recipes for CIFAR: tau = 2, input not decayed, theta = 1, hard
reset to 0, reset not detached, Sigmoid(4).
"""

import importlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import measure
import peers
import torch
from distill_case import twkd
from torch import Tensor, nn

import snnfast
from snnfast.models import create_model
from snnfast.nn.over_time import over_time
from snnfast.surrogate import Sigmoid

NEURON = {"tau": 2.0, "decay_input": False, "v_reset": 0.0, "surrogate": Sigmoid(alpha=4.0)}
OBJECTIVE = {"alpha": 0.2, "beta": 0.5, "temperature": 3.0, "self_target": "mean"}
CLASSES = 100


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, ds):
        (u,) = ctx.saved_tensors
        p = torch.sigmoid(4.0 * u)
        return ds * (4.0 * p * (1 - p))


class LoopLIF(nn.Module):
    """The loop over time that one writes by hand in PyTorch, with a float32 state.

    ``margin``: the smallest |H - theta| of all neurons and steps since it was set.
    """

    margin: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0], dtype=torch.float32)
        spikes = []
        for x_t in x:
            h = v - v / 2.0 + x_t.float()
            u = h - 1.0
            if self.margin is not None:
                self.margin = min(self.margin, u.detach().abs().min().item())
            s = _Fire.apply(u)
            v = h * (1 - s)
            spikes.append(s.to(x.dtype))
        return torch.stack(spikes)


class _Conv(nn.Conv2d):
    def forward(self, x):
        return over_time(super().forward, x)


class _Norm(nn.BatchNorm2d):
    def forward(self, x):
        return over_time(super().forward, x)


class LoopLayers:
    """The network's layers in plain PyTorch: time folded into the batch, a loop in the neurons."""

    conv, norm, linear, neuron = _Conv, _Norm, nn.Linear, LoopLIF

    @staticmethod
    def repeat(y: Tensor, steps: int) -> Tensor:
        return y.expand(steps, *y.shape)


class SpikingJellyLayers:
    """The network's layers from SpikingJelly, in step mode 'm' behind the stem."""

    def __init__(self):
        base = "spikingjelly.activation_based."
        layer, neuron, surrogate = (
            importlib.import_module(base + name) for name in ("layer", "neuron", "surrogate")
        )
        self.conv = partial(layer.Conv2d, step_mode="m")
        self.norm = partial(layer.BatchNorm2d, step_mode="m")
        self.linear = partial(layer.Linear, step_mode="m")
        self.neuron = partial(
            neuron.LIFNode, tau=2.0, decay_input=False, v_threshold=1.0, v_reset=0.0,
            surrogate_function=surrogate.Sigmoid(alpha=4.0), detach_reset=False, step_mode="m",
        )  # fmt: skip

    @staticmethod
    def repeat(y: Tensor, steps: int) -> Tensor:
        return y.unsqueeze(0).repeat(steps, 1, 1, 1, 1)


class PeerBlock(nn.Module):
    def __init__(self, layers, inputs: int, outputs: int, stride: int):
        super().__init__()
        conv = partial(layers.conv, bias=False)
        self.conv1 = conv(inputs, outputs, kernel_size=3, stride=stride, padding=1)
        self.bn1, self.lif1 = layers.norm(outputs), layers.neuron()
        self.conv2 = conv(outputs, outputs, kernel_size=3, padding=1)
        self.bn2, self.lif2 = layers.norm(outputs), layers.neuron()
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, kernel_size=1, stride=stride)
            self.downsample = nn.Sequential(shortcut, layers.norm(outputs))

    def first(self, y: Tensor) -> Tensor:
        return self.lif1(self.bn1(y))

    def second(self, y: Tensor, residual: Tensor) -> Tensor:
        return self.lif2(self.bn2(y) + residual)

    def forward(self, s: Tensor) -> Tensor:
        y = self.conv2(self.first(self.conv1(s)))
        return self.second(y, s if self.downsample is None else self.downsample(s))


class PeerResNet18(nn.Module):
    """snnfast's resnet18 from other layers, with the same keys; image [B, C, H, W] -> logits."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1, self.lif1 = nn.BatchNorm2d(64), layers.neuron()
        inputs = 64
        for i, width in enumerate((64, 128, 256, 512), 1):
            first = PeerBlock(layers, inputs, width, 1 if i == 1 else 2)
            second = PeerBlock(layers, width, width, 1)
            setattr(self, f"layer{i}", nn.Sequential(first, second))
            inputs = width
        self.fc = layers.linear(512, CLASSES)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        s = self.lif1(self.layers.repeat(self.bn1(self.conv1(x)), timesteps))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            s = stage(s)
        return self.fc(s.mean((-2, -1)))


@dataclass
class Contender(measure.Contender):
    """``build()`` makes a network with parameters by snnfast's names; ``loss`` is what it trains
    on (logits [T, B, C], target, teacher's logits)."""

    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    context: Callable = nullcontext
    """Around the forward."""
    around: Callable = nullcontext
    """Around the whole step."""
    after: Callable[[nn.Module], None] | None = None
    """What its users call behind every step."""
    channels_last: bool = False
    prepare: "Callable[[Training], None] | None" = None
    """What its users do once to the network."""


def ours(backend: str) -> Contender:
    build = partial(create_model, "resnet18", num_classes=CLASSES, backend=backend, **NEURON)
    loss = partial(snnfast.twkd_loss, **OBJECTIVE, backend=backend)
    return Contender(f"snnfast {backend}", "ours", build, loss, context=snnfast.packed_spikes)


LOOP_LOSS = partial(twkd, **OBJECTIVE)


def loop() -> Contender:
    return Contender("torch loop", "peer", partial(PeerResNet18, LoopLayers), LOOP_LOSS)


class CompiledLayers(LoopLayers):
    """Where every step reads the same tensor, inductor inlines each step into all that follow it
    and does not come to an end: so the stem's output is repeated."""

    repeat = staticmethod(SpikingJellyLayers.repeat)


def compiled_loop() -> Contender:
    """The loop with what lies between two convolutions compiled as one graph, for exactly one
    shape. (The whole network as one graph takes inductor many minutes for each T.)"""
    compiled = partial(torch.compile, dynamic=False, fullgraph=True)

    def build():
        model = PeerResNet18(CompiledLayers)
        model.lif1.forward = compiled(model.lif1.forward)
        for block in model.modules():
            if isinstance(block, PeerBlock):
                block.first, block.second = compiled(block.first), compiled(block.second)
        return model

    return Contender("torch.compile'd loop", "peer", build, LOOP_LOSS, compiled=True)


def spikingjelly(device: torch.device) -> list[Contender | str]:
    """The network from SpikingJelly's modules; on CUDA with each of its implementations of LIF."""
    found = peers._import("spikingjelly.activation_based.functional")
    if isinstance(found, str):
        return [found]

    build = partial(PeerResNet18, SpikingJellyLayers())
    make = partial(Contender, kind="peer", build=build, loss=LOOP_LOSS, after=found.reset_net)
    selection = getattr(peers._import("spikingjelly._ops.lif"), "_selection", None)
    if device.type != "cuda" or selection is None:
        return [make("SpikingJelly")]
    return [
        make(f"SpikingJelly {name}", around=partial(_selected, selection, name, {}))
        for name in ("auto", "cuda", "triton", "torch")
    ]


@contextmanager
def _selected(selection, name: str, chosen: dict):
    """One choice per process, read at import: several can stand side by side only by setting what
    that variable sets."""
    before = selection._requested, selection._selections
    selection._requested, selection._selections = name, chosen
    try:
        yield
    finally:
        selection._requested, selection._selections = before


class Case:
    """Random images, targets and teacher's logits, and the weights that all start from."""

    def __init__(
        self,
        side: int,
        batch: int,
        steps: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ):
        self.side, self.batch, self.steps = side, batch, steps
        self.dtype, self.device = dtype, device
        self.where = {
            "side": side,
            "batch": batch,
            "dtype": measure.dtype_name(dtype),
            "steps": steps,
        }
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(batch, 3, side, side, generator=generator).to(device)
        self.target = torch.randint(CLASSES, (batch,), generator=generator).to(device)
        self.teacher = 2 * torch.randn(batch, CLASSES, generator=generator).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.weights = create_model("resnet18", num_classes=CLASSES).state_dict()

    def autocast(self):
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)


class Training:
    """A contender at one case: the network, its optimiser, and steps of training.

    The learning rate is 0, so that every step is the first one, at the same cost. Gradients stay
    allocated, so that a step's peak is counted above parameters, gradients and momenta.
    """

    def __init__(self, case: Case, contender: Contender):
        self.case, self.contender = case, contender
        self.model = contender.build()
        self.model.load_state_dict(case.weights)
        layout = torch.channels_last if contender.channels_last else torch.contiguous_format
        self.model.to(case.device, memory_format=layout).train()
        self.images = case.images.to(memory_format=layout)
        if contender.prepare is not None:
            contender.prepare(self)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4
        )

    def forward(self) -> Tensor:
        """The loss."""
        case = self.case
        with self.contender.context():
            with case.autocast():
                logits = self.model(self.images, case.steps)
            return self.contender.loss(logits, case.target, case.teacher)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if self.contender.after is not None:
            self.contender.after(self.model)

    def step(self, _: int = 0) -> Tensor:
        """One whole step of training; the loss."""
        self.optimizer.zero_grad(set_to_none=False)
        with self.contender.around():
            loss = self.forward()
            self.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def gradients(self) -> Tensor:
        """All gradients as one vector, in float64."""
        return torch.cat([p.grad.double().flatten() for p in self.model.parameters()])
