"""Models as torch.export has them: archives (.pt2), and the graph that ONNX is made of."""

import os
import zipfile
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from snnfast.nn.neuron import BaseNeuron
from snnfast.nn.stateful import Stateful
from snnfast.nn.streaming import is_streaming, streaming
from snnfast.ops.validation import type_name

_EXAMPLE = "a tensor, or a tuple of tensors"


def export(model: nn.Module, example, path: "str | os.PathLike", *, step: bool = False,
           dynamic_shapes=None) -> dict[str, Tensor]:  # fmt: skip
    """Writes ``model`` as an archive of ``torch.export``, weights and all.

    Args:
        model: in evaluation mode, with all that is in it, and not streaming.
        example: what the model is called with: a tensor, or a tuple of tensors.
        path: the file, usually ``.pt2``; it is replaced.
        step: the model of one timestep: of x [B, ...] instead of [T, B, ...], and of the state of
            every layer of neurons, which it also returns: (output, state, ...). On the example the
            steps must give what the model gives: one that mixes timesteps is refused where the
            example shows it, T > 1 and its steps different.
        dynamic_shapes: as in ``torch.export.export``, for a whole sequence; without it shapes are
            those of the example.

    Returns the states at rest by their names, in the order of the arguments; {} without ``step``.

    The archive runs where it was made, on the same kind of device: ``load`` here, or
    ``torch.export.load`` in a program that has imported ``snnfast.nn``.

    Raises:
        TypeError, ValueError: ``pt2.export: <argument> must be ..., got ...``; what torch.export
            raises where it cannot follow the model.
    """
    program, rest = exported("pt2.export", model, example, step, dynamic_shapes)
    with open(path, "wb") as file:  # of a path without .pt2 torch warns
        torch.export.save(program, file)
    return rest


def load(path: "str | os.PathLike") -> nn.Module:
    """The model of an archive that ``export`` wrote, to be called as the model was.

    ``torch.export.load(path).module()`` in a program where the ops of snnfast are known.
    ValueError for a file that is no archive of torch.export.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        names = []
    if not any(name.endswith("/archive_format") for name in names):
        raise ValueError(f"pt2.load: path must be an archive of torch.export, got {path}")
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def exported(who: str, model: nn.Module, example, step: bool = False, dynamic_shapes=None):
    """(the ExportedProgram of ``model``, the states at rest by name)."""
    arguments = checked(who, model, example)
    if step and dynamic_shapes is not None:
        raise ValueError(f"{who}: dynamic_shapes must be None where step is True, got some")
    lengths = {x.shape[0] if x.dim() else 0 for x in arguments}
    if step and (0 in lengths or len(lengths) > 1):
        raise ValueError(f"{who}: example must be [T, ...], T >= 1, where step is True")
    with torch.no_grad():
        # Before torch.export follows the model: what a first call prepares would be in the graph.
        tried = _copied(model)
        whole = tried(*arguments)
        if not step:
            program = torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)
            return program, {}
        if not (
            _steps_give(who, tried, arguments, whole) or _steps_give_wide(who, model, arguments)
        ):
            raise ValueError(
                f"{who}: model must treat every timestep alike, where step is True, got one that "
                "mixes them: its steps give something else than the whole example"
            )
        with _one_step(who, model, arguments) as (one, states):
            first = tuple(x[0] for x in arguments)
            program = torch.export.export(one, (*first, *states.values()))
    return program, states


def _copied(model: nn.Module) -> nn.Module:
    """What may be called and leaves no trace on ``model``, whose weights it has; itself where it
    cannot be copied."""
    try:
        return deepcopy(model, {id(p): p for p in model.parameters()})
    except (RuntimeError, TypeError):
        return model


@contextmanager
def _one_step(who: str, model: nn.Module, arguments):
    """(the model of one timestep, its states at rest), of a model that streams meanwhile."""
    with streaming(model):
        made = model(*(x[:1] for x in arguments))
        if not all(isinstance(y, Tensor) and y.dim() and len(y) == 1 for y in _as_tuple(made)):
            raise ValueError(
                f"{who}: model must return a tensor [T, ...] with its input's T, or a tuple of "
                "such, where step is True, got something else"
            )
        one = _OneStep(model, len(arguments))
        states = one.states()
        for neuron in one.neurons.values():
            neuron._v = None
        yield one, states


def _steps_give(who: str, model: nn.Module, arguments, whole) -> bool:
    """Whether ``model``, step by step, gives what it gives of the whole."""
    made = []
    with _one_step(who, model, arguments) as (one, states):
        after = tuple(states.values())
        for now in zip(*arguments, strict=True):
            found = one(*now, *after)
            outputs = len(found) - len(after)
            made.append(found[:outputs])
            after = found[outputs:]
    made = [torch.stack(steps) for steps in zip(*made, strict=True)]
    return all(
        y.shape == w.shape and torch.allclose(y, w, rtol=1e-4, atol=1e-5, equal_nan=True)
        for y, w in zip(made, _as_tuple(whole), strict=True)
    )


def _steps_give_wide(who: str, model: nn.Module, arguments) -> bool:
    """The same in float64, where a sum of another order moves no spike."""
    try:
        wide = deepcopy(model).double()
        arguments = tuple(x.double() if x.is_floating_point() else x for x in arguments)
        return _steps_give(who, wide, arguments, wide(*arguments))
    except (RuntimeError, TypeError):  # it cannot be copied, or is of one dtype alone
        return False


def checked(who: str, model, example) -> tuple[Tensor, ...]:
    """The arguments of the model's call."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{who}: model must be a torch module, got {type_name(model)}")
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f"{who}: model must be in evaluation mode, got {name or 'one'} in training: eval()"
            )
    if is_streaming(model):
        raise ValueError(f"{who}: model must not be streaming already, got one that is")
    arguments = _as_tuple(example)
    if not arguments:
        raise ValueError(f"{who}: example must be {_EXAMPLE}, got ()")
    for x in arguments:
        if not isinstance(x, Tensor):
            raise TypeError(f"{who}: example must be {_EXAMPLE}, got {type_name(x)}")
    return arguments


