"""The neurons of ``snnfast.neurons`` as modules."""

import math

import torch
from torch import Tensor, nn

from snnfast import neurons
from snnfast.nn.neuron import Neuron
from snnfast.ops.neuron import Definition
from snnfast.ops.validation import check_int, check_number, state_dtype


class _Of(Neuron):
    """A module of one neuron, whose parameters are its arguments."""

    _definition: Definition
    _surrogate: str
    _learned: tuple[str, ...]

    def __init_subclass__(cls, of: Definition, surrogate: str = "sigmoid", learned=()):
        cls._definition, cls._surrogate, cls._learned = of, surrogate, learned
        also = f" Learned from the start: {', '.join(learned)}." if learned else ""
        cls.__doc__ = cls.__doc__ or (
            f"``snnfast.neurons.{of.name}`` as a module, see there and ``snnfast.nn.Neuron``: its "
            f"parameters are arguments, by keyword; an nn.Parameter [] or [C] learns.{also}"
        )

    def __init__(
        self, *, surrogate=None, return_state: bool | str = False, backend: str | None = None,
        **parameters,
    ):  # fmt: skip
        definition = self._definition
        for name in self._learned:
            start = parameters.get(name, definition.defaults[name])
            parameters[name] = _parameter(type(self).__name__, name, start)
        super().__init__(
            definition, surrogate=self._surrogate if surrogate is None else surrogate,
            return_state=return_state, backend=backend, **parameters,
        )  # fmt: skip


def _parameter(who: str, name: str, start) -> nn.Parameter:
    if isinstance(start, Tensor):
        return start if isinstance(start, nn.Parameter) else nn.Parameter(start)
    return nn.Parameter(torch.tensor(check_number(who, name, start)))


class Leaky(_Of, of=neurons.leaky, surrogate="atan"):
    pass


class Synaptic(_Of, of=neurons.synaptic, surrogate="atan"):
    pass


class Lapicque(_Of, of=neurons.lapicque, surrogate="atan"):
    pass


class Alpha(_Of, of=neurons.alpha, surrogate="atan"):
    pass


class AdaptiveLIF(_Of, of=neurons.adaptive_lif):
    pass


class CubaLIF(_Of, of=neurons.cuba_lif, surrogate="super_spike"):
    pass


class NorseLIF(_Of, of=neurons.norse_lif, surrogate="super_spike"):
    pass


class AdEx(_Of, of=neurons.adex, surrogate="super_spike"):
    pass


class QIF(_Of, of=neurons.qif):
    pass


class EIF(_Of, of=neurons.eif):
    pass


class Izhikevich(_Of, of=neurons.izhikevich, surrogate="super_spike"):
    pass


class AdaptiveQIF(_Of, of=neurons.adaptive_qif):
    pass


class CLIF(_Of, of=neurons.clif, surrogate="rect"):
    pass


class ILIF(_Of, of=neurons.ilif, surrogate="rect"):
    pass


class TernaryLIF(_Of, of=neurons.ternary_lif):
    pass


class KLIF(_Of, of=neurons.klif, learned=("k",)):
    pass


class LIAF(_Of, of=neurons.liaf):
    pass


class GLIF(_Of, of=neurons.glif):
    """``snnfast.neurons.glif`` as a module that learns all of its parameters p, each as the w of
    p = sigmoid(w), under p's name.

    Args:
        channels: None for one number each, as ``w`` []; C for one per channel, ``w`` [C].
        surrogate, return_state, backend: as in ``snnfast.nn.Neuron``.
        parameters: where p starts, in 0 .. 1; or w itself as an nn.Parameter.
    """

    def __init__(self, *, channels: int | None = None, **arguments):
        if channels is not None:
            check_int("GLIF", "channels", channels, 1)
        shape = () if channels is None else (channels,)
        for name, default in self._definition.defaults.items():
            start = arguments.get(name, default)
            if not isinstance(start, Tensor):
                start = check_number("GLIF", name, start)
                if not 0 < start < 1:
                    raise ValueError(f"GLIF: {name} must be within 0 .. 1, got {start}")
                start = nn.Parameter(torch.logit(torch.full(shape, start)))
            arguments[name] = start
        super().__init__(**arguments)

    def _parameters_for(self, x):
        return {name: w.sigmoid() for name, w in super()._parameters_for(x).items()}


class HeterogeneousLIF(_Of, of=neurons.heterogeneous_lif):
    """``snnfast.neurons.heterogeneous_lif`` as a module that learns 1/tau = sigmoid(w) of each
    neuron.

    Args:
        shape: of the neurons of one sample, as (C, H, W), which is that of ``w``; (): one tau that
            all share.
        tau: where it starts, > 1.
        surrogate, return_state, backend: as in ``snnfast.nn.Neuron``.
        parameters: those of the neuron, by keyword.
    """

    def __init__(self, shape=(), *, tau: float = 2.0, **arguments):
        tau = check_number("HeterogeneousLIF", "tau", tau)
        if not tau > 1.0:
            raise ValueError(f"HeterogeneousLIF: tau must be > 1, got {tau}")
        super().__init__(**arguments)
        self.w = nn.Parameter(torch.full(tuple(shape), -math.log(tau - 1.0)))

    def _run(self, op, inputs: tuple, states, timesteps: int | None):
        shape = inputs[0].shape[timesteps is None :]
        if self.w.dim() and shape[1:] != self.w.shape:
            raise ValueError(
                f"HeterogeneousLIF: x must have neurons {list(self.w.shape)} behind time and "
                f"batch, got {list(shape[1:])}"
            )
        rate = self.w.to(state_dtype(inputs[0])).sigmoid().expand(shape)

        def run(*inputs, states, **named):
            return op(*inputs, states=(None if states is None else states[0], rate), **named)

        return super()._run(run, inputs, states, timesteps)
