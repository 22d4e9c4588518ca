"""Nodes whose class overrides a step: the step is traced and becomes a program over all timesteps.

The program is a definition as ``snnfast.neuron`` makes it. The memories that a step changes are its
states, parameters and buffers its parameters, and the node's numbers are constants of it, read at
each call: other numbers are another program.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnfast.interop.spikingjelly._check import numbers, step_shape, twin
from snnfast.interop.spikingjelly._engine import (
    Behind,
    FirstStep,
    Unlike,
    check_sequence,
    fires_by,
    refuse_number,
    row,
    start,
)
from snnfast.interop.spikingjelly._surrogates import PARTS_OF_A_MODULE, OutOfPlace
from snnfast.ops.neuron import Definition
from snnfast.program.trace import in_no_mode
from snnfast.reference.neuron import spike

_CONSTANT = (bool, int, float, str, type(None), types.FunctionType, types.BuiltinFunctionType)
_OF_THE_CALL = ("_memories", "_memories_rv", "v_seq", "_store_v_seq", "surrogate_function")
PROGRAMS = 256
"""Of a class; a number that is another one in every call is no constant."""


class Way(NamedTuple):
    """How a class runs by its step."""

    entry: str
    """The method in whose place the program stands."""
    step: str
    """The method that is one timestep; "super" for the next ``forward`` of the class's bases."""
    layout: str = "step"
    """What a call takes: one "step", a "sequence" [T, ...], or "merged" [T N, ...]."""
    mode: str | None = None
    """The ``step_mode`` in which it does so; None where there is none."""
    timesteps: str = ""
    """The attribute that is T of a merged one."""
    resets: bool = False
    """Whether a call begins with a reset."""
    keeps: bool | None = None
    """The ``store_v_seq`` with which it does so; None where it does with either."""


class Step(NamedTuple):
    """One timestep of a node with the numbers it has."""

    definition: Definition
    states: tuple[str, ...]
    tensors: tuple[str, ...]
    """Its parameters and buffers."""
    differentiable: bool
    """Whether its output has a gradient, which that of 0.0.0.0.14 has not in evaluation."""


_known: dict[tuple, dict[tuple, Step]] = {}


def step_of(node: nn.Module, plain: type, way: Way) -> Step:
    """The step of ``node``, whose class was ``plain``; Unlike where there can be no program."""
    kept = _known.setdefault((plain, way.step), {})
    key = constants(node, kept.get("states", ()))
    found = kept.get(key)
    if found is None:
        if len(kept) > PROGRAMS:
            raise Unlike("its numbers change from call to call")
        with in_no_mode():
            found = _traced(node, plain, way)
        kept["states"] = found.states
        kept[constants(node, found.states)] = found
    return found


def constants(node: nn.Module, states: tuple[str, ...]) -> tuple:
    """What a step may read besides tensors."""
    found = [node.training]
    for name, value in (*vars(node).items(), *vars(node)["_memories"].items()):
        if name in PARTS_OF_A_MODULE or name in _OF_THE_CALL or name in states:
            continue
        one = value if type(value) is tuple else (value,)
        if not all(type(v) in _CONSTANT for v in one):
            raise Unlike(f"its attribute {name} is a {type(value).__name__}")
        found.append((name, type(value), value))
    return tuple(found)


def _method(plain: type, step: str) -> Callable:
    if step == "super":
        function = [vars(c)["forward"] for c in plain.__mro__ if "forward" in vars(c)][1]
    else:
        function = getattr(plain, step)
    # Ours tries the engine first.
    return plain._by_hooks if function.__module__.startswith("snnfast.") else function


def _traced(node: nn.Module, plain: type, way: Way) -> Step:
    run, like = _method(plain, way.step), twin(node, _unscripted(plain))
    now = vars(node)["_memories"].items()
    vars(like)["_memories"].update({k: v for k, v in now if type(v) in _CONSTANT})
    vars(like).update({"_step_mode": "s"} if way.mode else {})
    vars(like).update({"_store_v_seq": False} if "_store_v_seq" in vars(like) else {})
    states, differentiable = _states(like, run)
    tensors = {
        k: t for k, t in (*like._parameters.items(), *like._buffers.items()) if t is not None
    }

    def step(*given, **named):
        one = _copy(like)
        vars(one)["_memories"].update(zip(states, given[1:], strict=True))
        for name in tensors:
            kind = "_parameters" if name in one._parameters else "_buffers"
            vars(one)[kind][name] = named["p_" + name]
        place = one._modules if "surrogate_function" in one._modules else vars(one)
        place["surrogate_function"] = spike
        before = dict(vars(one)), dict(one._memories)
        with OutOfPlace():
            s = run(one, given[0])
        _refuse_writing(before, one, states)
        return s, *(one._memories[name] for name in states)

    kinds = inspect.Parameter
    step.__name__ = plain.__name__
    step.__signature__ = inspect.Signature(
        [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("x", *states)]
        + [kinds("p_" + name, kinds.KEYWORD_ONLY) for name in tensors]
    )
    try:
        definition = Definition(step)
        definition.listing()
    except Exception as error:  # of somebody's code, which was not written to be traced
        raise Unlike(str(error).removeprefix(f"{plain.__name__}: ")) from error
    return Step(definition, states, tuple(tensors), differentiable)


