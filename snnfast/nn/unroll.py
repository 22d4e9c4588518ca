"""``unroll``: a neuron of snnTorch that takes all timesteps in one call.

snnTorch itself is not imported: its neurons are known by the names of their classes. The neuron
stays the object that it is, with its parameters, keys, hooks and place in
``SpikingNeuron.instances``; only its class becomes one of its own whose ``forward`` is ours.
"""

import functools
import itertools
import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnfast import neurons
from snnfast.ops.neuron import Definition
from snnfast.ops.spike_functions import name_of, surrogate_of
from snnfast.ops.validation import state_dtype, type_name

VERSION = "1.0"


class _Kind(NamedTuple):
    """A neuron of ours that is one of theirs."""

    definition: Definition
    states: tuple[str, ...]
    numbers: tuple[str, ...]


_KINDS = {
    "Leaky": _Kind(neurons.leaky, ("mem",), ("beta", "threshold")),
    "Synaptic": _Kind(neurons.synaptic, ("syn", "mem"), ("alpha", "beta", "threshold")),
    "Lapicque": _Kind(neurons.lapicque, ("mem",), ("R", "C", "time_step", "threshold")),
    "Alpha": _Kind(
        neurons.alpha, ("syn_exc", "syn_inh", "mem"), ("alpha", "beta", "threshold")
    ),
}  # fmt: skip
_NAMED = f"{', '.join(_KINDS)} of snnTorch {VERSION} that takes all timesteps at once"
_MECHANISMS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
_FREE = {"reset_mem", "reset_hidden", "detach_hidden", "extra_repr", "instances"}
"""What a subclass may have its own of: forward does not call it."""


def unroll(neuron: nn.Module) -> nn.Module:
    """``neuron``, which from now on takes [T, ...] where it took a timestep, in one launch.

    A ``Leaky``, ``Synaptic``, ``Lapicque`` or ``Alpha`` of snnTorch 1.0 (or a subclass that only
    sets defaults). A call gives what the loop over its timesteps would, each output stacked over
    time: the spikes, and with ``output=True`` or ``init_hidden=False`` the states after every
    step. It begins where the last call left the states, or at those given, and leaves them in the
    neuron, so ``utils.reset``, ``reset_mem`` and ``detach_hidden`` do what they did::

        lif = snnfast.nn.unroll(snn.Leaky(beta=0.9, init_hidden=True))
        spikes = lif(x)                   # [T, B, ...]; for x_t in x: lif(x_t) before
        spikes = lif(image, timesteps=T)  # one input [B, ...], shown T times and read once

    It is the same object: parameters, keys, hooks (which see all timesteps) and the list
    ``SpikingNeuron.instances`` stay; unrolling it again changes nothing. Parameters, states,
    ``spike_grad`` and the choices are read at each call. Spikes have the dtype of the input, states
    are float32 (float64 for float64 input). The attribute ``reset`` is not written.

    Raises:
        TypeError: it is no such neuron.
        ValueError: it is one that cannot run so, for the reason that is said.
    """
    reason = refusal(neuron)
    if reason is not None:
        error = ValueError if peer_of(type(neuron)) in _KINDS else TypeError
        raise error(f"unroll: neuron must be one of {_NAMED}, got {reason}")
    if not is_unrolled(neuron):
        neuron.__class__ = unrolled_class(type(neuron))
    return neuron


@functools.cache
def unrolled_class(own: type) -> type:
    """The class that a neuron of the class ``own`` becomes."""
    methods = {"forward": _forward, "__reduce_ex__": _reduce, "_unrolled": True}
    return type(f"Unrolled{own.__name__}", (own,), methods | {"__doc__": own.__doc__})


def is_unrolled(neuron) -> bool:
    return "_unrolled" in vars(type(neuron))


def _forward(neuron, input_: Tensor, *states, timesteps: int | None = None, **named):
    return _over_time(neuron, input_, _given(neuron, states, named), timesteps)


def _reduce(neuron, protocol):
    """As one of its own class, which can be imported."""
    own = type(neuron).__base__
    _, _, *rest = own.__reduce_ex__(neuron, max(protocol, 2))
    return _again, (own,), *rest


