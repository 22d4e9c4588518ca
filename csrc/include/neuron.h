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

// d / tau, from the rounded reciprocal of tau: a multiply and two FMAs. It is exactly as IEEE
// division rounds it for 2^-102 <= |d| (2e-31) and tau up to 2^24; below, the remainder may
// underflow and the quotient be one unit in the last place off, which no threshold can see but one
// as small. Where q is infinite the remainder is NaN and would spoil it, so q stands.
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

// How a neuron charges and resets: constants...
template <int kCharge, bool kHard>
struct Fixed {
  static constexpr bool kIntegrates = kCharge == kIntegrate;
  static constexpr bool leaks = !kIntegrates, decays_input = kCharge == kDecayInput, hard = kHard;
  SNN_HD static Fixed of(int, bool) { return {}; }
};

// ...or a few selects in every step, where there would be six times as many kernels.
struct Chosen {
  static constexpr bool kIntegrates = false;  // not known
  bool leaks, decays_input, hard;
  SNN_HD static Chosen of(int charge, bool hard) {
    return {charge != kIntegrate, charge == kDecayInput, hard};
  }
};

template <class R, class Choice>
struct LifOf {
  static constexpr bool kIntegrates = Choice::kIntegrates;
  R theta;
  R r;  // where the reset goes, and where the decay tends to; 0 when soft
  bool divide;
  bool detach_reset;
  bool spiking;  // false: the smooth twin
  int surrogate;
  R a, b;  // the surrogate's parameters
  Choice how = {};

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
    if constexpr (kIntegrates) return v + x;
    const V leak = how.leaks ? v - V(r) : V(0);
    const V d = scale(how.decays_input ? x - leak : leak, rate);
    const V h = how.decays_input ? v + d : v - d;
    return how.decays_input ? h : h + x;
  }

  template <class V>
  SNN_HD V fire(V h) const {
    return select(h >= V(theta), V(1), V(0));
  }

  template <class V>
  SNN_HD V reset(V h, V s) const {
    return how.hard ? select(s > V(0), V(r), h) : h - V(theta) * s;
  }

  // The reset of the smooth twin, whose S lies between 0 and 1.
  template <class V>
  SNN_HD V smooth_reset(V h, V s) const {
    return how.hard ? (V(1) - s) * h + s * V(r) : h - V(theta) * s;
  }

  // What of dV_t a hard reset lets through to H_t.
  template <class V>
  SNN_HD V past_reset(V dv, V s) const {
    return spiking ? select(s > V(0), V(0), dv) : dv * (V(1) - s);
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
    V through = detach_reset ? ds : mad_(dv, how.hard ? V(r) - h : V(-theta), ds);
    V dh = mad_(through, g, how.hard ? past_reset(dv, s) : dv);
    if constexpr (kIntegrates) return {dh, dh, V(0)};
    V scaled = dh * rate.factor;  // 0 where nothing leaks
    V drate = dh * ((how.decays_input ? x : V(0)) - (v - V(r)));
    return {how.decays_input ? scaled : dh, dh - scaled, drate};
  }
};

template <class R, int kCharge, bool kHard>
using Lif = LifOf<R, Fixed<kCharge, kHard>>;

}  // namespace SNN_ISA
}  // namespace snnfast
