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


@functools.cache
def _unusual() -> int:
    """The dispatch keys that a plain tensor on a CPU does not have."""
    with torch.inference_mode(False):
        return ~_keys(torch.empty(0, device="cpu")).raw_repr()


def _is_large(x: Tensor, elements: int) -> bool:
    """Whether what is made beside ``x`` is to be in our memory."""
    # The type comes first: in a subclass a size can be a symbol, which must not be compared.
    if type(x) not in (Tensor, Parameter) or elements < LARGE:
        return False
    return not _keys(x).raw_repr() & _unusual() and available() is None


def _new(dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int] = ()) -> Tensor:
    return from_dlpack(module().new_result(layout.DTYPES[dtype], sizes, strides))


def empty(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous, on x's device."""
    if _is_large(x, math.prod(shape)):
        return _new(dtype, shape)
    return layout.empty(x, shape, dtype)


def empty_like(x: Tensor) -> Tensor:
    """Of x's shape, dtype and memory layout."""
    if _is_large(x, x.numel()) and x.is_contiguous():
        return _new(x.dtype, x.shape)
    return torch.empty_like(x)


def empty_steps(x: Tensor, axis: int, leading: list[int], dtype: torch.dtype) -> Tensor:
    """[*leading, ...] with the memory layout of x within a timestep; batch-first where x is."""
    if _is_large(x, x.numel()):
        return _new(dtype, *layout.steps(x, axis, leading))
    return layout.empty_steps(x, axis, leading, dtype)
