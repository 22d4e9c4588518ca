"""A LIF layer as a value: from the arguments of the public functions to what the ops carry, and the
tensors that a call of such a layer reads and makes."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import surrogate as surrogates
from snnfast.backends import checks, layout
from snnfast.backends import spec as specs
from snnfast.backends.spec import LifLayer
from snnfast.ops import allocate
from snnfast.ops import validation as check
from snnfast.ops.direct import is_direct
from snnfast.ops.select import check_name, implementation, named, select, takes_samples

STATE_NONE, STATE_LAST, STATE_ALL = 0, 1, 2
DEFAULT_TAU = 2.0
_POWERS_OF_TWO = tuple(2.0**k for k in range(11))

LAYER = f"SymInt steps, {specs.CHOICES}, str backend"
"""A packed layer in the schema of an op."""
TAGS = (torch.Tag.needs_exact_strides,) if hasattr(torch.Tag, "needs_exact_strides") else ()


class Call(NamedTuple):
    """The checked arguments of a call that ends in LIF neurons."""

    layer: LifLayer
    state: int
    surrogate: surrogates.Surrogate
    backend: str
    packed: tuple
    """The arguments of LAYER."""
    direct: bool
    """Whether forward needs no dispatcher."""

    def in_plain_words(self, rate: Tensor | None) -> dict:
        """The arguments of ``reference.lif``."""
        layer = self.layer
        return {
            "rate": layer.rate if rate is None else rate,
            "divide": layer.divide,
            "v_threshold": layer.theta,
            "v_reset": layer.reset if layer.hard else None,
            "decay_input": layer.charge == specs.DECAY_INPUT,
            "detach_reset": layer.detach_reset,
            "surrogate": self.surrogate,
            "timesteps": layer.steps if layer.static else None,
        }

    def run(self, direct: bool, op, function, tensors: tuple, *rest):
        """``op`` of torch.ops; or, ``direct``, the function that it is, which takes the layer and
        the backend where the op takes LAYER."""
        if direct:
            return function(*tensors, self.layer, implementation(self.backend), *rest)
        return op(*tensors, *self.packed, *rest)

    def results(self, s: Tensor, states: Tensor):
        """What the public functions return, of what the reference does."""
        if self.state == STATE_NONE:
            return s
        return s, states[1:] if self.state == STATE_ALL else states[-1]


def check_tau(op: str, tau) -> float:
    tau = check.check_number(op, "tau", tau, finite=False)
    if not tau >= 1.0:
        raise ValueError(f"{op}: tau must be >= 1, got {tau}")
    return tau


def _check_threshold(op: str, value):
    """A number, inf among them, or a tensor whose shape is not looked at yet."""
    if isinstance(value, Tensor) or value == math.inf:
        return value
    return check.check_number(op, "v_threshold", value, hint=" or a tensor [] or [C]")


def check_options(op, *, v_threshold, v_reset, detach_reset, surrogate, return_state, backend,
                  decay_input=True):  # fmt: skip
    """What can be said of a neuron's arguments before its input is known: (theta, reset, surrogate,
    which state is wanted)."""
    theta = _check_threshold(op, v_threshold)
    soft = " (hard reset) or None (soft)"
    reset = 0.0 if v_reset is None else check.check_number(op, "v_reset", v_reset, hint=soft)
    check.check_bool(op, "decay_input", decay_input)
    check.check_bool(op, "detach_reset", detach_reset)
    if not isinstance(return_state, (bool, str)) or return_state not in (False, True, "all"):
        raise ValueError(f"{op}: return_state must be False, True or 'all', got {return_state!r}")
    state = STATE_ALL if return_state == "all" else STATE_LAST if return_state else STATE_NONE
    if backend is not None:
        check_name(backend, op)
    return theta, reset, surrogates.resolve(surrogate, op), state


def check_rate(op, x, shape, tau, inv_tau) -> Tensor:
    """Which of them is a rate tensor."""
    if inv_tau is None:
        check.check_rate(op, "tau", tau, x, shape)
        return tau
    if tau is not DEFAULT_TAU:
        raise ValueError(f"{op}: tau and inv_tau must not both be given, got both")
    if not isinstance(inv_tau, Tensor):
        raise TypeError(f"{op}: inv_tau must be a tensor, got {check.type_name(inv_tau)}")
    check.check_rate(op, "inv_tau", inv_tau, x, shape)
    return inv_tau


def _number_rate(op: str, tau) -> tuple[float, bool]:
    tau = check_tau(op, tau)
    # Multiplying by 1/tau is exact where tau is a power of two, and saves the division.
    return (1.0 / tau, False) if tau in _POWERS_OF_TWO else (tau, True)


def _layer(rate, divide, static, theta, reset, hard, decay_input, detach_reset, surrogate):
    """The layer but for its steps."""
    charge = specs.DECAY_INPUT if decay_input else specs.DECAY_STATE
    if rate == math.inf:
        charge = specs.INTEGRATE
    choices = (charge, divide, hard, detach_reset, surrogate.ID, surrogate.spiking, static)
    return LifLayer(*choices, rate, theta, reset, *surrogate.params())


def lif_layer(
    steps: int, *, tau: float = DEFAULT_TAU, v_threshold: float = 1.0,
    v_reset: float | None = 0.0, decay_input: bool = True, detach_reset: bool = False,
    surrogate: "str | surrogates.Surrogate" = "sigmoid", static: bool = False,
) -> LifLayer:  # fmt: skip
    """The layer that ``lif`` makes of these arguments."""
    theta, reset, chosen, _ = check_options(
        "lif", v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, return_state=False, backend=None,
    )  # fmt: skip
    rate, choices = _number_rate("lif", tau), (v_reset is not None, decay_input, detach_reset)
    return _layer(*rate, static, theta, reset, *choices, chosen).over(steps)


def _checked(tensors, own_check, op, tau, divide, timesteps, v_threshold, v_reset, decay_input,
             detach_reset, surrogate, return_state, backend, *own_options):  # fmt: skip
    """(the layer, packed, which state is wanted, the surrogate, what ``own_check`` says of the op's
    other arguments). ``divide`` is None for a rate that is a number, ``tau``."""
    x, v0, *others = tensors
    found = own_check and own_check(x, *others, timesteps, *own_options)
    if timesteps is None:
        if x.dim() == 0:
            raise ValueError(f"{op}: x must have time as its first axis, got a scalar")
        steps, shape = x.shape[0], x.shape[1:]
    else:
        check.check_int(op, "timesteps", timesteps, 0)
        steps, shape = timesteps, x.shape
    rate, divide = _number_rate(op, tau) if divide is None else (0.0, divide)
    theta, reset, chosen, state = check_options(
        op, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input,
        detach_reset=detach_reset, surrogate=surrogate, return_state=return_state, backend=backend,
    )  # fmt: skip
    if v0 is not None:
        check.check_state(op, "v0", v0, x, shape)
    choices = (v_reset is not None, decay_input, detach_reset)
    layer = _layer(rate, divide, timesteps is not None, theta, reset, *choices, chosen)
    return layer.over(steps), (steps, *layer.pack()), state, chosen, found


_remembered = check.by_kind(_checked)


def checked_call(op, x, v0, *others, tau, v_threshold, v_reset, decay_input, detach_reset,
                 surrogate, inv_tau, timesteps, return_state, backend, own_check=None,
                 own_options=()):  # fmt: skip
    """The arguments of a neuron, checked against the input ``x`` and the state ``v0``: (Call, the
    rate where it is a tensor, what ``own_check(x, *others, timesteps, *own_options)`` gives).
    ``others``: what else the op reads."""
    given, rate = (x, v0, *others), None
    by_tensor = inv_tau is not None or isinstance(tau, Tensor)
    number, divide = (None, inv_tau is None) if by_tensor else (tau, None)
    layer, packed, state, chosen, found = _remembered(
        given, own_check, op, number, divide, timesteps, v_threshold, v_reset, decay_input,
        detach_reset, surrogate, return_state, backend, *own_options,
    )  # fmt: skip
    if by_tensor:
        rate = check_rate(op, x, x.shape[timesteps is None :], tau, inv_tau)
    smooth, seen = not chosen.spiking, check.transformed(rate, *given)
    name = select(op, backend, x.device.type, x.dtype, smooth, transformed=seen)
    direct = is_direct(x, v0, rate, *others)
    return Call(layer, state, chosen, name, (*packed, name), direct), rate, found


def want_gradient(*inputs: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for t in inputs:
            if t is not None and t.requires_grad:
                return True
    return False


def unpacked(x: Tensor, steps: int, choices: list[int], numbers: list[float]) -> LifLayer:
    """The layer behind the dispatcher. A traced graph has T as a number, which may not be that of
    the x it is run on."""
    layer = LifLayer.unpack(choices, numbers)
    checks.axes("x", x, axis(layer), "[T, ...]")
    return layer.over(steps if layer.static else x.shape[0])


def behind_dispatcher(function, tensors: int):
    """``function`` with LAYER behind its tensors instead of a layer and a backend; a result that is
    None is (0,) in the state's dtype."""

    def run(*arguments):
        given, (*packed, backend) = arguments[:tensors], arguments[tensors : tensors + 4]
        layer, kernels = unpacked(given[0], *packed), named(backend, given[0])
        return present(given[0], function(*given, layer, kernels, *arguments[tensors + 4 :]))

    return run


