"""What ops return, uninitialised; on a CPU, where it is large, in memory that stays for the next.

malloc gives a large block back to the system when its tensor goes, and the next one costs a page
fault for every 4 KiB that is written first, which takes as long as a layer of neurons or longer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from snnfast.backends import layout
from snnfast.backends.cpu.launch import available, module
from snnfast.ops.direct import unusual

LARGE = 1 << 20
"""Bytes from which on a tensor is large."""

_keys = torch._C._dispatch_keys
_profiling = torch._C._autograd._profiler_enabled


def _kept(x: Tensor, dtype: torch.dtype, sizes: Sequence[int], strides=()) -> Tensor | None:
    """A large tensor beside ``x``, row-major without strides; None where it is small, or beyond
    what is kept, ``x`` is no plain tensor on a CPU, or a profiler counts PyTorch's memory."""
    # The type comes first: in a subclass a size can be a symbol, which must not be compared.
    if type(x) not in (Tensor, Parameter) or math.prod(sizes) * dtype.itemsize < LARGE:
        return None
    if not x.is_cpu or _keys(x).raw_repr() & unusual(x.device) or _profiling() or available():
        return None
    capsule = module().new_result(layout.DTYPES[dtype], sizes, strides)
    return None if capsule is None else from_dlpack(capsule)


def empty(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous, on x's device."""
    kept = _kept(x, dtype, shape)
    if kept is not None:
        return kept
    # Without a keyword it takes half the time.
    return x.new_empty(shape) if x.dtype == dtype else x.new_empty(shape, dtype=dtype)


def empty_like(x: Tensor) -> Tensor:
    """Of x's shape, dtype and strides, where ``x`` is dense."""
    kept = _kept(x, x.dtype, x.shape, x.stride()) if x.is_contiguous() else None
    return torch.empty_like(x) if kept is None else kept


def empty_steps(x: Tensor, axis: int, leading: list[int], dtype: torch.dtype) -> Tensor:
    """[*leading, ...] with the memory layout of x within a timestep; batch-first where x is."""
    if x.is_contiguous():
        return empty(x, (*leading, *x.shape[axis:]), dtype)
    sizes, strides = layout.steps(x, axis, leading)
    kept = _kept(x, dtype, sizes, strides)
    if kept is not None:
        return kept
    return torch.empty_strided(sizes, strides, dtype=dtype, device=x.device)
