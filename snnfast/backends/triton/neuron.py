"""Neurons that a program defines, on CUDA tensors through Triton: one launch each way, and one more
for each parameter's gradient. The kernels are written from the step, once per structure.

``forward_call`` and ``backward_call`` turn tensors into a kernel's arguments, so that the very same
call can be compiled ahead of time where there is no GPU.
"""

import functools
from types import ModuleType

import torch
from torch import Tensor

from snnfast.backends.spec import SEGMENT, NeuronLayer
from snnfast.backends.triton.launch import THREAD, WARPS, Call
from snnfast.program.step import Step
from snnfast.program.triton_source import Source, source

# 32-bit values that a thread may hold from step to step, so that it has about 128 registers, of
# which a multiprocessor has for four blocks; counted in machine code.
_HELD = 152


@functools.lru_cache(maxsize=1024)
def _kernels(step: Step) -> tuple[ModuleType, Source]:
    from snnfast.kernels import generated

    found = source(step)
    return generated.module(found.text), found


def _neurons(step: Step, dtype, steps: int, channels: int, every: bool, backward: bool) -> int:
    """Neurons of a thread. It holds a segment of what is read, and in backward of what gradients
    need of the steps, and the states' gradients where there is one for each; of ``channels``
    parameters the values and what is added up."""
    ragged = steps > SEGMENT and steps % SEGMENT > 0
    words = step.outputs * dtype.itemsize / 4 + source(step).held + every * step.states
    if not backward:
        words = step.inputs * dtype.itemsize / 4
    words = min(steps, SEGMENT) * words + step.states + 3 * channels + 2 * ragged
    neurons = THREAD[dtype]
    while neurons > 1 and neurons * words > _HELD:
        neurons //= 2
    return neurons


@functools.lru_cache(maxsize=1024)
def _constants(
    step: Step,
    dtype: torch.dtype,
    steps: int,
    static: tuple[bool, ...],
    summed: tuple[bool, ...],
    per_channel: tuple[bool, ...],
    every: bool,
    surrogate: int | None,
) -> dict:
    """The constants of a kernel: of forward where there is no ``surrogate``. ``steps``: T up to
    a segment, else whether T fills its segments."""
    from snnfast.kernels.neuron import Layout

    neurons = _neurons(step, dtype, steps, sum(per_channel), every, surrogate is not None)
    layout = Layout(
        step.inputs, step.outputs, step.states, step.params, static, summed, per_channel, every,
        long=steps > SEGMENT, whole=steps <= SEGMENT or steps % SEGMENT == 0,
        steps=min(steps, SEGMENT), block=neurons * 32 * WARPS,
    )  # fmt: skip
    constants = {"L": layout, "num_warps": WARPS, "enable_fp_fusion": False}
    return constants if surrogate is None else {"ID": surrogate, **constants}


def _common(layer: NeuronLayer, inputs, states, params) -> tuple[list, list]:
    """What both kernels begin with, and the sizes that stand before their numbers."""
    per_channel = any(p.dim() for p in params)
    place = (layer.channels, layer.inner) if per_channel else (None, None)
    strides = (x.stride(0) for x in inputs)
    first = [*inputs, *strides, *states, *map(float, layer.rest), *params]
    return first, [layer.steps, inputs[0].numel() // layer.steps, *place]


def _per_channel(params) -> tuple[bool, ...]:
    return tuple(p.dim() > 0 for p in params)


def _bordered(borders: Tensor | None) -> tuple[Tensor | None, int]:
    return borders, 0 if borders is None else borders.stride(0)


def _length(steps: int) -> int:
    """A number that stands for all T that are compiled the same for."""
    return steps if steps <= SEGMENT else 2 * SEGMENT + (steps % SEGMENT > 0)


def _programs(n: int, constants: dict) -> int:
    return -(-n // constants["L"].block)


def forward_call(
    layer: NeuronLayer, inputs, states, params, outputs, news=(), borders=None
) -> Call:
    """The launch behind ``neuron_forward``."""
    step, dims = layer.step, inputs[0].dim()
    module, (_, numbers, *_) = _kernels(step)
    static = tuple(x.stride(0) == 0 for x in inputs)
    every = any(v.dim() == dims for v in news)
    choices = (static, (), _per_channel(params), every, None)
    constants = _constants(step, inputs[0].dtype, _length(layer.steps), *choices)
    first, sizes = _common(layer, inputs, states, params)
    news = tuple(news) or (None,) * step.states
    arguments = (*first, *outputs, *news, *_bordered(borders), *sizes, *numbers)
    return Call(module.neuron_forward, _programs(sizes[1], constants), arguments, constants)


def backward_call(
    layer: NeuronLayer, inputs, states, params, borders, douts, dnews, dinputs, dstates, dparams
) -> tuple[Call, list[Tensor | None]]:
    """The launch behind ``neuron_backward``, and where it puts its parts of the params' gradients:
    one float32 a neuron for a param per channel, else one a program."""
    step, dims = layer.step, inputs[0].dim()
    module, (_, _, numbers, _) = _kernels(step)
    summed = tuple(dx is not None and dx.dim() < dims for dx in dinputs)
    static = tuple(x.stride(0) == 0 or s for x, s in zip(inputs, summed, strict=True))
    every = any(v is not None and v.dim() == dims for v in dnews)
    surrogate = 0 if step.gradient else layer.surrogate
    choices = (static, summed, _per_channel(params), every, surrogate)
    constants = _constants(step, inputs[0].dtype, _length(layer.steps), *choices)
    first, sizes = _common(layer, inputs, states, params)
    programs = _programs(sizes[1], constants)
    parts = [
        None if dp is None else dp.new_empty(sizes[1] if dp.dim() else programs) for dp in dparams
    ]
    strides = (0 if ds is None else ds.stride(0) for ds in douts)
    arguments = (
        *first, *_bordered(borders), *douts, *strides, *dnews, *dinputs, *dstates, *parts, *sizes,
        layer.a, layer.b, *numbers,
    )  # fmt: skip
    return Call(module.neuron_backward, programs, arguments, constants), parts


def neuron_forward(
    layer: NeuronLayer, inputs, states, params, outputs, news=(), borders=None
) -> None:
    call = forward_call(layer, inputs, states, params, outputs, news, borders)
    call.launch(inputs[0].device)


def neuron_backward(
    layer: NeuronLayer, inputs, states, params, borders, douts, dnews, dinputs, dstates, dparams
) -> None:
    call, parts = backward_call(
        layer, inputs, states, params, borders, douts, dnews, dinputs, dstates, dparams
    )
    call.launch(inputs[0].device)
    for dp, part in zip(dparams, parts, strict=True):
        if dp is not None and dp.dim():
            torch.sum(part.view(-1, layer.channels, layer.inner), dim=(0, 2), out=dp)
        elif dp is not None:
            torch.sum(part, dim=0, out=dp)