def present(x: Tensor, results):
    """The results of an op, which cannot be None."""
    if isinstance(results, Tensor):
        return results
    dtype = layout.state_dtype(x)
    return tuple(x.new_empty(0, dtype=dtype) if t is None else t for t in results)


@functools.cache
def nothing(device: torch.device) -> Tensor:
    """Saved in place of borders that there are none of: as many tensors then as behind the
    dispatcher, where a forward may be that is run again without it."""
    with torch.inference_mode(False):
        return torch.empty(0, device=device)


def axis(layer: LifLayer) -> int:
    """The first axis of x after time."""
    return 0 if layer.static else 1


def empty_input(x: Tensor, layer: LifLayer) -> Tensor:
    """A gradient of x."""
    if not layer.static and x.is_contiguous():
        small = type(x) is Tensor and x.nbytes < allocate.LARGE  # asked here, it costs no call
        return torch.empty_like(x) if small else allocate.empty_like(x)
    leading = [] if layer.static else [layer.steps]
    return allocate.empty_steps(x, axis(layer), leading, x.dtype)


def empty_forward(x: Tensor, layer: LifLayer, state: int, keep: bool):
    """(s, v, borders), the latter two None where they are not wanted."""
    first, steps, v, borders = axis(layer), layer.steps, None, None
    s = empty_input(x, layer) if first else allocate.empty_steps(x, first, [steps], x.dtype)
    if state:
        leading = [steps] if state == STATE_ALL else []
        v = allocate.empty_steps(x, first, leading, layout.state_dtype(x))
    if keep and steps > specs.SEGMENT:
        kept = specs.segments(steps) - 1
        borders = allocate.empty_steps(x, first, [kept], layout.state_dtype(x))
    return s, v, borders


