"""The peers, each as its users run it, and the yardsticks that we are measured against.

Each constructor returns a ``Contender``, or a sentence that says why it is absent. The neuron is a
LIF with tau = 2, theta = 1, hard reset to 0, decayed input, reset not detached, ATan(2); snnTorch
and Norse have another neuron by design and run with their defaults, held to their own equation.
"""

import contextlib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import measure
import torch
from torch import Tensor

PACKAGES = ("spikingjelly", "snntorch", "norse")
INSTALL = "pip install 'snnfast[bench]'"

# How many spikes may differ from the oracle. A sum in another order, or an FMA, moves one in 10^7;
# a state in half precision moves percents, which the table shows.
ROUNDING, HALF_STATE = 1e-5, 0.1


@dataclass
class Contender(measure.Contender):
    """A layer to time: ``layer(x [T, ...]) -> s [T, ...]``, differentiable in x."""

    layer: Callable[[Tensor], Tensor]
    oracle: Callable[[Tensor], Tensor] | None = None
    """Spikes of float32 x by the contender's own equation; None: those of snnfast.reference."""
    tolerance: float = 0.0
    """The share of spikes that may differ; 0 for ours."""
    gated: bool = True
    """False for a probe that is no neuron."""


class _Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, ds):
        (x,) = ctx.saved_tensors
        return torch.add(ds, x)


def floor() -> Contender:
    """A clone forward and one add backward: the bytes of a LIF with none of its arithmetic."""
    return Contender("clone/add probe", "probe", _Floor.apply, gated=False)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, ds):
        (u,) = ctx.saved_tensors
        return ds / (1 + (math.pi * u) ** 2)


def time_loop(x: Tensor) -> Tensor:
    """The loop over time that one writes by hand in PyTorch, with a float32 state."""
    v = torch.zeros_like(x[0], dtype=torch.float32)
    spikes = []
    for x_t in x:
        h = v + (x_t.float() - v) / 2.0
        s = _Spike.apply(h - 1.0)
        v = h * (1 - s)
        spikes.append(s.to(x.dtype))
    return torch.stack(spikes)


def torch_loop() -> Contender:
    return Contender("torch loop", "peer", time_loop, tolerance=ROUNDING)


def compiled_loop() -> Contender:
    """The same loop through torch.compile (inductor), compiled for exactly this shape."""
    torch._dynamo.reset()
    layer = torch.compile(time_loop, dynamic=False)
    return Contender("torch.compile'd loop", "peer", layer, tolerance=ROUNDING, compiled=True)


def _import(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"{name.split('.')[0]} does not import ({error}): {INSTALL}"


def _spikingjelly_layer(selection=None, implementation=None, context=contextlib.nullcontext):
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
    node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(2.0), step_mode="m")
    chosen = {}

    def layer(x):
        if selection is not None:
            # The choice is one per process and read at import (SJ_LIF_CUDA_IMPLEMENTATION), so
            # that several can stand side by side only by setting what that variable sets.
            selection._requested, selection._selections = implementation, chosen
        with context():
            s = node(x)
        node.reset()
        return s

    return node, layer


def spikingjelly(device: torch.device, dtype: torch.dtype) -> list[Contender | str]:
    """LIFNode in step mode 'm': on the CPU as it comes and under autocast; on CUDA each of its
    implementations, autocast, and in half precision its opt-in precision path.

    Under autocast x arrives in half precision, as behind an autocast convolution; in float32
    nothing before the neuron was cast and autocast changes nothing, so it is shown in half only.
    """
    found = _import("spikingjelly.activation_based.neuron")
    if isinstance(found, str):
        return [found]
    tolerance = ROUNDING if dtype == torch.float32 else HALF_STATE
    variants: list[Contender | str] = []

    def add(name, layer):
        variants.append(Contender(name, "peer", layer, tolerance=tolerance))

    if device.type == "cuda":
        ops = _import("spikingjelly._ops.lif")
        selection = getattr(ops, "_selection", None)
        if selection is None:
            variants.append("this SpikingJelly has no choice of CUDA implementation")
            add("SpikingJelly", _spikingjelly_layer()[1])
        else:
            for name in ("auto", "cuda", "triton", "torch"):
                add(f"SpikingJelly {name}", _spikingjelly_layer(selection, name)[1])
    else:
        add("SpikingJelly", _spikingjelly_layer()[1])
    if dtype == torch.float32:
        return variants

    def autocast():
        return torch.autocast(device.type, dtype=dtype)

    selection = None
    if device.type == "cuda":
        selection = getattr(_import("spikingjelly._ops.lif"), "_selection", None)
    add("SpikingJelly autocast", _spikingjelly_layer(selection, "auto", autocast)[1])
    if device.type == "cuda":
        try:
            api = importlib.import_module("spikingjelly.activation_based.precision")
            node, layer = _spikingjelly_layer(selection, "auto")
            storage = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
            api.prepare_model_for_precision(node, device, {"neuron_storage": storage})
            add("SpikingJelly precision", layer)
        except Exception as error:
            variants.append(f"SpikingJelly precision path: {type(error).__name__}: {error}")
    return variants


def snntorch(device: torch.device) -> Contender | str:
    """Leaky(beta=0.5) with its defaults: subtraction one step late, ATan(2), s = mem > 1."""
    found = _import("snntorch")
    if isinstance(found, str):
        return found
    leaky = found.Leaky(beta=0.5).to(device)
    rest = leaky.mem

    def layer(x):
        mem, spikes = leaky.reset_mem(), []
        for x_t in x:
            s, mem = leaky(x_t, mem)
            spikes.append(s)
        leaky.mem = rest
        leaky.reset = None
        return torch.stack(spikes)

    def oracle(x):
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = 0.5 * mem + x_t - (mem > 1).float()
            spikes.append((mem > 1).float())
        return torch.stack(spikes)

    return Contender("snnTorch Leaky", "peer", layer, oracle, ROUNDING)


def norse(device: torch.device) -> Contender | str:
    """norse.torch.LIF with its defaults: synaptic current, SuperSpike(100), s = v > 1."""
    found = _import("norse.torch")
    if isinstance(found, str):
        return found
    lif = found.LIF()
    if device.type == "cuda":
        lif.p = type(lif.p)(*(p.to(device) if isinstance(p, Tensor) else p for p in lif.p))

    def layer(x):
        return lif(x)[0]

    def oracle(x):
        v, current, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for x_t in x:
            current = current + x_t
            v = v + 0.1 * (current - v)
            current = current - 0.2 * current
            s = (v > 1).float()
            v = (1 - s) * v
            spikes.append(s)
        return torch.stack(spikes)

    return Contender("Norse LIF", "peer", layer, oracle, ROUNDING)
