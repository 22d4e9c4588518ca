"""Blocks that keep the bits at their border and compute the rest again in backward."""

import functools
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnfast.nn.stateful import Stateful
from snnfast.ops.packed import packed_spikes, want_marks


class _AsInForward:
    """While forward runs again: modes and streams as they were, and copies of the buffers, so that
    running statistics count a batch once. Entered as often as backward is."""

    def __init__(self, block: nn.Module):
        self._modules = list(block.modules())
        self._then = [self._attributes(module) for module in self._modules]

    @staticmethod
    def _attributes(module: nn.Module) -> dict:
        names = ("_streaming", "_v") if isinstance(module, Stateful) else ()
        return {name: getattr(module, name) for name in ("training", *names)}

    def __enter__(self):
        self._now = [self._attributes(module) for module in self._modules]
        self._buffers = [dict(module._buffers) for module in self._modules]
        for module, then in zip(self._modules, self._then):
            module.__dict__.update(then)
            if isinstance(module, Stateful):
                module._replayed = True
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *_):
        for module, now, buffers in zip(self._modules, self._now, self._buffers):
            module.__dict__.update(now)
            module.__dict__.pop("_replayed", None)
            module._buffers.update(buffers)


class _Checkpointed:
    """Goes before a module's class."""

    def forward(self, *args, **kwargs):
        forward = super().forward
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        count, names = len(args), list(kwargs)

        # A checkpoint saves what is passed by position; the rest it merely holds on to.
        def run(*tensors):
            return forward(*tensors[:count], **dict(zip(names, tensors[count:])))

        inputs = (*args, *kwargs.values())
        if torch.compiler.is_compiling():
            return checkpoint(run, *inputs, use_reentrant=False)
        contexts = (nullcontext(), _AsInForward(self))
        with packed_spikes():
            return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: contexts)

    def __reduce_ex__(self, protocol):
        return _blank, (type(self).__mro__[2],), self.__getstate__()


@functools.cache
def _class(base: type) -> type:
    return type(f"Checkpointed{base.__name__}", (_Checkpointed, base), {"__doc__": base.__doc__})


def _blank(base: type) -> nn.Module:
    """What a copied or unpickled block starts from."""
    cls = _class(base)
    return cls.__new__(cls)


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
    random numbers, neurons start from the state that they had (``snnfast.streaming``), training
    mode is as it was, and buffers, such as the running statistics of BatchNorm, are left alone. It
    is torch.utils.checkpoint (use_reentrant=False) inside ``snnfast.packed_spikes``, and what those
    say of in-place changes and of hooks holds. Without gradients it costs nothing.

    Raises:
        TypeError: ``block`` is not a module.
        ValueError: it is one already.
    """
    if not isinstance(block, nn.Module):
        raise TypeError(
            f"checkpoint_spikes: block must be a torch module, got {type(block).__name__}"
        )
    if isinstance(block, _Checkpointed):
        raise ValueError("checkpoint_spikes: block must not be checkpointed already, got one")
    want_marks()
    block.__class__ = _class(type(block))
    return block
