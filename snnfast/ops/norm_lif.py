"""``norm_lif``: BatchNorm, a residual and LIF in one pass, forward and backward.

The contract, the launches, the autograd.Function, statistics, and the public function, in that
order. Kept for backward are y, the residual and a few numbers per channel: X and H are computed
again from them.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends import spec as specs
from snnfast.ops import lif as neurons
from snnfast.ops import validation as check
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import module

_library = torch.library.Library("snnfast", "FRAGMENT")
_NORM = "Tensor mean, Tensor scale, Tensor bias"
_library.define("norm_stats(Tensor y, bool static, str backend) -> (Tensor mean, Tensor var)")
_library.define(
    f"norm_lif_forward(Tensor y, Tensor? residual, {_NORM}, Tensor? v0, Tensor? rate, "
    f"{neurons._LAYER}, int state, bool keep) -> (Tensor s, Tensor v, Tensor borders)",
    tags=neurons._TAGS,
)
_library.define(
    f"norm_lif_backward(Tensor y, Tensor? residual, {_NORM}, Tensor? v0, Tensor? rate, "
    f"Tensor borders, Tensor? ds, Tensor? dv, {neurons._LAYER}, bool want_dx, bool want_dv0, "
    "bool want_drate) -> (Tensor dx, Tensor sums, Tensor dv0, Tensor drate)",
    tags=neurons._TAGS,
)
_library.define(
    f"norm_lif_gradient(Tensor y, {_NORM}, Tensor? v0, Tensor? rate, Tensor borders, Tensor? ds, "
    f"Tensor? dv, Tensor ga, Tensor gb, Tensor gc, {neurons._LAYER}) -> Tensor",
    tags=neurons._TAGS,
)
_library.define(
    "norm_backward(Tensor y, Tensor dx, Tensor mean, Tensor a, Tensor b, Tensor c, bool static, "
    "str backend) -> Tensor",
    tags=neurons._TAGS,
)
_library.define(
    "norm_backward_(Tensor y, Tensor(a!) dx, Tensor mean, Tensor a, Tensor b, Tensor c, "
    "bool static, str backend) -> ()",
    tags=neurons._TAGS,
)
_library.define(
    "norm_prepare(Tensor mean, Tensor var, Tensor? weight, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float unbias, float eps, str backend) "
    "-> (Tensor inv_std, Tensor scale)"
)
_library.define(
    "norm_finish(Tensor sums, Tensor scale, Tensor inv_std, SymInt count, str backend) "
    "-> (Tensor dweight, Tensor dbias, Tensor b, Tensor c)"
)


# Where memory is slow and arithmetic is not, the second pass of backward computes the gradient of X
# again instead of reading what the first has written: 5b bytes an element instead of 6b.
_RECOMPUTE = ("triton", "cuda")


def _axis(static: bool) -> int:
    """The first axis after time."""
    return 0 if static else 1


def _place(y: Tensor, static: bool) -> tuple[Tensor, int, int]:
    """y as [T, ...] with dense steps, and where its channels are: their number and ``inner``."""
    y = layout.with_dense_steps(y, _axis(static))
    axis = _axis(static)
    channels = y.shape[axis + 1]
    if y.is_contiguous():
        inner = math.prod(y.shape[axis + 2 :])
    else:
        inner = layout.step_strides(y, axis)[1]
    return (y.unsqueeze(0) if static else y), channels, inner


@torch.library.register_fake("snnfast::norm_stats", lib=_library)
def _(y, static, backend):
    empty = y.new_empty(y.shape[_axis(static) + 1], dtype=check.state_dtype(y))
    return empty, torch.empty_like(empty)


def _run_stats(y, static, backend):
    sequence, channels, inner = _place(y, static)
    mean = y.new_empty(channels, dtype=check.state_dtype(y))
    var = torch.empty_like(mean)
    module(backend).norm_stats(sequence, channels, inner, mean, var)
    return mean, var


def _empty_like(y: Tensor, steps: int, static: bool) -> Tensor:
    leading = [] if static else [neurons.steps_of(y, steps, static)]
    return layout.empty_steps(y, _axis(static), leading, y.dtype)


def _allocate_backward(y, v0, mean, rate, steps, static, want_dx, want_dv0, want_drate):
    dx = _empty_like(y, steps, static) if want_dx else y.new_empty(0)
    dv0 = layout.empty_steps(y, _axis(static), [], mean.dtype) if want_dv0 else mean.new_empty(0)
    drate = torch.empty_like(rate) if want_drate else mean.new_empty(0)
    return dx, mean.new_empty((2, mean.shape[0])), dv0, drate


@torch.library.register_fake("snnfast::norm_lif_forward", lib=_library)
def _(y, residual, mean, scale, bias, v0, rate, steps, static, charge, rate_value, divide, theta,
      reset, hard, detach_reset, surrogate, a, b, spiking, backend, state, keep):  # fmt: skip
    return neurons._allocate_forward(y, steps, static, state, keep)


@torch.library.register_fake("snnfast::norm_lif_backward", lib=_library)
def _(y, residual, mean, scale, bias, v0, rate, borders, ds, dv, steps, static, charge, rate_value,
      divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking, backend, want_dx,
      want_dv0, want_drate):  # fmt: skip
    return _allocate_backward(y, v0, mean, rate, steps, static, want_dx, want_dv0, want_drate)


@torch.library.register_fake("snnfast::norm_lif_gradient", lib=_library)
def _(y, mean, scale, bias, v0, rate, borders, ds, dv, ga, gb, gc, steps, static, charge,
      rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking,
      backend):  # fmt: skip
    return _empty_like(y, steps, static)


@torch.library.register_fake("snnfast::norm_backward", lib=_library)
def _(y, dx, mean, a, b, c, static, backend):
    return torch.empty_like(dx)


@torch.library.register_fake("snnfast::norm_backward_", lib=_library)
def _(y, dx, mean, a, b, c, static, backend):
    return None


def _laid_out(y, static, v0, borders, ds, dv):
    """What backward reads beside y, as kernels read it."""
    axis = _axis(static)
    tensors = (v0, borders if borders.numel() else None, dv)
    v0, borders, dv = (layout.like_steps(t, y, axis) for t in tensors)
    return v0, borders, layout.like_steps(ds, y, axis, any_stride=True), dv


def _run_forward(y, residual, mean, scale, bias, v0, rate, steps, static, charge, rate_value,
                 divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking, backend, state,
                 keep):  # fmt: skip
    layer = (charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking)
    y, sequence, rate, spec = neurons._launch_inputs(y, rate, steps, static, layer)
    s, v, borders = neurons._allocate_forward(y, steps, static, state, keep)
    norm = specs.Norm(mean, scale, bias, *_place(y, static)[1:])
    v0 = layout.like_steps(v0, y, _axis(static))
    residual = layout.like_steps(residual, y, _axis(static), any_stride=True)
    outputs = (s, v if state else None, borders if borders.numel() else None)
    module(backend).lif_forward(spec, sequence, v0, rate, *outputs, norm, residual)
    return s, v, borders


def _run_backward(y, residual, mean, scale, bias, v0, rate, borders, ds, dv, steps, static, charge,
                  rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking,
                  backend, want_dx, want_dv0, want_drate):  # fmt: skip
    layer = (charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking)
    y, sequence, rate, spec = neurons._launch_inputs(y, rate, steps, static, layer)
    wanted = (want_dx, want_dv0, want_drate)
    outputs = _allocate_backward(y, v0, mean, rate, steps, static, *wanted)
    dx, sums, dv0, drate = outputs
    norm = specs.Norm(mean, scale, bias, *_place(y, static)[1:])
    v0, borders, ds, dv = _laid_out(y, static, v0, borders, ds, dv)
    residual = layout.like_steps(residual, y, _axis(static), any_stride=True)
    grads = (dx if want_dx else None, dv0 if want_dv0 else None, drate if want_drate else None)
    module(backend).lif_backward(
        spec, sequence, v0, rate, borders, ds, dv, *grads, norm, residual, sums
    )
    return outputs


def _run_gradient(y, mean, scale, bias, v0, rate, borders, ds, dv, ga, gb, gc, steps, static,
                  charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b,
                  spiking, backend):  # fmt: skip
    layer = (charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking)
    y, sequence, rate, spec = neurons._launch_inputs(y, rate, steps, static, layer)
    dy = _empty_like(y, steps, static)
    norm = specs.Norm(mean, scale, bias, *_place(y, static)[1:])
    v0, borders, ds, dv = _laid_out(y, static, v0, borders, ds, dv)
    module(backend).norm_gradient(spec, sequence, v0, rate, borders, ds, dv, dy, norm, ga, gb, gc)
    return dy


def _run_norm_backward(y, dx, mean, a, b, c, static, backend, dy=None):
    sequence, channels, inner = _place(y, static)
    dy = torch.empty_like(dx) if dy is None else dy
    norm = specs.Norm(mean, a, c, channels, inner)
    steps = (dx[None], dy[None]) if static else (dx, dy)
    module(backend).norm_backward(sequence, steps[0], norm, a, b, c, steps[1])
    return dy


def _run_norm_backward_in_place(y, dx, mean, a, b, c, static, backend):
    _run_norm_backward(y, dx, mean, a, b, c, static, backend, dy=dx)


@torch.library.register_fake("snnfast::norm_prepare", lib=_library)
def _(mean, var, weight, running_mean, running_var, momentum, unbias, eps, backend):
    return torch.empty_like(mean), torch.empty_like(mean)


@torch.library.register_fake("snnfast::norm_finish", lib=_library)
def _(sums, scale, inv_std, count, backend):
    return tuple(torch.empty_like(scale) for _ in range(4))


def _run_prepare(mean, var, weight, running_mean, running_var, momentum, unbias, eps, backend):
    """(1 / sqrt(var + eps), weight times that). Running statistics, where given, take a share
    ``momentum`` of mean and of var * unbias."""
    running = None if running_mean is None else (running_mean, running_var)
    own = getattr(module(backend), "norm_prepare", None)
    # On a CPU a dozen small ops take as long as a pass over a small layer.
    if own is not None and all(t.is_contiguous() for t in running or ()):
        inv_std, scale = own(mean, var, weight, running, momentum, unbias, eps)
    else:
        if running:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * unbias, momentum)
        inv_std = reference.inverse_std(var, eps)
        scale = inv_std if weight is None else weight * inv_std
    if running:
        torch.autograd.graph.increment_version(running)
    return inv_std, inv_std.clone() if scale is inv_std else scale


def _run_finish(sums, scale, inv_std, count, backend):
    """The gradients of weight and bias, and b and c of ``norm_backward`` for statistics of
    ``count`` values, or for constant ones (0)."""
    own = getattr(module(backend), "norm_finish", None)
    if own is not None:
        return own(sums, scale, inv_std, count)
    dbias, moment = sums.clone().unbind()
    if not count:
        return moment * inv_std, dbias, torch.zeros_like(dbias), torch.zeros_like(dbias)
    c = scale * dbias / -count
    b = scale * inv_std * inv_std * moment / -count
    return moment * inv_std, dbias, b, c


for _device in ("CPU", "CUDA"):
    _library.impl("norm_prepare", _run_prepare, _device)
    _library.impl("norm_finish", _run_finish, _device)
    _library.impl("norm_stats", _run_stats, _device)
    _library.impl("norm_lif_forward", _run_forward, _device)
    _library.impl("norm_lif_backward", _run_backward, _device)
    _library.impl("norm_lif_gradient", _run_gradient, _device)
    _library.impl("norm_backward", _run_norm_backward, _device)
    _library.impl("norm_backward_", _run_norm_backward_in_place, _device)


def _is_batched(dx: Tensor) -> bool:
    """Whether ``dx`` stands for many, under ``is_grads_batched``."""
    return torch._C._functorch.is_legacy_batchedtensor(dx)


class _NormLif(torch.autograd.Function):
    """``batch`` is the number of values a channel's statistics were taken of, None where they are
    constants; ``group`` the ranks that share them."""

    @staticmethod
    def forward(
        ctx, y, residual, weight, bias, v0, rate, mean, inv_std, scale, layer, state, batch, group
    ):
        shift = torch.zeros_like(mean) if bias is None else bias
        s, v, borders = torch.ops.snnfast.norm_lif_forward.default(
            y, residual, mean, scale, shift, v0, rate, *layer, state, True
        )
        ctx.save_for_backward(y, residual, scale, shift, v0, rate, mean, inv_std, borders)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.batch, ctx.group = layer, batch, group
        return (s, v) if state else s

    @staticmethod
    def backward(ctx, ds, dv=None):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "norm_lif: gradients must be taken once, got create_graph=True; "
                "backend='reference' is differentiable twice"
            )
        y, residual, scale, shift, v0, rate, mean, inv_std, borders = ctx.saved_tensors
        want = ctx.needs_input_grad
        static, backend = ctx.layer[1], ctx.layer[-1]
        again = backend in _RECOMPUTE and residual is None
        norm, inputs = (mean, scale, shift), (v0, rate, borders, ds, dv)
        dx, sums, dv0, dfactor = torch.ops.snnfast.norm_lif_backward.default(
            y, residual, *norm, *inputs, *ctx.layer, not again, want[4], want[5]
        )
        dy = drate = None
        finish = torch.ops.snnfast.norm_finish.default
        if ctx.group is None:
            dweight, dbias, b, c = finish(sums, scale, inv_std, ctx.batch or 0, backend)
        else:
            dweight, dbias, _, _ = finish(sums, scale, inv_std, 0, backend)
        if want[5]:  # the kernels give the gradient of 1/tau
            drate = -dfactor / (rate * rate) if ctx.layer[4] else dfactor
        if want[0]:
            if ctx.group is not None:
                dist.all_reduce(sums, group=ctx.group)
                _, _, b, c = finish(sums, scale, inv_std, 1, backend)
                b, c = b / ctx.batch, c / ctx.batch
            operands = (y, dx, mean, scale, b, c)
            if again:
                dy = torch.ops.snnfast.norm_lif_gradient.default(
                    y, *norm, *inputs, scale, b, c, *ctx.layer
                )
            elif not (want[1] or torch.compiler.is_compiling() or _is_batched(dx)):
                # In place: nobody else sees the gradient of X.
                torch.ops.snnfast.norm_backward_.default(*operands, static, backend)
                dy = dx
            else:
                dy = torch.ops.snnfast.norm_backward.default(*operands, static, backend)
        grads = (dy, dx, dweight, dbias, dv0, drate)
        return *(grad if wanted else None for grad, wanted in zip(grads, want)), *[None] * 7


def _joined(mean: Tensor, var: Tensor, count: int, group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over all ranks of ``group``, whose counts may differ."""
    own = torch.cat([mean.double(), var.double(), mean.new_tensor([count], dtype=torch.float64)])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    parts, channels = torch.stack(parts), mean.shape[0]
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum()
    joined = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - joined).square())).sum(0) / total
    return joined.to(mean.dtype), spread.to(mean.dtype), total.to(mean.dtype)


