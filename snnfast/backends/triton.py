"""LIF on CUDA tensors through Triton, one launch each way; on CPU tensors under its interpreter.

``forward_call`` and ``backward_call`` turn tensors into a kernel's arguments, so that the very same
call can be compiled ahead of time where there is no GPU.
"""

import contextlib
import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast.backends.spec import INTEGRATE, SEGMENT, LifSpec

# Elements of a thread: 16 bytes of x, so that every access is as wide as the hardware has it.
_THREAD = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
_WARPS = 4


class Call(NamedTuple):
    """One launch: ``kernel[(programs,)](*arguments, **constants)``."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict

    def launch(self, device: torch.device) -> None:
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard:
            self.kernel[(self.programs,)](*self.arguments, **self.constants)


@functools.cache
def available() -> str | None:
    """None when the backend can be used, else one sentence that says how to enable it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    from snnfast.kernels import neuron

    if neuron.INTERPRET.value or torch.cuda.is_available():
        return None
    return (
        "no CUDA device (torch.cuda.is_available() is False); to run the kernels on the CPU under "
        "Triton's interpreter, slowly, set TRITON_INTERPRET=1 before Python starts"
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    spec: LifSpec, dtype: torch.dtype, rate_dim: int | None, static: bool, v_all: bool, sum_: bool
) -> tuple[dict, dict, tuple]:
    """Constants of the forward and of the backward kernel, and the numbers that both take."""
    from snnfast.kernels import neuron

    steps = min(SEGMENT, 1 << (spec.steps - 1).bit_length())
    forward = {
        "CHARGE": neuron.NEURON["CHARGE"],
        "FIRE": neuron.NEURON["FIRE"],
        "RESET": neuron.NEURON["RESET"],
        "FLAGS": neuron.LifFlags(
            charge=spec.charge,
            divide=spec.divide and spec.charge != INTEGRATE,
            zero=spec.reset == 0,
            hard=spec.hard,
            detach_reset=spec.detach_reset,
            surrogate=spec.surrogate,
        ),
        "RATE": "number" if rate_dim is None else "tau" if spec.divide else "factor",
        "STATIC": static,
        "V_ALL": v_all,
        "LONG": spec.steps > SEGMENT,
        "WHOLE": spec.steps % steps == 0,
        "STEPS": steps,
        "BLOCK": _THREAD[dtype] * 32 * _WARPS,
        "num_warps": _WARPS,
        "enable_fp_fusion": False,
    }
    backward = {**forward, "ADJOINT": neuron.NEURON["ADJOINT"], "SUM": sum_}
    # The forward kernel knows nothing of the surrogate, nor of the reset's gradient.
    forward["FLAGS"] = forward["FLAGS"]._replace(detach_reset=False, surrogate=0)

    tau, factor = 1.0, 1.0
    if rate_dim is None and spec.charge != INTEGRATE:
        # 1/tau of tau as the kernel sees it, in float32.
        tau = torch.tensor(spec.rate, dtype=torch.float32).item()
        factor = 1.0 / tau if spec.divide else spec.rate
    return forward, backward, (tau, factor, spec.theta, spec.reset, spec.a, spec.b)


def _channels(spec: LifSpec, rate: Tensor | None) -> tuple[int | None, int | None]:
    return (spec.channels, spec.inner) if rate is not None and rate.dim() else (None, None)


def forward_call(spec: LifSpec, x, v0, rate, s, v, borders) -> Call:
    """The launch behind ``lif_forward``."""
    from snnfast.kernels.lif import lif_forward as kernel

    n, stride = s.numel() // spec.steps, x.stride(0)
    v_all = v is not None and v.dim() == x.dim()
    rate_dim = None if rate is None else rate.dim()
    constants, _, numbers = _plan(spec, x.dtype, rate_dim, stride == 0, v_all, False)
    sizes = (spec.steps, n, stride, *_channels(spec, rate))
    arguments = (x, v0, rate, s, v, borders, *sizes, *numbers)
    return Call(kernel, -(-n // constants["BLOCK"]), arguments, constants)


def backward_call(spec: LifSpec, x, v0, rate, borders, ds, dv, dx, dv0, drate) -> Call:
    """The launch behind ``lif_backward``; ``drate`` is the buffer of partial sums."""
    from snnfast.kernels.lif import lif_backward as kernel

    n, stride = x.numel() // spec.steps, x.stride(0)
    v_all = dv is not None and dv.dim() == x.dim()
    rate_dim = None if rate is None else rate.dim()
    sum_ = dx.dim() < x.dim()
    _, constants, numbers = _plan(spec, x.dtype, rate_dim, stride == 0, v_all, sum_)
    ds_stride = 0 if ds is None else ds.stride(0)
    sizes = (spec.steps, n, stride, ds_stride, *_channels(spec, rate))
    arguments = (x, v0, rate, borders, ds, dv, dx, dv0, drate, *sizes, *numbers)
    return Call(kernel, -(-n // constants["BLOCK"]), arguments, constants)


def partial_sums(spec: LifSpec, x: Tensor, rate: Tensor) -> Tensor:
    """Where backward puts its parts of the gradient of 1/tau: one float32 a neuron for a rate per
    channel, else one a program."""
    n = x.numel() // spec.steps
    programs = -(-n // (_THREAD[x.dtype] * 32 * _WARPS))
    return torch.empty(n if rate.dim() else programs, dtype=torch.float32, device=x.device)


def lif_forward(spec: LifSpec, x, v0, rate, s, v, borders) -> None:
    """Fills s, and v and borders where they are given."""
    forward_call(spec, x, v0, rate, s, v, borders).launch(x.device)


def lif_backward(spec: LifSpec, x, v0, rate, borders, ds, dv, dx, dv0, drate) -> None:
    """Fills dx, and dv0 and drate where they are given."""
    parts = None if drate is None else partial_sums(spec, x, rate)
    backward_call(spec, x, v0, rate, borders, ds, dv, dx, dv0, parts).launch(x.device)
    if drate is None:
        return
    if rate.dim():
        torch.sum(parts.view(-1, spec.channels, spec.inner), dim=(0, 2), out=drate)
    else:
        torch.sum(parts, dim=0, out=drate)
