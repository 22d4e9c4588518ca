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
_FEW, _MANY = 84, 216
"""Registers that what a thread holds may fill, counted in machine code: few leave room for four
blocks on a multiprocessor, and beyond many a thread takes one neuron."""


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
        if dp is None:
            continue
        shared = 1 if dp.dim() and layer.inner % plan.lanes else plan.lanes
        part = part[: neurons // shared]
        if dp.dim():
            part, dims = part.view(-1, layer.channels, layer.inner // shared), (0, 2)
        torch.sum(part, dim=dims if dp.dim() else 0, out=dp)


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
    step, backward, of = layer.step, direction == "backward", dict(sets)
    text, numbers = (backward_source if backward else forward_source)(step)
    steps = 4 if layer.steps <= 4 else SEGMENT
    # Every access may be one of 16 bytes; else the kernel goes element by element.
    lanes = 16 // dtype.itemsize
    if not aligned or any(n % lanes for n in (neurons, border_stride, *strides)):
        lanes = 1
    least = 4 if flags & EVERY_STATE else 1
    given = layer.steps > SEGMENT or flags & (HAS_V0 | HAS_DV0) > 0

    def held(lanes: int) -> tuple[int, int, int]:
        """Neurons of a part, the set SNN_PER_LANE, and registers."""
        per_lane = of["PER_CHANNEL"] if layer.inner % lanes else 0
        part = lanes
        while part > min(lanes, least) and steps * step.states * part > 16:
            part //= 2
        of_step, of_lane = 4 * len(strides), step.states + 2 * per_lane.bit_count()
        if backward:
            of_step += step.states * part
            of_lane = 2 * step.states * given + 3 * per_lane.bit_count()
        return part, per_lane, steps * of_step + lanes * (of_lane + of.get("SUM_DX", 0).bit_count())

    part, per_lane, words = held(lanes)
    if words > _MANY:
        lanes = 1
        part, per_lane, words = held(lanes)
    names = (
        f"-DSNN_IO={IO[dtype]}",
        f"-DSNN_LANES={lanes}",
        f"-DSNN_STEPS={steps}",
        f"-DSNN_PART={part}",
        f"-DSNN_BLOCKS={4 if words <= _FEW else 2}",
        f"-DSNN_FLAGS={flags}",
        f"-DSNN_SURROGATE={0 if step.gradient or not backward else layer.surrogate}",
        *(f"-DSNN_{name}={of.get(name, 0)}" for name in _SETS),
        f"-DSNN_PER_LANE={per_lane}",
    )
    numbers = (*layer.rest, *((layer.a, layer.b) if backward else ()), *numbers)
    numbers += (0.0,) * (2 - len(numbers) % 2)
    longs = (layer.steps, neurons, layer.channels, layer.inner, border_stride, *strides)
    rest = struct.pack(f"={len(longs)}q{len(numbers)}f", *longs, *numbers)
    blocks = -(-neurons // lanes // _THREADS)
    kernel = Kernel("neuron", names, blocks, _THREADS, text=text)
    return Plan(Launch("neuron", f"neuron_{direction}", (), kernel), rest, lanes)
