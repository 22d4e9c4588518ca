// The numbers per channel around a normalisation, for CPU and CUDA: what follows from statistics,
// and from the sums of the first pass of backward. Root and quotients are IEEE's, and the
// operations torch's own, one by one, so that all backends have the same numbers.
#pragma once

#include "platform.h"

namespace snnfast {
inline namespace SNN_ISA {

// A running statistic takes a share of a new one: torch's lerp.
template <class R>
SNN_HD R towards(R from, R to, R share) {
  return share < R(0.5) ? fma_(share, to - from, from) : fma_(share - R(1), to - from, to);
}

template <class R>
SNN_HD R inverse_std(R var, R eps) {
  return R(1) / sqrt_(var + eps);
}

// dY = scale dX + b (Y - mean) + c, of sums of dX and of dX (Y - mean) over `count` values; 0: the
// statistics are constants.
template <class R>
SNN_HD R slope_of(R scale, R inv_std, R moment, R count) {
  return count > R(0) ? scale * inv_std * inv_std * moment / -count : R(0);
}
template <class R>
SNN_HD R shift_of(R scale, R sum, R count) {
  return count > R(0) ? scale * sum / -count : R(0);
}

}  // namespace SNN_ISA
}  // namespace snnfast
