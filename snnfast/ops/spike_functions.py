"""Spike functions with a gradient of their own, as other libraries have them, as surrogates."""

import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfast import surrogate as surrogates
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.program.trace import in_no_mode, trace

_TRIED = (-8.0, -1.0, -0.5, -1e-3, -1e-30, 0.0, 1e-30, 1e-3, 0.3, 0.5, 1.0, 8.0)


@dataclass(frozen=True)
class Traced(surrogates.Surrogate):
    """The gradient that was found in a function of somebody else's."""

    name: str
    program: Program

    def gradient(self, x):
        return evaluate(self.program, {"input": [x]})[0]


# Those of snnTorch 1.0 that no program is read from, or whose formula kernels know: by the names of
# the functions that make them, from the numbers that these hold.
_OF_SNNTORCH = {
    "atan": lambda alpha: surrogates.ATan(alpha=alpha),
    "fast_sigmoid": lambda slope: surrogates.FastSigmoid(slope=slope),
    "sigmoid": lambda slope: surrogates.Sigmoid(alpha=slope),
    "straight_through_estimator": surrogates.StraightThrough,
    "triangular": lambda threshold: surrogates.LeakyKReLU(leak=threshold, k=-threshold),
    "heaviside": lambda: _as_program("heaviside", lambda x: (x > 0).to(x.dtype)),
}
_known: "weakref.WeakKeyDictionary[Callable, surrogates.Surrogate]" = weakref.WeakKeyDictionary()


def surrogate_of(function: Callable) -> surrogates.Surrogate:
    """The surrogate gradient of ``function``, which gives 1 where its argument is > 0, else 0.

    Raises:
        ValueError: in words that may follow its name: it fires elsewhere, or has a gradient that
            no program can hold.
    """
    # What an object holds may change from call to call.
    fixed = isinstance(getattr(function, "__self__", None), type) or isinstance(
        function, types.FunctionType
    )
    if not fixed:
        return _found(function)
    if function not in _known:
        _known[function] = _found(function)
    return _known[function]


def name_of(function: Callable) -> str:
    """What a user calls it: ``atan`` for what ``atan()`` gave."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return name.split(".<locals>")[0].rsplit(".", 1)[-1]


def _found(function: Callable) -> surrogates.Surrogate:
    name, numbers = name_of(function), {}
    theirs = getattr(function, "__module__", None) == "snntorch.surrogate"
    if theirs:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        numbers = {key: cell.cell_contents for key, cell in cells}
        if name == "SSO":
            raise ValueError("has a gradient that is drawn at random")
    plain = all(type(value) in (int, float) for value in numbers.values())
    with in_no_mode():
        x = torch.tensor(_TRIED, requires_grad=True)
        wanted = _tried(function, x)
        if wanted is None:
            return surrogates.LeakyKReLU(leak=0.0, k=0.0)
        if theirs and plain and name in _OF_SNNTORCH:
            return _OF_SNNTORCH[name](**numbers)
        custom = theirs and name == "custom_surrogate"
        gradient = _custom(numbers["func"]) if custom else functools.partial(_gradient, function)
        found = _as_program(name, gradient)
        if not torch.allclose(found.gradient(x.detach()), wanted, equal_nan=True):
            raise ValueError("has a gradient that is not a function of its argument alone")
    return found


def _tried(function: Callable, x: Tensor) -> Tensor | None:
    """Its gradient at x, None where it has none; once it has fired, and passed gradients, as it
    must."""
    try:
        s = function(x)
        if not torch.equal(s.detach().float(), (x > 0).float()):
            raise ValueError("does not give 1 where its argument is > 0 and 0 elsewhere")
        if not s.requires_grad:
            return None
        along = torch.linspace(-2.0, 3.0, len(x))
        (ones,) = torch.autograd.grad(s, x, torch.ones_like(s), retain_graph=True)
        (found,) = torch.autograd.grad(s, x, along)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"fails with {type(error).__name__}: {error}") from error
    if not torch.allclose(found, along * ones, equal_nan=True):
        raise ValueError("has a gradient that is not a factor of the one behind it")
    return ones


def _gradient(function: Callable, x: Tensor) -> Tensor:
    s = function(x)
    return torch.autograd.grad(s, x, torch.ones_like(s))[0]


def _custom(function: Callable) -> Callable:
    """The gradient of ``snntorch.surrogate.custom_surrogate(function)``."""
    return lambda x: function(x, torch.ones_like(x), (x > 0).to(x.dtype))


def _as_program(name: str, gradient: Callable) -> Traced:
    try:
        return Traced(name, trace(name, gradient, 1, 0, (), {})[0])
    except Exception as error:
        raise ValueError(f"has a gradient that cannot be fused ({error})") from error
