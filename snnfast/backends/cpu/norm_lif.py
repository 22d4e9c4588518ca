"""Normalisation in C++: the passes that need no neuron, and the numbers per channel."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Norm


def norm_stats(y: Tensor, channels: int, inner: int, mean: Tensor, var: Tensor) -> None:
    module().norm_stats(
        DTYPES[y.dtype],
        torch.get_num_threads(),
        y.shape[0],
        y.numel() // y.shape[0],
        y.data_ptr(),
        y.stride(0),
        channels,
        inner,
        mean.data_ptr(),
        var.data_ptr(),
    )


def norm_dy(y: Tensor, dx: Tensor, norm: Norm, a: Tensor, b: Tensor, c: Tensor, dy: Tensor) -> None:
    module().norm_dy(
        DTYPES[y.dtype],
        torch.get_num_threads(),
        y.shape[0],
        y.numel() // y.shape[0],
        y.data_ptr(),
        y.stride(0),
        dx.data_ptr(),
        dy.data_ptr(),
        norm.channels,
        norm.inner,
        norm.mean.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
    )


def norm_prepare(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    unbias: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    inv_std = torch.empty_like(mean)
    scale = inv_std if weight is None else torch.empty_like(mean)
    running_mean, running_var = running or (None, None)
    module().norm_prepare(
        DTYPES[mean.dtype],
        mean.numel(),
        mean.data_ptr(),
        var.data_ptr(),
        pointer(weight),
        pointer(running_mean),
        pointer(running_var),
        momentum,
        unbias,
        eps,
        inv_std.data_ptr(),
        scale.data_ptr(),
    )
    if running is not None:
        torch.autograd.graph.increment_version(running)
    return inv_std, scale


def norm_finish(
    sums: Tensor, scale: Tensor, inv_std: Tensor, count: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = tuple(torch.empty_like(scale) for _ in range(4))
    module().norm_finish(
        DTYPES[sums.dtype],
        scale.numel(),
        sums.data_ptr(),
        scale.data_ptr(),
        inv_std.data_ptr(),
        count or 0,
        *(tensor.data_ptr() for tensor in results),
    )
    return results
