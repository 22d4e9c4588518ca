"""Blocks that keep the bits at their border and compute the rest again in backward."""

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnfast.nn.stateful import Stateful
from snnfast.ops.packed import packed_spikes, want_marks

# The attributes that every module has, but one that forward looks at.
_EVERYBODYS = vars(nn.Module()).keys() - {"training"}


def _copied(attributes: dict) -> dict:
    """Those of a module's own, where a neuron of any package keeps its state; with copies of the
    dictionaries and lists, which it may change."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list)) else value
        for name, value in attributes.items()
        if name not in _EVERYBODYS
    }


def _set_attributes(module: nn.Module, attributes: dict) -> None:
    for name in vars(module).keys() - _EVERYBODYS - attributes.keys():
        del module.__dict__[name]
    module.__dict__.update(attributes)


class _AsInForward:
    """While forward runs again: modes and states as they were, and copies of the buffers, so that
    running statistics count a batch once. Entered as often as backward is."""

    def __init__(self, modules: list[nn.Module]):
        self._modules = list(dict.fromkeys(m for module in modules for m in module.modules()))
        self._then = [(_copied(vars(m)), dict(m._buffers)) for m in self._modules]

    def __enter__(self):
        self._now = [dict(vars(module)) for module in self._modules]
        self._buffers = [dict(module._buffers) for module in self._modules]
        for module, (then, buffers) in zip(self._modules, self._then):
            _set_attributes(module, _copied(then))
            if isinstance(module, Stateful):
                module._replayed = True
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *_):
        for module, now, buffers in zip(self._modules, self._now, self._buffers):
            _set_attributes(module, now)
            module._buffers.update(buffers)


def again(forward: Callable, modules: list[nn.Module], args: tuple, kwargs: dict):
    """``forward(*args, **kwargs)``, which runs ``modules``, keeping its inputs and no more."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    count, names = len(args), list(kwargs)

    # A checkpoint saves what is passed by position; the rest it merely holds on to.
    def run(*tensors):
        return forward(*tensors[:count], **dict(zip(names, tensors[count:])))

    inputs = (*args, *kwargs.values())
    if torch.compiler.is_compiling():
        return checkpoint(run, *inputs, use_reentrant=False)
    contexts = (nullcontext(), _AsInForward(modules))
    with packed_spikes():
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: contexts)


def packed(forward: Callable, modules: list[nn.Module], args: tuple, kwargs: dict):
    """The same, keeping spikes as bits. What a compiler keeps it decides itself."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    with packed_spikes():
        return forward(*args, **kwargs)


class Before:
    """What goes before a module's class. ``plain`` is that class, ``made`` how it became this one:
    functions of a class and an argument."""

    plain: type
    made: tuple[tuple[Callable, object], ...]

    def __reduce_ex__(self, protocol):
        return _blank, (self.plain, self.made), self.__getstate__()


def _blank(cls: type, made: tuple) -> nn.Module:
    """What a copied or unpickled module starts from."""
    for make, argument in made:
        cls = make(cls, argument)
    return cls.__new__(cls)


def before(first: type, base: type, name: str, make: Callable, argument, **attributes) -> type:
    """The class ``make(base, argument)``: ``first``, then ``base``."""
    attributes |= {
        "__doc__": base.__doc__,
        "plain": getattr(base, "plain", base),
        "made": (*getattr(base, "made", ()), (make, argument)),
    }
    return type(name + base.__name__, (first, base), attributes)


class Keeping(Before):
    """``how`` runs the module's forward."""

    how: Callable

    def forward(self, *args, **kwargs):
        return self.how(super().forward, [self], args, kwargs)


@functools.cache
def keeping(base: type, how: Callable) -> type:
    """A class as ``base`` whose forward is run by ``how``: ``again`` or ``packed``."""
    name = {again: "Checkpointed", packed: "Packed"}.get(how, "Watched")
    return before(Keeping, base, name, keeping, how, how=staticmethod(how))


def checkpoint_spikes(block: nn.Module) -> nn.Module:
    """Makes ``block`` keep its input spikes as bits, and nothing else, for backward.

    Backward computes the block again, so it costs one more forward. For spikes in, 1/8 byte per
    input element is kept, whatever the block has inside; inputs that are no spikes are kept as they
    are, and so are tensors inside of tuples or lists. Outputs are the caller's. Use it on blocks
    that end in spikes::

        >>> for i, block in enumerate(model.blocks):
        ...     model.blocks[i] = snnfast.nn.checkpoint_spikes(block)

    The module is changed in place and returned: the same parameters, the same state_dict keys, the
    same attributes. Gradients are those of the block itself. When it runs again, it draws the same
    random numbers, neurons start from the state that they had (in ``snnfast.streaming``, and those
    of other packages), training mode is as it was, and buffers, such as the running statistics of
    BatchNorm, are left alone. It is torch.utils.checkpoint (use_reentrant=False) inside
    ``snnfast.packed_spikes``, and what those say of in-place changes and of hooks holds. Without
    gradients it costs nothing. Which blocks of a model to choose for a given memory,
    ``snnfast.nn.plan`` finds.

    Raises:
        TypeError: ``block`` is not a module.
        ValueError: it is one already.
    """
    if not isinstance(block, nn.Module):
        raise TypeError(
            f"checkpoint_spikes: block must be a torch module, got {type(block).__name__}"
        )
    if isinstance(block, Keeping):
        raise ValueError("checkpoint_spikes: block must not be checkpointed already, got one")
    want_marks()
    block.__class__ = keeping(type(block), again)
    return block