@functools.cache
def _unscripted(plain: type) -> type:
    """``plain`` with its functions of TorchScript as they were written: compiled for a gradient
    they hand their operations detached tensors."""
    scripted = {k: getattr(plain, k) for k in dir(plain)}
    functions = {
        k: staticmethod(f._torchdynamo_inline)
        for k, f in scripted.items()
        if isinstance(f, torch.jit.ScriptFunction) and hasattr(f, "_torchdynamo_inline")
    }
    return type(plain.__name__, (plain,), functions)


def _copy(like: nn.Module) -> nn.Module:
    """Another node that shares what is in ``like``, but not the dictionaries."""
    one = object.__new__(type(like))
    vars(one).update({k: dict(v) if isinstance(v, dict) else v for k, v in vars(like).items()})
    return one


def _states(like: nn.Module, run: Callable) -> tuple[tuple[str, ...], bool]:
    """The memories that are tensors after a step, and whether its output has a gradient."""
    one, x = _copy(like), numbers(like, *step_shape(like))
    try:
        differentiable = run(one, x.requires_grad_()).requires_grad
    except Exception as error:
        raise Unlike(f"its step raises {type(error).__name__}: {error}") from error
    states = tuple(k for k, v in vars(one)["_memories"].items() if isinstance(v, Tensor))
    for name in states:
        if vars(one)["_memories"][name].shape != x.shape:
            raise Unlike(f"its memory {name} has another shape than x")
    return states, differentiable


def _refuse_writing(before, one, states) -> None:
    attributes, memories = before
    for name, value in (*vars(one).items(), *one._memories.items()):
        old = memories[name] if name in memories else attributes.get(name)
        if name not in states and name not in PARTS_OF_A_MODULE and value is not old:
            raise ValueError(f"its step writes {name}")


def over_time(node: nn.Module, x: Tensor, way: Way) -> Tensor:
    """The timesteps [T, ...] in x."""
    if way.layout == "step":
        return x.unsqueeze(0)
    if way.layout == "merged":
        return x.view(getattr(node, way.timesteps), -1, *x.shape[1:])
    return x


def run(
    node: nn.Module, x: Tensor, plain: type, way: Way, keeps: bool, behind: Behind | None = None
) -> Tensor:
    """Spikes of a call of ``node``, whose class was ``plain``, as ``way`` says, x being what
    ``over_time`` gave. ``keeps``: V of every step stays as ``v_seq``. Raises Unlike before anything
    has changed."""
    check_sequence(x)
    if way.keeps is not None and way.keeps != node.store_v_seq:
        raise Unlike(f"store_v_seq is {node.store_v_seq}")
    surrogate, fire = fires_by(node)
    if fire != ">=":
        raise Unlike("it fires above its threshold, not at it")
    step = step_of(node, plain, way)
    named = {"p_" + name: row(name, getattr(node, name), x) for name in step.tensors}
    if way.resets:
        node.reset()
    for name in step.states:
        if not hasattr(plain, "single_step_forward"):  # those of 0.0.0.0.12
            refuse_number(node, name, 0.0)
        elif hasattr(plain, "materialize_states"):  # those of 2.0.0 start anew, as that says
            v = vars(node)["_memories"][name]
            if isinstance(v, Tensor) and v.shape != x.shape[1:]:
                raise FirstStep(f"{name} is that of inputs of another size")
    before = [start(node, name, x, 0.0, False) for name in step.states]
    op = step.definition if behind is None else behind.op(step.definition)
    s, after = op(
        x, states=before, surrogate=surrogate, return_state="all" if keeps else True, **named
    )
    s = s if step.differentiable else s.detach()
    after = after if isinstance(after, tuple) else (after,)
    memories = vars(node)["_memories"]
    for name, v in zip(step.states, after, strict=True):
        memories[name] = v[-1].clone() if keeps else v
    if keeps:
        node.v_seq = after[step.states.index("v")]
    return s
