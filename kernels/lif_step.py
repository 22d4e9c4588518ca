"""One LIF step and its adjoint, on tiles of float32.

    charge   H = V + (X - (V - r)) / tau  |  H = V - (V - r) / tau + X  |  H = V + X (tau = inf)
    fire     S = H >= theta
    reset    V = r where S else H  |  V = H - theta S
    adjoint  dH = dS g + dV (1 - S) + dV (r - H) g   |   dH = dS g + dV - dV theta g
             (the last term is left out where the reset is detached)

A neuron is the table NEURON below: the kernels' loops over time know nothing else of it, and hand
its numbers P and its compile-time choices FLAGS through. The state's update is compiled without
contraction (``enable_fp_fusion=False``): two roundings against one flip spikes. The fma's that are
written out here stand in gradients, and in the quotient, which they make exact.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .surrogate import INTERPRET, gradient

INTEGRATE = tl.constexpr(0)
DECAY_INPUT = tl.constexpr(1)
DECAY_STATE = tl.constexpr(2)


class LifFlags(NamedTuple):
    """What a LIF kernel is compiled for. ``zero``: r is 0, and V - r is V."""

    charge: int
    divide: bool
    zero: bool
    hard: bool
    detach_reset: bool
    surrogate: int


@triton.jit
def exact_quotient(d, tau, reciprocal):
    """d / tau from the rounded reciprocal of tau, exactly as IEEE division rounds it for 2^-102 <=
    |d| (2e-31); below, the remainder may underflow and the quotient be one unit in the last place
    off, which no threshold can see but one as small.

    Where d or tau is infinite the correction is NaN, and q stands.
    """
    if INTERPRET:
        # The interpreter divides exactly, but its fma rounds twice.
        q = d / tau
    else:
        q = d * reciprocal
        exact = tl.fma(tl.fma(q, -tau, d), reciprocal, q)
        q = tl.where(exact == exact, exact, q)
    return q


@triton.jit
def from_reset(v, P, FLAGS: tl.constexpr):
    """V - r."""
    return v if FLAGS.zero else v - P[3]


@triton.jit
def scale(d, P, FLAGS: tl.constexpr):
    """d / tau: by the divisor where the flags say so, else by the factor 1/tau."""
    return exact_quotient(d, P[0], P[1]) if FLAGS.divide else d * P[1]


@triton.jit
def charge(x, v, P, FLAGS: tl.constexpr):
    """H from X_t and V_{t-1}."""
    if FLAGS.charge == INTEGRATE:
        h = v + x
    elif FLAGS.charge == DECAY_INPUT:
        h = v + scale(x - from_reset(v, P, FLAGS), P, FLAGS)
    else:
        h = v - scale(from_reset(v, P, FLAGS), P, FLAGS) + x
    return h


@triton.jit
def fire(h, P, FLAGS: tl.constexpr):
    """S, 0 or 1."""
    return tl.where(h >= P[2], 1.0, 0.0)


@triton.jit
def reset(h, s, P, FLAGS: tl.constexpr):
    """V_t."""
    if FLAGS.hard:
        v = tl.where(s > 0.0, 0.0 if FLAGS.zero else P[3], h)
    else:
        v = h - P[2] * s
    return v


@triton.jit
def adjoint(x, v, h, ds, dv, P, FLAGS: tl.constexpr):
    """Gradients of X_t, of V_{t-1} and of 1/tau, from ds, that of S_t, and dv, that of V_t.

    v is the state before the step.
    """
    g = gradient(h - P[2], P[4], P[5], FLAGS.surrogate)
    # What reaches S_t, through g; the sum before the product rounds as autograd's does.
    through, kept = ds, dv
    if FLAGS.hard:
        kept = dv * (1.0 - fire(h, P, FLAGS))
        if not FLAGS.detach_reset:
            through = tl.fma(dv, -h if FLAGS.zero else P[3] - h, ds)
    elif not FLAGS.detach_reset:
        through = tl.fma(dv, tl.zeros_like(dv) - P[2], ds)
    dh = tl.fma(through, g, kept)
    scaled = dh * P[1]
    if FLAGS.charge == INTEGRATE:
        dx, dv, drate = dh, dh, tl.zeros_like(dh)
    elif FLAGS.charge == DECAY_INPUT:
        dx, dv, drate = scaled, dh - scaled, dh * (x - from_reset(v, P, FLAGS))
    else:
        dx, dv, drate = dh, dh - scaled, -dh * from_reset(v, P, FLAGS)
    return dx, dv, drate


NEURON = {"CHARGE": charge, "FIRE": fire, "RESET": reset, "ADJOINT": adjoint}
"""P is (divisor, factor, theta, r, a, b): tau, 1/tau, threshold, reset and the surrogate's two."""
