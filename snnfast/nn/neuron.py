"""Spiking neurons as modules. Every forward starts from rest, unless inside ``streaming``."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from snnfast import surrogate as surrogates
from snnfast.nn import _single_steps
from snnfast.nn.arguments import arguments_of, hint
from snnfast.nn.stateful import Stateful
from snnfast.ops.layer import check_options, check_tau
from snnfast.ops.lif import lif
from snnfast.ops.lif_definition import check_modes
from snnfast.ops.neuron import Definition
from snnfast.ops.time_axis import check_time_axis, time_first
from snnfast.ops.validation import check_bool, check_int, check_number, state_dtype, type_name


class BaseNeuron(Stateful):
    """What the LIF neurons share: the arguments of ``snnfast.lif``."""

    def __init__(
        self,
        *,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        fire: str = ">=",
        detach_reset: bool = False,
        detach_state: bool = False,
        surrogate: "str | surrogates.Surrogate" = "sigmoid",
        time_axis: "int | str" = 0,
        return_state: "bool | str" = False,
        backend: str | None = None,
        **unknown,
    ):
        super().__init__()
        who = type(self).__name__
        if unknown:
            name, known = next(iter(unknown)), arguments_of(type(self))
            raise TypeError(
                f"{who}: arguments must be among {', '.join(known)}, got {name}{hint(name, known)}"
            )
        *_, surrogate, _ = check_options(
            who, v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset,
            surrogate=surrogate, return_state=return_state, backend=backend,
        )  # fmt: skip
        check_modes(who, fire=fire, detach_state=detach_state)
        check_time_axis(who, time_axis)
        _hold(self, "v_threshold", v_threshold)
        self.v_reset = v_reset
        self.fire = fire
        self.detach_reset = detach_reset
        self.detach_state = detach_state
        self.surrogate = surrogate
        self.time_axis = time_axis
        self.return_state = return_state
        self.backend = backend

    def _rate(self, x: Tensor) -> dict:
        """The arguments of ``lif`` that say how the membrane leaks."""
        raise NotImplementedError

    def forward(self, x: Tensor, v0: Tensor | None = None, timesteps: int | None = None):
        """Spikes [T, ...] of x [T, ...]: the first axis is time, and one call runs all steps from
        rest. For one step after the other call with x[t:t+1] inside of ``snnfast.streaming``.

        With ``timesteps``, x [...] is static and shown that often. Returns (s, v) where
        ``return_state`` is set. ``v0``: the state to start from."""
        return self._run(lif, x, v0, timesteps)

    def _run(self, op, x: Tensor, v0: Tensor | None, timesteps: int | None):
        """``op`` (``lif``, or one that ends in it) with this neuron's arguments and state."""

        def run(state, return_state):
            return op(
                x,
                v0=state,
                v_threshold=_in_state_dtype(self.v_threshold, x),
                v_reset=self.v_reset,
                fire=self.fire,
                detach_reset=self.detach_reset,
                detach_state=self.detach_state,
                surrogate=self.surrogate,
                timesteps=timesteps,
                time_axis=self.time_axis,
                return_state=return_state,
                backend=self.backend,
                **self._rate(x),
            )

        layout = {"time_axis": self.time_axis, "timesteps": timesteps}
        result = self._step_on(run, v0, partial(time_first, **layout))
        watched = not self._streaming and v0 is None and timesteps is None
        if watched and self.time_axis == 0 and not torch.compiler.is_compiling():
            _single_steps.watch(self, x, result[0] if self.return_state else result)
        return result

    def extra_repr(self) -> str:
        shown = {"v_threshold": self.v_threshold, "v_reset": self.v_reset}
        shown |= {"detach_reset": self.detach_reset, "surrogate": self.surrogate}
        rare = {"fire": ">=", "detach_state": False, "time_axis": 0}
        shown |= {k: getattr(self, k) for k, usual in rare.items() if getattr(self, k) != usual}
        return _shown(shown)


