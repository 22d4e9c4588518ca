"""SpikingJelly's surrogate functions as those of snnfast: the known ones by name and numbers, any
other by its own backward; each compared with the original, once for each class and its numbers."""

import copy
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snnfast import surrogate as surrogates
from snnfast.program.trace import in_no_mode, trace

_KNOWN = surrogates.BY_CLASS | {"DeterministicPass": surrogates.StraightThrough}
PARTS_OF_A_MODULE = frozenset(vars(nn.Module()))
_MUST_BE_EMPTY = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_parameters", "_buffers", "_modules"
)  # fmt: skip
_CONSTANTS = frozenset(
    (bool, int, float, str, type(None), types.FunctionType, torch.jit.ScriptFunction)
)
REMEMBERED = 256


class Firing(NamedTuple):
    """How a node fires."""

    surrogate: surrogates.Surrogate | None
    fire: str
    """">=" or ">"."""
    why_not: str | None
    """Why it cannot be said with a surrogate of snnfast; then the others mean nothing."""


@dataclass(frozen=True)
class Theirs(surrogates.Surrogate):
    """A surrogate whose gradient is the backward of somebody's spike function."""

    function: Callable = None

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad(), OutOfPlace():
            return _gradient(self.function, x.detach().requires_grad_())


def _gradient(function, x: Tensor) -> Tensor:
    s = function(x)
    # What torch.autograd.grad does in the end: it is called out of the mode, and imports the
    # compiler (2 s) for a gradient to start from.
    run = torch.autograd.Variable._execution_engine.run_backward
    return run((s,), (torch.ones_like(s),), False, False, (x,), False, accumulate_grad=False)[0]


class OutOfPlace(TorchFunctionMode):
    """``y.pow_(2)`` as ``y.pow(2)``, ``y += 1`` as ``y = y + 1``: a program has no operation in
    place. Where the change is seen through another name, the result differs from the original's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name.startswith("__i") and hasattr(operator, name):
            function = getattr(operator, f"__{name[3:]}", function)
        elif name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            function = getattr(Tensor, name.removesuffix("_"), function)
        return function(*args, **(kwargs or {}))


_found: dict = {}
_own_names: dict[type, tuple[int, tuple[str, ...]]] = {}
"""By class how many attributes an object has, and the names of those that are no part of every
module."""


def firing(function) -> Firing:
    """How a node with ``function`` as its ``surrogate_function`` fires, with its numbers of now."""
    key = _key(function)
    if key is None:
        return Firing(None, ">=", "it holds more than numbers, or has hooks")
    found = _found.get(key)
    if found is None:
        if len(_found) >= REMEMBERED:
            _found.clear()
        found = _found[key] = _find(function)
    return found


def _key(function):
    """What the gradient depends on; None where that cannot be told."""
    if not isinstance(function, nn.Module):
        owner = getattr(function, "__self__", None)  # of the apply of an autograd.Function
        if owner is not None:
            return owner if isinstance(owner, type) else None
        key = [function]
        for cell in getattr(function, "__closure__", None) or ():
            key.append(cell.cell_contents)
            if type(key[-1]) not in _CONSTANTS and not isinstance(key[-1], type):
                return None
        return tuple(key)
    cls, own = type(function), vars(function)
    for part in _MUST_BE_EMPTY:
        if own[part]:
            return None
    count, names = _own_names.get(cls, (0, ()))
    if count != len(own):
        names = tuple(name for name in own if name not in PARTS_OF_A_MODULE)
        _own_names[cls] = len(own), names
    try:
        values = [own[name] for name in names]
    except KeyError:  # other names of the same number
        del _own_names[cls]
        return _key(function)
    for value in values:
        if type(value) not in _CONSTANTS:
            if type(value) is not tuple or not all(type(one) in _CONSTANTS for one in value):
                return None
    return cls, *values


def _find(function) -> Firing:
    name = type(function).__name__ if isinstance(function, nn.Module) else _name(function)
    if not getattr(function, "spiking", True):
        return Firing(None, ">=", f"{name}(spiking=False) fires no spikes")
    numbers = torch.Generator().manual_seed(0)  # not those of the model's training
    with in_no_mode():
        random = 2 * torch.randn(256, generator=numbers, dtype=torch.float32, device="cpu")
        u = torch.cat([torch.arange(-60, 61, device="cpu") / 20, random]).requires_grad_()
        try:
            s = function(u)
            gradient = _gradient(function, u) if s.requires_grad else None
        except Exception as error:  # it is somebody's: whatever it raises, it is not known here
            return Firing(None, ">=", f"{name} raises {type(error).__name__} on a vector")
        steps = {fire: step for fire, step in ((">=", u >= 0), (">", u > 0))}
        fire = next((f for f, step in steps.items() if torch.equal(s, step.to(s.dtype))), None)
        if fire is None or gradient is None:
            lack = "spikes" if fire is None else "a gradient"
            return Firing(None, ">=", f"{name} has other outputs than {lack}")
        for candidate in _candidates(function, name):
            if _is_gradient(candidate, u.detach(), gradient):
                return Firing(candidate, fire, None)
    return Firing(None, ">=", f"the surrogate {name} cannot be fused")


def _name(function) -> str:
    owner = getattr(function, "__self__", function)
    return getattr(owner, "__name__", type(owner).__name__)


def _candidates(function, name: str):
    known = _KNOWN.get(name)
    if known is not None:
        names = [f for f in known.__dataclass_fields__ if f != "spiking"]
        numbers = {f: getattr(function, f) for f in names if hasattr(function, f)}
        try:
            yield known(**numbers)
        except (TypeError, ValueError):
            pass
    yield Theirs(function=_as_it_is_now(function))  # its numbers may change until backward


def _as_it_is_now(function):
    if type(function) is not types.FunctionType or not function.__closure__:
        return copy.deepcopy(function)
    cells = tuple(types.CellType(cell.cell_contents) for cell in function.__closure__)
    code, defaults = function.__code__, function.__defaults__
    return types.FunctionType(code, function.__globals__, function.__name__, defaults, cells)


def _is_gradient(candidate, u: Tensor, wanted: Tensor) -> bool:
    """Whether ``candidate`` gives that gradient, and a kernel can know it."""
    try:
        if candidate.ID is None:
            trace(type(candidate).__name__, candidate.gradient, 1, 0, (), {})
        return torch.allclose(candidate.gradient(u), wanted, rtol=1e-5, atol=1e-6)
    except Exception:  # as above
        return False
