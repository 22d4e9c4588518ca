"""LIF in CUDA C++, one launch a direction, structs as ``csrc/cuda/args.h`` has them."""

import ctypes
import math
import struct
from functools import lru_cache

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import DTYPES, IO, check_status, launch_compiled, pointer
from snnfast.backends.cuda.norm_lif import Launch as _NormLaunch
from snnfast.backends.spec import INTEGRATE, LifLayer, Norm

# enum Flags, ForwardArgs, BackwardArgs and LifArgs of csrc/cuda/args.h.
HAS_V0, HAS_RATE, HAS_V, EVERY_STATE, HAS_BORDERS = 1, 2, 4, 8, 16
HAS_DS, HAS_DV0, HAS_DRATE, SUM_DX, PER_CHANNEL = 32, 64, 128, 256, 512
HAS_DX, HAS_RESIDUAL, THROUGH = 1024, 2048, 4096
_FORWARD = struct.Struct("=6Q5q3fi")
_BACKWARD = struct.Struct("=9Q6q3fi")
_LIF = struct.Struct("=4f3i")
_THREADS = 128


def lif_forward(
    layer: LifLayer,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    s: Tensor,
    v: Tensor | None,
    borders: Tensor | None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> None:
    neurons, strides = x.numel() // layer.steps, _time_strides(x, residual)
    flags = _flags(layer, x, v0, rate, v) | (borders is not None) * HAS_BORDERS
    flags |= (residual is not None) * HAS_RESIDUAL
    pointers = [pointer(t) for t in (x, v0, rate, s, v, borders)]
    sizes = (layer.steps, neurons, strides[0], layer.channels, layer.inner)
    args = _FORWARD.pack(*pointers, *sizes, *_rate(layer), layer.reset, flags)
    vector = _vectors(x, neurons, strides, [*pointers, pointer(residual)])
    if norm is None:
        _run("forward", layer, x, vector, flags, args)
    else:
        launch = _NormLaunch("forward", x, neurons, vector, norm, residual=residual, layer=layer)
        launch.run(_norm_names(layer, x, vector, flags), args, _neuron(layer))


def lif_backward(
    layer: LifLayer,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    borders: Tensor | None,
    ds: Tensor | None,
    dv: Tensor | None,
    dx: Tensor | None,
    dv0: Tensor | None,
    drate: Tensor | None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    gradients = (borders, ds, dv, dx, dv0, drate)
    _backward(layer, x, v0, rate, *gradients, norm, residual, sums)


def norm_lif_dy(
    layer: LifLayer,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    borders: Tensor | None,
    ds: Tensor | None,
    dv: Tensor | None,
    dy: Tensor,
    norm: Norm,
    a: Tensor,
    b: Tensor,
    c: Tensor,
) -> None:
    gradients = (borders, ds, dv, dy, None, None)
    _backward(layer, x, v0, rate, *gradients, norm, a=a, b=b, c=c)


def _backward(
    layer, x, v0, rate, borders, ds, dv, dx, dv0, drate, norm, residual=None, sums=None, **rows
) -> None:
    neurons, strides = x.numel() // layer.steps, _time_strides(x, ds, residual)
    per_channel = rate is not None and layer.channels > 1
    flags = _flags(layer, x, v0, rate, dv)
    flags |= (borders is not None) * HAS_BORDERS | (ds is not None) * HAS_DS
    flags |= (dv0 is not None) * HAS_DV0 | (drate is not None) * HAS_DRATE
    flags |= (dx is not None and dx.dim() < x.dim()) * SUM_DX
    flags |= (residual is not None) * HAS_RESIDUAL
    flags |= (norm is not None and dx is not None) * HAS_DX | bool(rows) * THROUGH

    pointers = [pointer(t) for t in (x, v0, rate, borders, ds, dv, dx, dv0)]
    vector = _vectors(x, neurons, strides, [*pointers, pointer(residual)])
    parts = None
    if drate is not None:
        count = neurons if per_channel or not vector else neurons // _lanes(x)
        parts = torch.empty(count, dtype=torch.float32, device=x.device)
    sizes = (layer.steps, neurons, strides[0], layer.channels, layer.inner, strides[1])
    args = _BACKWARD.pack(*pointers, pointer(parts), *sizes, *_rate(layer), layer.reset, flags)
    if norm is None:
        _run("backward", layer, x, vector, flags, args)
    else:
        launch = _NormLaunch(
            "backward", x, neurons, vector, norm, residual=residual, layer=layer, **rows
        )
        at = pointer(sums)
        total = launch.total(at, at + 4 * norm.channels) if at else b""
        launch.run(_norm_names(layer, x, vector, flags), args, _neuron(layer), total=total)
    if per_channel and drate is not None:
        drate.copy_(parts.view(-1, layer.channels, layer.inner).sum((0, 2)))
    elif drate is not None:
        drate.copy_(parts.sum().view_as(drate))


def _flags(layer, x, v0, rate, v) -> int:
    """What both directions have: ``v`` is the state, or its gradient."""
    flags = (v0 is not None) * HAS_V0
    if v is not None:
        flags |= HAS_V | (v.dim() == x.dim()) * EVERY_STATE
    if rate is not None:
        flags |= HAS_RATE | (layer.channels > 1) * PER_CHANNEL
    return flags


def _time_strides(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None or t.shape[0] == 1 else t.stride(0) for t in tensors)


def _lanes(x: Tensor) -> int:
    return 16 // x.element_size()


def _vectors(x: Tensor, neurons: int, strides: tuple[int, ...], pointers: list[int]) -> bool:
    """Whether every access may be one of 16 bytes; else the kernel goes element by element."""
    sizes = (neurons, *strides)
    return all(n % _lanes(x) == 0 for n in sizes) and all(p % 16 == 0 for p in pointers)


@lru_cache(maxsize=256)
def _rate(layer: LifLayer) -> tuple[float, float]:
    """Divisor and factor in float32. A divisor that is NaN means: multiply by the factor."""
    if layer.charge == INTEGRATE or not layer.divide:
        return math.nan, 0.0 if layer.charge == INTEGRATE else layer.rate
    tau = ctypes.c_float(layer.rate).value
    return tau, 1.0 / tau if tau else 0.0  # 0: a rate tensor holds for it


def _neuron(layer: LifLayer) -> bytes:
    return _LIF.pack(
        layer.theta,
        layer.reset,
        layer.a,
        layer.b,
        not layer.divide,
        layer.detach_reset,
        layer.surrogate,
    )


def _norm_names(layer: LifLayer, x: Tensor, vector: bool, flags: int) -> tuple[str, ...]:
    return defines("forward", layer, DTYPES.index(x.dtype), vector, flags)[1:]


def _run(direction: str, layer: LifLayer, x: Tensor, vector: bool, flags: int, args: bytes) -> None:
    lif = _neuron(layer)
    device, stream = driver.place(x)
    dtype = DTYPES.index(x.dtype)
    module = driver.ahead_of_time()
    if module is None:
        blocks = -(-x.numel() // layer.steps // (_lanes(x) if vector else 1) // _THREADS)
        kernel = driver.compiled("lif", device, defines(direction, layer, dtype, vector, flags))
        launch_compiled("lif", kernel, device, stream, (blocks, _THREADS), args, lif)
        return
    launch = module.lif_forward if direction == "forward" else module.lif_backward
    status = launch(dtype, layer.charge, layer.hard, vector, device, stream, args, lif)
    check_status("lif", module, status)


# Compiled at first use: NVRTC through CuPy, one kernel for each configuration.


def defines(
    direction: str, layer: LifLayer, dtype: int, vector: bool, flags: int
) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/lif.cuh."""
    lanes = (4 if dtype == 0 else 8) if vector else 1
    return (
        f"-DSNN_{direction.upper()}",
        f"-DSNN_IO={IO[dtype]}",
        f"-DSNN_LANES={lanes}",
        f"-DSNN_STEPS={4 if layer.steps <= 4 and vector else 8}",
        f"-DSNN_CHARGE={layer.charge}",
        f"-DSNN_HARD={int(layer.hard)}",
        f"-DSNN_SURROGATE={layer.surrogate}",
        f"-DSNN_DETACH_RESET={int(layer.detach_reset)}",
        f"-DSNN_FLAGS={flags}",
    )


def source() -> tuple[str, tuple[str, ...]]:
    """What NVRTC compiles, and its options."""
    return driver.source("lif.cuh")