def _hold(module: nn.Module, name: str, value) -> None:
    """As an attribute: an nn.Parameter is one of the module, any other tensor a buffer."""
    if not isinstance(value, Tensor):
        setattr(module, name, value)
        return
    who = type(module).__name__
    if not value.is_floating_point():
        raise TypeError(f"{who}: {name} must be floating point, got {type_name(value)}")
    if value.dim() > 1:
        raise ValueError(f"{who}: {name} must be of shape [] or [C], got {tuple(value.shape)}")
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    elif value.requires_grad:
        raise ValueError(
            f"{who}: {name} must be an nn.Parameter to learn, got a tensor that requires gradient"
        )
    else:
        module.register_buffer(name, value)


def _in_state_dtype(value, x: Tensor):
    """A tensor in the state's dtype also where the module was cast to half precision."""
    return value.to(state_dtype(x)) if isinstance(value, Tensor) else value


def _shown(values: dict) -> str:
    """Of a tensor its shape: its numbers may lie on a GPU."""
    return ", ".join(
        f"{k}={list(v.shape) if isinstance(v, Tensor) else v}" for k, v in values.items()
    )


class LIF(BaseNeuron):
    """Leaky integrate-and-fire neurons; ``decay_input`` is True as in SpikingJelly, while
    :func:`snnfast.models.create_model` and the recipes have the papers' False.

    The arguments, equations and shapes are those of ``snnfast.lif``. ``tau`` is a float >= 1 in
    timesteps; ``beta`` (H = beta V + X, instead of ``tau`` and ``decay_input``) and ``v_threshold``
    may be tensors [] or [C]: an nn.Parameter is one of the module and learns, any other tensor a
    buffer. Else the module has no entry in the state_dict.
    """

    def __init__(
        self,
        tau: float = 2.0,
        *,
        decay_input: bool = True,
        beta: float | Tensor | None = None,
        v_rest: float | None = None,
        **neuron,
    ):
        super().__init__(**neuron)
        self.tau = check_tau("LIF", tau)
        check_bool("LIF", "decay_input", decay_input)
        check_modes("LIF", tau=self.tau, decay_input=decay_input, beta=beta, v_rest=v_rest)
        self.decay_input = decay_input
        _hold(self, "beta", beta)
        self.v_rest = v_rest

    def _rate(self, x):
        if self.beta is not None:
            return {"beta": _in_state_dtype(self.beta, x)}
        return {"tau": self.tau, "decay_input": self.decay_input, "v_rest": self.v_rest}

    def extra_repr(self):
        leak = {"tau": self.tau, "decay_input": self.decay_input}
        leak |= {} if self.v_rest is None else {"v_rest": self.v_rest}
        leak = leak if self.beta is None else {"beta": self.beta}
        return f"{_shown(leak)}, {super().extra_repr()}"


class IF(BaseNeuron):
    """Integrate-and-fire neurons: LIF without a leak, H = V + X."""

    def _rate(self, x):
        return {"tau": math.inf}


class ParametricLIF(BaseNeuron):
    """LIF with a learnable time constant, 1/tau = sigmoid(w) (Fang et al. 2021, arXiv 2007.05785).

    Args:
        init_tau: tau at the start, > 1; w = -log(init_tau - 1).
        channels: None for one tau per layer (``w`` []), as in SpikingJelly; C for one per channel
            (``w`` [C], axis 2 of [T, B, C, ...]).
        decay_input and the rest: as in ``snnfast.nn.LIF``.

    ``tau`` can be read and set; what is kept and learns is ``w``.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        *,
        channels: int | None = None,
        decay_input: bool = True,
        v_rest: float | None = None,
        **neuron,
    ):
        super().__init__(**neuron)
        init_tau = check_number("ParametricLIF", "init_tau", init_tau)
        if not init_tau > 1.0:
            raise ValueError(f"ParametricLIF: init_tau must be > 1, got {init_tau}")
        check_bool("ParametricLIF", "decay_input", decay_input)
        check_modes("ParametricLIF", v_rest=v_rest)
        if channels is not None:
            check_int("ParametricLIF", "channels", channels, 1)
        self.decay_input = decay_input
        self.v_rest = v_rest
        shape = () if channels is None else (channels,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1.0)))

    @property
    def tau(self) -> Tensor:
        """1 / sigmoid(w), [] or [C], with w's gradient. To be set with a number, or a tensor [] or
        of w's shape, > 1 and finite."""
        return 1.0 / self.w.sigmoid()

    @tau.setter
    def tau(self, value: "float | Tensor") -> None:
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        if value.dim() and value.shape != self.w.shape:
            raise ValueError(
                f"ParametricLIF: tau must be of shape [] or {list(self.w.shape)}, got "
                f"{list(value.shape)}"
            )
        if not ((value > 1.0) & value.isfinite()).all():
            raise ValueError(f"ParametricLIF: tau must be > 1 and finite, got {value.tolist()}")
        with torch.no_grad():
            self.w.copy_(-torch.log(value - 1.0))

    def _rate(self, x):
        inv_tau = _in_state_dtype(self.w, x).sigmoid()
        return {"inv_tau": inv_tau, "decay_input": self.decay_input, "v_rest": self.v_rest}

    def extra_repr(self):
        leak = {"decay_input": self.decay_input}
        leak |= {} if self.v_rest is None else {"v_rest": self.v_rest}
        return f"{_shown(leak)}, {super().extra_repr()}"


