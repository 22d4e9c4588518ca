"""``norm_lif``: BatchNorm, a residual and LIF in one pass, forward and backward.

The contract, the launches, the autograd.Function, the checks, and the public function, in that
order. Kept for backward are y, the residual and a few numbers per channel: X and H are computed
again from them.
"""

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import checks, layout
from snnfast.backends import spec as specs
from snnfast.ops import layer as layers
from snnfast.ops import norm as norms
from snnfast.ops import norm_checks
from snnfast.ops import validation as check
from snnfast.ops.direct import is_direct
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import recomputes_dx

_library = torch.library.Library("snnfast", "FRAGMENT")
_NORM = "Tensor mean, Tensor scale, Tensor bias"
_library.define(
    f"norm_lif_forward(Tensor y, Tensor? residual, {_NORM}, Tensor? v0, Tensor? rate, "
    f"{layers.LAYER}, int state, bool keep) -> (Tensor s, Tensor v, Tensor borders)",
    tags=layers.TAGS,
)
_library.define(
    f"norm_lif_backward(Tensor y, Tensor? residual, {_NORM}, Tensor inv_std, Tensor? v0, "
    f"Tensor? rate, Tensor borders, Tensor? ds, Tensor? dv, {layers.LAYER}, SymInt count, "
    "bool want_dx, bool want_dv0, bool want_drate) -> (Tensor dx, Tensor sums, Tensor dweight, "
    "Tensor dbias, Tensor b, Tensor c, Tensor dv0, Tensor drate)",
    tags=layers.TAGS,
)
_library.define(
    f"norm_lif_dy(Tensor y, {_NORM}, Tensor? v0, Tensor? rate, Tensor borders, Tensor? ds, "
    f"Tensor? dv, Tensor a, Tensor b, Tensor c, {layers.LAYER}) -> Tensor",
    tags=layers.TAGS,
)


@torch.library.register_fake("snnfast::norm_lif_forward", lib=_library)
def _(y, residual, mean, scale, bias, v0, rate, steps, choices, numbers, backend, state, keep):
    layer = layers.unpacked(y, steps, choices, numbers)
    return layers.present(y, layers.empty_forward(y, layer, state, keep))


def _empty_backward(y, mean, rate, layer, want_dx, want_dv0, want_drate):
    checks.axes("mean", mean, 1, "[C]")
    dx = layers.empty_input(y, layer) if want_dx else None
    rows = mean.new_empty((2, mean.shape[0])), *norms.empty_finished(mean)
    return dx, *rows, *layers.empty_backward(y, rate, layer, want_dv0, want_drate)


@torch.library.register_fake("snnfast::norm_lif_backward", lib=_library)
def _(y, residual, mean, scale, bias, inv_std, v0, rate, borders, ds, dv, steps, choices, numbers,
      backend, count, *wanted):  # fmt: skip
    layer = layers.unpacked(y, steps, choices, numbers)
    return layers.present(y, _empty_backward(y, mean, rate, layer, *wanted))


@torch.library.register_fake("snnfast::norm_lif_dy", lib=_library)
def _(y, mean, scale, bias, v0, rate, borders, ds, dv, a, b, c, steps, choices, numbers, backend):
    return layers.empty_input(y, layers.unpacked(y, steps, choices, numbers))


def _forward(y, residual, mean, scale, bias, v0, rate, layer, kernels, state, keep):
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    s, v, borders = layers.empty_forward(y, layer, state, keep)
    norm = specs.Norm(mean, scale, bias, *norms.channels_of(y, layer.static))
    v0 = layout.like_steps(v0, y, layers.axis(layer))
    residual = layout.like_steps(residual, y, layers.axis(layer), any_stride=True)
    kernels.lif_forward(layer, sequence, v0, rate, s, v, borders, norm, residual)
    return s, v, borders


