"""How tensors lie in memory: time first, and every timestep dense in an order that is x's own."""

import torch
from torch import Tensor

IO_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""The enum Dtype of csrc/include/args.h."""


def state_dtype(x: Tensor) -> torch.dtype:
    """What a neuron's state is kept in: float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _inner_first(strides) -> list[int]:
    """The axes in the order of their strides, of equal ones the last first."""
    if not torch.compiler.is_compiling():
        return sorted(range(len(strides)), key=lambda d: (strides[d], -d))
    order: list[int] = []  # which is not told how to sort numbers that it made symbols
    for d in range(len(strides)):
        at = 0
        while at < d and strides[order[at]] < strides[d]:
            at += 1
        order.insert(at, d)
    return order


def is_dense(sizes, strides) -> bool:
    """Whether elements fill a block of memory in some order of the axes, without gaps."""
    expected = 1
    for d in _inner_first(strides):
        if sizes[d] != 1:
            if strides[d] != expected:
                return False
            expected = expected * sizes[d]
    return True


SAMPLE = 4096
"""Elements of one sample's timestep from which on a launch for each sample costs less than a
copy."""


def is_batch_first(x: Tensor) -> bool:
    """Whether ``x`` [T, B, ...] lies in memory as a dense [B, T, ...] of large samples."""
    if x.dim() < 3 or x.is_contiguous():
        return False
    sizes, strides = x.shape[2:], x.stride()
    count = sizes.numel()
    beside = strides[0] == count and strides[1] == count * x.shape[0]
    large = count >= SAMPLE and x.shape[0] > 1 and x.shape[1] > 1
    return large and beside and is_dense(sizes, strides[2:])


def of_sample(t: Tensor | None, x: Tensor, n: int) -> Tensor | None:
    """The part of ``t`` [..., B, ...], beside ``x`` [T, B, ...], that belongs to a sample."""
    return None if t is None else t.narrow(t.dim() - x.dim() + 1, n, 1)


def with_dense_steps(x: Tensor, axis: int) -> Tensor:
    """``x``, or a contiguous copy where one timestep (the axes from ``axis`` on) is not dense."""
    if x.is_contiguous() or is_dense(x.shape[axis:], x.stride()[axis:]):
        return x
    return x.contiguous()


def dense_strides(sizes, strides) -> list[int]:
    """Strides in the same order, without gaps; 1 for an axis of one element."""
    dense, expected = [1] * len(sizes), 1
    for d in _inner_first(strides):
        if sizes[d] != 1:
            dense[d] = expected
            expected = expected * sizes[d]
    return dense


def step_strides(x: Tensor, axis: int) -> list[int]:
    """Strides of one timestep, as dense as x's own."""
    return dense_strides(x.shape[axis:], x.stride()[axis:])


def steps(x: Tensor, axis: int, leading: list[int]) -> tuple[list[int], list[int]]:
    """Sizes and strides of [*leading, ...] with the memory layout of x within a timestep;
    batch-first where x is."""
    sizes, strides = list(x.shape[axis:]), step_strides(x, axis)
    count = 1
    for size in sizes:
        count = count * size
    outer = [count] if leading else []
    if leading and axis == 1 and is_batch_first(x):
        outer, strides[0] = [strides[0]], strides[0] * leading[0]
    return leading + sizes, outer + strides


def like_steps(
    tensor: Tensor | None, x: Tensor, axis: int, *, any_stride: bool = False
) -> Tensor | None:
    """``tensor`` [...] or [T, ...] as kernels read it, copied where it is not: its steps laid out
    as x's are and side by side, or at ``any_stride``."""
    if tensor is None or (tensor.is_contiguous() and x.is_contiguous()):
        return tensor
    sizes, lead = x.shape[axis:], tensor.dim() - (x.dim() - axis)
    if lead < 0 or tensor.shape[lead:] != sizes:
        return tensor  # which the backend refuses
    wanted, strides = step_strides(x, axis), tensor.stride()
    fits = all(n == 1 or a == b for n, a, b in zip(sizes, strides[lead:], wanted, strict=True))
    beside = not lead or any_stride or tensor.shape[0] == 1 or strides[0] == sizes.numel()
    if fits and beside:
        return tensor
    sizes, strides = steps(x, axis, list(tensor.shape[:lead]))
    return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=x.device).copy_(tensor)
