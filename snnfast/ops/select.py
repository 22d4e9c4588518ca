"""Which backend runs an op: what was asked for, or the fastest that can run on these tensors.

What is asked for explicitly never falls back: it runs there or raises. What "auto" picks can be
asked for with ``explain``, and a slow path taken on a GPU warns once.
"""

import functools
import importlib
import os
import threading
import warnings
from contextlib import contextmanager

import torch

from snnfast.backends.contract import Backend

KERNELS = ("cpu", "triton", "cuda")
NAMES = ("auto", "reference", *KERNELS)


class BackendUnavailable(ValueError, RuntimeError):
    """The backend asked for cannot run here; says what was tried and what enables it."""


class _Local(threading.local):
    def __init__(self):  # instance attributes: a compiled graph is guarded by these
        self.backend = "auto"
        self.calls = None


_local = _Local()
_warned: set[str] = set()


def _environment_default() -> str:
    name = os.environ.get("SNNFAST_BACKEND", "auto")
    if name not in NAMES:
        raise ValueError(f"SNNFAST_BACKEND must be one of {', '.join(NAMES)}, got {name!r}")
    return name


_DEFAULT = _environment_default()


@functools.cache
def implementation(name: str) -> Backend:
    """The backend of that name."""
    if name not in KERNELS:
        raise ValueError(f"backend must be one of {', '.join(KERNELS)}, got {name!r}")
    functions = importlib.import_module(f"snnfast.backends.{name}")
    return Backend(functions, **functions.CAPABILITIES)


def named(name: str, x: torch.Tensor, needs: str = "") -> Backend:
    """The backend that an op called by its name was given; BackendUnavailable where it cannot run
    on a tensor like ``x``."""
    found = implementation(name)
    why_not = _refuse(name, x.device.type, x.dtype, False, None, needs)
    if why_not is not None:
        raise BackendUnavailable(f"backend {name!r} cannot be used: {why_not}")
    return found


def by_name(function):
    """``function`` as what an op called by its name runs: its first argument is a tensor, its last
    the name of a backend that can run on it, or reference."""

    def run(x, *rest):
        if rest[-1] != "reference":
            named(rest[-1], x)
        return function(x, *rest)

    return run


def _unavailable(name: str, needs: str) -> str | None:
    backend = implementation(name)
    if needs and not hasattr(backend.functions, needs):
        return "it has no kernel for this op"
    return backend.available()


def recomputes_dx(name: str, dtype: torch.dtype) -> bool:
    """That capability of a backend."""
    return dtype in implementation(name).recomputes_dx


def takes_samples(name: str) -> bool:
    """That capability of a backend."""
    return implementation(name).samples


# What torch.compiler.assume_constant_result does, without its import of the compiler (2 s).
for _function in (_unavailable, recomputes_dx, takes_samples):
    _function._dynamo_marked_constant = True


def check_name(name: str, op: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{op}: backend must be one of {', '.join(NAMES)}, got {name!r}")


@contextmanager
def backend(name: str):
    """Run every op in the block on ``name``: auto, reference, cpu, triton or cuda.

    A ``backend=`` argument of a call wins over the block, and the block over SNNFAST_BACKEND.
    """
    check_name(name, "backend")
    before, _local.backend = _local.backend, name
    try:
        yield
    finally:
        _local.backend = before


def asked_for() -> str:
    """The backend of the innermost ``backend`` block, or auto."""
    return _local.backend


def explain(fn, *args, **kwargs) -> list[tuple[str, str, str]]:
    """Calls ``fn(*args, **kwargs)``; returns (op, backend, reason), one per op call within it."""
    before, _local.calls = _local.calls, []
    try:
        fn(*args, **kwargs)
        return _local.calls
    finally:
        _local.calls = before


_UNSEEN = (
    "no transform of torch.func (grad, vmap, jvp, ...) and no forward mode sees into its kernels; "
    "backend='auto' takes the reference there"
)


def _refuse(
    name: str, device: str, dtype: torch.dtype, smooth: bool, own: str | None, needs: str = ""
) -> str | None:
    """Why a backend cannot run an op on such tensors, or None. ``needs``: a function that not every
    backend has."""
    if name == "reference":
        return None
    if own is not None:
        return (
            f"no kernel knows the surrogate {own}; its formula in PyTorch runs on the reference: "
            "use backend='auto' or 'reference'"
        )
    if name == "cpu" and device != "cpu":
        return f"it runs on CPU tensors, got {device}; move x with .cpu() or use backend='auto'"
    if name == "cuda" and device != "cuda":
        return f"it runs on CUDA tensors, got {device}; move x with .cuda() or use backend='auto'"
    if name == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            "it runs on CUDA tensors, got cpu; move x with .cuda() or use backend='auto' "
            "(Triton's interpreter, TRITON_INTERPRET=1, runs it on the CPU, slowly)"
        )
    if dtype == torch.float64 and name != "cpu":
        return "it computes in float32; float64 runs on reference and cpu"
    if smooth and (name != "cpu" or dtype != torch.float64):
        return "the smooth twin (spiking=False) runs on reference, and in float64 on cpu"
    return _unavailable(name, needs)


def automatic(
    device: str, dtype: torch.dtype, smooth: bool, own: str | None, needs: str = ""
) -> tuple[str, str]:
    if own is not None:
        return "reference", f"auto: no kernel knows the surrogate {own}"
    order = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}.get(device, ())
    reasons = []
    for name in order:
        why_not = _refuse(name, device, dtype, smooth, own, needs)
        if why_not is None:
            tried = f"; {'; '.join(reasons)}" if reasons else ""
            return name, f"auto: the fastest on {device}{tried}"
        reasons.append(f"{name}: {why_not}")
    return "reference", "auto: " + ("; ".join(reasons) or f"no kernel runs on {device}")


def select(
    op: str,
    asked: str | None,
    device: str,
    dtype: torch.dtype,
    smooth: bool,
    own: str | None = None,
    needs: str = "",
    transformed: bool = False,
) -> str:
    """The backend's name; ``own`` is that of a surrogate without a kernel, ``transformed`` whether
    a transform of torch.func has to see the operations. Raises ValueError for an unknown one,
    BackendUnavailable where the one asked for cannot run."""
    if asked is not None:
        check_name(asked, op)
        name, source = asked, "the backend argument"
    elif _local.backend != "auto":
        name, source = _local.backend, "snnfast.backend(...)"
    else:
        name, source = _DEFAULT, "SNNFAST_BACKEND"
    if transformed and name != "reference":
        if name != "auto":
            raise BackendUnavailable(f"{op}: backend {name!r} cannot be used: {_UNSEEN}")
        name, reason = "reference", "auto: a transform of torch.func sees what PyTorch computes"
    elif name == "auto":
        name, reason = automatic(device, dtype, smooth, own, needs)
        if torch.compiler.is_compiling():
            pass
        elif own is not None:
            _warn_once(
                f"surrogate: no kernel knows {own}, so layers with it run on the reference, in "
                "plain PyTorch: on a CPU in float32 they take 5 (T=4) to 20 times (T=16) as long "
                "and keep 3 times the memory for backward"
            )
        elif name == "reference" and device == "cuda":
            _warn_once(f"{op}: running the slow reference on a GPU ({reason})")
    else:
        why_not = _refuse(name, device, dtype, smooth, own, needs)
        if why_not is not None:
            raise BackendUnavailable(f"{op}: backend {name!r} cannot be used: {why_not}")
        reason = f"asked for by {source}"
    if _local.calls is not None:
        _local.calls.append((op, name, reason))
    return name


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)
