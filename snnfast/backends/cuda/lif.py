"""LIF in CUDA C++, one launch a direction, structs as ``csrc/cuda/lif_args.h`` has them."""

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda import norm_lif as norms
from snnfast.backends.cuda.launch import IO, Float, Int, Kernel, Launch, Long, Pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import INTEGRATE, Channels, LifLayer

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
    layer: LifLayer, where: Channels | None, x, v0, rate, s, v, borders, stats, bias, residual
):  # fmt: skip
    strides = _time_strides(x, None, residual)
    flags = _flags(layer, x, v0, rate, v) | (borders is not None) * HAS_BORDERS
    flags |= (residual is not None) * HAS_RESIDUAL
    plan = _planner("forward", layer, x, strides, flags, where, 0)

    def launch(x, v0, rate, s, v, borders, stats, bias, residual):
        _run(plan, (x, v0, rate, s, v, borders), residual, stats, bias)

    return launch


def lif_backward(
    layer: LifLayer, where: Channels | None, count: int, x, v0, rate, borders, ds, dv, dx, dv0,
    drate, stats, bias, residual, totals,
):  # fmt: skip
    width, given = 0 if where is None else 2, (x, v0, rate, borders, ds, dv, dx, dv0, drate)
    plan = _backward_planner(
        layer, where, given, residual, width, HAS_DX * (width > 0 and dx is not None)
    )
    per_channel = rate is not None and layer.channels > 1
    neurons = x[0].numel()

    def launch(x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals):
        each = None
        if drate is not None:  # of a neuron, or of a thread: as many at most
            each = torch.empty(neurons, dtype=torch.float32, device=x.device)
        given = (x, v0, rate, borders, ds, dv, dx, dv0, each)
        found, parts = _run(plan, given, residual, stats, bias)
        if where is not None:
            norms.add_up(found.norm, found.lanes, parts, count, stats, totals)
        if per_channel and drate is not None:
            drate.copy_(each.view(-1, layer.channels, layer.inner).sum((0, 2)))
        elif drate is not None:
            drate.copy_(each[: neurons // found.lanes].sum().view_as(drate))

    return launch


def norm_lif_dy(
    layer: LifLayer, where: Channels, x, v0, rate, borders, ds, dv, dy, stats, bias, totals
):  # fmt: skip
    given = (x, v0, rate, borders, ds, dv, dy, None, None)
    plan = _backward_planner(layer, where, given, None, 0, HAS_DX | RECOMPUTE)

    def launch(x, v0, rate, borders, ds, dv, dy, stats, bias, totals):
        given = (x, v0, rate, borders, ds, dv, dy, None, None)
        _run(plan, given, None, stats, bias, totals)

    return launch


def _backward_planner(layer, where, given, residual, width: int, more: int) -> Callable:
    x, v0, rate, borders, ds, dv, dx, dv0, drate = given
    flags = _flags(layer, x, v0, rate, dv) | more
    flags |= (borders is not None) * HAS_BORDERS | (ds is not None) * HAS_DS
    flags |= (dv0 is not None) * HAS_DV0 | (drate is not None) * HAS_DRATE
    flags |= (dx is not None and dx.dim() < x.dim()) * SUM_DX
    flags |= (residual is not None) * HAS_RESIDUAL
    strides = _time_strides(x, ds, residual)
    return _planner("backward", layer, x, strides, flags, where, width)


def _planner(direction: str, layer, x, strides, flags: int, where, width: int) -> Callable:
    """The plan of a launch, once it is known whether its addresses are aligned: those of tensors,
    and of vectors of channels. Blocks leave ``width`` sums of each channel."""
    return partial(_plan, direction, layer, x.dtype, x[0].numel(), strides, flags, where, width)


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
    neuron: bytes
    """NeuronArgs."""
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
    where: Channels | None,
    width: int,
    aligned: bool,
    aligned_rows: bool,
) -> Plan:
    lanes = 16 // dtype.itemsize
    # Every access may be one of 16 bytes; else the kernel goes element by element.
    vector = aligned and all(n % lanes == 0 for n in (neurons, *strides))
    lanes = lanes if vector else 1
    x_stride, *ds_stride, residual_stride = strides
    kind, more = (BackwardArgs, ds_stride) if direction == "backward" else (ForwardArgs, ())
    sizes = (layer.steps, neurons, x_stride, layer.channels, layer.inner, *more)
    rest = driver.behind(kind, *sizes, *_rate(layer), layer.reset, flags)

    names, choices = defines(direction, layer, dtype, vector, flags), (DTYPES[dtype], vector)
    neuron = _neuron(layer)
    if where is None:
        kernel = Kernel("lif", names, -(-neurons // lanes // _THREADS), _THREADS)
        return Plan(Launch("lif", f"lif_{direction}", choices, kernel), rest, neuron, lanes, None)
    of_norm = norms.plan(neurons, lanes, *where, aligned_rows, width, residual_stride)
    names = (f"-DSNN_NORM_{direction.upper()}", *names[1:])
    shared = norms.shared_bytes(direction, lanes)
    kernel = Kernel("norm_lif", names, of_norm.at.blocks, _THREADS, shared)
    launch = Launch("norm_lif", f"norm_lif_{direction}", choices, kernel)
    return Plan(launch, rest, neuron, lanes, of_norm)


def _run(
    planner: Callable, tensors: tuple, residual=None, stats=None, bias=None, totals=None
) -> tuple[Plan, Tensor | None]:
    """The plan that was launched, and what its blocks left of each channel."""
    x, pointers = tensors[0], [driver.pointer(t) for t in tensors]
    aligned = driver.aligned(*pointers, driver.pointer(residual))
    rows = [] if stats is None else norms.rows(stats, bias, totals)
    plan = planner(aligned, driver.aligned(*rows))
    structs = (driver.addressed(pointers, plan.rest), plan.neuron)
    if plan.norm is None:
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
