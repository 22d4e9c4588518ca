"""LIF on CUDA tensors through Triton, one launch each way; on CPU tensors under its interpreter.

``forward_call`` and ``backward_call`` turn tensors into a kernel's arguments, so that the very same
call can be compiled ahead of time where there is no GPU.
"""

import ctypes
import functools

import torch
from torch import Tensor

from snnfast.backends.spec import INTEGRATE, SEGMENT, Channels, LifLayer
from snnfast.backends.triton import norm_lif as norms
from snnfast.backends.triton.launch import THREAD, WARPS, Call, Plan, on

# Values that a thread of backward may hold.
_HELD = 112


@functools.lru_cache(maxsize=1024)
def _plan(
    layer: LifLayer,
    dtype: torch.dtype,
    rate_dim: int | None,
    static: bool,
    v_all: bool,
    sum_: bool,
    tile=None,
    many: bool = False,
    backwards: bool = False,
) -> tuple[dict, dict, tuple]:
    """Constants of the forward and of the backward kernel, and the numbers that both take."""
    from snnfast.kernels import lif_step

    steps = min(SEGMENT, layer.steps)
    forward = {
        "CHARGE": lif_step.NEURON["CHARGE"],
        "FIRE": lif_step.NEURON["FIRE"],
        "RESET": lif_step.NEURON["RESET"],
        "FLAGS": lif_step.LifFlags(
            charge=layer.charge,
            divide=layer.divide and layer.charge != INTEGRATE,
            zero=layer.reset == 0,
            hard=layer.hard,
            detach_reset=layer.detach_reset,
            surrogate=layer.surrogate,
        ),
        "RATE": "number" if rate_dim is None else "tau" if layer.divide else "factor",
        "STATIC": static,
        "V_ALL": v_all,
        "LONG": layer.steps > SEGMENT,
        "WHOLE": layer.steps % steps == 0,
        "STEPS": steps,
        "BLOCK": THREAD[dtype] * 32 * WARPS,
        "TILE": tile,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }
    backward = {**forward, "ADJOINT": lif_step.NEURON["ADJOINT"], "SUM": sum_}
    backward |= {"MANY": many, "BACKWARDS": backwards}
    # The forward kernel knows nothing of the surrogate, nor of the reset's gradient.
    forward["FLAGS"] = forward["FLAGS"]._replace(detach_reset=False, surrogate=0)

    tau, factor = 1.0, 1.0
    if rate_dim is None and layer.charge != INTEGRATE:
        # 1/tau of tau as the kernel sees it, in float32.
        tau = ctypes.c_float(layer.rate).value
        factor = 1.0 / tau if layer.divide else layer.rate
    return forward, backward, (tau, factor, layer.theta, layer.reset, layer.a, layer.b)


