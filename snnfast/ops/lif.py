"""``lif``: all timesteps of a LIF layer in one call, forward and backward.

The contract (schemas and fakes), the launch on a backend, the autograd.Function, and the public
function, in that order. An op is defined once and implemented once; which backend runs it is one of
its arguments, chosen before the call.
"""

import math

import torch
from torch import Tensor

from snnfast import reference
from snnfast import surrogate as surrogates
from snnfast.backends import layout
from snnfast.backends import spec as specs
from snnfast.ops import validation as check
from snnfast.ops.packed import mark_spikes
from snnfast.ops.select import check_name, module, select

STATE_NONE, STATE_LAST, STATE_ALL = 0, 1, 2

_LAYER = (
    "SymInt steps, bool static, int charge, float rate_value, bool divide, float theta, "
    "float reset, bool hard, bool detach_reset, int surrogate, float a, float b, bool spiking, "
    "str backend"
)
_library = torch.library.Library("snnfast", "FRAGMENT")
_TAGS = (torch.Tag.needs_exact_strides,) if hasattr(torch.Tag, "needs_exact_strides") else ()
_library.define(
    f"lif_forward(Tensor x, Tensor? v0, Tensor? rate, {_LAYER}, int state, bool keep) "
    "-> (Tensor s, Tensor v, Tensor borders)",
    tags=_TAGS,
)
_library.define(
    "lif_backward(Tensor x, Tensor? v0, Tensor? rate, Tensor borders, Tensor? ds, Tensor? dv, "
    f"{_LAYER}, bool want_dv0, bool want_drate) -> (Tensor dx, Tensor dv0, Tensor drate)",
    tags=_TAGS,
)


def steps_of(x: Tensor, steps: int, static: bool) -> int:
    """T. A traced graph has it as a number, which may not be that of the x it is run on."""
    return steps if static else x.shape[0]


def _allocate_forward(x, steps, static, state, keep):
    steps = steps_of(x, steps, static)
    axis, dtype = 0 if static else 1, check.state_dtype(x)
    s = layout.empty_steps(x, axis, [steps], x.dtype)
    v = x.new_empty(0, dtype=dtype)
    if state:
        v = layout.empty_steps(x, axis, [steps] if state == STATE_ALL else [], dtype)
    borders = x.new_empty(0, dtype=dtype)
    if keep and steps > specs.SEGMENT:
        borders = layout.empty_steps(x, axis, [specs.segments(steps) - 1], dtype)
    return s, v, borders


def _allocate_backward(x, v0, rate, steps, static, want_dv0, want_drate):
    steps = steps_of(x, steps, static)
    axis, dtype = 0 if static else 1, check.state_dtype(x)
    dx = layout.empty_steps(x, axis, [] if static else [steps], x.dtype)
    dv0 = layout.empty_steps(x, axis, [], dtype) if want_dv0 else x.new_empty(0, dtype=dtype)
    drate = torch.empty_like(rate) if want_drate else x.new_empty(0, dtype=dtype)
    return dx, dv0, drate


@torch.library.register_fake("snnfast::lif_forward", lib=_library)
def _(x, v0, rate, steps, static, charge, rate_value, divide, theta, reset, hard, detach_reset,
      surrogate, a, b, spiking, backend, state, keep):  # fmt: skip
    return _allocate_forward(x, steps, static, state, keep)


@torch.library.register_fake("snnfast::lif_backward", lib=_library)
def _(x, v0, rate, borders, ds, dv, steps, static, charge, rate_value, divide, theta, reset, hard,
      detach_reset, surrogate, a, b, spiking, backend, want_dv0, want_drate):  # fmt: skip
    return _allocate_backward(x, v0, rate, steps, static, want_dv0, want_drate)


def _launch_inputs(x, rate, steps, static, layer):
    """x as [T, ...] (time stride 0 where static), the rate, and the spec a backend takes."""
    steps = steps_of(x, steps, static)
    x = layout.with_dense_steps(x, 0 if static else 1)
    sequence = x.unsqueeze(0).expand(steps, *x.shape) if static else x
    channels, inner = 1, 1
    if rate is not None and rate.dim() == 1:
        channels, inner = rate.shape[0], layout.step_strides(x, 0 if static else 1)[1]
    rate = None if rate is None else rate.contiguous()
    return x, sequence, rate, specs.LifSpec(steps, *layer, channels, inner)


def _run_forward(x, v0, rate, steps, static, charge, rate_value, divide, theta, reset, hard,
                 detach_reset, surrogate, a, b, spiking, backend, state, keep):  # fmt: skip
    layer = (charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking)
    x, sequence, rate, spec = _launch_inputs(x, rate, steps, static, layer)
    s, v, borders = _allocate_forward(x, steps, static, state, keep)
    axis = 0 if static else 1
    if s.numel():
        v0 = layout.like_steps(v0, x, axis)
        outputs = (s, v if state else None, borders if borders.numel() else None)
        module(backend).lif_forward(spec, sequence, v0, rate, *outputs)
    elif state == STATE_LAST and v.numel():  # T = 0
        v.copy_(v0) if v0 is not None else v.fill_(reset)
    return s, v, borders


