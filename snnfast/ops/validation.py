"""Checks of what users pass in, in one form: ``op: argument must be ..., got ...``.

Before any launch; nothing is cast, and only a layout that no kernel reads is copied.
"""

import functools
import math

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from snnfast.backends.layout import IO_DTYPES, state_dtype


def memoized(function):
    """Arguments that were checked once are good for good; under torch.compile they are traced."""
    cached = functools.lru_cache(256, typed=True)(function)

    @functools.wraps(function)
    def call(*args):
        if torch.compiler.is_compiling():
            return function(*args)
        try:
            return cached(*args)
        except TypeError:  # one of them is not hashable, or of a wrong type
            return function(*args)

    return call


REMEMBERED = 1024


def by_kind(function):
    """``function(tensors, *options)``, which looks at nothing of tensors but their shapes, strides,
    dtypes, devices and layouts: arguments that were checked once are good for good. Under
    torch.compile they are traced."""
    known = {}

    @functools.wraps(function)
    def call(tensors, *options):
        if torch.compiler.is_compiling():
            return function(tensors, *options)
        try:
            kinds = [
                t if t is None else (t.shape, t.stride(), t.dtype, t.device, t.layout)
                for t in tensors
            ]
            key = (*kinds, options, *map(type, options))  # 1 is no bool
            found = known.get(key)
        except (AttributeError, RuntimeError, TypeError):  # no tensor, one without strides, a list
            return function(tensors, *options)
        if found is None:
            found = function(tensors, *options)
            if len(known) >= REMEMBERED:
                known.clear()
            known[key] = found
        return found

    return call


def type_name(value) -> str:
    return (
        str(value.dtype).removeprefix("torch.")
        if isinstance(value, Tensor)
        else (type(value).__name__)
    )


transform = torch._C._functorch.maybe_current_level
"""Of torch.func, what sees what is computed now; None where nothing does."""


def transformed(*tensors: Tensor | None) -> bool:
    """Whether torch.func, or forward mode with a tangent of one of them, sees what is computed of
    these now. Neither sees into a kernel: without a word the one would lose gradients and the other
    give zero tangents."""
    if transform() is not None:
        return True
    if forward_ad._current_level >= 0:
        for t in tensors:
            if t is not None and forward_ad.unpack_dual(t).tangent is not None:
                return True
    return False


def in_checkpoint() -> bool:
    """Whether ``torch.utils.checkpoint`` (without ``use_reentrant``) counts what autograd keeps,
    which must be as many tensors of the same shapes when it runs again."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


# What torch.compiler.assume_constant_result does, which would import the compiler.
in_checkpoint._dynamo_marked_constant = True


def plain(t: Tensor) -> Tensor:
    """The values of ``t`` without what transforms of torch.func have wrapped around it; those of
    all that is mapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def to_look_at(t: Tensor) -> Tensor | None:
    """The values of ``t``; None where they may not be looked at: elsewhere than on the CPU that
    would wait for the device, and who traces a transform has none."""
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if transform() is None and forward_ad._current_level < 0:
        return t.detach()
    return None if torch._C._len_torch_dispatch_stack() else plain(t).detach()