def _backward(y, residual, mean, scale, bias, inv_std, v0, rate, borders, ds, dv, layer, kernels,
              count, want_dx, want_dv0, want_drate):  # fmt: skip
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    outputs = _empty_backward(y, mean, rate, layer, want_dx, want_dv0, want_drate)
    dx, sums, *rows, dv0, drate = outputs
    norm = specs.Norm(mean, scale, bias, *norms.channels_of(y, layer.static))
    v0, *kept = layers.gradients_as_launched(y, layer, v0, borders, ds, dv)
    residual = layout.like_steps(residual, y, layers.axis(layer), any_stride=True)
    grads = (dx, dv0, drate)
    finished = specs.Finished(scale, inv_std, count, *rows)
    kernels.lif_backward(layer, sequence, v0, rate, *kept, *grads, norm, residual, sums, finished)
    return outputs


def _dy(y, mean, scale, bias, v0, rate, borders, ds, dv, a, b, c, layer, kernels):
    y, sequence, rate, layer = layers.as_launched(y, rate, layer)
    dy = layers.empty_input(y, layer)
    norm = specs.Norm(mean, scale, bias, *norms.channels_of(y, layer.static))
    v0, *kept = layers.gradients_as_launched(y, layer, v0, borders, ds, dv)
    kernels.norm_lif_dy(layer, sequence, v0, rate, *kept, dy, norm, a, b, c)
    return dy


for _device in ("CPU", "CUDA"):
    _library.impl("norm_lif_forward", layers.behind_dispatcher(_forward, 7), _device)
    _library.impl("norm_lif_backward", layers.behind_dispatcher(_backward, 11), _device)
    _library.impl("norm_lif_dy", layers.behind_dispatcher(_dy, 12), _device)


def _is_batched(dx: Tensor) -> bool:
    """Whether ``dx`` stands for many, under ``is_grads_batched``."""
    return torch._C._functorch.is_legacy_batchedtensor(dx)


