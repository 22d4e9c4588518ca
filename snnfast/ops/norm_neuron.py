"""Batch normalisation in front of any neuron: its three numbers per channel are parameters of the
program, so one launch reads y, and what ``norm_lif`` keeps is kept.

Backward: the neuron's own gives dX scale and, as the gradients of its parameters, the sums of dX
and of dX (y - mean); a second pass over both adds what flows through the statistics (``norm_dy``).
"""

from functools import partial

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends import spec as specs
from snnfast.ops import layer as layers
from snnfast.ops import neuron_op, norm_checks
from snnfast.ops import norm as norms
from snnfast.ops import validation as check
from snnfast.ops.direct import is_direct
from snnfast.ops.neuron import Definition, looped, prepared, returned
from snnfast.ops.transforms import differentiable, wants_graph


class _NormNeuron(torch.autograd.Function):
    """``count``: the number of values a channel's statistics were taken of, 0 where they are
    constants; ``group``: the ranks that share them. ``tensors``: y, a residual where the step has
    one, states and the neuron's own parameters."""

    @staticmethod
    def forward(ctx, call, count, group, eps, stats, weight, bias, *tensors):
        tensors = (*tensors, stats[specs.MEAN], stats[specs.SCALE], norms.or_zeros(bias, stats))
        parts = neuron_op.parts(call.layer.step, tensors)
        outputs, after, borders = neuron_op.forward(call, *parts, True)
        borders = layers.nothing(stats.device) if borders is None else borders
        ctx.save_for_backward(stats, weight, *tensors, borders)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.count, ctx.group, ctx.eps = call, count, group, eps
        return (*outputs, *after)

    @staticmethod
    def backward(ctx, *gradients):
        stats, weight, *tensors, borders = ctx.saved_tensors
        call, count, y = ctx.call, ctx.count, tensors[0]
        if wants_graph():
            norms.refuse_graph(call.name, ctx.group)
            *given, _, _, bias = tensors
            constants = None if count else (stats[specs.MEAN], stats[specs.VAR])
            run = partial(_again, call, constants, ctx.eps)
            made = differentiable(run, (weight, bias, *given), ctx.needs_input_grad[5:], gradients)
            return *[None] * 5, *made
        wanted = [*ctx.needs_input_grad[7:], False, True, True]
        made = neuron_op.backward(call, tensors, borders, gradients, wanted)
        dy, *others, _, dscale, dshift = made
        sums, own = torch.stack([dshift, dscale]), 0 if ctx.group is not None else count
        totals = torch.ops.snnfast.norm_finish.default(sums, stats, own, call.backend)
        dweight, dbias = totals[specs.DWEIGHT], totals[specs.SUM]
        if wanted[0] and count:
            if ctx.group is not None:
                totals = norms.over_ranks(stats, totals, count, ctx.group, call.backend)
            scaled = stats.clone()
            scaled[specs.SCALE] = 1  # the gradient that the neuron gives is scaled
            in_place = not torch.compiler.is_compiling() and is_direct(dy)
            static = call.layer.static
            dy = norms.dy(y, dy, scaled, totals, static, call.backend, in_place)
        wants = zip((dweight, dbias, dy, *others), ctx.needs_input_grad[5:], strict=True)
        return *[None] * 5, *(t if want else None for t, want in wants)


def _again(call, constants, eps, weight, bias, y, *others):
    """The outputs and states of the call in plain PyTorch."""
    mean, scale = _rows(y, weight, constants, eps, call.layer.static)
    return neuron_op.again(call, y, *others, mean, scale, bias)


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
    return run(
        f"norm_neuron of {neuron.name}", neuron, y, residual, weight=weight, bias=bias,
        running_mean=running_mean, running_var=running_var, training=training, momentum=momentum,
        eps=eps, process_group=process_group, states=states, surrogate=surrogate,
        timesteps=timesteps, return_state=return_state, backend=backend, **parameters,
    )  # fmt: skip


def run(
    who: str, neuron: Definition, y, residual=None, *, weight, bias, running_mean, running_var,
    training, momentum, eps, process_group, states, surrogate, timesteps, return_state, backend,
    **parameters,
):  # fmt: skip
    """The same under the name ``who``."""
    if len(neuron.inputs) != 1:
        raise ValueError(f"{who}: neuron must have one input, got {len(neuron.inputs)}")
    static = timesteps is not None
    if process_group is not None:
        norm_checks.check_group(who, process_group)
    use_batch, count, momentum, eps = norm_checks.check(
        who, y, residual, weight, bias, running_mean, running_var, timesteps, training, momentum,
        eps, process_group is not None,
    )  # fmt: skip
    bound = neuron.bind(
        (y,), parameters, states=states, surrogate=surrogate, timesteps=timesteps,
        return_state=return_state, backend=backend,
        norm="alone" if residual is None else "and a residual",
        beside=(residual, weight, bias, running_mean, running_var),
    )  # fmt: skip
    weight, bias = norms.in_state_dtype(weight, y), norms.in_state_dtype(bias, y)
    running = (running_mean, running_var) if training and running_mean is not None else None
    repeats = timesteps or 1
    if bound.backend == "reference":
        if use_batch and process_group is not None:
            raise ValueError(f"{who}: process_group must be None on the reference backend, got one")
        given = None if use_batch else (running_mean.clone(), running_var.clone())
        if running is not None:
            norms.update_on_the_reference(who, y, running, momentum, count * repeats, static)
        x = _on_the_reference(y, residual, weight, bias, given, eps, static)
        return looped(neuron, bound._replace(inputs=(x,)), y.dtype)
    y = layout.with_dense_steps(y, norms.channel_axis(static) - 1)
    call, params = prepared(bound)
    direct = is_direct(y, residual, weight, bias, running_mean, running_var)
    call = call._replace(direct=call.direct and direct)
    if use_batch:
        stats, count = norms.statistics(
            y, weight, running, momentum, repeats, eps, count, process_group, call
        )
    else:
        stats = norms.prepared(running_mean, running_var, weight, eps, call)
        count, process_group = 0, None
    inputs = (y,) if residual is None else (y, residual)
    tensors = (*inputs, *bound.states, *params)
    if layers.want_gradient(weight, bias, *tensors):
        results = _NormNeuron.apply(call, count, process_group, eps, stats, weight, bias, *tensors)
    else:
        rows = (stats[specs.MEAN], stats[specs.SCALE], norms.or_zeros(bias, stats))
        outputs, after, _ = neuron_op.forward(call, inputs, bound.states, (*params, *rows), False)
        results = (*outputs, *after)
    outputs = call.layer.step.outputs
    return returned(bound, results[:outputs], results[outputs:])


def _rows(y, weight, given, eps, static) -> tuple[Tensor, Tensor]:
    """Mean and scale [C]. ``given``: mean and variance that are constants."""
    wide, axis = y.to(check.state_dtype(y)), norms.channel_axis(static)
    mean, var = reference.channel_stats(wide, axis) if given is None else given
    scale = reference.inverse_std(var, eps)
    return mean, scale if weight is None else weight * scale


def _on_the_reference(y, residual, weight, bias, given, eps, static) -> Tensor:
    """X in the state's dtype."""
    dtype, axis = check.state_dtype(y), norms.channel_axis(static)
    mean, scale = _rows(y, weight, given, eps, static)
    bias = torch.zeros_like(mean) if bias is None else bias
    x = reference.normalise(y.to(dtype), mean, scale, bias, axis)
    return x if residual is None else x + residual.to(dtype)