def _run_backward(x, v0, rate, borders, ds, dv, steps, static, charge, rate_value, divide, theta,
                  reset, hard, detach_reset, surrogate, a, b, spiking, backend, want_dv0,
                  want_drate):  # fmt: skip
    layer = (charge, rate_value, divide, theta, reset, hard, detach_reset, surrogate, a, b, spiking)
    x, sequence, rate, spec = _launch_inputs(x, rate, steps, static, layer)
    dx, dv0, drate = _allocate_backward(x, v0, rate, steps, static, want_dv0, want_drate)
    axis = 0 if static else 1
    if spec.steps and dx.numel():
        tensors = (v0, borders if borders.numel() else None, dv)
        v0, borders, dv = (layout.like_steps(tensor, x, axis) for tensor in tensors)
        ds = layout.like_steps(ds, x, axis, any_stride=True)
        outputs = (dx, dv0 if want_dv0 else None, drate if want_drate else None)
        module(backend).lif_backward(spec, sequence, v0, rate, borders, ds, dv, *outputs)
        return dx, dv0, drate
    dx.zero_(), drate.zero_()
    if want_dv0:
        dv0.copy_(dv) if dv is not None and dv.shape == dv0.shape else dv0.zero_()
    return dx, dv0, drate


for _device in ("CPU", "CUDA"):
    _library.impl("lif_forward", _run_forward, _device)
    _library.impl("lif_backward", _run_backward, _device)


class _Lif(torch.autograd.Function):
    """Keeps x, and V at the borders of segments where T > 8; backward recomputes H."""

    @staticmethod
    def forward(ctx, x, v0, rate, layer, state):
        s, v, borders = torch.ops.snnfast.lif_forward(x, v0, rate, *layer, state, True)
        ctx.save_for_backward(x, v0, rate, borders)
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        return (s, v) if state else s

    @staticmethod
    def backward(ctx, ds, dv=None):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "lif: gradients must be taken once, got create_graph=True; "
                "backend='reference' is differentiable twice"
            )
        x, v0, rate, borders = ctx.saved_tensors
        _, want_dv0, want_drate, _, _ = ctx.needs_input_grad
        dx, dv0, dfactor = torch.ops.snnfast.lif_backward(
            x, v0, rate, borders, ds, dv, *ctx.layer, want_dv0, want_drate
        )
        drate = None
        if want_drate:  # the kernels give the gradient of 1/tau
            divide = ctx.layer[4]
            drate = -dfactor / (rate * rate) if divide else dfactor
        return dx, dv0 if want_dv0 else None, drate, None, None


DEFAULT_TAU = 2.0
_POWERS_OF_TWO = tuple(2.0**k for k in range(11))


def check_tau(op: str, tau) -> float:
    tau = check.check_number(op, "tau", tau, finite=False)
    if not tau >= 1.0:
        raise ValueError(f"{op}: tau must be >= 1, got {tau}")
    return tau


def check_options(op, *, v_threshold, v_reset, detach_reset, surrogate, return_state, backend,
                  decay_input=True):  # fmt: skip
    """What can be said of a neuron's arguments before its input is known: (theta, reset, surrogate,
    which state is wanted)."""
    theta = check.check_number(op, "v_threshold", v_threshold)
    soft = " (hard reset) or None (soft)"
    reset = 0.0 if v_reset is None else check.check_number(op, "v_reset", v_reset, hint=soft)
    check.check_bool(op, "decay_input", decay_input)
    check.check_bool(op, "detach_reset", detach_reset)
    if return_state not in (False, True, "all"):
        raise ValueError(f"{op}: return_state must be False, True or 'all', got {return_state!r}")
    state = STATE_ALL if return_state == "all" else STATE_LAST if return_state else STATE_NONE
    if backend is not None:
        check_name(backend, op)
    return theta, reset, surrogates.resolve(surrogate, op), state


def _check_rate(op, x, shape, tau, inv_tau) -> tuple[Tensor | None, float, bool]:
    """(rate tensor or None, rate as a number, whether it divides)."""
    if inv_tau is not None:
        if tau is not DEFAULT_TAU:
            raise ValueError(f"{op}: tau and inv_tau must not both be given, got both")
        if not isinstance(inv_tau, Tensor):
            raise TypeError(f"{op}: inv_tau must be a tensor, got {check.type_name(inv_tau)}")
        check.check_rate(op, "inv_tau", inv_tau, x, shape)
        return inv_tau, 0.0, False
    if isinstance(tau, Tensor):
        check.check_rate(op, "tau", tau, x, shape)
        return tau, 0.0, True
    tau = check_tau(op, tau)
    # Multiplying by 1/tau is exact where tau is a power of two, and saves the division.
    if tau in _POWERS_OF_TWO:
        return None, 1.0 / tau, False
    return None, tau, True