def _check_channels(name: str, tensor, y: Tensor, channels: int, exact: bool) -> None:
    """A vector of one value per channel; ``exact``: in the state's dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"norm_lif: {name} must be a tensor or None, got {check.type_name(tensor)}")
    wanted = check.state_dtype(y)
    if exact and tensor.dtype != wanted:
        raise TypeError(
            f"norm_lif: {name} must be {str(wanted).removeprefix('torch.')} for "
            f"{check.type_name(y)} y, got {check.type_name(tensor)}"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"norm_lif: {name} must be floating point, got {check.type_name(tensor)}")
    if tensor.shape != (channels,):
        raise ValueError(
            f"norm_lif: {name} must have shape ({channels},), one value for each channel of y, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != y.device:
        raise ValueError(f"norm_lif: {name} must be on y's device {y.device}, got {tensor.device}")


def _check_residual(residual, y: Tensor, static: bool) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(
            f"norm_lif: residual must be a tensor or None, got {check.type_name(residual)}"
        )
    if static:
        raise ValueError("norm_lif: residual must be None where timesteps is given, got a tensor")
    if residual.dtype != y.dtype:
        raise TypeError(
            f"norm_lif: residual must be {check.type_name(y)} as y, got {check.type_name(residual)}"
        )
    if residual.shape != y.shape:
        raise ValueError(
            f"norm_lif: residual must have y's shape {tuple(y.shape)}, got {tuple(residual.shape)}"
        )
    if residual.device != y.device:
        raise ValueError(
            f"norm_lif: residual must be on y's device {y.device}, got {residual.device}"
        )


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
    tau: "float | Tensor" = neurons.DEFAULT_TAU,
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
    check.check_input("norm_lif", "y", y)
    static = timesteps is not None
    least = 2 if static else 3
    if static and timesteps == 0:
        raise ValueError("norm_lif: timesteps must be >= 1, got 0")
    if y.dim() < least or y.numel() == 0:
        form = "[B, C, ...]" if static else "[T, B, C, ...]"
        raise ValueError(f"norm_lif: y must be {form}, none of them 0, got {tuple(y.shape)}")
    channels = y.shape[_axis(static) + 1]
    check.check_bool("norm_lif", "training", training)
    if (running_mean is None) != (running_var is None):
        raise ValueError("norm_lif: running_mean and running_var must both be given, or neither")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_channels(name, tensor, y, channels, exact=False)
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor is not None:
            _check_channels(name, tensor, y, channels, exact=True)
    momentum, eps = check.check_norm("norm_lif", momentum, eps)
    if residual is not None:
        _check_residual(residual, y, static)
    check.refuse_transforms("norm_lif", residual, weight, bias)
    layer, rate, state, v_reset, chosen = neurons.check_neuron(
        "norm_lif", y, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
        decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate, inv_tau=inv_tau,
        timesteps=timesteps, return_state=return_state, backend=backend,
    )  # fmt: skip
    dtype = check.state_dtype(y)
    weight, bias = (None if p is None else p.to(dtype).contiguous() for p in (weight, bias))
    use_batch = training or running_mean is None
    count = y.numel() // channels  # a static input has the statistics of one step
    if use_batch and process_group is None and count * (timesteps or 1) == 1:
        raise ValueError(
            "norm_lif: y must have more than one value per channel in training, "
            f"got shape {tuple(y.shape)}"
        )
    name = layer[-1]

    mean, var, batch, unbias = None, None, None, 1.0
    running = (running_mean, running_var) if training and running_mean is not None else None
    if use_batch:
        with torch.no_grad():
            if name == "reference":
                wide = y.detach().to(dtype)
                mean, var = reference.channel_stats(wide, _axis(static) + 1)
            else:
                dense = layout.with_dense_steps(y.detach(), _axis(static))
                mean, var = torch.ops.snnfast.norm_stats.default(dense, static, name)
            batch = count
            if process_group is not None:
                mean, var, batch = _joined(mean, var, count, process_group)
            if running is not None:
                total = batch * (timesteps or 1)
                unbias = total / (total - 1)
                if name == "reference" or process_group is not None:
                    running_mean.lerp_(mean, momentum)
                    running_var.lerp_(var * unbias, momentum)
                    running = None
    else:
        # Copies: what backward keeps must not change when a later call updates the statistics.
        mean, var = running_mean.clone(), running_var.clone()

    if name == "reference":
        if use_batch and process_group is not None:
            raise ValueError("norm_lif: process_group must be None on the reference backend")
        ones, zeros = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
        s, states = reference.norm_lif(
            y, residual, v0,
            weight=(ones if weight is None else weight).to(y.device).expand(channels),
            bias=(zeros if bias is None else bias).to(y.device).expand(channels),
            mean=None if use_batch else mean, var=None if use_batch else var, eps=eps,
            timesteps=timesteps, rate=rate if rate is not None else layer[3], divide=layer[4],
            v_threshold=layer[5], v_reset=v_reset, decay_input=decay_input,
            detach_reset=detach_reset, surrogate=chosen,
        )  # fmt: skip
        if not state:
            return s
        return s, states[1:] if state == neurons.STATE_ALL else states[-1]

    y = layout.with_dense_steps(y, _axis(static))
    with torch.no_grad():
        inv_std, scale = torch.ops.snnfast.norm_prepare.default(
            mean, var, weight, *(running or (None, None)), momentum, unbias, eps, name
        )
    inputs = (y, residual, weight, bias, v0, rate)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        result = _NormLif.apply(*inputs, mean, inv_std, scale, layer, state, batch, process_group)
    else:
        shift = torch.zeros_like(mean) if bias is None else bias
        s, v, _ = torch.ops.snnfast.norm_lif_forward.default(
            y, residual, mean, scale, shift, v0, rate, *layer, state, False
        )
        result = (s, v) if state else s
    if chosen.spiking:
        mark_spikes(result[0] if state else result)
    return result
