"""By what a traced step is known again: its choices exactly, and what it reads besides them."""

import dis
import enum
import functools
import numbers
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import torch
from torch import Tensor

_SIMPLE = frozenset({bool, int, float, str, type(None)})
_FIXED = (str, bytes, enum.Enum, type, torch.dtype, BuiltinFunctionType)


class Changing(Exception):
    """A value that may be another one tomorrow, so that nothing may be remembered of it."""


def exactly(value) -> tuple:
    """What is equal for no other value: 1, 1.0 and True are three, 0.0 and -0.0 two. Raises
    ``Changing`` for one that may change without being another."""
    if type(value) in _SIMPLE:
        return type(value), value or repr(value)
    if isinstance(value, numbers.Number):
        return type(value), repr(value)
    if isinstance(value, _FIXED):
        return type(value), value
    if isinstance(value, tuple):
        return type(value), *map(exactly, value)
    if isinstance(value, FunctionType):
        return value, outside(value)
    raise Changing


def outside(function) -> tuple:
    """What ``function`` reads from its closure and its globals, and the functions there from
    theirs: numbers and their like, exactly; and those of the object whose method it is. Raises
    ``Changing`` where that holds what may change without being another. Modules, classes and other
    objects are not looked into."""
    own = getattr(getattr(function, "__self__", None), "__dict__", {})
    found = [exactly(value) for value in own.values() if type(value) in _SIMPLE]
    seen, left = set(), [getattr(function, "__func__", function)]
    while left:
        function = left.pop()
        if function in seen or not isinstance(function, FunctionType):
            continue
        seen.add(function)
        for value in _read(function):
            if isinstance(value, ModuleType):
                continue
            if isinstance(value, FunctionType):
                found.append(value)
                if value.__module__ is None or not value.__module__.startswith(_LIBRARIES):
                    left.append(value)
            elif isinstance(value, Tensor):
                found.append(value.item() if value.dim() == 0 and value.is_cpu else None)
            elif type(value) in _SIMPLE or isinstance(value, (numbers.Number, tuple, *_FIXED)):
                found.append(exactly(value))
            elif isinstance(value, (list, dict, set)):
                found.append(_contents(value))
    return tuple(found)


def _contents(value) -> tuple:
    """Of a list or its like, which may hold others."""
    if isinstance(value, dict):
        return dict, *map(_contents, value.items())
    if isinstance(value, (list, set, tuple)):
        return type(value), *map(_contents, value)
    return exactly(value)


_LIBRARIES = ("torch.", "snnfast.")


def _read(function: FunctionType):
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            yield None
    there = function.__globals__
    for name in _global_names(function.__code__):
        if name in there:
            yield there[name]


@functools.lru_cache(1024)
def _global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that a function reads, and those within it."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names.update(_global_names(inner))
    return tuple(sorted(names))