def check_neuron(op, x, v0, *, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate,
                 inv_tau, timesteps, return_state, backend):  # fmt: skip
    """The arguments of a neuron, checked: (layer for the op, rate tensor or None, which state is
    wanted, v_reset, surrogate). The layer ends with the name of the backend."""
    if timesteps is None:
        if x.dim() == 0:
            raise ValueError(f"{op}: x must have time as its first axis, got a scalar")
        steps, shape, static = x.shape[0], x.shape[1:], False
    else:
        check.check_int(op, "timesteps", timesteps, 0)
        steps, shape, static = timesteps, x.shape, True
    rate, rate_value, divide = _check_rate(op, x, shape, tau, inv_tau)
    check.refuse_transforms(op, x, v0, rate)
    theta, reset, chosen, state = check_options(
        op, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, return_state=return_state, backend=backend,
    )  # fmt: skip
    if v0 is not None:
        check.check_state(op, "v0", v0, x, shape)
    own = type(chosen).__name__ if chosen.ID is None else None
    name = select(op, backend, x.device.type, x.dtype, not chosen.spiking, own)
    charge = specs.DECAY_INPUT if decay_input else specs.DECAY_STATE
    if rate is None and rate_value == math.inf:
        charge = specs.INTEGRATE
    a, b = (0.0, 0.0) if own else chosen.params()
    layer = (steps, static, charge, rate_value, divide, theta, reset, v_reset is not None,
             detach_reset, chosen.ID, a, b, chosen.spiking, name)  # fmt: skip
    return layer, rate, state, v_reset, chosen


def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = DEFAULT_TAU,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: "str | surrogates.Surrogate" = "sigmoid",
    inv_tau: Tensor | None = None,
    timesteps: int | None = None,
    return_state: "bool | str" = False,
    backend: str | None = None,
):
    r"""Leaky integrate-and-fire neurons over all timesteps in one launch.

    With r = ``v_reset``, or 0 where the reset is soft, and theta = ``v_threshold``::

        charge   H_t = V_{t-1} + (X_t - (V_{t-1} - r)) / tau          decay_input=True
                 H_t = V_{t-1} - (V_{t-1} - r) / tau + X_t            decay_input=False
                 H_t = V_{t-1} + X_t                                  tau = inf (IF)
        fire     S_t = 1 where H_t >= theta, else 0
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
        v_threshold: firing threshold.
        v_reset: where V goes after a spike; None subtracts the threshold instead.
        decay_input: whether the input is divided by tau, too.
        detach_reset: leave the reset out of the gradient.
        surrogate: a name or an object of ``snnfast.surrogate``; ``spiking=False`` there gives the
            smooth twin, whose S is the surrogate's primitive. A subclass of your own runs on the
            reference.
        inv_tau: 1/tau as a tensor [] or [C] in 0..1 that multiplies, instead of ``tau``
            (ParametricLIF's sigmoid(w)).
        timesteps: T, for a static ``x``. The gradient of x is then summed over time.
        return_state: True also returns V after the last step, "all" V after every step [T, ...].
        backend: auto, reference, cpu, triton or cuda; see ``snnfast.backend``.

    Returns:
        s [T, ...] in x's dtype and memory layout, or (s, v) with v as v0's dtype.

    State and arithmetic are float32 whatever x's dtype, and autocast casts nothing. Kept for
    backward: x, and 4 bytes per neuron for every 8 steps beyond the first 8. Differentiable once.

    Raises:
        TypeError, ValueError: ``lif: <argument> must be ..., got ...``, before any launch.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> s = snnfast.lif(torch.randn(4, 32, 64), surrogate="atan")
    """
    check.check_input("lif", "x", x)
    layer, rate, state, v_reset, chosen = check_neuron(
        "lif", x, v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, inv_tau=inv_tau, timesteps=timesteps,
        return_state=return_state, backend=backend,
    )  # fmt: skip

    if layer[-1] == "reference":
        s, states = reference.lif(
            x, v0, rate=rate if rate is not None else layer[3], divide=layer[4],
            v_threshold=layer[5], v_reset=v_reset, decay_input=decay_input,
            detach_reset=detach_reset, surrogate=chosen, timesteps=timesteps,
        )  # fmt: skip
        return (s, states[1:] if state == STATE_ALL else states[-1]) if state else s

    x = layout.with_dense_steps(x, 1 if timesteps is None else 0)
    inputs = (x, v0, rate)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        result = _Lif.apply(x, v0, rate, layer, state)
    else:
        s, v, _ = torch.ops.snnfast.lif_forward(x, v0, rate, *layer, state, False)
        result = (s, v) if state else s
    if chosen.spiking:
        mark_spikes(result[0] if state else result)
    return result
