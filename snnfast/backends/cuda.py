"""The CUDA C++ backend: LIF, one launch a direction, built by nvcc at install or by NVRTC at first
use. The distillation losses are those of ``_cuda_distill``, normalisation that of ``_cuda_norm``.

``snnfast._cuda`` holds the kernels where nvcc was found at install. Without it the same sources
(``csrc/cuda``) are compiled through CuPy when a configuration is first used, and kept. Neither
knows torch: pointers, sizes, strides and a stream go in, packed as ``csrc/cuda/args.h`` has them.
"""

import ctypes
import importlib.util
import math
import struct
from functools import cache, lru_cache

import torch
from torch import Tensor

from snnfast.backends import _cuda_launch
from snnfast.backends._cuda_distill import scale_gradient, stepwise_loss, tssd_loss
from snnfast.backends._cuda_launch import DTYPES, check_status, launch_compiled, not_built
from snnfast.backends._cuda_launch import IO as _IO
from snnfast.backends._cuda_launch import ahead_of_time as _ahead_of_time
from snnfast.backends._cuda_launch import compiled as _compiled
from snnfast.backends._cuda_launch import place as _place
from snnfast.backends._cuda_launch import pointer as _pointer
from snnfast.backends._cuda_norm import Launch as _NormLaunch
from snnfast.backends._cuda_norm import norm_backward, norm_stats
from snnfast.backends._cuda_spikes import pack_if_spikes, pack_spikes, unpack_spikes
from snnfast.backends.contract import checked
from snnfast.backends.spec import INTEGRATE, LifSpec, Norm

__all__ = [
    "available",
    "lif_backward",
    "lif_forward",
    "norm_backward",
    "norm_gradient",
    "norm_stats",
    "pack_if_spikes",
    "pack_spikes",
    "scale_gradient",
    "stepwise_loss",
    "tssd_loss",
    "unpack_spikes",
]

# enum Flags, ForwardArgs, BackwardArgs and LifArgs of csrc/cuda/args.h.
HAS_V0, HAS_RATE, HAS_V, EVERY_STATE, HAS_BORDERS = 1, 2, 4, 8, 16
HAS_DS, HAS_DV0, HAS_DRATE, SUM_DX, PER_CHANNEL = 32, 64, 128, 256, 512
HAS_DX, HAS_RESIDUAL, THROUGH = 1024, 2048, 4096
_FORWARD = struct.Struct("=6Q5q3fi")
_BACKWARD = struct.Struct("=9Q6q3fi")
_LIF = struct.Struct("=4f3i")
_THREADS = 128


@cache
def available() -> str | None:
    """None where this backend can run; else what was tried and the command that enables it."""
    built = torch.version.cuda
    if built is None:
        return (
            f"torch {torch.__version__} was built without CUDA; pytorch.org/get-started/locally "
            "has the command that installs one with it"
        )
    if not torch.cuda.is_available():
        return f"torch (CUDA {built}) finds no usable GPU: nvidia-smi shows whether the driver does"
    if _ahead_of_time() is None and importlib.util.find_spec("cupy") is None:
        return (
            f"{not_built()}; CuPy, which compiles at first use instead, is not "
            f"installed: pip install cupy-cuda{built.split('.')[0]}x"
        )
    return None


