// What the device computes with where it differs from the host: a product and 2^x, and fused sums.
#pragma once

#include "platform.h"

namespace snnfast {
inline namespace SNN_ISA {
inline float exp_(float x) { return std::exp2(x * 1.44269504f); }
inline float mad_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
}  // namespace SNN_ISA
}  // namespace snnfast
