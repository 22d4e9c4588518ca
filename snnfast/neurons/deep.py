"""LIF neurons of deep networks, varied in how they leak, fire or are reset."""

import torch

from snnfast.ops.lif_definition import at_reset
from snnfast.ops.neuron import neuron
from snnfast.reference.lif import charge, reset
from snnfast.reference.neuron import spike

_ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def _at_rest(*, v_reset, tau, **parameters):
    return 0.0 if v_reset is None else v_reset, 1 / tau


@neuron(rest=_at_rest)
def heterogeneous_lif(
    x, v, inv_tau, *, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, detach_reset=False
):  # fmt: skip
    r"""LIF with a time constant for each neuron, as in Perez-Nieves et al. 2021 (Nature
    Communications 12, 5791; their neurons have a synaptic current, too). 1/tau is a state that
    stays what it is, and multiplies as ``inv_tau`` does in ``snnfast.lif``::

        >>> rate = w.sigmoid().expand(x.shape[1:])          # w [C, H, W], x [T, B, C, H, W]
        >>> s = heterogeneous_lif(x, states=(None, rate))

    It gets a gradient as any state does. Without it all neurons have ``tau``. All else as in
    ``snnfast.lif``. ``snnfast.nn.HeterogeneousLIF`` is the module that learns w.
    """
    h = charge(x, v, 0.0 if v_reset is None else v_reset, inv_tau, False, decay_input)
    s = spike(h - v_threshold)
    return s, reset(h, s, v_threshold, v_reset, detach_reset), inv_tau


@neuron
def glif(
    x, v, s, *, alpha=0.5, beta=0.5, gamma=0.5, tau=0.25, v_threshold=0.5, linear_decay=0.0625,
    v_subreset=0.5, conduct=0.5,
):  # fmt: skip
    r"""Gated LIF (Yao et al. 2022, arXiv 2210.13768): gates ``alpha``, ``beta`` and ``gamma`` in
    0 .. 1 between exponential and linear decay, weighted and plain input, hard and soft reset.
    With D = 1 - alpha (1 - tau)::

        V[t] = D V[t-1] - (1 - alpha) linear_decay + X[t] (1 - beta (1 - conduct))
               - D V[t-1] gamma S[t-1] - (1 - gamma) v_subreset S[t-1]
        S[t] = [V[t] >= v_threshold]

    All parameters are learned there, as the sigmoid of a number that starts near 0 for the gates
    and at the numbers here for the others (``linear_decay`` at v_threshold / 2T). The paper's
    ``conduct`` may differ from step to step; here it is one for all, and what it multiplies the
    input with may be multiplied in front.
    """
    decay = 1 - alpha * (1 - tau)
    h = decay * v - (1 - alpha) * linear_decay + x * (1 - beta * (1 - conduct))
    v = h - decay * v * gamma * s - (1 - gamma) * v_subreset * s
    s = spike(v - v_threshold)
    return s, v, s


@neuron
def clif(x, v, m, *, tau=2.0, v_threshold=1.0):
    r"""Complementary LIF (Huang et al. 2024, arXiv 2402.04663): a second potential M remembers
    spikes and deepens the reset::

        H = V[t-1] - V[t-1] / tau + X[t]        M[t] = M[t-1] sigmoid(H / tau) + S[t]
        S[t] = [H >= v_threshold]               V[t] = H - S[t] (v_threshold + sigmoid(M[t]))

    ``tau`` in timesteps. The surrogate that goes with it is "rect".
    """
    h = charge(x, v, 0.0, tau, True, False)
    s = spike(h - v_threshold)
    m = m * torch.sigmoid(h / tau) + s
    return s, h - s * (v_threshold + torch.sigmoid(m)), m


@neuron
def ilif(x, v, *, tau=4.0 / 3.0, v_threshold=1.0, levels=4, detach_reset=False):
    r"""Integer LIF (Luo et al. 2024, arXiv 2407.20708): up to ``levels`` = D spikes in a step::

        H = (1 - 1/tau) V[t-1] + X[t]
        S[t] = round(clip(H / v_threshold, 0, D))        V[t] = H - S[t] v_threshold

    Halves are rounded up. The paper's decay 1 - 1/tau is 0.25; with the surrogate "rect" the
    gradient of S is that of H / v_threshold between 0 and D, as there.
    """
    h = (1 - 1 / tau) * v + x
    s = spike(h / v_threshold - 0.5, levels)
    return s, reset(h, s, v_threshold, None, detach_reset)


@neuron(rest=at_reset)
def ternary_lif(
    x, v, *, tau=4.0 / 3.0, v_threshold=1.0, v_reset=0.0, decay_input=False, amplitude=1.0,
    detach_reset=False,
):  # fmt: skip
    r"""Ternary LIF (Guo et al. 2024, arXiv 2312.06372), spikes of either sign::

        S[t] = 1 where H >= v_threshold, -1 where H <= -v_threshold, else 0
        V[t] = v_reset where S is not 0, else H; with v_reset=None H - v_threshold S

    H as in ``snnfast.lif``. The paper keeps 1 - 1/tau = 0.25 and learns what the spikes are
    multiplied with, ``amplitude``.
    """
    h = charge(x, v, 0.0 if v_reset is None else v_reset, tau, True, decay_input)
    up, down = spike(h - v_threshold), spike(-h - v_threshold)
    events = up - down if v_reset is None else up + down
    return (up - down) * amplitude, reset(h, events, v_threshold, v_reset, detach_reset)


@neuron(rest=at_reset)
def klif(
    x, v, *, k=1.0, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, scale_reset=False,
    detach_reset=False,
):  # fmt: skip
    r"""KLIF (Jiang and Zhang 2023, arXiv 2302.09238): the potential is scaled by a learned ``k``
    and rectified before it fires::

        F = relu(k H)        S[t] = [F >= v_threshold]
        V[t] = v_reset where S, else F; with v_reset=None F - v_threshold S

    H as in ``snnfast.lif``. ``scale_reset`` divides F and v_threshold by k in the last line.
    """
    h = torch.relu(k * charge(x, v, 0.0 if v_reset is None else v_reset, tau, True, decay_input))
    s = spike(h - v_threshold)
    scale = k if scale_reset else 1.0
    return s, reset(h / scale, s, v_threshold / scale, v_reset, detach_reset)


@neuron(rest=at_reset)
def liaf(
    x, v, *, activation="relu", threshold_related=False, tau=2.0, v_threshold=1.0, v_reset=0.0,
    decay_input=True, detach_reset=False,
):  # fmt: skip
    r"""Leaky integrate and analog fire (Wu et al. 2021, arXiv 2011.06176): LIF that gives an
    activation of its potential instead of the spikes by which it is reset::

        Y[t] = f(H), or with threshold_related f(H - v_threshold)

    ``activation``: f, "relu", "sigmoid" or "tanh". All else as in ``snnfast.lif``.
    """
    if activation not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"liaf: activation must be one of {known}, got {activation!r}")
    h = charge(x, v, 0.0 if v_reset is None else v_reset, tau, True, decay_input)
    u = h - v_threshold
    y = _ACTIVATIONS[activation](u if threshold_related else h)
    return y, reset(h, spike(u), v_threshold, v_reset, detach_reset)
