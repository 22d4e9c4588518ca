"""``norm_lif``: BatchNorm, a residual and LIF in one pass, forward and backward.

The contract, the launches, the autograd.Function, the checks, and the public function, in that
order. Kept for backward are y, the residual and a few numbers per channel: X and H are computed
again from them.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends import spec as specs
from snnfast.ops import layer as layers
from snnfast.ops import norm as norms
from snnfast.ops import norm_checks, norm_neuron
from snnfast.ops import validation as check
from snnfast.ops.direct import applied, is_direct
from snnfast.ops.lif_definition import by_program, lif, needs_program
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import recomputes_dx
from snnfast.ops.time_axis import FIRST, along
from snnfast.ops.transforms import differentiable, wants_graph

_library = torch.library.Library("snnfast", "FRAGMENT")
_NORM = "Tensor stats, Tensor bias"
_library.define(
    f"norm_lif_forward(Tensor y, Tensor? residual, {_NORM}, Tensor? v0, Tensor? rate, "
    f"{layers.LAYER}, int state, bool keep) -> (Tensor s, Tensor v, Tensor borders)",
    tags=layers.TAGS,
)
_library.define(
    f"norm_lif_backward(Tensor y, Tensor? residual, {_NORM}, Tensor? v0, Tensor? rate, "
    f"Tensor borders, Tensor? ds, Tensor? dv, {layers.LAYER}, SymInt count, bool want_dx, "
    "bool want_dy, bool want_dv0, bool want_drate) -> (Tensor dx, Tensor dy, Tensor totals, "
    "Tensor dv0, Tensor drate)",
    tags=layers.TAGS,
)
_library.define(
    f"norm_lif_dy(Tensor y, {_NORM}, Tensor? v0, Tensor? rate, Tensor borders, Tensor? ds, "
    f"Tensor? dv, Tensor totals, {layers.LAYER}) -> Tensor",
    tags=layers.TAGS,
)


@torch.library.register_fake("snnfast::norm_lif_forward", lib=_library)
def _(y, residual, stats, bias, v0, rate, steps, choices, numbers, backend, state, keep):
    layer = layers.unpacked(y, steps, choices, numbers)
    return layers.present(y, layers.empty_forward(y, layer, state, keep))


def _empty_backward(y, stats, rate, layer, want_dx, want_dy, want_dv0, want_drate):
    dx = layers.empty_input(y, layer) if want_dx else None
    dy = layers.empty_input(y, layer) if want_dy else None
    rest = layers.empty_backward(y, rate, layer, want_dv0, want_drate)
    return dx, dy, norms.empty_totals(stats), *rest


@torch.library.register_fake("snnfast::norm_lif_backward", lib=_library)
def _(y, residual, stats, bias, v0, rate, borders, ds, dv, steps, choices, numbers, backend, count,
      *wanted):  # fmt: skip
    layer = layers.unpacked(y, steps, choices, numbers)
    return layers.present(y, _empty_backward(y, stats, rate, layer, *wanted))


@torch.library.register_fake("snnfast::norm_lif_dy", lib=_library)
def _(y, stats, bias, v0, rate, borders, ds, dv, totals, steps, choices, numbers, backend):
    return layers.empty_input(y, layers.unpacked(y, steps, choices, numbers))


def _forward(y, residual, stats, bias, v0, rate, layer, kernels, state, keep, *pending):
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    s, v, borders = layers.empty_forward(y, layer, state, keep)
    where = norms.channels_of(y, layer.static)
    v0 = layout.like_steps(v0, y, layers.axis(layer))
    residual = layout.like_steps(residual, y, layers.axis(layer), any_stride=True)
    tensors = (sequence, v0, rate, s, v, borders, stats, bias, residual)
    if pending:
        numbers, rows = pending
        kernels.norm_lif_forward(layer, where, *numbers, *tensors, *rows)
    else:
        kernels.lif_forward(layer, *tensors, where)
    return s, v, borders


def _backward(y, residual, stats, bias, v0, rate, borders, ds, dv, layer, kernels, count, want_dx,
              want_dy, want_dv0, want_drate):  # fmt: skip
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    outputs = _empty_backward(y, stats, rate, layer, want_dx, want_dy, want_dv0, want_drate)
    dx, dy, totals, *grads = outputs
    if dx is None and (residual is not None or y.dtype not in kernels.recomputes_dx):
        # What the second pass reads, and replaces.
        dx = layers.empty_input(y, layer) if dy is None else dy
    v0, *kept = layers.gradients_as_launched(y, layer, v0, borders, ds, dv)
    residual = layout.like_steps(residual, y, layers.axis(layer), any_stride=True)
    kernels.norm_lif_backward(
        layer, norms.channels_of(y, layer.static), count, sequence, v0, rate, *kept, dx, *grads,
        stats, bias, residual, totals, dy,
    )  # fmt: skip
    return outputs


def _dy(y, stats, bias, v0, rate, borders, ds, dv, totals, layer, kernels):
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    dy = layers.empty_input(y, layer)
    v0, *kept = layers.gradients_as_launched(y, layer, v0, borders, ds, dv)
    where = norms.channels_of(y, layer.static)
    kernels.norm_lif_dy(layer, where, sequence, v0, rate, *kept, dy, stats, bias, totals)
    return dy


for _device in ("CPU", "CUDA"):
    _library.impl("norm_lif_forward", layers.behind_dispatcher(_forward, 6), _device)
    _library.impl("norm_lif_backward", layers.behind_dispatcher(_backward, 9), _device)
    _library.impl("norm_lif_dy", layers.behind_dispatcher(_dy, 9), _device)


def _over_ranks(call: layers.Call, count, group, tensors: tuple, totals, dx, in_place: bool):
    """dy where ``count`` values of all ranks of ``group`` share their statistics."""
    y, _, stats, *rest = tensors
    totals = norms.over_ranks(stats, totals, count, group, call.backend)
    if dx.numel():
        return norms.dy(y, dx, stats, totals, call.layer.static, call.backend, in_place)
    op = torch.ops.snnfast.norm_lif_dy.default
    return call.run(False, op, _dy, (y, stats, *rest, totals))


class _NormLif(torch.autograd.Function):
    """``count`` is the number of values a channel's statistics were taken of, 0 where they are
    constants; ``group`` the ranks that share them, or None; ``pending`` what ``norms.pending`` has
    of statistics that are not there yet, or ()."""

    @staticmethod
    def forward(ctx, y, residual, weight, bias, v0, rate, stats, call, count, group, eps, pending):
        tensors = (y, residual, stats, norms.or_zeros(bias, stats), v0, rate)
        op = torch.ops.snnfast.norm_lif_forward.default
        s, v, borders = call.run(call.direct, op, _forward, tensors, call.state, True, *pending)
        borders = layers.nothing(y.device) if borders is None else borders
        ctx.save_for_backward(weight, *tensors, borders)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.count, ctx.group, ctx.eps = call, count, group, eps
        return (s, v) if call.state else s

    @staticmethod
    def backward(ctx, ds, dv=None):
        (weight, *kept), call = ctx.saved_tensors, ctx.call
        y, residual, stats, bias, v0, rate, _ = kept
        wanted = ctx.needs_input_grad[:6]
        if wants_graph():
            norms.refuse_graph("norm_lif", ctx.group)
            constants = None if ctx.count else (stats[specs.MEAN], stats[specs.VAR])
            run = partial(_on_the_reference, call, constants, ctx.eps)
            given = (y, residual, weight, bias, v0, rate)
            return *differentiable(run, given, wanted, (ds, dv)), *[None] * 6
        want_dy, want_dresidual, want_dweight, want_dbias, want_dv0, want_drate = wanted
        shared = ctx.group is not None
        again = residual is None and shared and recomputes_dx(call.backend, y.dtype)
        want_dx = want_dresidual or (shared and want_dy and not again)
        dx, dy, totals, dv0, drate = call.run(
            call.direct and is_direct(y, ds, dv), torch.ops.snnfast.norm_lif_backward.default,
            _backward, (*kept, ds, dv), 0 if shared else ctx.count, want_dx,
            want_dy and not shared, want_dv0, want_drate,
        )  # fmt: skip
        if shared and want_dy:
            # In place where nobody else sees the gradient of X.
            own = not (want_dresidual or torch.compiler.is_compiling())
            dy = _over_ranks(call, ctx.count, ctx.group, (*kept, ds, dv), totals, dx, own)
        if want_drate:
            drate = layers.rate_gradient(call.layer, rate, drate)
        return (
            dy if want_dy else None,
            dx if want_dresidual else None,
            totals.select(0, specs.DWEIGHT) if want_dweight else None,
            totals.select(0, specs.SUM) if want_dbias else None,
            dv0 if want_dv0 else None,
            drate if want_drate else None,
            None, None, None, None, None, None,
        )  # fmt: skip


_check = partial(norm_checks.check, "norm_lif")
_definition = lif.named("norm_lif")


def _on_the_reference(call, statistics, eps, y, residual, weight, bias, v0, rate):
    """``statistics``: mean and variance that are constants, None for those of the batch."""
    dtype, axis = check.state_dtype(y), norms.channel_axis(call.layer.static)
    mean, var = (None, None) if statistics is None else (t.clone() for t in statistics)
    one, zero = (torch.full((), number, dtype=dtype) for number in (1, 0))
    return call.results(
        *reference.norm_lif(
            y, residual, v0, eps=eps, mean=mean, var=var,
            weight=(one if weight is None else weight).to(y.device).expand(y.shape[axis]),
            bias=(zero if bias is None else bias).to(y.device).expand(y.shape[axis]),
            **call.in_plain_words(rate),
        )
    )  # fmt: skip


def norm_lif(
    y: Tensor,
    residual: Tensor | None = None,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    v0: Tensor | None = None,
    tau: "float | Tensor" = layers.DEFAULT_TAU,
    v_threshold: "float | Tensor" = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: "str | surrogates.Surrogate" = "sigmoid",
    inv_tau: Tensor | None = None,
    beta: "float | Tensor | None" = None,
    v_rest: float | None = None,
    fire: str = ">=",
    detach_state: bool = False,
    timesteps: int | None = None,
    time_axis: "int | str" = 0,
    return_state: "bool | str" = False,
    process_group=None,
    backend: str | None = None,
) -> Tensor | Any:
    r"""Batch normalisation, a residual and leaky integrate-and-fire neurons over all timesteps.

    With mean and var of every channel over time, batch and space (of this batch in training, the
    running ones otherwise)::

        X_t = (Y_t - mean) * (weight / sqrt(var + eps)) + bias [+ R_t]
        S_t = lif(X)_t

    The normalisation is Ioffe & Szegedy's (2015, arXiv 1502.03167) with time folded into the batch
    (Zheng et al. 2021, arXiv 2011.05280), as torch's BatchNorm over [T * B, C, ...] has it; the
    neuron is that of :func:`snnfast.lif`.

    Args:
        y: [T, B, C, ...], time first; float32, float16, bfloat16, or float64 (reference and cpu).
            Layouts as ``x`` of ``lif``: contiguous, channels-last and any time stride are read
            without a copy. With ``timesteps``: one static input [B, C, ...], shown at every step.
        residual: [T, B, C, ...] in y's dtype, added after the normalisation, or None.
        weight, bias: [C] in any floating dtype, or None for 1 and 0.
        running_mean, running_var: [C], float32 (float64 for float64 y), updated in place in
            training: new = (1 - momentum) old + momentum batch, the variance unbiased. None: the
            statistics of the batch are used in evaluation, too.
        training: normalise by the statistics of this batch.
        momentum: in 0..1.
        eps: > 0.
        process_group: ranks of torch.distributed that share statistics and their gradients.
        v0 to return_state, time_axis and backend: as in :func:`snnfast.lif`.

    Returns s [T, B, C, ...] in y's dtype, or (s, v).

    Statistics and arithmetic are float32 (float64 for float64) whatever y's dtype. Kept for
    backward: y, the residual, a few numbers per channel, and 4 bytes per neuron for every 8 steps
    beyond the first 8. Transforms and ``create_graph=True`` as in :func:`snnfast.lif`; a mapped y
    (``vmap``) cannot update running statistics.

    Raises:
        TypeError, ValueError: ``norm_lif: <argument> must be ..., got ...``; in training also where
            a channel has one value only.
        BackendUnavailable: the backend asked for cannot run here.
    """
    if type(time_axis) is not int or time_axis != FIRST:
        return along(
            time_axis, norm_lif, {"y": y, "residual": residual}, weight=weight, bias=bias,
            running_mean=running_mean, running_var=running_var, training=training,
            momentum=momentum, eps=eps, v0=v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate,
            inv_tau=inv_tau, beta=beta, v_rest=v_rest, fire=fire, detach_state=detach_state,
            timesteps=timesteps, return_state=return_state, process_group=process_group,
            backend=backend,
        )  # fmt: skip
    if needs_program(beta, v_rest, detach_state, fire, v_threshold, surrogate):
        run = partial(
            norm_neuron.run, "norm_lif", _definition, residual=residual, weight=weight, bias=bias,
            running_mean=running_mean, running_var=running_var, training=training,
            momentum=momentum, eps=eps, process_group=process_group,
        )  # fmt: skip
        return by_program(
            "norm_lif", run, y, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate,
            inv_tau=inv_tau, beta=beta, v_rest=v_rest, fire=fire, detach_state=detach_state,
            timesteps=timesteps, return_state=return_state, backend=backend,
        )  # fmt: skip
    if process_group is not None:
        norm_checks.check_group("norm_lif", process_group)
    call, rate, (use_batch, count, momentum, eps) = layers.checked_call(
        "norm_lif", y, v0, residual, weight, bias, running_mean, running_var, tau=tau,
        v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, inv_tau=inv_tau, timesteps=timesteps,
        return_state=return_state, backend=backend, own_check=_check,
        own_options=(training, momentum, eps, process_group is not None),
    )  # fmt: skip
    weight, bias = norms.in_state_dtype(weight, y), norms.in_state_dtype(bias, y)
    running = (running_mean, running_var) if training and running_mean is not None else None
    repeats = timesteps or 1
    if call.backend == "reference":
        if use_batch and process_group is not None:
            raise ValueError(
                "norm_lif: process_group must be None on the reference backend, got one"
            )
        statistics = None if use_batch else (running_mean, running_var)
        if running is not None:
            norms.update_on_the_reference(
                "norm_lif", y, running, momentum, count * repeats, call.layer.static
            )
        return _on_the_reference(call, statistics, eps, y, residual, weight, bias, v0, rate)

    y = layout.with_dense_steps(y, layers.axis(call.layer))
    pending = ()
    if not use_batch:
        stats = norms.prepared(running_mean, running_var, weight, eps, call)
        count, process_group = 0, None
    elif process_group is None and norms.may_wait(running, call):
        stats, pending = norms.pending(y, weight, running, momentum, count, eps)
    else:
        stats, count = norms.statistics(
            y, weight, running, momentum, repeats, eps, count, process_group, call
        )
    inputs = (y, residual, weight, bias, v0, rate)
    if layers.want_gradient(*inputs):
        beside = (stats, call, count, process_group, eps, pending)
        result = applied(_NormLif, call.direct, *inputs, *beside)
    else:
        op = torch.ops.snnfast.norm_lif_forward.default
        tensors = (y, residual, stats, norms.or_zeros(bias, stats), v0, rate)
        s, v, _ = call.run(call.direct, op, _forward, tensors, call.state, False, *pending)
        result = (s, v) if call.state else s
    if call.surrogate.spiking:
        mark_spikes(result[0] if call.state else result)
    return result
