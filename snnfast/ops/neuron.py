"""``@snnfast.neuron``: any neuron, written once as a function of one timestep."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends.spec import NeuronLayer, Step
from snnfast.ops import layer as layers
from snnfast.ops import neuron_op
from snnfast.ops import validation as check
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import check_name, select
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.program.prelude import split
from snnfast.program.text import Listing
from snnfast.program.trace import trace

_OF_THE_CALL = ("states", "surrogate", "timesteps", "return_state", "backend")


class _Plan(NamedTuple):
    """What a definition is for one choice of which parameters are tensors and what the others
    are."""

    step: Step
    prelude: Program
    spikes: tuple[bool, ...]
    """Which outputs are 0 or 1 by construction."""


class Definition:
    """A neuron, made by ``@snnfast.neuron`` of a function of one timestep; called as that says."""

    def __init__(self, step: Callable, inputs: int = 1, rest=None):
        check.check_int("neuron", "inputs", inputs, 1)
        if not callable(step) or isinstance(step, type):
            raise TypeError(f"neuron: step must be a function, got {check.type_name(step)}")
        functools.update_wrapper(self, step)
        self.step = step
        """The function itself."""
        self.name = getattr(step, "__name__", "neuron")
        positional, self.defaults = _signature(self.name, step)
        if len(positional) < inputs:
            raise TypeError(
                f"{self.name}: a step must take {inputs} inputs and then its states by position, "
                f"got ({', '.join(positional)})"
            )
        self.inputs, self.states = positional[:inputs], positional[inputs:]
        self._rest = (0.0,) * len(self.states) if rest is None else rest
        if not callable(rest):
            self._check_rest(self._rest)
        if inspect.Parameter.empty not in self.defaults.values():
            self._planned({})  # what cannot be fused is said here and now

    def __repr__(self):
        return f"<neuron {self.name}{inspect.signature(self.step)}>"

    def __reduce__(self):  # by name, as a function is
        return self.__qualname__

    @property
    def program(self) -> Listing:
        """The program with the defaults, to be printed; parameters without one are tensors."""
        return self.listing()

    def listing(self, **parameters) -> Listing:
        """The same with other parameters; a tensor stays a parameter of the program."""
        missing = [k for k, v in self.defaults.items() if v is inspect.Parameter.empty]
        parameters = dict.fromkeys(missing, torch.empty(())) | parameters
        plan, tensors, _ = self._planned(parameters)
        return Listing(self.name, plan.step, plan.prelude, self.inputs, self.states, tensors)

    def __call__(
        self,
        *inputs: Tensor,
        states=None,
        surrogate: "str | surrogates.Surrogate" = "sigmoid",
        timesteps: int | None = None,
        return_state: "bool | str" = False,
        backend: str | None = None,
        **parameters,
    ):
        x, steps, shape = self._checked_inputs(inputs, timesteps)
        if not isinstance(return_state, (bool, str)) or return_state not in (False, True, "all"):
            raise ValueError(
                f"{self.name}: return_state must be False, True or 'all', got {return_state!r}"
            )
        if backend is not None:
            check_name(backend, self.name)
        chosen = surrogates.resolve(surrogate, self.name)
        plan, tensors, options = self._planned(parameters, chosen)
        for name, value in tensors.items():
            _check_parameter(self.name, name, value, x, shape)
        states, rest = self._checked_states(states, tensors | options, x, shape)
        check.refuse_transforms(self.name, *inputs, *states, *tensors.values())
        unknown = None
        if not chosen.spiking:
            unknown = f"{type(chosen).__name__}(spiking=False)"
        elif chosen.ID is None and "surrogate:" in plan.step.gradient:
            unknown = type(chosen).__name__
        name = select(self.name, backend, x.device.type, x.dtype, False, unknown, "neuron_forward")
        if name == "reference":
            return self._looped(
                inputs, states, rest, tensors | options, plan, chosen, timesteps, return_state
            )
        return self._fused(
            inputs, states, rest, list(tensors.values()), plan, chosen, steps,
            timesteps is not None, return_state, name,
        )  # fmt: skip

    def _looped(self, inputs, states, rest, parameters, plan, surrogate, timesteps, return_state):
        x = inputs[0]
        shape = x.shape[1:] if timesteps is None else x.shape
        dtype = layout.state_dtype(x)
        start = [
            torch.full(shape, number, dtype=dtype, device=x.device) if v is None else v
            for v, number in zip(states, rest, strict=True)
        ]
        outputs, passed = reference.neuron(
            self.step, inputs, start, parameters, outputs=plan.step.outputs,
            surrogate=surrogate, timesteps=timesteps,
        )  # fmt: skip
        after = [v[1:] if return_state == "all" else v[-1] for v in passed]
        return _returned(outputs, after, return_state)

    def _fused(self, inputs, states, rest, tensors, plan, surrogate, steps, static, return_state,
               backend):  # fmt: skip
        x = inputs[0]
        axis = 0 if static else 1
        inputs = [layout.with_dense_steps(x, axis), *inputs[1:]]
        params = tensors
        if plan.prelude.nodes:
            params = list(evaluate(plan.prelude, {"param": tensors})) if tensors else []
        number, (a, b) = 0, (0.0, 0.0)
        if not plan.step.gradient:
            number, (a, b) = surrogate.ID, surrogate.params()
        layer = NeuronLayer(plan.step, number, static, a, b, rest, steps)
        state = layers.STATE_ALL if return_state == "all" else int(bool(return_state))
        call = neuron_op.Call(layer, state, backend)
        given = (*inputs, *states, *params)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            results = neuron_op.Neuron.apply(call, *given)
        else:
            outputs, after, _ = neuron_op.forward(call, inputs, states, params, False)
            results = (*outputs, *after)
        outputs, after = results[: plan.step.outputs], results[plan.step.outputs :]
        for s, spikes in zip(outputs, plan.spikes, strict=True):
            if spikes:
                mark_spikes(s)
        return _returned(outputs, after, return_state)

    def check_names(self, parameters) -> None:
        """TypeError for a name that is no parameter of the neuron."""
        for name in parameters:
            if name not in self.defaults:
                known = ", ".join((*self.defaults, *_OF_THE_CALL))
                raise TypeError(f"{self.name}: arguments must be among {known}, got {name}")

    def _planned(self, parameters: dict, surrogate=None) -> tuple[_Plan, dict, dict]:
        """(the plan, the parameters that are tensors, the others), in the definition's order."""
        self.check_names(parameters)
        parameters = {k: parameters.get(k, default) for k, default in self.defaults.items()}
        for name, value in parameters.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{self.name}: {name} must be given, got nothing")
        tensors = {k: v for k, v in parameters.items() if isinstance(v, Tensor)}
        options = {k: v for k, v in parameters.items() if k not in tensors}
        if torch.compiler.is_compiling():
            options = {k: _constant(v) for k, v in options.items()}
        own = surrogate if surrogate is not None and surrogate.ID is None else None
        return _plan(self, tuple(tensors), tuple(options.items()), own), tensors, options

    def _checked_inputs(self, inputs, timesteps):
        if len(inputs) != len(self.inputs):
            wanted = ", ".join(self.inputs)
            raise TypeError(
                f"{self.name}: inputs must be {len(self.inputs)} ({wanted}), got {len(inputs)}; "
                "states are given as states=(...)"
            )
        x = inputs[0]
        for name, t in zip(self.inputs, inputs, strict=True):
            check.check_input(self.name, name, t)
            if t.shape != x.shape or t.dtype != x.dtype or t.device != x.device:
                raise ValueError(
                    f"{self.name}: {name} must be as {self.inputs[0]}, {check.type_name(x)} "
                    f"{tuple(x.shape)} on {x.device}, got {check.type_name(t)} {tuple(t.shape)} "
                    f"on {t.device}"
                )
        if timesteps is not None:
            check.check_int(self.name, "timesteps", timesteps, 0)
            return x, timesteps, x.shape
        if x.dim() == 0:
            raise ValueError(
                f"{self.name}: {self.inputs[0]} must have time as its first axis, got a scalar"
            )
        return x, x.shape[0], x.shape[1:]

    def _checked_states(self, states, parameters, x, shape):
        """(a tensor or None for each state, the number where one without starts)."""
        rest = self._rest(**parameters) if callable(self._rest) else self._rest
        if callable(self._rest):
            rest = rest if isinstance(rest, (tuple, list)) else (rest,)
            self._check_rest(rest)
        if states is None:
            states = (None,) * len(self.states)
        elif isinstance(states, Tensor) and len(self.states) == 1:
            states = (states,)
        if not isinstance(states, (tuple, list)) or len(states) != len(self.states):
            wanted = ", ".join(self.states)
            got = len(states) if isinstance(states, (tuple, list)) else check.type_name(states)
            raise ValueError(
                f"{self.name}: states must be a tuple of {len(self.states)} ({wanted}), got {got}"
            )
        given, numbers = [], []
        for name, v, start in zip(self.states, states, rest, strict=True):
            if v is not None:
                check.check_state(self.name, f"state {name}", v, x, shape)
            elif isinstance(start, Tensor):
                _check_parameter(self.name, f"the rest of {name}", start, x, shape)
                v = _along_channels(start, shape)
            given.append(v)
            numbers.append(0.0 if isinstance(start, Tensor) else float(start))
        return given, tuple(numbers)

    def _check_rest(self, rest) -> None:
        if not isinstance(rest, (tuple, list)) or len(rest) != len(self.states):
            raise ValueError(
                f"{self.name}: rest must be {len(self.states)} numbers, one for each of "
                f"({', '.join(self.states)}), or a function of the parameters that gives them, "
                f"got {rest!r}"
            )
        for value in rest:
            if not isinstance(value, Tensor):
                check.check_number(self.name, "rest", value)


