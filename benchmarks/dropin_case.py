"""One network of the drop-in benchmark: as its package runs it, as it runs behind our line, and the
gate: the same spikes in one training step, gradients close."""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import measure
import torch
from dropin_networks import SpikeElementWise, SpikingTransformer, convolutional
from peers import INSTALL
from torch import Tensor, nn

import snnfast

GRADIENTS = 1e-3
"""Error of all gradients as one vector, relative to its norm: sums over time in another order."""

FLIPS = 1e-5
"""The share of spikes that may differ where the batch norm is ours, too, and rounds otherwise."""

SIZES = {
    "spikformer": {"width": 384, "heads": 12, "depth": 4, "batch": 8, "side": 32, "steps": 4},
    "sew_resnet18": {"width": 64, "batch": 8, "side": 128, "steps": 4},
    "snntorch_conv": {"widths": (12, 64), "batch": 64, "side": 28, "steps": 50},
}
"""Spikformer-4-384 on CIFAR's images, SEW-ResNet-18, the tutorial's network; fewer images a step
than they are trained with, and smaller ones for the second."""

QUICK = {
    "spikformer": {"width": 64, "heads": 2, "depth": 1, "batch": 1},
    "sew_resnet18": {"width": 8, "batch": 1, "side": 32},
    "snntorch_conv": {"widths": (4, 8), "batch": 2, "steps": 10},
}
NETWORKS = tuple(SIZES)


class Run:
    """A network and how its users call it; ``steps`` T."""

    def __init__(self, model: nn.Module, steps: int):
        self.model, self.steps = model.train(), steps

    def neurons(self) -> list[nn.Module]:
        """All of them, in the order of ``modules``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, from rest."""
        raise NotImplementedError

    def feed(self, neuron: nn.Module, x: Tensor) -> Tensor:
        """What one neuron makes of all timesteps [T, ...], from rest."""
        raise NotImplementedError


class Jelly(Run):
    """A network of SpikingJelly's nodes, and after ``accelerate`` of ours."""

    def __init__(self, model: nn.Module, steps: int, ours: bool, fused: bool = False):
        super().__init__(model, steps)
        self.package = importlib.import_module("spikingjelly.activation_based")
        if ours:
            snnfast.accelerate(model, fuse=fused)

    def neurons(self):
        return [m for m in self.model.modules() if isinstance(m, self.package.neuron.BaseNode)]

    def forward(self, x):
        self.package.functional.reset_net(self.model)
        return self.model(x)

    def feed(self, neuron, x):
        neuron.reset()
        return neuron(x)


class Torch(Run):
    """A network of snnTorch, called a timestep at a time, or by ``multi_step``."""

    def __init__(self, model: nn.Module, steps: int, ours: bool):
        super().__init__(model, steps)
        self.ours = ours
        self._alone = {}
        if ours:
            self._alone = {n: snnfast.nn.unroll(copy.deepcopy(n)) for n in self.neurons()}

    def neurons(self):
        return [m for m in self.model if hasattr(m, "spike_grad")]

    def forward(self, x):
        for neuron in self.neurons():
            neuron.reset_mem()
        if self.ours:
            multi_step = importlib.import_module("snnfast.interop.snntorch").multi_step
            return multi_step(self.model, x, timesteps=self.steps)[0].mean(0)
        return torch.stack([self.model(x)[0] for _ in range(self.steps)]).mean(0)

    def feed(self, neuron, x):
        neuron = self._alone.get(neuron, neuron)
        neuron.reset_mem()
        return spikes(neuron(x)) if self.ours else torch.stack([spikes(neuron(x_t)) for x_t in x])


def spikes(found: Tensor | tuple) -> Tensor:
    """Of a neuron that may give its potential, too."""
    return found[0] if isinstance(found, tuple) else found


@dataclass
class Contender(measure.Contender):
    """``begin(model, steps)`` makes of a network what is run; ``fused``: neurons are no modules of
    their own in it."""

    begin: Callable[[nn.Module, int], Run]
    fused: bool = False


def contenders(name: str) -> list[tuple[str, Contender | str]]:
    """Before and after, or why there is no such network here."""
    package, line, kind = (
        ("snntorch", "multi_step", Torch)
        if name == "snntorch_conv"
        else ("spikingjelly", "accelerate", Jelly)
    )
    if importlib.util.find_spec(package) is None:
        return [(package, f"{package} is not installed: {INSTALL}")]
    found = [
        Contender(package, "peer", partial(kind, ours=False)),
        Contender(f"snnfast.{line}", "ours", partial(kind, ours=True)),
    ]
    if kind is Jelly:
        begin = partial(kind, ours=True, fused=True)
        found.append(Contender(f"snnfast.{line}, fuse=True", "ours", begin, fused=True))
    return [(contender.name, contender) for contender in found]