class Neuron(Stateful):
    """A neuron of ``@snnfast.neuron`` as a module.

    Args:
        neuron: what the decorator made.
        surrogate, return_state, backend: as in the neuron's call.
        parameters: the neuron's own, by keyword. An ``nn.Parameter`` [] or [C] is one of the module
            and learns; any other tensor becomes a buffer; numbers and choices are attributes.

    Called with the neuron's inputs [T, ...]; ``states`` where it is to start elsewhere than at
    rest, ``timesteps`` for static inputs [...]. Returns what the neuron returns.

        >>> rho = nn.Parameter(torch.full((64,), 0.95))
        >>> layer = snnfast.nn.Neuron(adaptive_lif, rho=rho, surrogate="atan")

    Raises:
        TypeError: ``neuron`` is none, or has no parameter of that name.
        ValueError: a parameter has the name of something that a module has, or is a tensor that
            requires gradient and no ``nn.Parameter``.
    """

    def __init__(
        self,
        neuron: Definition,
        *,
        surrogate: "str | surrogates.Surrogate" = "sigmoid",
        return_state: "bool | str" = False,
        backend: str | None = None,
        **parameters,
    ):
        super().__init__()
        if not isinstance(neuron, Definition):
            kind = type(neuron).__name__
            raise TypeError(f"Neuron: neuron must be made by @snnfast.neuron, got {kind}")
        *_, self.surrogate, _ = check_options(
            "Neuron", v_threshold=1.0, v_reset=0.0, detach_reset=False, surrogate=surrogate,
            return_state=return_state, backend=backend,
        )  # fmt: skip
        neuron.check_names(parameters)
        self.neuron = neuron
        self.return_state = return_state
        self.backend = backend
        self._names = tuple(parameters)
        for name, value in parameters.items():
            if hasattr(self, name):
                raise ValueError(
                    f"Neuron: {name} must not name a parameter of a module, which has its own"
                )
            _hold(self, name, value)

    def forward(self, *inputs: Tensor, states=None, timesteps: int | None = None):
        """The outputs [T, ...] of inputs [T, ...], from rest or from ``states``."""
        return self._run(self.neuron, inputs, states, timesteps)

    def _run(self, op, inputs: tuple, states, timesteps: int | None):
        """``op`` (the neuron, or one that ends in it) with this module's parameters and state."""
        parameters = self._parameters_for(inputs[0] if inputs else None)

        def run(states, return_state):
            return op(
                *inputs, states=states, surrogate=self.surrogate, timesteps=timesteps,
                return_state=return_state, backend=self.backend, **parameters,
            )  # fmt: skip

        return self._step_on(run, states)

    def _parameters_for(self, x) -> dict:
        """The arguments of the neuron, in the state's dtype also where the module was cast to half
        precision."""
        parameters = {name: getattr(self, name) for name in self._names}
        if isinstance(x, Tensor):
            return {name: _in_state_dtype(value, x) for name, value in parameters.items()}
        return parameters

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in self._names} | {"surrogate": self.surrogate}
        return f"{self.neuron.__name__}, {_shown(shown)}"
