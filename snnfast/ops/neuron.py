"""``@snnfast.neuron``: any neuron, written once as a function of one timestep."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends.spec import NeuronLayer
from snnfast.ops import layer as layers
from snnfast.ops import neuron_op
from snnfast.ops import validation as check
from snnfast.ops.direct import is_direct
from snnfast.ops.neuron_plan import Plan, constant, plan_of
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import check_name, select
from snnfast.program.evaluate import evaluate
from snnfast.program.text import Listing

_OF_THE_CALL = ("states", "surrogate", "timesteps", "return_state", "backend")


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
        self.rest = (0.0,) * len(self.states) if rest is None else rest
        if not callable(rest):
            self._check_rest(self.rest)
        if inspect.Parameter.empty not in self.defaults.values():
            self._planned({})  # what cannot be fused is said here and now

    def __repr__(self):
        return f"<neuron {self.name}{inspect.signature(self.step)}>"

    def __reduce__(self):  # by name, as a function is
        return self.__qualname__

    def named(self, name: str) -> "Definition":
        """The same under another name, for messages and ``explain``."""
        other = object.__new__(Definition)  # what copy gives is found by its name, and so itself
        vars(other).update(vars(self), name=name)
        return other

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
        bound = self.bind(
            inputs, parameters, states=states, surrogate=surrogate, timesteps=timesteps,
            return_state=return_state, backend=backend,
        )  # fmt: skip
        if bound.backend == "reference":
            return looped(self, bound)
        call, params = prepared(bound)
        step = call.layer.step
        inputs = [layers.with_dense_steps(inputs[0], call.layer, call.backend), *inputs[1:]]
        given = (*inputs, *bound.states, *params)
        if layers.want_gradient(*given):
            results = neuron_op.Neuron.apply(call, *given)
        else:
            outputs, after, _ = neuron_op.forward(call, inputs, bound.states, params, False)
            results = (*outputs, *after)
        return returned(bound, results[: step.outputs], results[step.outputs :])

    def bind(
        self, inputs, parameters: dict, *, states, surrogate, timesteps, return_state, backend,
        norm: str = "", beside: Sequence[Tensor | None] = (),
    ) -> "Bound":  # fmt: skip
        """The arguments of a call, checked. ``norm``: the program is that of the neuron behind a
        normalisation, as ``plan_of`` has it; ``beside``: what that reads."""
        x, steps, shape = self._checked_inputs(inputs, timesteps)
        if not isinstance(return_state, (bool, str)) or return_state not in (False, True, "all"):
            raise ValueError(
                f"{self.name}: return_state must be False, True or 'all', got {return_state!r}"
            )
        if backend is not None:
            check_name(backend, self.name)
        chosen = surrogates.resolve(surrogate, self.name)
        plan, tensors, options = self._planned(parameters, chosen, norm)
        for name, value in tensors.items():
            check.check_row(self.name, name, value, x, shape)
        states, rest = self._checked_states(states, tensors | options, x, shape)
        seen = check.transformed(*inputs, *states, *tensors.values(), *beside)
        unknown = None
        if not chosen.spiking:
            unknown = f"{type(chosen).__name__}(spiking=False)"
        elif not plan.fusible:
            unknown = type(chosen).__name__
        name = select(
            self.name, backend, x.device.type, x.dtype, False, unknown, "neuron_forward", seen
        )
        static = timesteps is not None
        return Bound(
            self.name,
            plan,
            inputs,
            states,
            rest,
            tensors,
            options,
            chosen,
            steps,
            static,
            return_state,
            name,
        )

    def check_names(self, parameters) -> None:
        """TypeError for a name that is no parameter of the neuron."""
        for name in parameters:
            if name not in self.defaults:
                known = ", ".join((*self.defaults, *_OF_THE_CALL))
                raise TypeError(f"{self.name}: arguments must be among {known}, got {name}")

    def _planned(self, parameters: dict, surrogate=None, norm: str = "") -> tuple[Plan, dict, dict]:
        """(the plan, the parameters that are tensors, the others), in the definition's order."""
        self.check_names(parameters)
        parameters = {k: parameters.get(k, default) for k, default in self.defaults.items()}
        for name, value in parameters.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{self.name}: {name} must be given, got nothing")
        tensors = {k: v for k, v in parameters.items() if isinstance(v, Tensor)}
        options = {k: v for k, v in parameters.items() if k not in tensors}
        if torch.compiler.is_compiling():
            options = {k: constant(v) for k, v in options.items()}
        own = surrogate if surrogate is not None and surrogate.ID is None else None
        return plan_of(self, tuple(tensors), tuple(options.items()), own, norm), tensors, options

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
        rest = self.rest(**parameters) if callable(self.rest) else self.rest
        if callable(self.rest):
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
                check.check_row(self.name, f"the rest of {name}", start, x, shape)
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


def _along_channels(value: Tensor, shape) -> Tensor:
    if value.dim():
        value = value.view(-1, *[1] * (len(shape) - 2))
    return value.expand(shape).contiguous()


class Bound(NamedTuple):
    """The checked arguments of a call."""

    name: str
    plan: Plan
    inputs: Sequence[Tensor]
    states: list[Tensor | None]
    rest: tuple[float, ...]
    """Where the states start that are None."""
    tensors: dict[str, Tensor]
    options: dict
    surrogate: surrogates.Surrogate
    steps: int
    static: bool
    return_state: "bool | str"
    backend: str


def looped(definition: Definition, bound: Bound, dtype: torch.dtype | None = None):
    """What the neuron's call returns, by the reference; outputs in x's dtype, or in ``dtype``."""
    x = bound.inputs[0]
    shape, state = x.shape if bound.static else x.shape[1:], layout.state_dtype(x)
    start = [
        torch.full(shape, number, dtype=state, device=x.device) if v is None else v
        for v, number in zip(bound.states, bound.rest, strict=True)
    ]
    outputs, passed = reference.neuron(
        definition.step, bound.inputs, start, bound.tensors | bound.options,
        outputs=bound.plan.step.outputs, surrogate=bound.surrogate,
        timesteps=bound.steps if bound.static else None,
    )  # fmt: skip
    after = [v[1:] if bound.return_state == "all" else v[-1] for v in passed]
    return _as_asked(bound, [s.to(dtype or s.dtype) for s in outputs], after)


def prepared(bound: Bound) -> tuple[neuron_op.Call, list[Tensor]]:
    """The call of a backend, and the parameters of its program."""
    plan, tensors = bound.plan, list(bound.tensors.values())
    params = list(evaluate(plan.prelude, {"param": tensors})) if tensors else []
    number, (a, b) = 0, (0.0, 0.0)
    if not plan.step.gradient:
        number, (a, b) = bound.surrogate.ID, bound.surrogate.params()
    layer = NeuronLayer(plan.step, number, bound.static, a, b, bound.rest, bound.steps)
    state = layers.STATE_ALL if bound.return_state == "all" else int(bool(bound.return_state))
    direct = is_direct(*bound.inputs, *bound.states, *params)
    return neuron_op.Call(layer, state, bound.backend, direct, bound.name, bound.surrogate), params


def returned(bound: Bound, outputs, states):
    """What the call returns, of what the op does."""
    for s, spikes in zip(outputs, bound.plan.spikes, strict=True):
        if spikes:
            mark_spikes(s)
    return _as_asked(bound, outputs, states)


def _as_asked(bound: Bound, outputs, states):
    """One output, or one state, stands alone."""
    s = outputs[0] if len(outputs) == 1 else tuple(outputs)
    if not bound.return_state:
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

    The function is traced, once for each choice of its parameters, on a few numbers. What
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
