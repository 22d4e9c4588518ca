"""Checks of what users pass in, in one form: ``op: argument must be ..., got ...``.

Before any launch; nothing is cast, and only a layout that no kernel reads is copied.
"""

import math

import torch
from torch import Tensor

IO_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def type_name(value) -> str:
    return (
        str(value.dtype).removeprefix("torch.")
        if isinstance(value, Tensor)
        else (type(value).__name__)
    )


def state_dtype(x: Tensor) -> torch.dtype:
    """What a neuron's state is kept in: float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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


def check_number(op: str, name: str, value, *, finite: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type_name(value)}")
    # Comparisons only: under torch.compile a number may be symbolic, and math.isfinite is not.
    if value != value or (finite and not -math.inf < value < math.inf):
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return float(value)


def check_bool(op: str, name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type_name(value)}")


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


def check_rate(op: str, name: str, rate: Tensor, x: Tensor, shape: torch.Size) -> None:
    """A tensor tau or inv_tau: [] or [C], C being axis 1 of one timestep's shape [B, C, ...].

    Its values are looked at on the CPU only; elsewhere that would wait for the device.
    """
    wanted = state_dtype(x)
    if rate.dtype != wanted:
        raise TypeError(
            f"{op}: {name} must be {str(wanted).removeprefix('torch.')} for {type_name(x)} x, "
            f"got {type_name(rate)}"
        )
    if rate.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {rate.device}")
    if rate.dim() == 1:
        if len(shape) < 2 or shape[1] != rate.shape[0]:
            channels = shape[1] if len(shape) > 1 else "no channel axis"
            raise ValueError(
                f"{op}: {name} must be a scalar tensor or have one value per channel "
                f"(axis 2 of [T, B, C, ...], here {channels}), got shape {tuple(rate.shape)}"
            )
    elif rate.dim() != 0:
        raise ValueError(f"{op}: {name} must have shape [] or [C], got {tuple(rate.shape)}")
    if rate.device.type == "cpu" and not torch.compiler.is_compiling():
        values = rate.detach()
        low, high = (1.0, math.inf) if name == "tau" else (0.0, 1.0)
        if not bool(((values >= low) & (values <= high) & values.isfinite()).all()):
            bound = ">= 1 and finite" if name == "tau" else "in 0..1"
            raise ValueError(f"{op}: {name} must be {bound}, got {values.tolist()}")


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


def is_dense(sizes, strides) -> bool:
    """Whether elements fill a block of memory in some order of the axes, without gaps."""
    expected = 1
    for stride, size in sorted((st, si) for st, si in zip(strides, sizes, strict=True) if si != 1):
        if stride != expected:
            return False
        expected = expected * size
    return True


def with_dense_steps(x: Tensor, axis: int) -> Tensor:
    """``x``, or a contiguous copy where one timestep (the axes from ``axis`` on) is not dense."""
    if x.is_contiguous() or is_dense(x.shape[axis:], x.stride()[axis:]):
        return x
    return x.contiguous()
