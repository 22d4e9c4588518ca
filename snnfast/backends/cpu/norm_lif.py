"""Normalisation in C++: the passes that need no neuron, and the numbers per channel."""

import torch

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Channels


def norm_stats(
    where: Channels, momentum: float, unbias: float, eps: float, y, stats, weight, running_mean,
    running_var,
):  # fmt: skip
    kernel, dtype = module().norm_stats, DTYPES[y.dtype]
    sizes = (y.shape[0], y[0].numel(), y.stride(0), *where, momentum, unbias, eps)

    def launch(y, stats, weight, running_mean, running_var):
        kernel(
            dtype, torch.get_num_threads(), *sizes, y.data_ptr(), stats.data_ptr(),
            pointer(weight), pointer(running_mean), pointer(running_var),
        )  # fmt: skip

    return launch


def norm_dy(where: Channels, y, dx, dy, stats, totals):
    kernel, dtype = module().norm_dy, DTYPES[y.dtype]
    sizes = (1 if dx.dim() < y.dim() else y.shape[0], y[0].numel(), y.stride(0), *where)

    def launch(*tensors):
        kernel(dtype, torch.get_num_threads(), *sizes, *(t.data_ptr() for t in tensors))

    return launch


def norm_prepare(momentum: float, unbias: float, eps: float, stats, *given):
    kernel, dtype, channels = module().norm_prepare, DTYPES[stats.dtype], stats.shape[1]

    def launch(stats, *given):
        addresses = (pointer(t) for t in given)
        kernel(dtype, channels, stats.data_ptr(), *addresses, momentum, unbias, eps)

    return launch


def norm_finish(count: int, stats, totals):
    kernel, dtype, channels = module().norm_finish, DTYPES[stats.dtype], stats.shape[1]

    def launch(stats, totals):
        kernel(dtype, channels, stats.data_ptr(), totals.data_ptr(), count)

    return launch