class _NormLif(torch.autograd.Function):
    """``batch`` is the number of values a channel's statistics were taken of, None where they are
    constants; ``group`` the ranks that share them. ``again``: the second pass of backward computes
    the gradient of X again instead of reading it."""

    @staticmethod
    def forward(
        ctx, y, residual, weight, bias, v0, rate, mean, inv_std, scale, call, batch, group, again
    ):
        shift = torch.zeros_like(mean) if bias is None else bias
        op, tensors = torch.ops.snnfast.norm_lif_forward.default, (mean, scale, shift, v0, rate)
        s, v, borders = call.forward(op, _forward, (y, residual, *tensors), call.state, True)
        ctx.save_for_backward(y, residual, scale, shift, v0, rate, mean, inv_std, borders)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.batch, ctx.group, ctx.again = call, batch, group, again
        return (s, v) if call.state else s

    @staticmethod
    def backward(ctx, ds, dv=None):
        layers.refuse_twice("norm_lif")
        y, residual, scale, shift, v0, rate, mean, inv_std, borders = ctx.saved_tensors
        want_dy, want_dresidual, _, _, want_dv0, want_drate, *_ = ctx.needs_input_grad
        call, shared = ctx.call, ctx.group is not None and ctx.batch is not None
        norm, inputs = (mean, scale, shift), (v0, rate, borders, ds, dv)
        direct = call.direct and is_direct(y, ds, dv)
        dx, sums, dweight, dbias, b, c, dv0, drate = call.backward(
            direct, torch.ops.snnfast.norm_lif_backward.default, _backward,
            (y, residual, *norm, inv_std, *inputs),
            0 if shared else ctx.batch or 0, not ctx.again, want_dv0, want_drate,
        )  # fmt: skip
        if shared:
            b, c = norms.over_ranks(sums, scale, inv_std, ctx.batch, ctx.group, call.backend)
        if want_drate:
            drate = layers.rate_gradient(call.layer, rate, drate)
        dy = None
        if want_dy and ctx.again:
            op = torch.ops.snnfast.norm_lif_dy.default
            dy = call.backward(direct, op, _dy, (y, *norm, *inputs, scale, b, c))
        elif want_dy:
            # In place where nobody else sees the gradient of X.
            own = not (want_dresidual or torch.compiler.is_compiling() or _is_batched(dx))
            dy = norms.dy(y, dx, mean, scale, b, c, call.layer.static, call.backend, own, direct)
        grads = (dy, dx, dweight, dbias, dv0, drate)
        wanted = (grad if want else None for grad, want in zip(grads, ctx.needs_input_grad))
        return *wanted, *[None] * 7


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
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: "str | surrogates.Surrogate" = "sigmoid",
    inv_tau: Tensor | None = None,
    timesteps: int | None = None,
    return_state: "bool | str" = False,
    process_group=None,
    backend: str | None = None,
):
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
        v0 to return_state, and backend: as in :func:`snnfast.lif`.

    Returns s [T, B, C, ...] in y's dtype, or (s, v).

    Statistics and arithmetic are float32 (float64 for float64) whatever y's dtype. Kept for
    backward: y, the residual, a few numbers per channel, and 4 bytes per neuron for every 8 steps
    beyond the first 8. Differentiable once.

    Raises:
        TypeError, ValueError: ``norm_lif: <argument> must be ..., got ...``; in training also where
            a channel has one value only.
        BackendUnavailable: the backend asked for cannot run here.
    """
    static = timesteps is not None
    momentum, eps = norm_checks.check_arguments(
        "norm_lif", y, residual, weight, bias, running_mean, running_var, training, momentum, eps,
        timesteps,
    )  # fmt: skip
    channels = y.shape[norms.channel_axis(static)]
    check.refuse_transforms("norm_lif", residual, weight, bias)
    call, rate = layers.checked_call(
        "norm_lif", y, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
        decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate, inv_tau=inv_tau,
        timesteps=timesteps, return_state=return_state, backend=backend,
        others=(residual, weight, bias, running_mean, running_var),
    )  # fmt: skip
    dtype, plain = check.state_dtype(y), call.backend == "reference"
    weight, bias = (None if p is None else p.to(dtype).contiguous() for p in (weight, bias))
    use_batch = training or running_mean is None
    count = y.numel() // channels  # a static input has the statistics of one step
    norm_checks.check_batch("norm_lif", y, static, timesteps, use_batch, process_group, plain)
    y = y if plain else layout.with_dense_steps(y, layers.axis(call.layer))

    running = None
    if training and running_mean is not None:
        # As in torch's batch norm their update is no change of version: whoever keeps them for
        # backward, in an evaluation before this step, is not refused.
        running = (running_mean.data, running_var.data)
    if plain:
        mean = var = None
        if not use_batch:
            mean, var = running_mean.clone(), running_var.clone()
        elif running is not None:
            wide = y.detach().to(dtype)
            stats = reference.channel_stats(wide, norms.channel_axis(static))
            norms.update_running(*running, *stats, momentum, count * (timesteps or 1))
        one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
        return call.results(
            *reference.norm_lif(
                y, residual, v0, eps=eps, mean=mean, var=var,
                weight=(one if weight is None else weight).to(y.device).expand(channels),
                bias=(zero if bias is None else bias).to(y.device).expand(channels),
                **call.in_plain_words(rate),
            )
        )  # fmt: skip
    with torch.no_grad():
        if use_batch:
            mean, inv_std, scale, batch = norms.statistics(
                y.detach(), weight, running, momentum, timesteps or 1, eps, static, process_group,
                call,
            )  # fmt: skip
        else:
            # A copy: what backward keeps must not change with a later call.
            mean, batch = running_mean.clone(), None
            var = running_var.contiguous()
            inv_std, scale = norms.prepared(mean, var, weight, eps, call)
    inputs = (y, residual, weight, bias, v0, rate)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        again = residual is None and recomputes_dx(call.backend, y.dtype)
        result = _NormLif.apply(*inputs, mean, inv_std, scale, call, batch, process_group, again)
    else:
        shift = torch.zeros_like(mean) if bias is None else bias
        op, tensors = torch.ops.snnfast.norm_lif_forward.default, (mean, scale, shift, v0, rate)
        s, v, _ = call.forward(op, _forward, (y, residual, *tensors), call.state, False)
        result = (s, v) if call.state else s
    if call.surrogate.spiking:
        mark_spikes(result[0] if call.state else result)
    return result