def _again(own: type):
    cls = unrolled_class(own)
    return cls.__new__(cls)


def peer_of(cls: type) -> str | None:
    """The name of snnTorch's class that ``cls`` is or comes from; None where it has none."""
    return next((c.__name__ for c in cls.__mro__ if _is_peer(c)), None)


def _is_peer(cls: type) -> bool:
    return cls.__module__.startswith("snntorch._neurons.")


def refusal(neuron) -> str | None:
    """What ``neuron`` is that cannot be unrolled; None: it can."""
    peer = peer_of(type(neuron))
    if peer is None:
        return type_name(neuron)
    if peer not in _KINDS:
        if peer in ("RLeaky", "RSynaptic"):
            return f"{peer}, whose recurrent connection needs the spikes of the step before"
        return f"{peer}, of which snnfast.neurons has no like"
    version = getattr(sys.modules.get("snntorch"), "__version__", "an unknown version")
    if not version.startswith(f"{VERSION}."):
        return f"one of snnTorch {version}"
    own = _overridden(neuron)
    if own is not None:
        return f"{type(neuron).__name__}, which has its own {own}"
    return _configured(neuron)


def _overridden(neuron) -> str | None:
    """The first method or attribute of snnTorch's class that a subclass or the neuron replaces."""
    cls = type(neuron).__base__ if is_unrolled(neuron) else type(neuron)
    own = list(itertools.takewhile(lambda c: not _is_peer(c), cls.__mro__))
    peer = cls.__mro__[len(own)]
    for name in itertools.chain(*(vars(c) for c in own)):
        dunder = name.startswith("__") and name != "__call__"
        if not dunder and name not in _FREE and hasattr(peer, name):
            return name
    return next((name for name in vars(neuron) if callable(getattr(cls, name, None))), None)


def _configured(neuron) -> str | None:
    """What of its choices stands against it."""
    if neuron.inhibition:
        return "inhibition=True, which looks at all neurons of a step"
    if neuron.state_quant:
        return f"state_quant={name_of(neuron.state_quant)}, a function of every step's state"
    step = getattr(neuron.state_function, "__name__", None)
    if step not in _MECHANISMS:
        return f"a state_function of its own, {step}"
    if not getattr(neuron, "reset_delay", True):
        names = tuple(_MECHANISMS.values())
        if names[int(neuron.reset_mechanism_val)] != _MECHANISMS[step]:
            return "a reset_mechanism that was changed after it was made, without reset_delay"
    try:
        surrogate_of(neuron.spike_grad)
    except ValueError as error:
        return f"spike_grad={name_of(neuron.spike_grad)}, which {error}"
    return None


def _given(neuron, states: tuple, named: dict) -> dict:
    """{name: the state that the call gave}, as snnTorch takes them by position or name."""
    names = _KINDS[peer_of(type(neuron))].states
    if len(states) > len(names):
        raise TypeError(f"unroll: states must be {', '.join(names)}, got {len(states)}")
    given = dict(zip(names, states))
    for name, state in named.items():
        if name not in names or name in given:
            raise TypeError(f"unroll: arguments must be input_, {', '.join(names)}, got {name}")
        given[name] = state
    given = {name: state for name, state in given.items() if state is not None}
    for name, state in given.items():
        if not isinstance(state, Tensor):
            raise TypeError(f"unroll: {name} must be a tensor, got {type_name(state)}")
    if given and neuron.init_hidden:
        raise TypeError(
            f"unroll: {', '.join(given)} must not be given with init_hidden=True, got a tensor"
        )
    return given