def check_input(op: str, name: str, x) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type_name(x)}")
    if x.dtype not in IO_DTYPES:
        raise TypeError(
            f"{op}: {name} must be float32, float16 or bfloat16 (or float64 on reference and cpu), "
            f"got {type_name(x)}"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {x.layout}")


LARGEST, SMALLEST = 3.4028234663852886e38, 1.1754943508222875e-38
"""Of float32, which every backend computes in."""


def check_number(op: str, name: str, value, *, finite: bool = True, hint: str = "") -> float:
    """A float32 number; infinity is one only where it need not be ``finite``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        got = f"a {type_name(value)} tensor" if isinstance(value, Tensor) else type_name(value)
        raise TypeError(f"{op}: {name} must be a number{hint}, got {got}")
    # Comparisons only: under torch.compile a number may be symbolic, and math.isfinite is not.
    infinite = not -math.inf < value < math.inf
    if value != value or (infinite and finite):
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    if not infinite and not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{op}: {name} must be in float32's range, +-3.4e38, got {value:g}")
    return float(value)


def check_positive(op: str, name: str, value) -> float:
    value = check_number(op, name, value)
    if not value >= SMALLEST:
        raise ValueError(f"{op}: {name} must be > 0 (and in float32's range), got {value:g}")
    return value


def check_int(op: str, name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int, got {type_name(value)}")
    if value < least:
        raise ValueError(f"{op}: {name} must be >= {least}, got {value}")


def check_bool(op: str, name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type_name(value)}")


def check_norm(op: str, momentum, eps) -> tuple[float, float]:
    """The two numbers of a batch norm."""
    momentum = check_number(op, "momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"{op}: momentum must be in 0..1, got {momentum}")
    return momentum, check_positive(op, "eps", eps)


def check_state(op: str, name: str, v: Tensor, x: Tensor, shape: torch.Size) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor or None, got {type_name(v)}")
    wanted = state_dtype(x)
    if v.dtype != wanted:
        raise TypeError(
            f"{op}: {name} must be {str(wanted).removeprefix('torch.')} for {type_name(x)} x, "
            f"got {type_name(v)}"
        )
    if v.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {v.device}")
    if v.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(v.shape)}")


def check_row(op: str, name: str, value: Tensor, x: Tensor, shape: torch.Size) -> None:
    """A tensor [] or [C], C being axis 1 of one timestep's shape [B, C, ...]."""
    wanted = state_dtype(x)
    if value.dtype != wanted:
        raise TypeError(
            f"{op}: {name} must be {str(wanted).removeprefix('torch.')} for {type_name(x)} x, "
            f"got {type_name(value)}"
        )
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {value.device}")
    if value.dim() > 1:
        raise ValueError(f"{op}: {name} must be of shape [] or [C], got {tuple(value.shape)}")
    channels = shape[1] if len(shape) > 1 else "no channel axis"
    if value.dim() and value.shape[0] != channels:
        raise ValueError(
            f"{op}: {name} must be a scalar tensor or have one value per channel "
            f"(axis 2 of [T, B, C, ...], here {channels}), got shape {tuple(value.shape)}"
        )


def check_finite(op: str, name: str, value: Tensor) -> None:
    values = to_look_at(value)
    if values is not None and not bool(values.isfinite().all()):
        raise ValueError(f"{op}: {name} must be finite, got {values.tolist()}")


def check_rate(op: str, name: str, rate: Tensor, x: Tensor, shape: torch.Size) -> None:
    """A tensor tau or inv_tau."""
    check_row(op, name, rate, x, shape)
    values = to_look_at(rate)
    if values is not None:
        low, high = (1.0, math.inf) if name == "tau" else (0.0, 1.0)
        if not bool(((values >= low) & (values <= high) & values.isfinite()).all()):
            bound = ">= 1 and finite" if name == "tau" else "in 0..1"
            raise ValueError(f"{op}: {name} must be {bound}, got {values.tolist()}")


def check_sequence(op: str, logits) -> None:
    """Logits [T, B, C]."""
    check_input(op, "logits", logits)
    if logits.dim() != 3 or logits.numel() == 0:
        raise ValueError(
            f"{op}: logits must be [T, B, C], none of them 0, got {tuple(logits.shape)}"
        )


def check_labels(op: str, target, logits: Tensor) -> None:
    """int64 [B] beside logits [T, B, C]."""
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64 labels, got {type_name(target)}")
    if target.shape != logits.shape[1:2]:
        hint = "; logits are [T, B, C], time first" if target.shape == logits.shape[:1] else ""
        raise ValueError(
            f"{op}: target must have shape ({logits.shape[1]},), got {tuple(target.shape)}{hint}"
        )
    if target.device != logits.device:
        raise ValueError(
            f"{op}: target must be on logits' device {logits.device}, got {target.device}"
        )


def check_logits(op: str, name: str, tensor, logits: Tensor, shape: tuple[int, ...]) -> None:
    """A floating tensor beside the logits, float64 only where they are."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type_name(tensor)}")
    if tensor.dtype not in IO_DTYPES or (
        tensor.dtype == torch.float64 and logits.dtype != torch.float64
    ):
        raise TypeError(
            f"{op}: {name} must be float32, float16 or bfloat16 (or float64 as the logits), "
            f"got {type_name(tensor)}"
        )
    if tensor.device != logits.device:
        raise ValueError(
            f"{op}: {name} must be on logits' device {logits.device}, got {tensor.device}"
        )
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
