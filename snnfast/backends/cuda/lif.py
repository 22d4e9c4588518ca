"""LIF in CUDA C++, one launch a direction, structs as ``csrc/cuda/lif_args.h`` has them."""

import ctypes
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda import norm_lif as norms
from snnfast.backends.cuda.launch import IO, Float, Int, Kernel, Launch, Long, Pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import INTEGRATE, Finished, LifLayer, Norm

# enum Flags of csrc/cuda/lif_args.h.
HAS_V0, HAS_RATE, HAS_V, EVERY_STATE, HAS_BORDERS = 1, 2, 4, 8, 16
HAS_DS, HAS_DV0, HAS_DRATE, SUM_DX, PER_CHANNEL = 32, 64, 128, 256, 512
HAS_DX, HAS_RESIDUAL, RECOMPUTE = 1024, 2048, 4096
_THREADS = 128


class ForwardArgs(NamedTuple):
    x: Pointer
    v0: Pointer
    rate: Pointer
    s: Pointer
    v: Pointer
    borders: Pointer
    steps: Long
    neurons: Long
    x_stride: Long
    channels: Long
    inner: Long
    divisor: Float
    factor: Float
    rest: Float
    flags: Int


class BackwardArgs(NamedTuple):
    x: Pointer
    v0: Pointer
    rate: Pointer
    borders: Pointer
    ds: Pointer
    dv: Pointer
    dx: Pointer
    dv0: Pointer
    drate: Pointer
    steps: Long
    neurons: Long
    x_stride: Long
    channels: Long
    inner: Long
    ds_stride: Long
    divisor: Float
    factor: Float
    rest: Float
    flags: Int


