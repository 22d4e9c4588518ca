"""Neurons that a program defines, in CUDA C++: one launch each way, and one more for each
parameter's gradient. The kernels are written from the step, once per structure, and compiled by
NVRTC at first use; arguments as ``csrc/cuda/neuron.cuh`` has them.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

import torch

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import IO, Kernel, Launch
from snnfast.backends.cuda.lif import EVERY_STATE, HAS_BORDERS, HAS_DV0, HAS_V, HAS_V0
from snnfast.backends.spec import SEGMENT, NeuronLayer
from snnfast.program.cuda_source import backward_source, forward_source

_THREADS = 128
_SETS = ("PER_CHANNEL", "DS", "DX", "SUM_DX", "DP")
_WORDS = 192
"""Registers that a segment of a thread's sequences may fill; else one neuron a thread."""


class Plan(NamedTuple):
    """What a launch has besides its addresses."""

    launch: Launch
    rest: bytes
    lanes: int


def neuron_forward(
    layer: NeuronLayer, inputs, states, params, outputs, news=(), borders=None
) -> None:
    plan, pointers = forward_call(layer, inputs, states, params, outputs, news, borders)
    driver.run(plan.launch, inputs[0], driver.addressed(pointers, plan.rest))


def neuron_backward(
    layer: NeuronLayer, inputs, states, params, borders, douts, dnews, dinputs, dstates, dparams
) -> None:
    neurons = inputs[0].numel() // layer.steps
    # A number of each neuron or, at most as many, of each thread.
    parts = [None if dp is None else dp.new_empty(neurons) for dp in dparams]
    plan, pointers = backward_call(
        layer, inputs, states, params, borders, douts, dnews, dinputs, dstates, parts
    )
    driver.run(plan.launch, inputs[0], driver.addressed(pointers, plan.rest))
    for dp, part in zip(dparams, parts, strict=True):
        if dp is not None and dp.dim():
            torch.sum(part.view(-1, layer.channels, layer.inner), dim=(0, 2), out=dp)
        elif dp is not None:
            torch.sum(part[: neurons // plan.lanes], dim=0, out=dp)


def forward_call(
    layer: NeuronLayer, inputs, states, params, outputs, news=(), borders=None
) -> tuple[Plan, list[int]]:
    """The launch behind ``neuron_forward``, and its addresses."""
    news = tuple(news) or (None,) * layer.step.states
    tensors = (*inputs, *states, *params, borders, *outputs, *news)
    flags = _flags(inputs, states, news, borders)
    return _call("forward", layer, tensors, inputs, borders, flags, PER_CHANNEL=_per(params))


def backward_call(
    layer: NeuronLayer, inputs, states, params, borders, douts, dnews, dinputs, dstates, parts
) -> tuple[Plan, list[int]]:
    """The same behind ``neuron_backward``; ``parts``: of the params' gradients, [N] each."""
    tensors = (*inputs, *states, *params, borders, *douts, *dnews, *dinputs, *dstates, *parts)
    flags = _flags(inputs, states, dnews, borders)
    flags |= any(t is not None for t in dstates) * HAS_DV0
    dims = inputs[0].dim()
    return _call(
        "backward", layer, tensors, (*inputs, *douts), borders, flags,
        PER_CHANNEL=_per(params),
        DS=_set(t is not None for t in douts),
        DX=_set(t is not None and t.dim() == dims for t in dinputs),
        SUM_DX=_set(t is not None and t.dim() < dims for t in dinputs),
        DP=_set(t is not None for t in parts),
    )  # fmt: skip


def _set(which) -> int:
    """A bit for each."""
    return sum(bit << k for k, bit in enumerate(which))


def _per(params) -> int:
    return _set(p.dim() > 0 for p in params)


def _flags(inputs, states, news, borders) -> int:
    """What both directions have: ``news`` are the states, or their gradients."""
    dims = [t.dim() for t in news if t is not None]
    flags = any(t is not None for t in states) * HAS_V0 | bool(dims) * HAS_V
    flags |= (inputs[0].dim() in dims) * EVERY_STATE
    return flags | (borders is not None) * HAS_BORDERS


def _call(direction: str, layer: NeuronLayer, tensors, sequences, borders, flags: int, **sets):
    x, pointers = tensors[0], [driver.pointer(t) for t in tensors]
    strides = tuple(0 if t is None or t.shape[0] == 1 else t.stride(0) for t in sequences)
    border_stride = 0 if borders is None else borders.stride(0)
    sizes = (x.numel() // layer.steps, border_stride, strides)
    aligned = driver.aligned(*pointers)
    return _plan(direction, layer, x.dtype, *sizes, aligned, flags, *sets.items()), pointers


@lru_cache(maxsize=1024)
def _plan(
    direction: str,
    layer: NeuronLayer,
    dtype: torch.dtype,
    neurons: int,
    border_stride: int,
    strides: tuple[int, ...],
    aligned: bool,
    flags: int,
    *sets: tuple[str, int],
) -> Plan:
    step, backward = layer.step, direction == "backward"
    text, numbers = (backward_source if backward else forward_source)(step)
    lanes = 16 // dtype.itemsize
    words = 4 * min(layer.steps, SEGMENT) * len(strides)
    # Every access may be one of 16 bytes; else the kernel goes element by element.
    vector = aligned and all(n % lanes == 0 for n in (neurons, border_stride, *strides))
    lanes = lanes if vector and words <= _WORDS else 1
    names = (
        f"-DSNN_IO={IO[dtype]}",
        f"-DSNN_LANES={lanes}",
        f"-DSNN_STEPS={4 if layer.steps <= 4 else SEGMENT}",
        f"-DSNN_FLAGS={flags}",
        f"-DSNN_SURROGATE={0 if step.gradient or not backward else layer.surrogate}",
        *(f"-DSNN_{name}={dict(sets).get(name, 0)}" for name in _SETS),
    )
    numbers = (*layer.rest, *((layer.a, layer.b) if backward else ()), *numbers)
    numbers += (0.0,) * (2 - len(numbers) % 2)
    longs = (layer.steps, neurons, layer.channels, layer.inner, border_stride, *strides)
    rest = struct.pack(f"={len(longs)}q{len(numbers)}f", *longs, *numbers)
    blocks = -(-neurons // lanes // _THREADS)
    kernel = Kernel("neuron", names, blocks, _THREADS, text=text)
    return Plan(Launch("neuron", f"neuron_{direction}", (), kernel), rest, lanes)