def network(name: str, sizes: dict) -> nn.Module:
    """With random weights."""
    if name == "snntorch_conv":
        return convolutional(importlib.import_module("snntorch"), sizes["widths"], sizes["side"])
    jelly = importlib.import_module("spikingjelly.activation_based")
    # The classes are imported one module at a time.
    neuron, layer, surrogate = (
        importlib.import_module(f"{jelly.__name__}.{part}")
        for part in ("neuron", "layer", "surrogate")
    )
    many = {"step_mode": "m", "detach_reset": True}
    if name == "spikformer":
        node = partial(neuron.LIFNode, tau=2.0, **many)
        shape = {key: sizes[key] for key in ("width", "heads", "depth", "steps")}
        return SpikingTransformer(node, **shape)
    node = partial(neuron.IFNode, surrogate_function=surrogate.ATan(), **many)
    widths = [sizes["width"] << i for i in range(4)]
    return SpikeElementWise(node, layer.SeqToANNContainer, widths, sizes["steps"])


class Case(measure.Case):
    """Images, targets, and the weights that all start from."""

    def __init__(self, name: str, sizes: dict, device: torch.device):
        self.name, self.sizes, self.device = name, sizes, device
        batch, side = sizes["batch"], sizes["side"]
        self.steps, self.batch = sizes["steps"], batch
        self.where = {
            "network": name,
            "batch": batch,
            "side": side,
            "dtype": "float32",
            "steps": self.steps,
        }
        generator = torch.Generator().manual_seed(1)
        channels = 1 if name == "snntorch_conv" else 3
        images = torch.randn(batch, channels, side, side, generator=generator)
        self.images = (images.abs() if channels == 1 else images).to(device)
        self.target = torch.randint(10, (batch,), generator=generator).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.model = network(name, sizes)


class Training:
    """A contender at one case: its own network, and steps that change no weight."""

    def __init__(self, case: Case, contender: Contender):
        self.case = case
        model = copy.deepcopy(case.model).to(case.device)
        self.run = contender.begin(model, case.steps)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def forward(self) -> Tensor:
        """The loss."""
        return nn.functional.cross_entropy(self.run.forward(self.case.images), self.case.target)

    def step(self, _: int = 0) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradients(self) -> Tensor:
        """All gradients as one vector, in float64."""
        found = [p.grad.double().flatten() for p in self.run.model.parameters()]
        return torch.cat(found)


class Seen:
    """What reached and left every neuron in a step: [T, ...] of each, in order. Or, ``behind`` them
    where they are no modules of their own, what reached every convolution and linear layer."""

    def __init__(self, training: Training, behind: bool = False):
        kinds = (nn.Conv2d, nn.Linear)
        modules = training.run.neurons()
        if behind:
            modules = [m for m in training.run.model.modules() if isinstance(m, kinds)]
        seen = {module: ([], []) for module in modules}

        def note(module, args, found):
            seen[module][0].append(args[0].detach())
            seen[module][1].append(args[0].detach() if behind else spikes(found).detach())

        hooks = [module.register_forward_hook(note) for module in modules]
        training.step()
        for hook in hooks:
            hook.remove()
        self.x, self.s = ([_joined(seen[m][i]) for m in modules] for i in (0, 1))


def _joined(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.stack(calls)


@dataclass(kw_only=True)
class Verdict(measure.Verdict):
    """``gradient_error`` is that of all gradients as one vector, relative to its norm."""

    spikes_compared: int = 0
    spike_flips: int = 0

    def judge(
        self, seen: Seen, expected: Seen, found: Tensor, gradients: Tensor, flips: float = 0.0
    ) -> None:
        """``flips``: the share of spikes that may differ."""
        for s, theirs in zip(seen.s, expected.s, strict=True):
            if s.shape != theirs.shape:
                self.refused = f"spikes {tuple(s.shape)}, not {tuple(theirs.shape)}"
                return
            self.spikes_compared += s.numel()
            self.spike_flips += int((s != theirs).sum())
        if self.spike_flips > flips * self.spikes_compared:
            self.refused = f"{self.spike_flips} of {self.spikes_compared} spikes differ"
            return
        self.gradient_error = float((found - gradients).norm() / gradients.norm())
        self.holds("gradients", self.gradient_error, GRADIENTS)
