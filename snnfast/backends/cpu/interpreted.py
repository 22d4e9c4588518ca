"""Neurons that a program defines, interpreted in C++."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from snnfast.backends.cpu.encode import encode
from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import NeuronLayer
from snnfast.program.step import Step


def neuron_forward(
    layer: NeuronLayer,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    params: Sequence[Tensor],
    outputs: Sequence[Tensor],
    new_states: Sequence[Tensor] = (),
    borders: Tensor | None = None,
) -> None:
    module().neuron_forward(
        _neuron(layer, inputs, states, params),
        _forward(layer.step),
        [_sequence(s, inputs[0]) for s in outputs],
        [v.data_ptr() for v in new_states],
        any(v.dim() == inputs[0].dim() for v in new_states),
        pointer(borders),
    )


def neuron_backward(
    layer: NeuronLayer,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    params: Sequence[Tensor],
    borders: Tensor | None,
    douts: Sequence[Tensor | None],
    dstates: Sequence[Tensor | None],
    dinputs: Sequence[Tensor | None],
    dstates0: Sequence[Tensor | None],
    dparams: Sequence[Tensor | None],
) -> None:
    step, like = layer.step, inputs[0]
    gradients = (*dinputs, *[()] * step.states, *dparams)
    wanted = tuple(k for k, gradient in enumerate(gradients) if gradient is not None)
    static = any(dx is not None and dx.dim() < like.dim() for dx in dinputs)
    surrogate = (layer.surrogate, layer.a, layer.b)
    module().neuron_backward(
        _neuron(layer, inputs, states, params),
        _advance(step),
        _adjoint(step, wanted, static, surrogate),
        pointer(borders),
        [_sequence(ds, like) for ds in douts],
        [_sequence(dv, like) for dv in dstates],
        [_sequence(dx, like) for dx in dinputs],
        [pointer(dv) for dv in dstates0],
        [pointer(dp) for dp in dparams],
    )


def _neuron(layer: NeuronLayer, inputs, states, params):
    """csrc/cpu/program_bindings.h's ``NeuronArgs``."""
    like = inputs[0]
    return (
        DTYPES[like.dtype],
        torch.get_num_threads(),
        layer.steps,
        like.numel() // layer.steps,
        layer.channels,
        layer.inner,
        layer.rest,
        [_sequence(x, like) for x in inputs],
        [pointer(v) for v in states],
        [(p.data_ptr(), p.dim() == 1) for p in params],
        layer.step.outputs,
    )


def _sequence(t: Tensor | None, like: Tensor) -> tuple[int, int, bool]:
    """(address, elements from step to step, whether it has no time axis)."""
    if t is None:
        return 0, 0, False
    once = t.dim() < like.dim()
    return t.data_ptr(), 0 if once else t.stride(0), once


@functools.lru_cache(1024)
def _forward(step: Step) -> bytes:
    results = range(step.outputs + step.states)
    return encode(step.forward, step, results, results)


@functools.lru_cache(1024)
def _advance(step: Step) -> bytes:
    results = range(step.states)
    return encode(step.advance, step, results, results)


@functools.lru_cache(1024)
def _adjoint(
    step: Step, wanted: tuple[int, ...], static: bool, surrogate: tuple[int, float, float]
) -> bytes:
    again = range(step.inputs if static else 0, step.inputs + step.states)
    return encode(step.adjoint, step, wanted, again, surrogate)
