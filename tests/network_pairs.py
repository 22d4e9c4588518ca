"""Networks of a live package, and the same ones on ours: accelerated, or written against the
compatibility layer."""

import copy
import importlib
from functools import partial
from types import SimpleNamespace

import networks
import torch
from live import live
from peer_neurons import package
from torch import nn

import snnfast

F32, F64 = torch.float32, torch.float64

NETWORKS = {
    "transformer": (networks.spiking_transformer, "0.0.0.0.12"),
    "element-wise": (networks.element_wise, "0.0.0.0.12"),
    "element-wise, learning": (networks.learning, "0.0.0.0.12"),
    "merged": (networks.Merged, "0.0.0.0.14"),
    "merged, soft": (partial(networks.Merged, tau=1.25, v_reset=None), "0.0.0.0.14"),
    "online": (networks.OnlineInTime, "0.0.0.0.12"),
    "element-wise, leaking": (networks.leaking, "0.0.0.0.14"),
    "element-wise, 2.0.0": (networks.leaking, "2.0.0"),
}
SHAPE = (2, 3, 16, 16)
SPIKING = ("BaseNode", "SpikingNeuron", "HandWritten", "Fires")


def package_of(version):
    """The modules of a SpikingJelly that is unpacked, or of the one that is installed."""
    if version != "2.0.0":
        return live(version)
    package("spikingjelly.activation_based.neuron")
    return modules_in("spikingjelly.activation_based")


def modules_in(namespace):
    names = ("neuron", "layer", "surrogate", "functional")
    return SimpleNamespace(**{n: importlib.import_module(f"{namespace}.{n}") for n in names})


def accelerated(theirs, build, version):
    """A copy of theirs, and how theirs are reset."""
    ours = copy.deepcopy(theirs)
    snnfast.accelerate(ours)
    return ours, package_of(version).functional.reset_net


def compatible(theirs, build, version):
    """The same network written against the compatibility layer."""
    jelly = modules_in(f"snnfast.interop.spikingjelly.{live(version).namespace}")
    ours = build(jelly)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, jelly.functional.reset_net


WAYS = {"accelerated": accelerated, "compatible": compatible}
CASES = [
    (name, way)
    for name, (_, version) in NETWORKS.items()
    for way in WAYS
    if (version, way) != ("2.0.0", "compatible")  # that is installed itself
]


def settle(model, weights, seed=0):
    """Weights and statistics: random, or multiples of 1/20 that a norm in eval() leaves exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, low, high):
        on_grid = torch.randint(low, high + 1, tensor.shape, generator=generator) / 20
        random = torch.rand(tensor.shape, generator=generator) * (high - low) / 20 + low / 20
        tensor.data.copy_(on_grid if weights == "grid" else random)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            draw(module.weight, 10, 30)
            draw(module.bias, 4, 16)
            draw(module.running_mean, -4, 4)
            if weights == "grid":
                module.running_var.fill_(1.0)
                module.eps = 1e-20
        elif isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters():
                draw(parameter, -6, 6)
    return model


def inputs(weights, shape=SHAPE, calls=3):
    if weights == "grid":
        return [torch.randint(-20, 41, shape) / 20 for _ in range(calls)]
    return [torch.randn(shape) for _ in range(calls)]


def nodes(model):
    for name, module in model.named_modules():
        if any(cls.__name__ in SPIKING for cls in type(module).__mro__):
            yield name, module


def outputs(y):
    return y[0] if isinstance(y, tuple) else y


def pair(name, way, weights):
    build, version = NETWORKS[name]
    theirs = settle(build(package_of(version)), weights)
    ours, reset = WAYS[way](theirs, build, version)
    settle(ours, weights)
    return theirs, package_of(version).functional.reset_net, ours, reset


def gradients(run, x, model=None):
    """Of ``run(x)``; ``model``: whose parameters, if not its own."""
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    parameters = (run if model is None else model).named_parameters()
    return {n: p.grad.double() for n, p in parameters} | {"x": x.grad.double()}


def within_twice_their_error(ours, theirs, exact):
    top = max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        error, own = ((found[name] - gradient).norm() for found in (ours, theirs))
        assert error <= 2 * own + 1e-6 * gradient.norm() + 1e-7 * top, name
