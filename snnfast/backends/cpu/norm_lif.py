"""Normalisation in C++: the passes that need no neuron, and the numbers per channel."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Finished, Norm, Prepared


def norm_stats(
    y: Tensor,
    channels: int,
    inner: int,
    mean: Tensor,
    var: Tensor,
    prepared: Prepared | None = None,
) -> None:
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
    if prepared is not None:
        norm_prepare(mean, var, prepared)


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


def norm_prepare(mean: Tensor, var: Tensor, prepared: Prepared) -> None:
    module().norm_prepare(
        DTYPES[mean.dtype],
        mean.numel(),
        mean.data_ptr(),
        var.data_ptr(),
        pointer(prepared.weight),
        pointer(prepared.running_mean),
        pointer(prepared.running_var),
        prepared.momentum,
        prepared.unbias,
        prepared.eps,
        prepared.inv_std.data_ptr(),
        prepared.scale.data_ptr(),
    )


def norm_finish(sums: Tensor, finished: Finished) -> None:
    module().norm_finish(
        DTYPES[sums.dtype],
        finished.scale.numel(),
        sums.data_ptr(),
        finished.scale.data_ptr(),
        finished.inv_std.data_ptr(),
        finished.count,
        finished.dweight.data_ptr(),
        finished.dbias.data_ptr(),
        finished.b.data_ptr(),
        finished.c.data_ptr(),
    )
