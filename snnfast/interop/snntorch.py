"""snnTorch's networks on the kernels of snnfast."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnfast.interop.verdict import Verdict
from snnfast.nn.unroll import is_unrolled, peer_of, refusal, unrolled_class
from snnfast.ops.validation import check_int, type_name

_REPEATABLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Flatten, nn.Identity, nn.ReLU,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip
_IN_EVALUATION = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def judge(module: nn.Module) -> Verdict | None:
    """What ``accelerate`` can do with a neuron of snnTorch, which is nothing without its user: the
    loop over time is not in the module. None for what is no neuron of snnTorch."""
    if peer_of(type(module)) is None:
        return None
    if is_unrolled(module):
        return Verdict("left", reason="unrolled already")
    reason = refusal(module)
    if reason is None:
        reason = (
            "called for one timestep by the loop around it; snnfast.nn.unroll makes it take all, "
            "snnfast.interop.snntorch.multi_step(net, x) a Sequential of them"
        )
    return Verdict("left", reason=reason)


def multi_step(net: nn.Sequential, x: Tensor, *, timesteps: int | None = None):
    """What ``[net(x_t) for x_t in x]`` gives, stacked over time, layer by layer instead of step by
    step: each neuron runs over all timesteps in one launch.

    ``net`` is a ``Sequential`` (which may hold others) of layers and of neurons with
    ``init_hidden=True``, as in snnTorch's tutorials. The last may have ``output=True``: the result
    is (spikes, states ...) then, each [T, ...]. The spikes are the same, bit for bit. What is no
    neuron is called step by step as in the loop, and so are neurons that cannot be unrolled
    (``RLeaky``, ``inhibition`` ...). BatchNorm in training thus takes its statistics of one step at
    a time, as there; of several Dropouts with a neuron between them each draws the masks of all
    steps before the next does. States go on from the last call and are left in the neurons. Hooks
    of a neuron see all timesteps at once.

    Args:
        x: [T, B, ...], or with ``timesteps`` T one input [B, ...] that is shown T times. The layers
            in front of the first neuron then run once, where they do the same each time.

    Raises:
        TypeError: ``net`` is no Sequential, or x no tensor.
        ValueError: x has no timestep; a neuron or a layer that may have a state stands at two
            places; a Sequential with neurons has hooks, which would not run.
    """
    layers = list(_layers(net, "net"))
    _check_once(layers)
    if not isinstance(x, Tensor):
        raise TypeError(f"multi_step: x must be a tensor, got {type_name(x)}")
    if timesteps is not None:
        check_int("multi_step", "timesteps", timesteps, 1)
    elif not x.dim() or not x.shape[0]:
        raise ValueError(f"multi_step: x must be [T, B, ...], T >= 1, got {tuple(x.shape)}")
    static = timesteps is not None
    for fused, group in itertools.groupby((layer for _, layer in layers), key=_is_fused):
        run = list(group)
        if fused:
            for neuron in run:
                with _unrolled(neuron):
                    x = neuron(x, timesteps=timesteps) if static else neuron(x)
                static = False
        elif static and all(map(_is_repeatable, run)):
            x = _through(run, x)
        else:
            x = _step_by_step(run, [x] * timesteps if static else _steps_of(x))
            static = False
    return x.unsqueeze(0).expand(timesteps, *x.shape) if static else x


def _layers(net, name: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the layers in order; a Sequential without a neuron is one."""
    if not _is_sequential(net):
        raise TypeError(
            f"multi_step: {name} must be a Sequential, got {type_name(net)}; in a forward of your "
            "own snnfast.nn.unroll is for its neurons"
        )
    if _has_hooks(net):
        raise ValueError(f"multi_step: {name} must have no hooks, got some, which would not run")
    for key, layer in net._modules.items():
        if _is_sequential(layer) and any(_is_fused(module) for module in layer.modules()):
            yield from _layers(layer, f"{name}.{key}")
        else:
            yield f"{name}.{key}", layer


def _check_once(layers: Sequence[tuple[str, nn.Module]]) -> None:
    seen: dict[int, str] = {}
    for name, layer in layers:
        if id(layer) in seen and not _is_repeatable(layer):
            raise ValueError(
                f"multi_step: a layer with a state must stand at one place, got "
                f"{type_name(layer)} at {seen[id(layer)]} and {name}"
            )
        seen[id(layer)] = name


def _is_sequential(module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _is_fused(module: nn.Module) -> bool:
    return peer_of(type(module)) is not None and refusal(module) is None


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)


def _is_repeatable(module: nn.Module) -> bool:
    """Whether it gives the same for the same input, and has nothing else to do."""
    if _has_hooks(module):
        return False
    if type(module) is nn.Sequential:
        return all(map(_is_repeatable, module))
    return type(module) in _REPEATABLE or (type(module) in _IN_EVALUATION and not module.training)


@contextmanager
def _unrolled(neuron: nn.Module):
    """Inside the block ``neuron`` takes all timesteps."""
    own = type(neuron)
    if not is_unrolled(neuron):
        neuron.__class__ = unrolled_class(own)
    try:
        yield
    finally:
        neuron.__class__ = own


def _through(run: Sequence[nn.Module], x):
    for layer in run:
        x = layer(x)
    return x


def _steps_of(x) -> Sequence:
    """What the next layer is given at each step: (spikes, states ...) where ``output`` is set."""
    if isinstance(x, tuple):
        return list(zip(*(part.unbind(0) for part in x), strict=True))
    return x.unbind(0)


def _step_by_step(run: Sequence[nn.Module], x: Sequence[Tensor]):
    steps = [_through(run, x_t) for x_t in x]
    if isinstance(steps[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*steps, strict=True))
    return torch.stack(steps)
