"""LIF in C++, one call a direction; with a norm, what ``norm_lif`` does of it."""

import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.cpu.norm_lif import norm_finish
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import Finished, LifLayer, Norm, as_bytes


def lif_forward(
    layer: LifLayer,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    s: Tensor,
    v: Tensor | None = None,
    borders: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> None:
    module().lif_forward(
        as_bytes(layer),
        DTYPES[x.dtype],
        torch.get_num_threads(),
        s.numel() // layer.steps,
        pointer(rate),
        x.data_ptr(),
        x.stride(0),
        pointer(v0),
        s.data_ptr(),
        pointer(v),
        v is not None and v.dim() == x.dim(),
        pointer(borders),
        _norm(norm, residual),
    )


def lif_backward(
    layer: LifLayer,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    borders: Tensor | None,
    ds: Tensor | None,
    dv: Tensor | None,
    dx: Tensor,
    dv0: Tensor | None = None,
    drate: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    sums: Tensor | None = None,
    finished: Finished | None = None,
) -> None:
    module().lif_backward(
        as_bytes(layer),
        DTYPES[x.dtype],
        torch.get_num_threads(),
        dx.numel() if dx.dim() < x.dim() else dx.numel() // layer.steps,
        pointer(rate),
        x.data_ptr(),
        x.stride(0),
        pointer(v0),
        pointer(borders),
        pointer(ds),
        0 if ds is None else ds.stride(0),
        pointer(dv),
        dv is not None and dv.dim() == x.dim(),
        dx.data_ptr(),
        dx.dim() < x.dim(),
        pointer(dv0),
        pointer(drate),
        _norm(norm, residual),
        pointer(sums),
    )
    if finished is not None:
        norm_finish(sums, finished)


def _norm(norm: Norm | None, residual: Tensor | None) -> tuple | None:
    if norm is None:
        return None
    rows = (norm.mean.data_ptr(), norm.scale.data_ptr(), norm.bias.data_ptr())
    step = 0 if residual is None else residual.stride(0)
    return *rows, pointer(residual), step, norm.channels, norm.inner