@checked
def lif_forward(
    spec: LifSpec,
    x: Tensor,
    v0: Tensor | None,
    rate: Tensor | None,
    s: Tensor,
    v: Tensor | None,
    borders: Tensor | None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> None:
    """Fills ``s`` and, where given, ``v`` and ``borders``; shapes as in ``snnfast.backends``.

    With ``norm``, x is normalised and ``residual`` [T, ...] added on the way in. Moves 2b bytes per
    neuron and timestep, b those of the dtype; 3b with a residual.
    """
    neurons, strides = x.numel() // spec.steps, _time_strides(x, residual)
    flags = _flags(spec, x, v0, rate, v) | (borders is not None) * HAS_BORDERS
    flags |= (residual is not None) * HAS_RESIDUAL
    pointers = [_pointer(t) for t in (x, v0, rate, s, v, borders)]
    sizes = (spec.steps, neurons, strides[0], spec.channels, spec.inner)
    args = _FORWARD.pack(*pointers, *sizes, *_rate(spec), spec.reset, flags)
    vector = _vectors(x, neurons, strides, [*pointers, _pointer(residual)])
    if norm is None:
        _run("forward", spec, x, vector, flags, args)
    else:
        launch = _NormLaunch("forward", x, neurons, vector, norm, residual=residual, spec=spec)
        launch.run(_norm_names(spec, x, vector, flags), args, _neuron(spec))


@checked
def lif_backward(
    spec: LifSpec,
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
    """Fills ``dx`` and, where given, ``dv0`` and ``drate`` (the gradient of 1/tau).

    ``drate`` is deterministic: every neuron (every thread, for one rate) writes its own sum over
    time and torch adds them up.

    With ``norm``, dx is the gradient of what the neurons are charged with, or None where it is not
    wanted, and ``sums`` [2, C] gets the sums of it and of it times (x - mean) over each channel.
    Moves 3b bytes per neuron and timestep, b those of the dtype; 4b with a residual.
    """
    gradients = (borders, ds, dv, dx, dv0, drate)
    _backward(spec, x, v0, rate, *gradients, norm, residual, sums)


@checked
def norm_gradient(
    spec: LifSpec,
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
    """dy = a dX + b (x - mean) + c, dX being the gradient that ``lif_backward`` has for the same
    arguments, which is computed again and not stored: 3b bytes per neuron and timestep."""
    gradients = (borders, ds, dv, dy, None, None)
    _backward(spec, x, v0, rate, *gradients, norm, a=a, b=b, c=c)


def _backward(
    spec, x, v0, rate, borders, ds, dv, dx, dv0, drate, norm, residual=None, sums=None, **rows
) -> None:
    neurons, strides = x.numel() // spec.steps, _time_strides(x, ds, residual)
    per_channel = rate is not None and spec.channels > 1
    flags = _flags(spec, x, v0, rate, dv)
    flags |= (borders is not None) * HAS_BORDERS | (ds is not None) * HAS_DS
    flags |= (dv0 is not None) * HAS_DV0 | (drate is not None) * HAS_DRATE
    flags |= (dx is not None and dx.dim() < x.dim()) * SUM_DX
    flags |= (residual is not None) * HAS_RESIDUAL
    flags |= (norm is not None and dx is not None) * HAS_DX | bool(rows) * THROUGH

    pointers = [_pointer(t) for t in (x, v0, rate, borders, ds, dv, dx, dv0)]
    vector = _vectors(x, neurons, strides, [*pointers, _pointer(residual)])
    parts = None
    if drate is not None:
        count = neurons if per_channel or not vector else neurons // _lanes(x)
        parts = torch.empty(count, dtype=torch.float32, device=x.device)
    sizes = (spec.steps, neurons, strides[0], spec.channels, spec.inner, strides[1])
    args = _BACKWARD.pack(*pointers, _pointer(parts), *sizes, *_rate(spec), spec.reset, flags)
    if norm is None:
        _run("backward", spec, x, vector, flags, args)
    else:
        launch = _NormLaunch(
            "backward", x, neurons, vector, norm, residual=residual, spec=spec, **rows
        )
        at = _pointer(sums)
        total = launch.total(at, at + 4 * norm.channels) if at else b""
        launch.run(_norm_names(spec, x, vector, flags), args, _neuron(spec), total=total)
    if per_channel and drate is not None:
        drate.copy_(parts.view(-1, spec.channels, spec.inner).sum((0, 2)))
    elif drate is not None:
        drate.copy_(parts.sum().view_as(drate))


def _flags(spec, x, v0, rate, v) -> int:
    """What both directions have: ``v`` is the state, or its gradient."""
    flags = (v0 is not None) * HAS_V0
    if v is not None:
        flags |= HAS_V | (v.dim() == x.dim()) * EVERY_STATE
    if rate is not None:
        flags |= HAS_RATE | (spec.channels > 1) * PER_CHANNEL
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
def _rate(spec: LifSpec) -> tuple[float, float]:
    """Divisor and factor in float32. A divisor that is NaN means: multiply by the factor."""
    if spec.charge == INTEGRATE or not spec.divide:
        return math.nan, 0.0 if spec.charge == INTEGRATE else spec.rate
    tau = ctypes.c_float(spec.rate).value
    return tau, 1.0 / tau if tau else 0.0  # 0: a rate tensor holds for it


def _neuron(spec: LifSpec) -> bytes:
    return _LIF.pack(
        spec.theta, spec.reset, spec.a, spec.b, not spec.divide, spec.detach_reset, spec.surrogate
    )


def _norm_names(spec: LifSpec, x: Tensor, vector: bool, flags: int) -> tuple[str, ...]:
    return defines("forward", spec, DTYPES.index(x.dtype), vector, flags)[1:]


def _run(direction: str, spec: LifSpec, x: Tensor, vector: bool, flags: int, args: bytes) -> None:
    lif = _neuron(spec)
    device, stream = _place(x)
    dtype = DTYPES.index(x.dtype)
    module = _ahead_of_time()
    if module is None:
        blocks = -(-x.numel() // spec.steps // (_lanes(x) if vector else 1) // _THREADS)
        kernel = _compiled("lif", device, defines(direction, spec, dtype, vector, flags))
        launch_compiled("lif", kernel, device, stream, (blocks, _THREADS), args, lif)
        return
    launch = module.lif_forward if direction == "forward" else module.lif_backward
    status = launch(dtype, spec.charge, spec.hard, vector, device, stream, args, lif)
    check_status("lif", module, status)


# Compiled at first use: NVRTC through CuPy, one kernel for each configuration.


def defines(direction: str, spec: LifSpec, dtype: int, vector: bool, flags: int) -> tuple[str, ...]:
    """The -D options that name one kernel of csrc/cuda/lif.cuh."""
    lanes = (4 if dtype == 0 else 8) if vector else 1
    return (
        f"-DSNN_{direction.upper()}",
        f"-DSNN_IO={_IO[dtype]}",
        f"-DSNN_LANES={lanes}",
        f"-DSNN_STEPS={4 if spec.steps <= 4 and vector else 8}",
        f"-DSNN_CHARGE={spec.charge}",
        f"-DSNN_HARD={int(spec.hard)}",
        f"-DSNN_SURROGATE={spec.surrogate}",
        f"-DSNN_DETACH_RESET={int(spec.detach_reset)}",
        f"-DSNN_FLAGS={flags}",
    )


def source() -> tuple[str, tuple[str, ...]]:
    """What NVRTC compiles, and its options."""
    return _cuda_launch.source("lif.cuh")