class NeuronArgs(NamedTuple):
    theta: Float
    reset: Float
    a: Float
    b: Float
    multiply: Int
    charge: Int
    hard: Int
    detach_reset: Int
    surrogate: Int


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
    strides = _time_strides(x, None, residual)
    flags = _flags(layer, x, v0, rate, v) | (borders is not None) * HAS_BORDERS
    flags |= (residual is not None) * HAS_RESIDUAL
    pointers = [driver.pointer(t) for t in (x, v0, rate, s, v, borders)]
    _run("forward", layer, x, pointers, strides, flags, norm, residual)


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
    finished: Finished | None = None,
) -> None:
    gradients = (borders, ds, dv, dx, dv0, drate)
    _backward(layer, x, v0, rate, *gradients, norm, residual, sums, finished)


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
    layer, x, v0, rate, borders, ds, dv, dx, dv0, drate, norm, residual=None, sums=None,
    finished=None, **abc,
) -> None:  # fmt: skip
    strides = _time_strides(x, ds, residual)
    per_channel = rate is not None and layer.channels > 1
    flags = _flags(layer, x, v0, rate, dv)
    flags |= (borders is not None) * HAS_BORDERS | (ds is not None) * HAS_DS
    flags |= (dv0 is not None) * HAS_DV0 | (drate is not None) * HAS_DRATE
    flags |= (dx is not None and dx.dim() < x.dim()) * SUM_DX
    flags |= (residual is not None) * HAS_RESIDUAL
    flags |= (norm is not None and dx is not None) * HAS_DX | bool(abc) * RECOMPUTE
    each = None
    if drate is not None:  # of a neuron, or of a thread: as many at most
        each = torch.empty(x.numel() // layer.steps, dtype=torch.float32, device=x.device)
    pointers = [driver.pointer(t) for t in (x, v0, rate, borders, ds, dv, dx, dv0, each)]
    plan, parts = _run("backward", layer, x, pointers, strides, flags, norm, residual, **abc)
    if sums is not None:
        norms.add_up(plan.norm, plan.lanes, parts, sums, finished)
    if per_channel and drate is not None:
        drate.copy_(each.view(-1, layer.channels, layer.inner).sum((0, 2)))
    elif drate is not None:
        drate.copy_(each[: each.numel() // plan.lanes].sum().view_as(drate))


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


@lru_cache(maxsize=256)
def _rate(layer: LifLayer) -> tuple[float, float]:
    """Divisor and factor in float32. A divisor that is NaN means: multiply by the factor."""
    if layer.charge == INTEGRATE or not layer.divide:
        return math.nan, 0.0 if layer.charge == INTEGRATE else layer.rate
    tau = ctypes.c_float(layer.rate).value
    return tau, 1.0 / tau if tau else 0.0  # 0: a rate tensor holds for it


@lru_cache(maxsize=256)
def _neuron(layer: LifLayer) -> bytes:
    args = NeuronArgs(
        theta=layer.theta,
        reset=layer.reset,
        a=layer.a,
        b=layer.b,
        multiply=not layer.divide,
        charge=layer.charge,
        hard=layer.hard,
        detach_reset=layer.detach_reset,
        surrogate=layer.surrogate,
    )
    return driver.packed(args)


class Plan(NamedTuple):
    """What a launch has besides its addresses."""

    launch: Launch
    rest: bytes
    """Of ForwardArgs or BackwardArgs."""
    lanes: int
    norm: norms.Plan | None


@lru_cache(maxsize=1024)
def _plan(
    direction: str,
    layer: LifLayer,
    dtype: torch.dtype,
    neurons: int,
    strides: tuple[int, int, int],
    flags: int,
    aligned: bool,
    norm: tuple | None,
) -> Plan:
    """``norm``: where its channels lie, and how wide the sums are that are wanted of them."""
    lanes = 16 // dtype.itemsize
    # Every access may be one of 16 bytes; else the kernel goes element by element.
    vector = aligned and all(n % lanes == 0 for n in (neurons, *strides))
    lanes = lanes if vector else 1
    x_stride, *ds_stride, residual_stride = strides
    kind, more = (BackwardArgs, ds_stride) if direction == "backward" else (ForwardArgs, ())
    sizes = (layer.steps, neurons, x_stride, layer.channels, layer.inner, *more)
    rest = driver.behind(kind, *sizes, *_rate(layer), layer.reset, flags)

    names, choices = defines(direction, layer, dtype, vector, flags), (DTYPES[dtype], vector)
    if norm is None:
        kernel = Kernel("lif", names, -(-neurons // lanes // _THREADS), _THREADS)
        return Plan(Launch("lif", f"lif_{direction}", choices, kernel), rest, lanes, None)
    of_norm = norms.plan(neurons, lanes, *norm, residual_stride)
    names = (f"-DSNN_NORM_{direction.upper()}", *names[1:])
    shared = norms.shared_bytes(direction, lanes)
    kernel = Kernel("norm_lif", names, of_norm.at.blocks, _THREADS, shared)
    launch = Launch("norm_lif", f"norm_lif_{direction}", choices, kernel)
    return Plan(launch, rest, lanes, of_norm)


def _run(
    direction: str,
    layer: LifLayer,
    x: Tensor,
    pointers: list[int],
    strides: tuple[int, int, int],
    flags: int,
    norm: Norm | None,
    residual: Tensor | None,
    **abc: Tensor,
) -> tuple[Plan, Tensor | None]:
    """The plan that was launched, and what its blocks left of each channel."""
    rows, where = [], None
    if norm is not None:
        rows = norms.rows(norm, **abc)
        width = 2 if direction == "backward" and not abc else 0
        where = (norm.channels, norm.inner, driver.aligned(*rows), width)
    aligned = driver.aligned(*pointers, driver.pointer(residual))
    neurons = x.numel() // layer.steps
    plan = _plan(direction, layer, x.dtype, neurons, strides, flags, aligned, where)
    structs = (driver.addressed(pointers, plan.rest), _neuron(layer))
    if norm is None:
        driver.run(plan.launch, x, *structs)
        return plan, None
    args, parts = norms.arguments(plan.norm, rows, x, residual)
    driver.run(plan.launch, x, *structs, args)
    return plan, parts


# Compiled at first use by NVRTC, one kernel for each configuration.


def defines(
    direction: str, layer: LifLayer, dtype: torch.dtype, vector: bool, flags: int
) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/lif.cuh."""
    lanes = (16 // dtype.itemsize) if vector else 1
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
