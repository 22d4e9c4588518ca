"""snnTorch's neurons (Eshraghian et al. 2023, arXiv 2109.12894; snntorch 1.0).

They fire where the potential is above the threshold, not at it, and are reset one step later by a
spike that carries no gradient::

    R[t] = [U[t-1] > threshold]        S[t] = [U[t] > threshold]

``reset_mechanism``: "subtract", "zero" or "none". With ``reset_delay=False`` the reset is brought
forward into the step of the spike. ``beta`` and ``alpha`` are clamped to 0 .. 1, as there.
"""

import math

import torch
from torch import Tensor

from snnfast.ops.neuron import neuron
from snnfast.reference.neuron import strict_spike


def _unit(number):
    return number.clamp(0, 1) if isinstance(number, Tensor) else min(max(number, 0.0), 1.0)


def _log(number):
    return torch.log(number) if isinstance(number, Tensor) else math.log(number)


def _reset(op: str, h: Tensor, events: Tensor, threshold, mechanism: str) -> Tensor:
    if mechanism == "subtract":
        return h - events * threshold
    if mechanism == "zero":
        return h - events * h
    if mechanism != "none":
        raise ValueError(
            f"{op}: reset_mechanism must be 'subtract', 'zero' or 'none', got {mechanism!r}"
        )
    return h


@neuron
def leaky(x, mem, *, beta=0.9, threshold=1.0, reset_mechanism="subtract", reset_delay=True):
    r"""snnTorch's ``Leaky``, one state that decays by ``beta`` in a step::

        subtract  U[t] = beta U[t-1] + X[t] - R threshold
        zero      U[t] = beta (1 - R) U[t-1] + X[t]

    ``beta`` = exp(-dt / tau) has no default in snnTorch, 0.9 is what its tutorials take.
    """
    before = (mem > threshold).to(mem.dtype)
    if reset_mechanism == "zero":
        mem = (1 - before) * mem
        h = _unit(beta) * mem + x
    else:
        h = _reset("leaky", _unit(beta) * mem + x, before, threshold, reset_mechanism)
    s = strict_spike(h - threshold)
    return s, h if reset_delay else _reset("leaky", h, s - before, threshold, reset_mechanism)


@neuron
def synaptic(
    x, syn, mem, *, alpha=0.9, beta=0.8, threshold=1.0, reset_mechanism="subtract", reset_delay=True
):
    r"""snnTorch's ``Synaptic``, a current that decays by ``alpha`` and a potential by ``beta``::

                  I[t] = alpha I[t-1] + X[t]
        subtract  U[t] = beta U[t-1] + I[t] - R threshold
        zero      U[t] = (1 - R) (beta U[t-1] + I[t])

    ``alpha`` and ``beta`` have no default in snnTorch, these are of its documentation.
    """
    before = (mem > threshold).to(mem.dtype)
    syn = _unit(alpha) * syn + x
    h = _reset("synaptic", _unit(beta) * mem + syn, before, threshold, reset_mechanism)
    s = strict_spike(h - threshold)
    mem = h if reset_delay else _reset("synaptic", h, s - before, threshold, reset_mechanism)
    return s, syn, mem


@neuron
def lapicque(
    x, mem, *, beta=0.9, R=None, C=None, time_step=1.0, threshold=1.0, reset_mechanism="subtract"
):
    r"""snnTorch's ``Lapicque``, an RC circuit under an input current::

                  U[t] = X[t] time_step / C + (1 - time_step / (R C)) U[t-1]
        subtract  ... - R[t] threshold,        zero  ... (1 - R[t])

    ``R`` in ohm, ``C`` in farad, ``time_step`` in seconds. Where one of the two is None it follows
    from beta = exp(-time_step / (R C)); where both are, R = 1; where none is, beta has no part.
    """
    if R is None or C is None:
        rate = _log(1 / beta)
        if R is None:
            R = 1.0 if C is None else time_step / (C * rate)
        C = time_step / (R * rate) if C is None else C
    before = (mem > threshold).to(mem.dtype)
    h = x * R * (1 / (R * C)) * time_step + (1 - time_step / (R * C)) * mem
    h = _reset("lapicque", h, before, threshold, reset_mechanism)
    return strict_spike(h - threshold), h


@neuron
def alpha(x, syn_exc, syn_inh, mem, *, alpha=0.9, beta=0.8, threshold=1.0, reset_mechanism="zero"):
    r"""snnTorch's ``Alpha``, the potential an alpha function of the input's spikes::

                  E[t] = alpha E[t-1] + X[t],    I[t] = beta I[t-1] - X[t]
                  U[t] = (log alpha / (log beta - log alpha) + 1) (E[t] + I[t])
        zero      all three times 1 - R
        subtract  E[t] - R threshold,    (1 - R) I[t],    U[t] + R I[t-1]

    ``alpha`` must be greater than ``beta``; they have no default in snnTorch, these are of its
    documentation.
    """
    if alpha is beta or (isinstance(alpha, float) and alpha == beta):
        raise ValueError(f"alpha: alpha must be greater than beta, got {alpha} and {beta}")
    alpha, beta = _unit(alpha), _unit(beta)
    before = (mem > threshold).to(mem.dtype)
    exc = alpha * syn_exc + x
    inh = beta * syn_inh - x
    h = (_log(alpha) / (_log(beta) - _log(alpha)) + 1) * (exc + inh)
    if reset_mechanism == "subtract":
        exc, h = exc - threshold * before, h + syn_inh * before
        inh = inh - inh * before
    else:
        exc, inh, h = (
            _reset("alpha", state, before, threshold, reset_mechanism) for state in (exc, inh, h)
        )
    return strict_spike(h - threshold), exc, inh, h
