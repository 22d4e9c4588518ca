"""``lif``: all timesteps of a LIF layer in one call, forward and backward.

The contract (schemas and fakes), the launch on a backend, the autograd.Function, and the public
function, in that order. An op is defined once and implemented once; which backend runs it is one of
its arguments, chosen before the call.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.ops import layer as layers
from snnfast.ops import validation as check
from snnfast.ops.direct import applied, is_direct
from snnfast.ops.lif_definition import by_program, needs_program
from snnfast.ops.lif_definition import lif as definition
from snnfast.ops.packed import mark_spikes
from snnfast.ops.time_axis import FIRST, along
from snnfast.ops.transforms import differentiable, wants_graph

_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define(
    f"lif_forward(Tensor x, Tensor? v0, Tensor? rate, {layers.LAYER}, int state, bool keep) "
    "-> (Tensor s, Tensor v, Tensor borders)",
    tags=layers.TAGS,
)
_library.define(
    "lif_backward(Tensor x, Tensor? v0, Tensor? rate, Tensor borders, Tensor? ds, Tensor? dv, "
    f"{layers.LAYER}, bool want_dv0, bool want_drate) -> (Tensor dx, Tensor dv0, Tensor drate)",
    tags=layers.TAGS,
)


@torch.library.register_fake("snnfast::lif_forward", lib=_library)
def _(x, v0, rate, steps, choices, numbers, backend, state, keep):
    layer = layers.unpacked(x, steps, choices, numbers)
    return layers.present(x, layers.empty_forward(x, layer, state, keep))


@torch.library.register_fake("snnfast::lif_backward", lib=_library)
def _(x, v0, rate, borders, ds, dv, steps, choices, numbers, backend, want_dv0, want_drate):
    layer = layers.unpacked(x, steps, choices, numbers)
    dx = layers.empty_input(x, layer)
    return dx, *layers.present(x, layers.empty_backward(x, rate, layer, want_dv0, want_drate))


def _forward(x, v0, rate, layer, kernels, state, keep):
    if not x.is_contiguous() and layers.by_sample(x, layer):
        return _forward_by_sample(x, v0, rate, layer, kernels, state, keep)
    x, sequence, rate, layer = layers.as_launched(x, rate, layer)
    s, v, borders = layers.empty_forward(x, layer, state, keep)
    if s.numel():
        v0 = layout.like_steps(v0, x, layers.axis(layer))
        kernels.lif_forward(layer, sequence, v0, rate, s, v, borders)
    elif state == layers.STATE_LAST and v.numel():  # T = 0
        v.copy_(v0) if v0 is not None else v.fill_(layer.reset)
    return s, v, borders


def _forward_by_sample(x, v0, rate, layer, kernels, state, keep):
    made = layers.empty_forward(x, layer, state, keep)
    for n in range(x.shape[1]):
        own, start, *to = (layout.of_sample(t, x, n) for t in (x, v0, *made))
        own, sequence, rate, one = layers.as_launched(own, rate, layer)
        kernels.lif_forward(one, sequence, layout.like_steps(start, own, 1), rate, *to)
    return made


def _backward(x, v0, rate, borders, ds, dv, layer, kernels, want_dv0, want_drate):
    if not x.is_contiguous() and layers.by_sample(x, layer):
        given = (x, v0, borders, ds, dv)
        return _backward_by_sample(*given, rate, layer, kernels, want_dv0, want_drate)
    x, sequence, rate, layer = layers.as_launched(x, rate, layer)
    dx = layers.empty_input(x, layer)
    dv0, drate = layers.empty_backward(x, rate, layer, want_dv0, want_drate)
    if layer.steps and dx.numel():
        v0, *kept = layers.gradients_as_launched(x, layer, v0, borders, ds, dv)
        kernels.lif_backward(layer, sequence, v0, rate, *kept, dx, dv0, drate)
        return dx, dv0, drate
    dx.zero_()
    if want_drate:
        drate.zero_()
    if want_dv0:
        dv0.copy_(dv) if dv is not None and dv.shape == dv0.shape else dv0.zero_()
    return dx, dv0, drate


def _backward_by_sample(x, v0, borders, ds, dv, rate, layer, kernels, want_dv0, want_drate):
    dx = layers.empty_input(x, layer)
    dv0, _ = layers.empty_backward(x, rate, layer, want_dv0, False)
    borders = borders if borders is not None and borders.numel() else None
    drates = []
    for n in range(x.shape[1]):
        own, *given = (layout.of_sample(t, x, n) for t in (x, v0, borders, ds, dv))
        own, sequence, rate, one = layers.as_launched(own, rate, layer)
        start, *kept = layers.gradients_as_launched(own, one, *given)
        drates += [torch.empty_like(rate)] if want_drate else [None]
        to = (layout.of_sample(dx, x, n), layout.of_sample(dv0, x, n), drates[-1])
        kernels.lif_backward(one, sequence, start, rate, *kept, *to)
    return dx, dv0, layers.summed(drates) if want_drate else None


for _device in ("CPU", "CUDA"):
    _library.impl("lif_forward", layers.behind_dispatcher(_forward, 3), _device)
    _library.impl("lif_backward", layers.behind_dispatcher(_backward, 6), _device)


def _on_the_reference(call, x, v0, rate):
    return call.results(*reference.lif(x, v0, **call.in_plain_words(rate)))


class _Lif(torch.autograd.Function):
    """Keeps x, and V at the borders of segments where T > 8; backward recomputes H."""

    @staticmethod
    def forward(ctx, x, v0, rate, call):
        op = torch.ops.snnfast.lif_forward.default
        s, v, borders = call.run(call.direct, op, _forward, (x, v0, rate), call.state, True)
        borders = layers.nothing(x.device) if borders is None else borders
        ctx.save_for_backward(x, v0, rate, borders)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return (s, v) if call.state else s

    @staticmethod
    def backward(ctx, ds, dv=None):
        x, v0, rate, borders = ctx.saved_tensors
        want_dx, want_dv0, want_drate, _ = ctx.needs_input_grad
        if wants_graph():
            given, wanted = (x, v0, rate), (want_dx, want_dv0, want_drate)
            run = partial(_on_the_reference, ctx.call)
            return *differentiable(run, given, wanted, (ds, dv)), None
        op, tensors = torch.ops.snnfast.lif_backward.default, (x, v0, rate, borders, ds, dv)
        direct = ctx.call.direct and is_direct(x, ds, dv)
        dx, dv0, drate = ctx.call.run(direct, op, _backward, tensors, want_dv0, want_drate)
        drate = layers.rate_gradient(ctx.call.layer, rate, drate) if want_drate else None
        return dx, dv0 if want_dv0 else None, drate, None


def _check_input(x, timesteps) -> None:
    check.check_input("lif", "x", x)


def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = layers.DEFAULT_TAU,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: "str | surrogates.Surrogate" = "sigmoid",
    inv_tau: Tensor | None = None,
    beta: float | Tensor | None = None,
    v_rest: float | None = None,
    fire: str = ">=",
    detach_state: bool = False,
    timesteps: int | None = None,
    time_axis: "int | str" = 0,
    return_state: "bool | str" = False,
    backend: str | None = None,
) -> Tensor | Any:  # Any: the tuple that return_state asks for
    r"""Leaky integrate-and-fire neurons over all timesteps in one launch.

    With r = ``v_reset``, or 0 where the reset is soft, and theta = ``v_threshold``::

        charge   H_t = V_{t-1} + (X_t - (V_{t-1} - r)) / tau          decay_input=True
                 H_t = V_{t-1} - (V_{t-1} - r) / tau + X_t            decay_input=False
                 H_t = V_{t-1} + X_t                                  tau = inf (IF)
                 H_t = beta V_{t-1} + X_t                             beta
        fire     S_t = 1 where H_t >= theta, else 0                   fire=">=", or ">"
        reset    V_t = r where S_t = 1, else H_t                      v_reset a number (hard)
                 V_t = H_t - theta S_t                                v_reset=None (soft)

    The equations and the order of operations are SpikingJelly's (Fang et al. 2023, Science
    Advances 9 eadi1480), so float32 spikes agree bit for bit. In backward dS/dH is the surrogate.

    Args:
        x: input current [T, ...], time first; float32, float16, bfloat16, or float64 (reference and
            cpu). Read without a copy where each timestep is dense in memory (contiguous,
            channels-last, any time stride); copied once otherwise. With ``timesteps``: one static
            input [...], shown at every step and read once.
        v0: membrane potential before the first step, x's shape without time, float32 (float64 for
            float64 x). Without it V starts at r.
        tau: membrane time constant in timesteps, >= 1: a float, or a float32 tensor [] or [C] with
            one value per channel (axis 2 of [T, B, C, ...]), which may require gradient. The values
            of a tensor are checked on the CPU only.
        v_threshold: firing threshold: a number, inf for an integrator that never fires; or a tensor
            as tau may be one, which may require gradient.
        v_reset: where V goes after a spike; None subtracts the threshold instead.
        decay_input: whether the input is divided by tau, too.
        detach_reset: leave the reset out of the gradient.
        surrogate: a name or an object of ``snnfast.surrogate``; ``spiking=False`` there gives the
            smooth twin, whose S is the surrogate's primitive.
        inv_tau: 1/tau as a tensor [] or [C] in 0..1 that multiplies, instead of ``tau``
            (ParametricLIF's sigmoid(w)).
        beta: what is left of V after a step, a number or a tensor [] or [C], instead of ``tau``,
            ``inv_tau``, ``decay_input`` and ``v_rest``; it multiplies as it is.
        v_rest: where V leaks to, where that is not r.
        fire: ">" for no spike at the threshold itself.
        detach_state: V_{t-1} passes no gradient on: none flows through time.
        timesteps: T, for a static ``x``. The gradient of x is then summed over time.
        time_axis: of x and of what is returned: 1 for [B, T, ...], -1 for time last, or "merged"
            for [T B, ...] with ``timesteps`` T. The results are views. [B, T, ...] is read and
            written as it lies on the CPU, where a step of a sample has 4096 elements at least; what
            else is not merged is copied.
        return_state: True also returns V after the last step, "all" V after every step [T, ...].
        backend: auto, reference, cpu, triton or cuda; see ``snnfast.backend``.

    Returns:
        s [T, ...] in x's dtype and memory layout, or (s, v) with v as v0's dtype.

    With ``beta``, ``v_rest``, ``fire``, ``detach_state``, v_threshold as a tensor or inf, or a
    surrogate of your own, it is the program of ``snnfast.neurons.lif`` that runs, see
    ``snnfast.neuron``: one launch as well, on the same backends.

    State and arithmetic are float32 whatever x's dtype, and autocast casts nothing. Kept for
    backward: x, and 4 bytes per neuron for every 8 steps beyond the first 8. Under a transform of
    ``torch.func``, in forward mode and for gradients with a graph (``create_graph=True``) it is the
    reference that computes; a backend that was asked for refuses the former.

    Raises:
        TypeError, ValueError: ``lif: <argument> must be ..., got ...``, before any launch.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> s = snnfast.lif(torch.randn(4, 32, 64), surrogate="atan")
    """
    if type(time_axis) is not int or time_axis != FIRST:
        return along(
            time_axis, lif, {"x": x}, v0=v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate,
            inv_tau=inv_tau, beta=beta, v_rest=v_rest, fire=fire, detach_state=detach_state,
            timesteps=timesteps, return_state=return_state, backend=backend,
        )  # fmt: skip
    if needs_program(beta, v_rest, detach_state, fire, v_threshold, surrogate):
        return by_program(
            "lif", definition, x, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate,
            inv_tau=inv_tau, beta=beta, v_rest=v_rest, fire=fire, detach_state=detach_state,
            timesteps=timesteps, return_state=return_state, backend=backend,
        )  # fmt: skip
    call, rate, _ = layers.checked_call(
        "lif", x, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, inv_tau=inv_tau, timesteps=timesteps,
        return_state=return_state, backend=backend, own_check=_check_input,
    )  # fmt: skip
    if call.backend == "reference":
        return _on_the_reference(call, x, v0, rate)

    if not x.is_contiguous():
        x = layers.with_dense_steps(x, call.layer, call.backend)
    inputs = (x, v0, rate)
    if layers.want_gradient(*inputs):
        result = applied(_Lif, call.direct, *inputs, call)
    else:
        op = torch.ops.snnfast.lif_forward.default
        s, v, _ = call.run(call.direct, op, _forward, inputs, call.state, False)
        result = (s, v) if call.state else s
    if call.surrogate.spiking:
        mark_spikes(result[0] if call.state else result)
    return result
