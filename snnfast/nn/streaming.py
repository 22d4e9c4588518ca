"""State that carries from call to call, only where it is asked for."""

from contextlib import contextmanager

import torch
from torch import nn

from snnfast.nn.stateful import Stateful


class Mark:
    """A hook of the streaming model: notes on its neurons that a forward begins or has ended."""

    def __init__(self, neurons: list[Stateful], called: bool | None):
        self._neurons, self._called = neurons, called

    def __call__(self, *_) -> None:
        if not torch.compiler.is_compiling():
            for neuron in self._neurons:
                neuron._called = self._called

    def __reduce__(self):  # what a copy of the model takes along
        return Mark, ([], self._called)


def is_streaming(model: nn.Module) -> bool:
    """Whether a neuron of ``model`` is inside a block of ``streaming``."""
    return any(isinstance(module, Stateful) and module._streaming for module in model.modules())


@contextmanager
def streaming(model: nn.Module):
    """Inside the block the neurons of ``model`` go on from where the last call left them.

    A sequence fed in pieces gives the same spikes as in one call, bit for bit. The state starts at
    rest on entry, is dropped on exit, and is detached from no graph: detach or use ``no_grad`` for
    long streams. Copies of the model, by deepcopy or pickle, neither stream nor have a state.

    A neuron has one state, so in one forward of ``model`` it must be called once. A neuron that
    stands at several places of a model cannot be streamed, nor one in a loop over time within the
    model's forward, unless ``model`` here is what that loop calls.

        >>> with snnfast.streaming(model), torch.no_grad():
        ...     for frames in stream:            # [T, B, ...] each
        ...         logits = model(frames)

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neurons of snnfast, is streaming already, or (in the block) calls one
            of them twice in a forward.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"streaming: model must be a torch module, got {type(model).__name__}")
    neurons = [module for module in model.modules() if isinstance(module, Stateful)]
    if not neurons:
        raise ValueError("streaming: model must contain neurons of snnfast.nn, got none")
    if is_streaming(model):
        raise ValueError("streaming: model must not be streaming already, got a nested block")
    for neuron in neurons:
        neuron._streaming = True
    hooks = (
        model.register_forward_pre_hook(Mark(neurons, False)),
        model.register_forward_hook(Mark(neurons, None)),
    )
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for neuron in neurons:
            neuron._streaming, neuron._v, neuron._called = False, None, None