def _signature(name: str, step: Callable) -> tuple[tuple[str, ...], dict]:
    """The names of what a step takes by position, and its keyword parameters."""
    positional, keywords = [], {}
    for key, parameter in inspect.signature(step).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{name}: a step must name all that it takes, got {parameter}")
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords[key] = parameter.default
        elif parameter.default is not parameter.empty:
            raise TypeError(
                f"{name}: parameters must be keyword-only, behind a *, got {parameter} by position"
            )
        else:
            positional.append(key)
    for key in keywords:
        if key in _OF_THE_CALL:
            raise TypeError(f"{name}: {key} must not name a parameter, it is one of every call")
    return tuple(positional), keywords


def _constant(value):
    """A number that torch.compile may have made symbolic, as the one that it is: a program holds
    it, and another one is another program."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = float.fromhex(float(value).hex())
    return int(number) if isinstance(value, int) else number


def _plan(definition: Definition, tensors, options, own) -> _Plan:
    try:
        return _cached_plan(definition, tensors, options, own)
    except TypeError:
        if all(_is_hashable(value) for _, value in options):
            raise
        return _cached_plan.__wrapped__(definition, tensors, options, own)


_plan._dynamo_marked_constant = True


def _is_hashable(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@functools.lru_cache(1024, typed=True)
def _cached_plan(definition: Definition, tensors, options, own) -> _Plan:
    name, inputs, states = definition.name, definition.inputs, definition.states
    for key, value in options:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name}: {key} must not be NaN")
    traced, outputs = trace(name, definition.step, len(inputs), len(states), tensors, dict(options))
    found = traced.leaves("state")
    for k, result in enumerate(traced.results[outputs:]):
        for other in range(len(states)):
            if other != k and result == found.get(other, -1):
                raise ValueError(
                    f"{name}: new states must be returned in the order of the arguments "
                    f"({', '.join(states)}), got {states[other]} in the place of {states[k]}"
                )
    prelude, main = split(traced)
    gradient = "" if own is None else _gradient(own)
    step = Step.of(main.pack(), outputs, len(inputs), len(prelude.results), gradient)
    spikes = tuple(r is not None and main.nodes[r].op == "spike" for r in main.results[:outputs])
    if not tensors and not callable(definition._rest):
        _check_gradient_at_rest(definition, step)
    return _Plan(step, prelude, spikes)


def _gradient(own: surrogates.Surrogate) -> str:
    """The packed program of a surrogate that no kernel knows; "surrogate:" where it is none."""
    try:
        return trace(type(own).__name__, own.gradient, 1, 0, (), {})[0].pack()
    except (TypeError, ValueError, NotImplementedError):
        return "surrogate:"


def _check_gradient_at_rest(definition: Definition, step: Step) -> None:
    numbers = {
        "input": [0.0] * step.inputs, "state": definition._rest, "param": [],
        "dout": [1.0] * step.outputs, "dstate": [1.0] * step.states,
    }  # fmt: skip
    leaves = {
        kind: [torch.full((), float(v), dtype=torch.float64) for v in values]
        for kind, values in numbers.items()
    }
    names = [*definition.inputs, *definition.states]
    results = evaluate(step.adjoint, leaves, surrogates.resolve("sigmoid"))
    for which, gradient in zip(names, results, strict=False):
        if gradient is not None and not gradient.isfinite():
            raise ValueError(
                f"{definition.name}: the gradient at rest must be finite, got {gradient.item()} "
                f"for {which}; keep what is divided by, or under a root, off 0"
            )


def _check_parameter(op: str, name: str, value: Tensor, x: Tensor, shape) -> None:
    wanted = layout.state_dtype(x)
    if value.dtype != wanted:
        raise TypeError(
            f"{op}: {name} must be {str(wanted).removeprefix('torch.')} for {check.type_name(x)} "
            f"{'x'}, got {check.type_name(value)}"
        )
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {value.device}")
    fits = value.dim() == 0 or (value.dim() == 1 and len(shape) > 1 and value.shape[0] == shape[1])
    if not fits:
        channels = shape[1] if len(shape) > 1 else "no channel axis"
        raise ValueError(
            f"{op}: {name} must be a scalar tensor or have one value per channel (axis 2 of "
            f"[T, B, C, ...], here {channels}), got shape {tuple(value.shape)}"
        )


def _along_channels(value: Tensor, shape) -> Tensor:
    if value.dim():
        value = value.view(-1, *[1] * (len(shape) - 2))
    return value.expand(shape).contiguous()


def _returned(outputs, states, return_state):
    """One output, or one state, stands alone."""
    s = outputs[0] if len(outputs) == 1 else tuple(outputs)
    if not return_state:
        return s
    return s, (states[0] if len(states) == 1 else tuple(states))


def _neuron(step: Callable | None = None, *, inputs: int = 1, rest=None):
    r"""A neuron from a function of one timestep; it then runs over all timesteps in one launch.

    ::

        @snnfast.neuron
        def adaptive_lif(x, v, a, *, tau=20.0, rho=0.95, beta=1.8, theta=1.0):
            h = v + (x - v) / tau
            s = snnfast.spike(h - (theta + beta * a))
            return s, h * (1 - s.detach()), rho * a + s.detach()

        s = adaptive_lif(x, surrogate="atan")
        s, (v, a) = adaptive_lif(x, states=(v0, a0), rho=rho, return_state=True)

    The function is traced, once for each choice of its parameters, on tensors without values. What
    may stand in it: + - * /, neg, abs, minimum, maximum, clamp, relu, comparisons, and/or/not,
    where, exp, log, sqrt, rsqrt, tanh, sigmoid, pow by a constant, detach (also ``no_grad``),
    ``snnfast.spike`` and ``snnfast.ternary_spike``. Anything else is refused by its name.

    Args:
        step: takes its inputs and states by position and its parameters by keyword; returns its
            outputs and then the new states, in the order of the arguments. Without a state, or
            without a spike, it is a neuron as well.
        inputs: how many of the arguments by position are inputs.
        rest: where the states start, one number each (default 0), or a function that takes the
            parameters by keyword and gives these numbers, or tensors [] or [C].

    The neuron is called with its inputs [T, ...], all of one shape, dtype and device, and::

        states        a tensor [...] or None for each state, float32 (float64 for float64 inputs);
                      of a neuron with one state that tensor itself
        surrogate     as in ``snnfast.lif``; a subclass of your own is fused, too
        timesteps     T, for static inputs [...]
        return_state  True: also the states after the last step; "all": after every step [T, ...]
        backend       as in ``snnfast.lif``
        parameters    as the function has them: a number, or where the function computes with it a
                      tensor [] or [C] (axis 2 of [T, B, C, ...]), which may require gradient;
                      whatever else (a bool, a string, None) the function may branch on

    and returns outputs [T, ...] in x's dtype and layout, with ``return_state`` (outputs, states);
    a tuple of either where there are several. State and arithmetic are float32 whatever x's dtype.
    + - * / and the square root, comparisons and selections are bit-equal on all backends and to
    the function called in a loop. Kept for backward are the inputs, and 4 bytes per state, neuron
    and 8 steps. What depends on parameters alone is computed once a call.

    Raises:
        TypeError, ValueError: ``<name>: ... must ..., got ...``, where it can be at the definition,
            else at the first call.
    """
    if step is None:
        return functools.partial(Definition, inputs=inputs, rest=rest)
    return Definition(step, inputs, rest)


class _Decorator:
    """``snnfast.neuron``: a function, but for what it says to who takes it for a module."""

    def __init__(self):
        functools.update_wrapper(self, _neuron)
        self.__name__ = self.__qualname__ = "neuron"

    def __call__(self, *args, **kwargs):
        return _neuron(*args, **kwargs)

    def __getattr__(self, name: str):
        hint = ""
        if name.endswith("Node"):
            hint = f"; SpikingJelly's is snnfast.interop.spikingjelly.neuron.{name}"
        raise AttributeError(f"snnfast.neuron is a decorator and has no attribute {name!r}{hint}")


neuron = _Decorator()
