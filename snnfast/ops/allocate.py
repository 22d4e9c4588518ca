"""What ops return, uninitialised; on a CPU, where it is large, in memory that stays for the next.

malloc gives a large block back to the system when its tensor goes, and the next one costs a page
fault for every 4 KiB that is written first, which takes as long as a layer of neurons or longer.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from snnfast.backends import layout
from snnfast.backends.cpu.launch import available, module

LARGE = 1 << 18
"""Elements from which on a tensor is large."""

_keys = torch._C._dispatch_keys
_profiling = torch._C._autograd._profiler_enabled


@functools.cache
def _unusual() -> int:
    """The dispatch keys that a plain tensor on a CPU does not have."""
    with torch.inference_mode(False):
        return ~_keys(torch.empty(0, device="cpu")).raw_repr()


def _kept(x: Tensor, dtype: torch.dtype, sizes: Sequence[int], strides=()) -> Tensor | None:
    """A tensor beside ``x`` in kept memory, row-major without strides; None where it is too large
    for that, or memory is looked at."""
    if not x.is_cpu or _profiling() or _keys(x).raw_repr() & _unusual() or available():
        return None
    capsule = module().new_result(layout.DTYPES[dtype], sizes, strides)
    return None if capsule is None else from_dlpack(capsule)


def _is_large(x: Tensor, elements: int) -> bool:
    # The type comes first: in a subclass a size can be a symbol, which must not be compared.
    return type(x) in (Tensor, Parameter) and elements >= LARGE


def empty(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous, on x's device."""
    kept = _kept(x, dtype, shape) if _is_large(x, math.prod(shape)) else None
    return layout.empty(x, shape, dtype) if kept is None else kept


def empty_like(x: Tensor) -> Tensor:
    """Of x's shape, dtype and memory layout."""
    large = _is_large(x, x.numel()) and x.is_contiguous()
    kept = _kept(x, x.dtype, x.shape) if large else None
    return torch.empty_like(x) if kept is None else kept


def empty_steps(x: Tensor, axis: int, leading: list[int], dtype: torch.dtype) -> Tensor:
    """[*leading, ...] with the memory layout of x within a timestep; batch-first where x is."""
    large = _is_large(x, x.numel())
    kept = _kept(x, dtype, *layout.steps(x, axis, leading)) if large else None
    return layout.empty_steps(x, axis, leading, dtype) if kept is None else kept
