"""Neurons whose potential runs away before the spike."""

import torch

from snnfast.ops.lif_definition import at_reset
from snnfast.ops.neuron import neuron
from snnfast.reference.lif import reset
from snnfast.reference.neuron import spike, strict_spike


@neuron(rest=at_reset)
def qif(
    x, v, *, tau=2.0, v_c=0.8, a0=1.0, v_threshold=1.0, v_rest=0.0, v_reset=-0.1,
    detach_reset=False,
):  # fmt: skip
    r"""Quadratic integrate-and-fire (Ermentrout and Kopell 1986; numbers and order of operations of
    SpikingJelly's ``QIFNode``)::

        H = V[t-1] + (X[t] + a0 (V[t-1] - v_rest) (V[t-1] - v_c)) / tau

    S = [H >= v_threshold]; V = v_reset where S, or with None H - v_threshold S. ``v_c``: from where
    on the potential grows by itself; ``tau`` in timesteps.
    """
    h = v + (x + a0 * (v - v_rest) * (v - v_c)) / tau
    s = spike(h - v_threshold)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


@neuron(rest=at_reset)
def eif(
    x, v, *, tau=2.0, delta_t=1.0, theta_rh=0.8, v_threshold=1.0, v_rest=0.0, v_reset=-0.1,
    detach_reset=False,
):  # fmt: skip
    r"""Exponential integrate-and-fire (Fourcaud-Trocme et al. 2003; numbers and order of operations
    of SpikingJelly's ``EIFNode``)::

        H = V[t-1] + (X[t] + v_rest - V[t-1] + delta_t exp((V[t-1] - theta_rh) / delta_t)) / tau

    S = [H >= v_threshold]; V = v_reset where S, or with None H - v_threshold S. ``theta_rh``: the
    rheobase threshold, ``delta_t``: how sharp the rise behind it is; ``tau`` in timesteps.
    """
    h = v + (x + v_rest - v + delta_t * torch.exp((v - theta_rh) / delta_t)) / tau
    s = spike(h - v_threshold)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


@neuron(rest=lambda *, v_leak, **_: (v_leak, 0.0, 0.0))
def adex(
    x, v, i, a, *, adaptation_current=4.0, adaptation_spike=0.02, delta_t=0.5, tau_ada_inv=2.0,
    tau_syn_inv=200.0, tau_mem_inv=100.0, v_leak=0.0, v_th=1.0, v_reset=0.0, dt=1e-3,
    detach_reset=False,
):  # fmt: skip
    r"""Adaptive exponential integrate-and-fire (Brette and Gerstner 2005; numbers and order of
    operations of Norse's ``lif_adex_feed_forward_step``), with J = I[t-1] + X[t]::

        H = V + dt tau_mem_inv (v_leak - V + delta_t exp((V - v_th) / delta_t) + J - A[t-1])
        I[t] = J - dt tau_syn_inv J                  S = [H > v_th],  V[t] = v_reset where S
        A[t] = A + dt tau_ada_inv (adaptation_current (V - v_leak) - A) + adaptation_spike S

    V and A are those of the step before. Inverse times in 1/s, ``dt`` in seconds.
    """
    i = i + x
    rise = delta_t * torch.exp((v - v_th) / delta_t)
    h = v + dt * tau_mem_inv * (v_leak - v + rise + i - a)
    a = a + dt * tau_ada_inv * (adaptation_current * (v - v_leak) - a)
    s = strict_spike(h - v_th)
    s_reset = s.detach() if detach_reset else s
    a = a + adaptation_spike * s_reset
    return s, reset(h, s_reset, v_th, v_reset), i + -dt * tau_syn_inv * i, a


@neuron(rest=lambda *, b, c, **_: (c, b * c))
def izhikevich(x, v, u, *, a=0.02, b=0.2, c=-65.0, d=8.0, v_th=30.0, dt=0.25, detach_reset=False):
    r"""Izhikevich's neuron (Izhikevich 2003, IEEE Trans. Neural Networks 14:1569) by Euler steps of
    ``dt`` ms, both variables from the old ones (Norse's order of operations)::

        H = V + dt (0.04 V^2 + 5 V + 140 - U + X)        S = [H >= v_th]
        W = U + dt a (b V - U)
        V = c where S else H                             U = W + d S

    Potentials in mV, ``a`` in 1/ms. The numbers are those of regular spiking in the paper, which
    starts V at c and U at b c.
    """
    h = v + dt * (0.04 * v**2 + 5.0 * v + 140.0 - u + x)
    w = u + dt * a * (b * v - u)
    s = spike(h - v_th)
    s_reset = s.detach() if detach_reset else s
    return s, reset(h, s_reset, v_th, c), w + s_reset * d


@neuron(rest=lambda *, w_rest, **parameters: (*at_reset(**parameters), w_rest))
def adaptive_qif(
    x, v, w, *, tau=2.0, v_c=0.8, a0=1.0, v_threshold=1.0, v_rest=-0.1, v_reset=0.0, w_rest=0.0,
    tau_w=2.0, a=0.0, b=0.0, detach_reset=False,
):  # fmt: skip
    r"""The quadratic neuron with a recovery current, Izhikevich's in dimensionless numbers
    (SpikingJelly's ``IzhikevichNode``, its numbers and order of operations)::

        H = V[t-1] + (X[t] + a0 (V[t-1] - v_rest) (V[t-1] - v_c) - W[t-1]) / tau
        S = [H >= v_threshold]        W[t] = W[t-1] + (a (H - v_rest) - W[t-1]) / tau_w + b S

    V = v_reset where S, or with None H - v_threshold S. W starts at ``w_rest``.
    """
    h = v + (x + a0 * (v - v_rest) * (v - v_c) - w) / tau
    s = spike(h - v_threshold)
    w = w + (a * (h - v_rest) - w) / tau_w + b * s
    return s, reset(h, s, v_threshold, v_reset, detach_reset), w
