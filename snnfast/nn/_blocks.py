"""The blocks of a model: what a plan chooses for, and how a choice is put before a forward.

A block is the smallest module that has neurons and weights in it and is called as one; what has no
neurons, such as a shortcut of convolution and batch norm, is one as a whole, also within another.
A plain ``Sequential`` of layers is cut behind each layer of neurons, and its parts are the blocks.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from snnfast.nn.batch_norm import BatchNormNeuron
from snnfast.nn.checkpoint import Before, before, keeping
from snnfast.nn.stateful import Stateful

NEURONS = (Stateful, BatchNormNeuron)


@dataclass(eq=False)
class Block:
    """A module; or, with ``part``, these children of the ``Sequential``."""

    name: str
    module: nn.Module
    part: tuple[int, int] | None = None

    def modules(self) -> list[nn.Module]:
        """All that are in it."""
        tops = [self.module] if self.part is None else list(self.module)[slice(*self.part)]
        return list(dict.fromkeys(m for top in tops for m in top.modules()))


class Parts(Before):
    """Goes before the class of a ``Sequential``: (start, stop, how) of the children that are run
    together. Whatever the children are by now, they all run in their order."""

    parts: tuple[tuple[int, int, Callable], ...]

    def forward(self, x):
        layers, at = list(self), 0
        for start, stop, how in self.parts:
            x = _chain(layers[at:start])(x)
            x = how(_chain(layers[start:stop]), layers[start:stop], (x,), {})
            at = stop
        return _chain(layers[at:])(x)


def _chain(layers: list[nn.Module]) -> Callable:
    def run(x):
        for layer in layers:
            x = layer(x)
        return x

    return run


@functools.cache
def in_parts(base: type, parts: tuple) -> type:
    """A class as the Sequential ``base``, run in these parts."""
    return before(Parts, base, "Planned", in_parts, parts, parts=parts)


def give(hows: dict[Block, Callable], *, lasting: bool = True) -> list[tuple]:
    """Lets each block be run by its ``how``, in place; returns (module, class before, class now).
    ``lasting``: whether these classes are needed again."""
    alone, cut = (f if lasting else f.__wrapped__ for f in (keeping, in_parts))
    parts: dict[nn.Module, list] = {}
    for block, how in hows.items():
        if block.part is not None:
            parts.setdefault(block.module, []).append((*block.part, how))
    classes = {
        module: cut(type(module), tuple(sorted(found, key=lambda part: part[0])))
        for module, found in parts.items()
    }
    for block, how in hows.items():
        if block.part is None:
            module = block.module
            classes[module] = alone(classes.get(module, type(module)), how)
    changed = [(module, type(module), cls) for module, cls in classes.items()]
    for module, _, cls in changed:
        module.__class__ = cls
    return changed


def is_given(module: nn.Module) -> bool:
    return isinstance(module, Before)


def _has_neurons(module: nn.Module) -> bool:
    return any(isinstance(m, NEURONS) for m in module.modules())


def _is_neurons(module: nn.Module) -> bool:
    """Neurons, or what wraps them and has no weights beside theirs."""
    if isinstance(module, NEURONS):
        return True
    own = [m for m in module.modules() if isinstance(m, NEURONS)]
    theirs = {p for m in own for p in m.parameters()}
    return bool(own) and all(p in theirs for p in module.parameters())


def _can_be_given(module: nn.Module) -> bool:
    """Whether a forward before that of its class is what a call of it runs."""
    own = "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule)
    return not own and type(module).forward is not nn.Module.forward


def _cut(module: nn.Sequential, name: str, sealed: set) -> Iterator[Block]:
    keys, start = list(module._modules), 0
    for i, child in enumerate(module):
        neurons = _is_neurons(child)
        within = not neurons and _has_neurons(child)
        if not (neurons or within or i + 1 == len(keys)):
            continue
        stop = i if within else i + 1
        if stop > start:
            last = "" if stop == start + 1 else f"-{keys[stop - 1]}"
            yield Block(f"{name}{keys[start]}{last}", module, (start, stop))
        if within:
            yield from find(child, f"{name}{keys[i]}.", sealed)
        start = i + 1


def find(module: nn.Module, name: str, sealed: Iterable[nn.Module]) -> list[Block]:
    """The blocks of ``module`` in the order of its children, those within a block before it.
    ``name`` ends in a dot, or is empty for the model itself, which is no block as a whole. Neither
    is a module of ``sealed``."""
    free = _can_be_given(module) and module not in sealed
    whole = [Block(name[:-1], module)] if name and free else []
    if name and not _has_neurons(module):
        return whole if any(True for _ in module.children()) else []
    if free and type(module).forward is nn.Sequential.forward:
        if any(map(_is_neurons, module)):
            return list(_cut(module, name, sealed))
    found = []
    for key, child in module.named_children():
        if not isinstance(child, NEURONS):
            found += find(child, f"{name}{key}.", sealed)
    if any(_has_neurons(block.module) for block in found) or _is_neurons(module):
        return found
    return found + whole