def _place(
    layer: LifLayer,
    x: Tensor,
    rate: Tensor | None,
    where: Channels | None,
    neurons: int | None = None,
):
    """What a program has of one timestep."""
    n = x.numel() // layer.steps
    if where is not None:
        rates = rate is not None and rate.dim() == 1
        return norms.lay(*where, n, x.dtype, rates, neurons)
    channels = (layer.channels, layer.inner) if rate is not None and rate.dim() else (None, None)
    return norms.Place(None, -(-n // (THREAD[x.dtype] * 32 * WARPS)), (None, None, *channels))


def _neurons(layer: LifLayer, x, v0, rate, dv, residual) -> int:
    """Neurons of a thread in backward, with a norm: as many as leave it at about 128 registers, of
    which a multiprocessor has for four blocks; counted in the machine code. A thread holds the
    steps of a segment of all that is read, and more in a loop over segments, and where the last of
    them ends early."""
    more = not (v0 is None and rate is None and dv is None)
    long, ragged = layer.steps > SEGMENT, layer.steps % SEGMENT != 0
    streams = 2 + (residual is not None) + more + long + (long and ragged)
    neurons = THREAD[x.dtype]
    while neurons * min(layer.steps, SEGMENT) * streams > _HELD:
        neurons //= 2
    return neurons


def backward_place(
    layer: LifLayer, x, v0, rate, dv, where: Channels | None, residual, summed: bool
) -> norms.Place:
    """The same for backward."""
    if where is None:
        return _place(layer, x, rate, where)
    place = _place(layer, x, rate, where, _neurons(layer, x, v0, rate, dv, residual))
    # A program of a static input has one tile: what it sums over time is what it writes.
    many = summed and layer.steps > 1 and x.stride(0) != 0
    return norms.adding_up(place) if many else place


def forward_call(
    layer: LifLayer, where: Channels | None, x, v0, rate, s, v, borders, stats=None, bias=None,
    residual=None,
) -> Call:  # fmt: skip
    """The launch behind ``lif_forward``."""
    from snnfast.kernels.lif import lif_forward as kernel

    n, stride = s.numel() // layer.steps, x.stride(0)
    v_all = v is not None and v.dim() == x.dim()
    rate_dim = None if rate is None else rate.dim()
    place = _place(layer, x, rate, where)
    constants, _, numbers = _plan(layer, x.dtype, rate_dim, stride == 0, v_all, False, place.tile)
    residual_stride = 0 if residual is None else residual.stride(0)
    tensors = (x, v0, rate, s, v, borders, stats, bias, residual)
    arguments = (*tensors, layer.steps, n, stride, residual_stride, *place.sizes, *numbers)
    return Call(kernel, place.programs, arguments, constants)


def backward_call(
    layer: LifLayer, where: Channels | None, x, v0, rate, borders, ds, dv, dx, dv0, drate,
    stats=None, bias=None, residual=None, sums=None, totals=None,
) -> Call:  # fmt: skip
    """The launch behind ``lif_backward``; ``drate`` and ``sums`` are buffers of partial sums."""
    from snnfast.kernels.lif import lif_backward as kernel

    n, stride = x.numel() // layer.steps, x.stride(0)
    v_all = dv is not None and dv.dim() == x.dim()
    rate_dim = None if rate is None else rate.dim()
    sum_ = dx is not None and dx.dim() < x.dim()
    place = backward_place(layer, x, v0, rate, dv, where, residual, sums is not None)
    static = stride == 0 or sum_
    backwards = norms.BACKWARDS and totals is not None
    choices = (static, v_all, sum_, place.tile, place.items > 1, backwards)
    _, constants, numbers = _plan(layer, x.dtype, rate_dim, *choices)
    strides = tuple(0 if t is None else t.stride(0) for t in (ds, residual))
    given = (x, v0, rate, borders, ds, dv, dx, dv0, drate)
    tensors = (*given, stats, bias, residual, sums, totals)
    arguments = (*tensors, layer.steps, n, stride, *strides, *place.sizes, place.items, *numbers)
    return Call(kernel, place.programs, arguments, constants)


def partial_sums(layer: LifLayer, x: Tensor, rate: Tensor, place: norms.Place) -> Tensor:
    """Where backward puts its parts of the gradient of 1/tau: for a rate per channel one float32 a
    neuron, else one a program."""
    size = x.numel() // layer.steps if rate.dim() else place.programs
    return torch.empty(size, dtype=torch.float32, device=x.device)


def lif_forward(
    layer: LifLayer, where: Channels | None, x, v0, rate, s, v, borders, stats, bias, residual
):  # fmt: skip
    tensors = (x, v0, rate, s, v, borders, stats, bias, residual)
    plan, device = Plan(forward_call(layer, where, *tensors)), x.device
    return on(device, lambda *tensors: plan.launch(device, *tensors))


def lif_backward(
    layer: LifLayer, where: Channels | None, count: int, x, v0, rate, borders, ds, dv, dx, dv0,
    drate, stats, bias, residual, totals,
):  # fmt: skip
    place = backward_place(layer, x, v0, rate, dv, where, residual, where is not None)
    # With a norm the sums for a rate per channel lie behind those for the norm.
    beside = where is not None and drate is not None and bool(drate.dim())
    moments = parts = None
    if where is not None:
        moments = norms.partial_sums(place, 3 if beside else 2, x.device)
    if drate is not None:
        parts = moments if beside else partial_sums(layer, x, rate, place)
    given = (x, v0, rate, borders, ds, dv, dx, dv0)
    call = backward_call(layer, where, *given, parts, stats, bias, residual, moments)
    plan, device, end = Plan(call), x.device, None
    if where is not None:
        end = Plan(norms.finish_call(count, stats, totals, moments, drate if beside else None))
    sizes = [None if t is None else t.shape for t in (moments, None if beside else parts)]

    def launch(x, v0, rate, borders, ds, dv, dx, dv0, drate, stats, bias, residual, totals):
        moments, parts = (
            size and torch.empty(*size, dtype=torch.float32, device=device) for size in sizes
        )
        parts = moments if beside else parts
        given = (x, v0, rate, borders, ds, dv, dx, dv0)
        plan.launch(device, *given, parts, stats, bias, residual, moments, None)
        if end is not None:
            end.launch(device, moments, drate if beside else None, stats, totals)
        if drate is None or beside:
            return
        if drate.dim():
            torch.sum(parts.view(-1, layer.channels, layer.inner), dim=(0, 2), out=drate)
        else:
            torch.sum(parts, dim=0, out=drate)

    return on(device, launch)


def norm_lif_dy(
    layer: LifLayer, where: Channels, x, v0, rate, borders, ds, dv, dy, stats, bias, totals
):  # fmt: skip
    given, device = (x, v0, rate, borders, ds, dv, dy, None, None), x.device
    plan = Plan(backward_call(layer, where, *given, stats, bias, None, None, totals))

    def launch(x, v0, rate, borders, ds, dv, dy, stats, bias, totals):
        given = (x, v0, rate, borders, ds, dv, dy, None, None)
        plan.launch(device, *given, stats, bias, None, None, totals)

    return on(device, launch)