def _over_time(neuron, x: Tensor, given: dict, timesteps: int | None):
    kind = _KINDS[peer_of(type(neuron))]
    reason = _configured(neuron)
    if reason is not None:
        raise ValueError(f"unroll: neuron must be one of {_NAMED}, got {reason}")
    if not isinstance(x, Tensor):
        raise TypeError(f"unroll: input_ must be a tensor, got {type_name(x)}")
    if timesteps is None and not x.dim():
        raise ValueError("unroll: input_ must be [T, ...], got a scalar")
    shape = x.shape if timesteps is not None else x.shape[1:]
    dtype = state_dtype(x)
    numbers, lead = _rows(neuron, kind.numbers, x, shape, dtype)
    states = [given.get(name, getattr(neuron, name)) for name in kind.states]
    # Where the shape is another one snnTorch starts at 0, and so does None.
    states = [_usable(v, x.device, dtype) if v.shape == shape else None for v in states]
    if lead is not None:
        x = x.reshape(*x.shape[: x.dim() - len(shape)], *lead)
        states = [None if v is None else v.reshape(lead) for v in states]
    choices = {"reset_mechanism": _MECHANISMS[neuron.state_function.__name__]}
    if "reset_delay" in kind.definition.defaults:
        choices["reset_delay"] = neuron.reset_delay
    shown = neuron.output or not neuron.init_hidden
    s, after = kind.definition(
        x, states=states, surrogate=surrogate_of(neuron.spike_grad), timesteps=timesteps,
        return_state="all" if shown else True, **choices, **numbers,
    )  # fmt: skip
    after = after if isinstance(after, tuple) else (after,)
    if lead is not None:
        s = s.view(len(s), *shape)
        after = tuple(v.view(len(v), *shape) if shown else v.view(shape) for v in after)
    for name, v in zip(kind.states, after, strict=True):
        last = v if not shown else v[-1] if len(v) else None
        if last is not None:
            # What detach_ is called on must not be a view.
            setattr(neuron, name, last.clone() if last._is_view() else last)
    if not _is_one(neuron):
        s = s * neuron.graded_spikes_factor.to(s.dtype)
    return (s, *after) if shown else s


def _usable(v: Tensor, device, dtype) -> Tensor:
    """A state as an op takes it, also one that was left in inference mode."""
    v = v.to(device, dtype)
    return v.clone() if v.is_inference() and not torch.is_inference_mode_enabled() else v


def _rows(neuron, names, x: Tensor, shape, dtype):
    """(the parameters by name, [] or [C], and the shape that a timestep takes for that or None)."""
    numbers = {name: getattr(neuron, name) for name in names}
    for name, value in numbers.items():
        if value.dim() and value.dtype == torch.float64 and dtype != torch.float64:
            raise TypeError(f"unroll: {name} must be float32 for {type_name(x)} x, got float64")
        if not _fits(value.shape, shape):
            raise ValueError(
                f"unroll: {name} must be a number or broadcast to a timestep {tuple(shape)}, "
                f"got shape {tuple(value.shape)}"
            )
    numbers = {name: value.to(x.device, dtype) for name, value in numbers.items()}
    many = {name: v for name, v in numbers.items() if v.numel() != 1}
    rows = {name: v.reshape(()) for name, v in numbers.items() if v.numel() == 1}
    wide = {name: v.reshape(*[1] * (len(shape) - v.dim()), *v.shape) for name, v in many.items()}
    if not wide or (len(shape) > 1 and all(v.numel() == v.shape[1] for v in wide.values())):
        return {name: v.reshape(-1) for name, v in wide.items()} | rows, None
    # All axes that they differ along become one.
    per_sample = len(shape) < 2 or any(v.shape[0] != 1 for v in wide.values())
    lead = (1, shape.numel()) if per_sample else (shape[0], shape[1:].numel())
    over = shape if per_sample else (1, *shape[1:])
    return {name: v.expand(over).reshape(-1) for name, v in wide.items()} | rows, lead


def _fits(own, shape) -> bool:
    return len(own) <= len(shape) and all(
        a in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)
    )


def _is_one(neuron) -> bool:
    """Whether the spikes are 1. A device is waited for once for each value of the factor."""
    factor = neuron.graded_spikes_factor
    if factor.requires_grad or torch.compiler.is_compiling() or factor.is_inference():
        return False
    seen, version, one = vars(neuron).get("_factor_seen", (None, None, None))
    if seen is not factor or version != factor._version:
        one = factor.numel() == 1 and factor.item() == 1
        neuron._factor_seen = (factor, factor._version, one)
    return one
