"""Spike functions with a gradient of their own, as other libraries have them, as surrogates."""

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


def _spike_rate_escape(beta, slope):
    return lambda x: slope * torch.exp(-beta * torch.abs(x - 1))


def _sparse_fast_sigmoid(slope, b):
    return lambda x: 1 / (slope * torch.abs(x) + 1.0) ** 2 * (x > b).to(x.dtype)


# Those of snnTorch 1.0 whose formula is in the table; by the names of the functions that make them,
# from the numbers that they hold. Their heaviside has no gradient at 0, where ours would have one.
_OF_SNNTORCH = {
    "atan": lambda alpha: surrogates.ATan(alpha=alpha),
    "fast_sigmoid": lambda slope: surrogates.FastSigmoid(slope=slope),
    "sigmoid": lambda slope: surrogates.Sigmoid(alpha=slope),
    "straight_through_estimator": surrogates.StraightThrough,
    "triangular": lambda threshold: surrogates.LeakyKReLU(leak=threshold, k=-threshold),
    "heaviside": lambda: _as_program("heaviside", lambda x: (x > 0).to(x.dtype)),
    "spike_rate_escape": lambda beta, slope: _as_program(
        "spike_rate_escape", _spike_rate_escape(beta, slope)
    ),
    "SFS": lambda slope, B: _as_program("SFS", _sparse_fast_sigmoid(slope, B)),
}
_known: "weakref.WeakKeyDictionary[Callable, surrogates.Surrogate]" = weakref.WeakKeyDictionary()


def surrogate_of(function: Callable) -> surrogates.Surrogate:
    """The surrogate gradient of ``function``, which gives 1 where its argument is > 0, else 0.

    Raises:
        ValueError: in words that may follow its name: it fires elsewhere, or has a gradient that
            no program can hold.
    """
    try:
        return _known[function]
    except (KeyError, TypeError):
        found = _found(function)
    try:
        _known[function] = found
    except TypeError:
        pass  # not hashable, or without weak references
    return found


def name_of(function: Callable) -> str:
    """What a user calls it: ``atan`` for what ``atan()`` gave."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return name.split(".<locals>")[0].rsplit(".", 1)[-1]


def _found(function: Callable) -> surrogates.Surrogate:
    name = name_of(function)
    if getattr(function, "__module__", None) == "snntorch.surrogate":
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        held = {key: cell.cell_contents for key, cell in cells}
        if name in _OF_SNNTORCH and all(isinstance(v, (int, float)) for v in held.values()):
            return _OF_SNNTORCH[name](**held)
        if name == "SSO":
            raise ValueError("has a gradient that is drawn at random")
        if name == "custom_surrogate":
            return _as_program(name, lambda x: _custom(held["func"], x))
    with in_no_mode():
        differentiable = _check(function)
    if not differentiable:
        return surrogates.LeakyKReLU(leak=0.0, k=0.0)
    return _as_program(name, lambda x: _gradient(function, x))


def _check(function: Callable) -> bool:
    """Whether it has a gradient at all, once it has fired and passed gradients as it must."""
    x = torch.tensor(_TRIED, requires_grad=True)
    try:
        s = function(x)
    except Exception as error:
        raise ValueError(f"fails with {type(error).__name__}: {error}") from error
    if not isinstance(s, Tensor) or not torch.equal(s.detach().float(), (x > 0).float()):
        raise ValueError("does not give 1 where its argument is > 0 and 0 elsewhere")
    if not s.requires_grad:
        return False
    along = torch.linspace(-2.0, 3.0, len(_TRIED))
    (ones,) = torch.autograd.grad(s, x, torch.ones_like(s), retain_graph=True)
    (found,) = torch.autograd.grad(s, x, along)
    if not torch.allclose(found, along * ones, equal_nan=True):
        raise ValueError("has a gradient that is not a factor of the one behind it")
    return True


def _gradient(function: Callable, x: Tensor) -> Tensor:
    s = function(x)
    return torch.autograd.grad(s, x, torch.ones_like(s))[0]


def _custom(function: Callable, x: Tensor) -> Tensor:
    """The gradient of ``snntorch.surrogate.custom_surrogate(function)``."""
    return function(x, torch.ones_like(x), (x > 0).to(x.dtype))


def _as_program(name: str, gradient: Callable) -> Traced:
    try:
        return Traced(name, trace(name, gradient, 1, 0, (), {})[0])
    except Exception as error:
        raise ValueError(f"has a gradient that cannot be fused ({error})") from error
