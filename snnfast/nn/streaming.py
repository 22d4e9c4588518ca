"""State that carries from call to call, only where it is asked for."""

from contextlib import contextmanager

from torch import nn

from snnfast.nn.neuron import _Neuron


@contextmanager
def streaming(model: nn.Module):
    """Inside the block the neurons of ``model`` go on from where the last call left them.

    A sequence fed in pieces gives the same spikes as in one call, bit for bit. The state starts at
    rest on entry, is dropped on exit, and is detached from no graph: detach or use ``no_grad`` for
    long streams.

        >>> with snnfast.streaming(model), torch.no_grad():
        ...     for frames in stream:            # [T, B, ...] each
        ...         logits = model(frames)

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neurons of snnfast, or is streaming already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"streaming: model must be a torch module, got {type(model).__name__}")
    neurons = [module for module in model.modules() if isinstance(module, _Neuron)]
    if not neurons:
        raise ValueError("streaming: model must contain neurons of snnfast.nn, got none")
    if any(neuron._streaming for neuron in neurons):
        raise ValueError("streaming: model must not be streaming already, got a nested block")
    for neuron in neurons:
        neuron._streaming = True
    try:
        yield model
    finally:
        for neuron in neurons:
            neuron._streaming, neuron._v = False, None
