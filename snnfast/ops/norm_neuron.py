"""Batch normalisation in front of any neuron: its three numbers per channel are parameters of the
program, so one launch reads y, and what ``norm_lif`` keeps is kept.

Backward: the neuron's own gives dX scale and, as the gradients of its parameters, the sums of dX
and of dX (y - mean); a second pass over both adds what flows through the statistics (``norm_dy``).
"""

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.ops import layer as layers
from snnfast.ops import neuron_op, norm_checks
from snnfast.ops import norm as norms
from snnfast.ops import validation as check
from snnfast.ops.direct import is_direct
from snnfast.ops.neuron import Definition, looped, prepared, returned


class _NormNeuron(torch.autograd.Function):
    """``batch``: the number of values a channel's statistics were taken of, None where they are
    constants; ``group``: the ranks that share them. ``tensors``: y, a residual where the step has
    one, states and the neuron's own parameters."""

    @staticmethod
    def forward(ctx, call, batch, group, mean, inv_std, scale, weight, bias, *tensors):
        shift = torch.zeros_like(mean) if bias is None else bias
        tensors = (*tensors, mean, scale, shift)
        parts = neuron_op.parts(call.layer.step, tensors)
        outputs, after, borders = neuron_op.forward(call, *parts, True)
        ctx.save_for_backward(inv_std, *tensors, borders)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.batch, ctx.group = call, batch, group
        return (*outputs, *after)

    @staticmethod
    def backward(ctx, *gradients):
        layers.refuse_twice("norm_neuron")
        inv_std, *tensors, borders = ctx.saved_tensors
        call, batch = ctx.call, ctx.batch
        y, mean, scale = tensors[0], tensors[-3], tensors[-2]
        wanted = [*ctx.needs_input_grad[8:], False, True, True]
        made = neuron_op.backward(call, tensors, borders, gradients, wanted)
        dy, *others, _, dscale, dshift = made
        sums = torch.stack([dshift, dscale])
        shared = ctx.group is not None and batch is not None
        rows = torch.ops.snnfast.norm_finish.default(
            sums, scale, inv_std, 0 if shared else batch or 0, call.backend
        )
        dweight, dbias, b, c = rows
        if shared:
            b, c = norms.over_ranks(sums, scale, inv_std, batch, ctx.group, call.backend)
        if wanted[0] and batch is not None:
            own = not torch.compiler.is_compiling() and is_direct(dy)
            one = torch.ones_like(scale)
            static = call.layer.static
            dy = norms.dy(y, dy, mean, one, b, c, static, call.backend, own, own)
        wants = zip((dweight, dbias, dy, *others), ctx.needs_input_grad[6:], strict=True)
        return *[None] * 6, *(t if want else None for t, want in wants)


def norm_neuron(
    neuron: Definition,
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
    process_group=None,
    states=None,
    surrogate: "str | surrogates.Surrogate" = "sigmoid",
    timesteps: int | None = None,
    return_state: "bool | str" = False,
    backend: str | None = None,
    **parameters,
):
    """``neuron`` on batch-normalised y, and a residual: what ``norm_lif`` is to ``lif``, with the
    arguments of the one and of the other's call; for a neuron of one input.

    Moves what ``norm_lif`` moves, and 3b bytes an element more where the statistics are those of
    the batch; keeps y and the residual, and the states at the borders of segments.
    """
    who = f"norm_neuron of {neuron.name}"
    if len(neuron.inputs) != 1:
        raise ValueError(f"{who}: neuron must have one input, got {len(neuron.inputs)}")
    static = timesteps is not None
    momentum, eps = norm_checks.check_arguments(
        who, y, residual, weight, bias, running_mean, running_var, training, momentum, eps,
        timesteps,
    )  # fmt: skip
    bound = neuron.bind(
        (y,), parameters, states=states, surrogate=surrogate, timesteps=timesteps,
        return_state=return_state, backend=backend,
        norm="alone" if residual is None else "and a residual",
    )  # fmt: skip
    plain = bound.backend == "reference"
    dtype, repeats = check.state_dtype(y), timesteps or 1
    weight, bias = (None if p is None else p.to(dtype).contiguous() for p in (weight, bias))
    use_batch = training or running_mean is None
    norm_checks.check_batch(who, y, static, timesteps, use_batch, process_group, plain)
    running = None
    if training and running_mean is not None:
        running = (running_mean.data, running_var.data)  # no change of version, as in norm_lif
    if plain:
        axis, wide = norms.channel_axis(static), y.to(dtype)
        mean, var = running_mean, running_var
        if use_batch:
            mean, var = reference.channel_stats(wide, axis)
        if running is not None:
            count = repeats * y.numel() // y.shape[axis]
            stats = (mean.detach(), var.detach())
            norms.update_running(*running, *stats, momentum, count)
        one, zero = torch.ones_like(mean), torch.zeros_like(mean)
        scale = (one if weight is None else weight) * reference.inverse_std(var, eps)
        x = reference.normalise(wide, mean, scale, zero if bias is None else bias, axis)
        x = x if residual is None else x + residual.to(dtype)
        return looped(neuron, bound._replace(inputs=(x,)), y.dtype)
    y = layout.with_dense_steps(y, norms.channel_axis(static) - 1)
    call, params = prepared(bound)
    direct = is_direct(y, residual, weight, bias, running_mean, running_var)
    call = call._replace(direct=call.direct and direct)
    with torch.no_grad():
        if use_batch:
            mean, inv_std, scale, batch = norms.statistics(
                y.detach(), weight, running, momentum, repeats, eps, static, process_group, call
            )
        else:
            mean, batch = running_mean.clone(), None
            inv_std, scale = norms.prepared(mean, running_var.contiguous(), weight, eps, call)
    inputs = (y,) if residual is None else (y, residual)
    tensors = (*inputs, *bound.states, *params)
    given = (weight, bias, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        group = process_group if use_batch else None
        results = _NormNeuron.apply(call, batch, group, mean, inv_std, scale, *given)
    else:
        shift = torch.zeros_like(mean) if bias is None else bias
        parts = (inputs, bound.states, (*params, mean, scale, shift))
        outputs, after, _ = neuron_op.forward(call, *parts, False)
        results = (*outputs, *after)
    outputs = call.layer.step.outputs
    return returned(bound, results[:outputs], results[outputs:])
