"""LIF in C++, one call a direction; with a norm, what ``norm_lif`` does of it."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Channels, LifLayer, as_bytes


def lif_forward(
    layer: LifLayer, where: Channels | None, x, v0, rate, s, v, borders, stats, bias, residual
):  # fmt: skip
    kernel, args, dtype, stride = (
        module().lif_forward,
        as_bytes(layer),
        DTYPES[x.dtype],
        x.stride(0),
    )
    neurons, every = x[0].numel(), v is not None and v.dim() == x.dim()
    beside = _beside(where, residual)

    def launch(x, v0, rate, s, v, borders, stats, bias, residual):
        kernel(
            args, dtype, torch.get_num_threads(), neurons, pointer(rate), x.data_ptr(), stride,
            pointer(v0), s.data_ptr(), pointer(v), every, pointer(borders),
            beside and (stats.data_ptr(), bias.data_ptr(), pointer(residual), *beside),
        )  # fmt: skip

    return launch


def lif_backward(
    layer: LifLayer, where: Channels | None, count: int, x, v0, rate, borders, ds, dv, dx, dv0,
    drate, stats, bias, residual, totals,
):  # fmt: skip
    kernel, args, dtype = module().lif_backward, as_bytes(layer), DTYPES[x.dtype]
    neurons, stride, ds_stride = x[0].numel(), x.stride(0), 0 if ds is None else ds.stride(0)
    every, summed = dv is not None and dv.dim() == x.dim(), dx.dim() < x.dim()
    beside = _beside(where, residual)

    def launch(x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals):
        kernel(
            args, dtype, torch.get_num_threads(), neurons, pointer(rate), x.data_ptr(), stride,
            pointer(v0), pointer(borders), pointer(ds), ds_stride, pointer(dv), every,
            dx.data_ptr(), summed, pointer(dv0), pointer(drate),
            beside and (stats.data_ptr(), bias.data_ptr(), pointer(residual), *beside),
            pointer(totals), count,
        )  # fmt: skip

    return launch


def _beside(where: Channels | None, residual: Tensor | None) -> tuple | None:
    """What a normalisation has besides its addresses."""
    return where and (0 if residual is None else residual.stride(0), *where)
