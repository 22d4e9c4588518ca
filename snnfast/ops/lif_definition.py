"""``lif`` by its definition: the program that runs where no tuned kernel has the mode asked for, or
knows the surrogate."""

import math

import torch
from torch import Tensor

from snnfast.ops import layer as layers
from snnfast.ops import validation as check
from snnfast.ops.neuron import neuron
from snnfast.reference.lif import charge, reset
from snnfast.reference.neuron import spike, strict_spike


def at_reset(*, v_reset, **parameters):
    """The rest of a neuron with one state: where a reset leaves it."""
    return (0.0 if v_reset is None else v_reset,)


def check_modes(op: str, *, tau=layers.DEFAULT_TAU, inv_tau=None, decay_input=True, beta=None,
                v_rest=None, fire=">=", detach_state=False) -> None:  # fmt: skip
    """What can be said of them before the input is known."""
    if beta is not None:
        if not isinstance(beta, Tensor):
            check.check_number(op, "beta", beta, hint=" or a tensor [] or [C]")
        others = {"tau": tau, "inv_tau": inv_tau, "decay_input": decay_input, "v_rest": v_rest}
        left = {"tau": layers.DEFAULT_TAU, "inv_tau": None, "decay_input": True, "v_rest": None}
        for name, value in others.items():
            if isinstance(value, Tensor) or value != left[name]:
                got = "a tensor" if isinstance(value, Tensor) else value
                raise ValueError(
                    f"{op}: {name} must be {left[name]} where beta is given, got {got}"
                )
    if v_rest is not None:
        check.check_number(op, "v_rest", v_rest, hint=" or None for the leak towards v_reset")
    if not isinstance(fire, str) or fire not in (">=", ">"):
        raise ValueError(f"{op}: fire must be '>=' or '>', got {fire!r}")
    check.check_bool(op, "detach_state", detach_state)


@neuron(rest=at_reset)
def lif(
    x, v, *, tau=layers.DEFAULT_TAU, v_threshold=1.0, v_reset=0.0, decay_input=True,
    detach_reset=False, inv_tau=None, beta=None, v_rest=None, fire=">=", detach_state=False,
):  # fmt: skip
    r"""Leaky integrate-and-fire, the neuron of ``snnfast.lif``, which is this one tuned::

        H = V[t-1] + (X[t] - (V[t-1] - r)) / tau, or without decay_input V - (V - r) / tau + X
        S[t] = [H >= v_threshold]        V[t] = v_reset where S else H, or H - v_threshold S

    r = ``v_reset``, and 0 where that is None (soft); ``v_rest`` where that is given. ``inv_tau``
    multiplies instead of ``tau``; with ``beta`` H = beta V[t-1] + X[t]. ``fire=">"``: no spike at
    the threshold. ``detach_state``: V[t-1] has no gradient. With v_threshold = inf nothing fires.
    """
    check_modes("lif", fire=fire, detach_state=detach_state)
    v = v.detach() if detach_state else v
    if beta is not None:
        h = beta * v + x
    else:
        r = (0.0 if v_reset is None else v_reset) if v_rest is None else v_rest
        h = charge(x, v, r, tau if inv_tau is None else inv_tau, inv_tau is None, decay_input)
    if not isinstance(v_threshold, Tensor) and v_threshold == math.inf:
        return torch.zeros_like(h), h
    s = (strict_spike if fire == ">" else spike)(h - v_threshold)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


def needs_program(beta, v_rest, detach_state, fire, v_threshold, surrogate) -> bool:
    """Whether no tuned kernel has what is asked for, or it is wrong."""
    return (
        beta is not None
        or v_rest is not None
        or detach_state is not False
        or fire != ">="
        or isinstance(v_threshold, Tensor)
        or v_threshold == math.inf
        or (type(surrogate) is not str and getattr(surrogate, "ID", 0) is None)
    )


def by_program(op: str, run, x, v0, *, tau, inv_tau, v_threshold, v_reset, decay_input,
               detach_reset, surrogate, beta, v_rest, fire, detach_state, timesteps, return_state,
               backend):  # fmt: skip
    """The call of ``op`` with all arguments checked, by ``run``, the definition or what ends in
    it."""
    check.check_input(op, "y" if op == "norm_lif" else "x", x)
    layers.check_options(
        op, v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset,
        surrogate=surrogate, return_state=return_state, backend=backend, decay_input=decay_input,
    )  # fmt: skip
    check_modes(
        op, tau=tau, inv_tau=inv_tau, decay_input=decay_input, beta=beta, v_rest=v_rest, fire=fire,
        detach_state=detach_state,
    )  # fmt: skip
    if timesteps is not None:
        check.check_int(op, "timesteps", timesteps, 0)
    shape = x.shape if timesteps is not None else x.shape[1:]
    if v0 is not None:
        check.check_state(op, "v0", v0, x, shape)
    if inv_tau is not None or isinstance(tau, Tensor):
        layers.check_rate(op, x, shape, tau, inv_tau)
        tau = tau if inv_tau is None else layers.DEFAULT_TAU
    elif beta is None:
        tau = layers.check_tau(op, tau)
    for name, value in {"v_threshold": v_threshold, "beta": beta}.items():
        if isinstance(value, Tensor):
            check.check_row(op, name, value, x, shape)
            check.check_finite(op, name, value)
    return run(
        x, states=v0, surrogate=surrogate, timesteps=timesteps, return_state=return_state,
        backend=backend, tau=tau, inv_tau=inv_tau, v_threshold=v_threshold, v_reset=v_reset,
        decay_input=decay_input, detach_reset=detach_reset, beta=beta, v_rest=v_rest, fire=fire,
        detach_state=detach_state,
    )  # fmt: skip
