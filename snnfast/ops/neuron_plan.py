"""What a definition is to a backend: traced, split and differentiated, once for each choice of
which parameters are tensors and what the others are."""

import functools
import math
from typing import NamedTuple

import torch

from snnfast import surrogate as surrogates
from snnfast.backends.spec import Step
from snnfast.program.adjoint import without_detach
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.program.prelude import normalised, split
from snnfast.program.trace import in_no_mode, trace


class Plan(NamedTuple):
    """What a definition is for one choice of which parameters are tensors and what the others
    are."""

    step: Step
    prelude: Program
    spikes: tuple[bool, ...]
    """Which outputs are 0 or 1 by construction."""
    fusible: bool
    """Whether the gradient of the call's surrogate is in the table, or a program."""


def constant(value):
    """A number that torch.compile may have made symbolic, as the one that it is: a program holds
    it, and another one is another program."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = float.fromhex(float(value).hex())
    return int(number) if isinstance(value, int) else number


def plan_of(definition, tensors, options, own, norm: str = "") -> Plan:
    """``norm``: behind a normalisation "alone", or one "and a residual"."""
    try:
        plan = _cached_plan(definition, tensors, options, norm)
    except TypeError:
        if all(_is_hashable(value) for _, value in options):
            raise
        plan = _cached_plan.__wrapped__(definition, tensors, options, norm)
    if own is None:
        return plan
    gradient = _gradient(_Itself(own))
    if gradient is None:
        return plan._replace(fusible=False)
    return plan._replace(step=plan.step.with_gradient(gradient))


plan_of._dynamo_marked_constant = True


def _is_hashable(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@functools.lru_cache(1024, typed=True)
def _cached_plan(definition, tensors, options, norm) -> Plan:
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
    counts = outputs, len(inputs), len(prelude.results)
    if norm:
        residual = norm == "and a residual"
        main = normalised(main, len(prelude.results), residual)
        counts = outputs, 1 + residual, len(prelude.results) + 3
    step = Step.of(main.pack(), *counts)
    spikes = tuple(r is not None and main.fires(r) for r in main.results[:outputs])
    if not tensors and not norm and not callable(definition.rest):
        _check_gradient_at_rest(definition, step)
    return Plan(step, prelude, spikes, True)


class _Itself(NamedTuple("_Itself", [("surrogate", surrogates.Surrogate)])):
    """A surrogate of one's own as a key: one that is equal to it may have another formula."""

    __slots__ = ()

    def __hash__(self):
        return id(self.surrogate)

    def __eq__(self, other):
        return self.surrogate is other.surrogate


@functools.lru_cache(256)
def _gradient(itself: _Itself) -> str | None:
    """The packed program of a surrogate that no kernel knows; None where it cannot be one."""
    own = itself.surrogate
    try:
        return without_detach(trace(type(own).__name__, own.gradient, 1, 0, (), {})[0]).pack()
    except (TypeError, ValueError, NotImplementedError):
        return None


def _check_gradient_at_rest(definition, step: Step) -> None:
    numbers = {
        "input": [0.0] * step.inputs, "state": definition.rest, "param": [],
        "dout": [1.0] * step.outputs, "dstate": [1.0] * step.states,
    }  # fmt: skip
    names = [*definition.inputs, *definition.states]
    with in_no_mode():
        leaves = {
            kind: [torch.full((), float(v), dtype=torch.float64) for v in values]
            for kind, values in numbers.items()
        }
        results = evaluate(step.adjoint, leaves, surrogates.resolve("sigmoid"))
        finite = [gradient is None or bool(gradient.isfinite()) for gradient in results]
    for which, gradient, fine in zip(names, results, finite, strict=False):
        if not fine:
            raise ValueError(
                f"{definition.name}: the gradient at rest must be finite, got {gradient.item()} "
                f"for {which}; keep what is divided by, or under a root, off 0"
            )