class _OneStep(nn.Module):
    """A streaming model as a function of one timestep and of its states."""

    def __init__(self, model: nn.Module, inputs: int):
        super().__init__()
        self.model, self.inputs = model, inputs
        modules = model.named_modules()
        self.neurons = {
            name: m for name, m in modules if isinstance(m, Stateful) and m._v is not None
        }

    def states(self) -> dict[str, Tensor]:
        """Where the states start, by the name of their neuron and their own."""
        return {
            ".".join(part for part in (name, own) if part): value
            for name, neuron in self.neurons.items()
            for own, value in zip(_states_of(neuron), _at_rest(neuron), strict=True)
        }

    def forward(self, *tensors: Tensor):
        given = iter(tensors[self.inputs :])
        for neuron in self.neurons.values():
            states = tuple(next(given) for _ in _states_of(neuron))
            neuron._v = states[0] if len(states) == 1 else states
        made = self.model(*(x.unsqueeze(0) for x in tensors[: self.inputs]))
        after = [v for neuron in self.neurons.values() for v in _as_tuple(neuron._v)]
        for neuron in self.neurons.values():
            neuron._v = None
        return (*(y.squeeze(0) for y in _as_tuple(made)), *after)


def _as_tuple(tensors) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)


def _states_of(neuron: Stateful) -> tuple[str, ...]:
    """The names of its states."""
    return ("v",) if isinstance(neuron, BaseNeuron) else tuple(neuron.neuron.states)


def _at_rest(neuron: Stateful) -> list[Tensor]:
    """The states that ``neuron``, which has some, starts from."""
    states = _as_tuple(neuron._v)
    if isinstance(neuron, BaseNeuron):
        numbers = (0.0 if neuron.v_reset is None else neuron.v_reset,)
    else:
        definition, own = neuron.neuron, neuron._parameters_for(states[0])
        numbers = definition.rest
        numbers = numbers(**(definition.defaults | own)) if callable(numbers) else numbers
        numbers = numbers if isinstance(numbers, tuple | list) else (numbers,)
    rest = []
    for v, number in zip(states, numbers, strict=True):
        if isinstance(number, Tensor) and number.dim():
            number = number.view(-1, *[1] * (v.dim() - 2))
        rest.append(torch.zeros_like(v) + number)
    return rest