def empty_backward(x, rate, layer: LifLayer, want_dv0: bool, want_drate: bool):
    """(dv0, drate), None where they are not wanted."""
    dv0 = allocate.empty_steps(x, axis(layer), [], layout.state_dtype(x)) if want_dv0 else None
    return dv0, torch.empty_like(rate) if want_drate else None


def as_launched(x: Tensor, rate: Tensor | None, layer: LifLayer):
    """(x with dense steps, x as [T, ...] with a time stride of 0 where static, rate, and the layer
    with the channels of a [C] rate)."""
    x = layout.with_dense_steps(x, axis(layer))
    sequence = x.unsqueeze(0).expand(layer.steps, *x.shape) if layer.static else x
    if rate is not None:
        rate = rate.contiguous()
        if rate.dim() == 1:
            checks.axes("x", x, axis(layer) + 2, "[..., B, C, ...] for a rate [C]")
            inner = layout.step_strides(x, axis(layer))[1]
            layer = layer._replace(channels=rate.shape[0], inner=inner)
    return x, sequence, rate, layer


def by_sample(x: Tensor, layer) -> bool:
    """Whether every sample of ``x`` is launched by itself."""
    return not layer.static and layout.is_batch_first(x)


def with_dense_steps(x: Tensor, layer, backend: str) -> Tensor:
    """``x`` as an op on that backend reads it, without a copy where it can."""
    if by_sample(x, layer) and takes_samples(backend):
        return x
    return layout.with_dense_steps(x, axis(layer))


def summed(parts: list[Tensor]) -> Tensor:
    """A gradient that every sample has a part of."""
    return torch.stack(parts).sum(0, dtype=torch.float64).to(parts[0].dtype)


def gradients_as_launched(x: Tensor, layer: LifLayer, v0, borders, ds, dv):
    """What backward reads beside x, as kernels read it."""
    first = axis(layer)
    if borders is not None:
        borders = layout.like_steps(borders, x, first) if borders.numel() else None
    v0, dv = layout.like_steps(v0, x, first), layout.like_steps(dv, x, first)
    return v0, borders, layout.like_steps(ds, x, first, any_stride=True), dv


def rate_gradient(layer: LifLayer, rate: Tensor, dfactor: Tensor) -> Tensor:
    """The gradient of tau or of 1/tau, whichever ``rate`` is; kernels give that of 1/tau."""
    return -dfactor / (rate * rate) if layer.divide else dfactor
