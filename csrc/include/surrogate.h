// Every surrogate: its gradient g(x), x = H - theta, and its primitive for the smooth twin.
// The table, its identifiers and the sources of the formulas stand in snnfast/surrogate/.
//
// gradient() is written in ways that neither overflow nor lose the sign of zero: exponentials take
// arguments <= 0 only, so that they need no upper range and end in 0.
#pragma once

#include "platform.h"

namespace snnfast {
inline namespace SNN_ISA {

enum SurrogateId : int {
  kStraightThrough = 0,
  kSigmoid = 1,
  kATan = 2,
  kPiecewiseQuadratic = 3,
  kPiecewiseExp = 4,
  kSoftSign = 5,
  kSuperSpike = 6,
  kFastSigmoid = 7,
  kErf = 8,
  kRect = 9,
  kLeakyKReLU = 10,
  kS2NN = 11,
  kQPseudoSpike = 12,
  kNonzeroSignLogAbs = 13,
  kPiecewiseLeakyReLU = 14,
  kSurrogateCount = 15,
};

// a s(ax) (1 - s(ax)), through e = exp(-|ax|): a e / (1 + e)^2.
template <class V, class R>
SNN_HD V sigmoid_gradient(V x, R a) {
  V e = exp_scaled_(abs_(x), -a);
  V y = V(1) + e;
  return divide_(V(a) * e, y * y);
}

// g(x) of one surrogate; a and b are its parameters in the order of the table.
template <int kId, class V, class R>
SNN_HD V gradient(V x, R a, R b) {
  if constexpr (kId == kStraightThrough) {
    return V(1) + V(0) * V(b);
  } else if constexpr (kId == kSigmoid) {
    return sigmoid_gradient(x, a);
  } else if constexpr (kId == kATan) {
    V y = V(R(1.5707963267948966) * a) * x;
    return divide_(V(a * R(0.5)), mad_(y, y, V(1)));
  } else if constexpr (kId == kPiecewiseQuadratic) {
    V y = mad_(V(-a * a), abs_(x), V(a));
    return select(y < V(0), V(0), y);
  } else if constexpr (kId == kPiecewiseExp) {
    return V(a * R(0.5)) * exp_scaled_(abs_(x), -a);
  } else if constexpr (kId == kSoftSign) {
    V y = V(R(1) / a) + abs_(x);
    return divide_(V(R(0.5) / a), y * y);
  } else if constexpr (kId == kSuperSpike) {
    V y = V(1) + abs_(x);
    return divide_(V(a), y * y);
  } else if constexpr (kId == kFastSigmoid) {
    V y = mad_(V(a), abs_(x), V(1));
    return divide_(V(1), y * y);
  } else if constexpr (kId == kErf) {
    V y = V(a) * x;
    return V(a * R(0.5641895835477563)) * exp_(V(0) - y * y);
  } else if constexpr (kId == kRect) {
    return select(abs_(x) < V(R(0.5) / a), V(a), V(0));
  } else if constexpr (kId == kLeakyKReLU) {
    return select(x >= V(0), V(b), V(a));
  } else if constexpr (kId == kS2NN) {
    return select(x < V(0), sigmoid_gradient(x, a), divide_(V(b), abs_(x) + V(1)));
  } else if constexpr (kId == kQPseudoSpike) {
    return pow_(mad_(V(R(2) / (a - R(1))), abs_(x), V(1)), V(-a));
  } else if constexpr (kId == kNonzeroSignLogAbs) {
    return divide_(V(1), V(R(1) / a) + abs_(x));
  } else {
    static_assert(kId == kPiecewiseLeakyReLU, "unknown surrogate");
    return select(abs_(x) < V(a), V(R(0.5) / a), V(b));
  }
}

// Calls f with the surrogate's identifier as a compile-time constant: f(Id<kId>()).
template <int kId>
struct Id {
  static constexpr int value = kId;
};
template <class F>
SNN_HD void with_surrogate(int id, F&& f) {
#define SNN_CASE(k) \
  case k:           \
    f(Id<k>());     \
    break;
  switch (id) {
    SNN_CASE(kStraightThrough)
    SNN_CASE(kSigmoid)
    SNN_CASE(kATan)
    SNN_CASE(kPiecewiseQuadratic)
    SNN_CASE(kPiecewiseExp)
    SNN_CASE(kSoftSign)
    SNN_CASE(kSuperSpike)
    SNN_CASE(kFastSigmoid)
    SNN_CASE(kErf)
    SNN_CASE(kRect)
    SNN_CASE(kLeakyKReLU)
    SNN_CASE(kS2NN)
    SNN_CASE(kQPseudoSpike)
    SNN_CASE(kNonzeroSignLogAbs)
    SNN_CASE(kPiecewiseLeakyReLU)
  }
#undef SNN_CASE
}

// g at H - theta for n steps at once: the choice of the surrogate is made once for all of them. A
// call of its own on the CPU, where fifteen formulas would be compiled into every loop over time.
template <class V, class R>
SNN_OUTLINE void surrogate_gradients(int id, R theta, R a, R b, const V* h, V* g, int n) {
  with_surrogate(id, [=](auto chosen) {
    // Copies, so that the stores to g cannot be taken for changes of them.
    const V shift(theta);
    const R a_(a), b_(b);
    const V* from = h;
    V* to = g;
    SNN_UNROLL
    for (int t = 0; t < n; ++t) to[t] = gradient<decltype(chosen)::value>(from[t] - shift, a_, b_);
  });
}

#if !defined(__CUDACC_RTC__) && !defined(__CUDA_ARCH__)
// A primitive of g, in place of the step in the smooth twin. One number at a time: it serves
// gradient checks, not speed.
template <class R>
inline R primitive(int id, R x, R a, R b) {
  R m = std::fabs(x);
  switch (id) {
    case kStraightThrough:
      return x;
    case kSigmoid:
      return R(1) / (R(1) + std::exp(-a * x));
    case kATan:
      return std::atan(R(1.5707963267948966) * a * x) * R(0.3183098861837907) + R(0.5);
    case kPiecewiseQuadratic: {
      R y = std::fmin(std::fmax(a * x, R(-1)), R(1));
      return y - R(0.5) * y * std::fabs(y) + R(0.5);
    }
    case kPiecewiseExp: {
      R e = std::exp(-a * m) * R(0.5);
      return x < 0 ? e : R(1) - e;
    }
    case kSoftSign:
      return R(0.5) * a * x / (R(1) + a * m) + R(0.5);
    case kSuperSpike:
      return a * x / (R(1) + m) + R(0.5);
    case kFastSigmoid:
      return x / (a * m + R(1)) + R(0.5);
    case kErf:
      return R(0.5) * std::erfc(-a * x);
    case kRect:
      return std::fmin(std::fmax(a * x + R(0.5), R(0)), R(1));
    case kLeakyKReLU:
      return x >= 0 ? b * x : a * x;
    case kS2NN:
      return x < 0 ? R(1) / (R(1) + std::exp(-a * x)) : b * std::log(m + R(1)) + R(0.5);
    case kQPseudoSpike: {
      R tail = R(0.5) * std::pow(R(1) + R(2) / (a - R(1)) * m, R(1) - a);
      return x < 0 ? tail : R(1) - tail;
    }
    case kNonzeroSignLogAbs:
      return x < 0 ? -std::log(a * m + R(1)) : std::log(a * m + R(1));
    default: {
      R y = std::fmin(std::fmax(x, -a), a);
      return y / (R(2) * a) + R(0.5) + b * (x - y);
    }
  }
}
#endif

}  // namespace SNN_ISA
}  // namespace snnfast
