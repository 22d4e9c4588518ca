// One LIF step and its adjoint, for CPU vectors, CUDA and the host alike.
//
//   charge   H = V + (X - (V - r)) / tau  |  H = V - (V - r) / tau + X  |  H = V + X (tau = inf)
//   fire     S = H >= theta
//   reset    V = r where S else H  |  V = H - theta S
//   adjoint  dH = dS g + dV (1 - S) + dV (r - H) g   |   dH = dS g + dV - dV theta g
//            (the last term is left out where the reset is detached)
//
// A neuron is a struct with these functions and an Adjoint; the loops over time know nothing else
// of it. Compile without FMA contraction: two roundings against one flip spikes.
#pragma once

#include "surrogate.h"

namespace snnfast {
inline namespace SNN_ISA {

enum Charge : int { kIntegrate = 0, kDecayInput = 1, kDecayState = 2 };

// d / tau, exactly as IEEE division rounds it, from the rounded reciprocal of tau: a multiply and
// two FMAs. Where q is infinite the remainder is NaN and would spoil it, so q stands.
template <class V>
SNN_HD V exact_quotient(V d, V tau, V reciprocal) {
  V q = d * reciprocal;
  V remainder = fma_(-q, tau, d);
  return fma_unless_nan_(remainder, reciprocal, q);
}

// The time constant of a lane. `factor` is 1/tau, rounded; `divisor` is tau, used where `divide`.
template <class V>
struct Rate {
  V divisor;
  V factor;
};

template <class V>
struct Adjoint {
  V dx;     // gradient of X_t
  V dv;     // gradient of V_{t-1}
  V drate;  // contribution to the gradient of 1/tau
};

template <class R, int kCharge, bool kHard>
struct Lif {
  static constexpr bool kLeaks = kCharge != kIntegrate;
  R theta;
  R r;  // where the reset goes, and where the decay tends to; 0 when soft
  bool divide;
  bool detach_reset;
  bool spiking;  // false: the smooth twin
  int surrogate;
  R a, b;  // the surrogate's parameters

  template <class V>
  SNN_HD V scale(V d, const Rate<V>& rate) const {
#if defined(SNN_QUOTIENT_BY_FMA)
    return divide ? exact_quotient(d, rate.divisor, rate.factor) : d * rate.factor;
#else
    return divide ? d / rate.divisor : d * rate.factor;
#endif
  }

  template <class V>
  SNN_HD V charge(V x, V v, const Rate<V>& rate) const {
    if constexpr (kCharge == kIntegrate) return v + x;
    if constexpr (kCharge == kDecayInput) return v + scale(x - (v - V(r)), rate);
    if constexpr (kCharge == kDecayState) return v - scale(v - V(r), rate) + x;
  }

  template <class V>
  SNN_HD V fire(V h) const {
    return select(h >= V(theta), V(1), V(0));
  }

  template <class V>
  SNN_HD V reset(V h, V s) const {
    if constexpr (kHard) return select(s > V(0), V(r), h);
    return h - V(theta) * s;
  }

  // The reset of the smooth twin, whose S lies between 0 and 1.
  template <class V>
  SNN_HD V smooth_reset(V h, V s) const {
    if constexpr (kHard) return (V(1) - s) * h + s * V(r);
    return h - V(theta) * s;
  }

  // g at H - theta, for n steps.
  template <class V>
  SNN_HD void gradients(const V* h, V* g, int n) const {
    surrogate_gradients(surrogate, theta, a, b, h, g, n);
  }

  // From ds, the gradient of S_t, and dv, that of V_t; v is the state before the step.
  template <class V>
  SNN_HD Adjoint<V> adjoint(V x, V v, V h, V s, V g, V ds, V dv, const Rate<V>& rate) const {
    // What reaches S_t, through g; the sum before the product rounds as autograd's does.
    V through = detach_reset ? ds : mad_(dv, kHard ? V(r) - h : V(-theta), ds);
    V dh = mad_(through, g, kHard ? dv * (V(1) - s) : dv);
    if constexpr (kCharge == kIntegrate) return {dh, dh, V(0)};
    V scaled = dh * rate.factor;
    if constexpr (kCharge == kDecayInput) return {scaled, dh - scaled, dh * (x - (v - V(r)))};
    return {dh, dh - scaled, V(0) - dh * (v - V(r))};
  }
};

}  // namespace SNN_ISA
}  // namespace snnfast
