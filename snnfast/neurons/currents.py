"""Neurons with a second variable: a current, a threshold that adapts."""

from snnfast.ops.neuron import neuron
from snnfast.reference.lif import reset
from snnfast.reference.neuron import spike, strict_spike


@neuron
def adaptive_lif(x, v, a, *, tau=20.0, rho=0.95, beta=1.8, theta=1.0, detach_reset=False):
    r"""Adaptive LIF (Bellec et al. 2018, arXiv 1803.09574): a threshold that rises with each spike
    and comes back::

        H[t] = V[t-1] + X[t] / tau
        S[t] = [H[t] >= B],  B = theta + beta A[t-1]
        V[t] = H[t] - H[t] / tau - B S[t]
        A[t] = rho A[t-1] + (1 - rho) S[t]

    The paper's potential is H; V is what is left of it for the next step, whose reset is not
    decayed. ``tau``: of the membrane, in timesteps, 1/tau for the paper's 1 - exp(-dt / tau_m);
    ``rho`` = exp(-dt / tau_a). The paper has tau_m = 20 ms, tau_a = 700 ms, beta = 1.8 and
    theta = 0.01.
    """
    h = v + x / tau
    threshold = theta + beta * a
    s = spike(h - threshold)
    s_reset = s.detach() if detach_reset else s
    return s, h - h / tau - threshold * s_reset, rho * a + (1 - rho) * s_reset


@neuron(rest=lambda *, v_leak, **_: (v_leak, 0.0))
def cuba_lif(
    x, v, i, *, tau_syn=5e-3, tau_mem=1e-2, r=1.0, v_leak=0.0, v_threshold=1.0, v_reset=0.0,
    w_in=1.0, dt=1e-3, detach_reset=False,
):  # fmt: skip
    r"""Current-based LIF as NIR defines it (Pedersen et al. 2024, arXiv 2311.14641), by Euler
    steps, the potential by the new current; what Norse makes of a NIR graph::

        tau_syn dI/dt = w_in X - I         tau_mem dV/dt = r I + v_leak - V
        S = [V > v_threshold]              V = v_reset where S

    Times in seconds; NIR gives no numbers, these are Norse's. ``v_reset=None``: V - v_threshold S.
    """
    i = i + dt / tau_syn * (w_in * x - i)
    h = v + dt / tau_mem * (r * i + v_leak - v)
    s = strict_spike(h - v_threshold)
    return s, reset(h, s, v_threshold, v_reset, detach_reset), i


@neuron(rest=lambda *, v_leak, **_: (v_leak, 0.0))
def norse_lif(
    x, v, i, *, tau_syn_inv=200.0, tau_mem_inv=100.0, v_leak=0.0, v_th=1.0, v_reset=0.0, dt=1e-3,
    detach_reset=False,
):  # fmt: skip
    r"""Norse's LIF (``lif_feed_forward_step``): the input jumps into the current, which drives the
    potential and then decays::

        J = I[t-1] + X[t]                  I[t] = J - dt tau_syn_inv J
        H = V[t-1] + dt tau_mem_inv ((v_leak - V[t-1]) + J)
        S[t] = [H > v_th]                  V[t] = v_reset where S else H

    Inverse times in 1/s, ``dt`` in seconds; without a state Norse starts V at v_leak.
    """
    i = i + x
    h = v + dt * tau_mem_inv * ((v_leak - v) + i)
    s = strict_spike(h - v_th)
    return s, reset(h, s, v_th, v_reset, detach_reset), i + -dt * tau_syn_inv * i
