// exp, log, tanh, sigmoid, pow and sqrt of Lanes, for all numbers there are. Of floats they are
// computed in double and rounded once, so that they are within an ulp of whoever is exact; of
// doubles by the standard library.
#pragma once

#include <cmath>

#include "lanes.h"

namespace snnfast {
inline namespace SNN_ISA {

// A register of doubles, and half a register of floats that they come from.
using Wide = Register<double>::type;
using WideBits = Register<double>::mask;
typedef float HalfRegister __attribute__((vector_size(kRegisterBytes / 2)));

SNN_HD Wide wide(double x) { return x - Wide{}; }
SNN_HD WideBits bits_of(Wide x) { return (WideBits)x; }
SNN_HD Wide clamp(Wide x, double low, double high) {  // a NaN stays
  x = x < wide(low) ? wide(low) : x;
  return x > wide(high) ? wide(high) : x;
}
SNN_HD Wide magnitude(Wide x) { return (Wide)(bits_of(x) & INT64_MAX); }
SNN_HD Wide with_sign(Wide x, Wide of) { return (Wide)(bits_of(x) | (bits_of(of) & INT64_MIN)); }

#if defined(__AVX2__)
SNN_HD Wide fused(Wide a, Wide b, Wide c) { return _mm256_fmadd_pd(a, b, c); }
SNN_HD Wide fused(Wide a, Wide b, double c) { return fused(a, b, wide(c)); }
#else
template <class C>
SNN_HD Wide fused(Wide a, Wide b, C c) {
  return a * b + c;
}
#endif

// f of every lane in double.
template <class F>
SNN_HD Lanes<float> in_double(Lanes<float> x, F f) {
  each_register([&](int i) {
#if defined(__AVX2__)
    const Wide low = f(_mm256_cvtps_pd(_mm256_castps256_ps128(x.p[i])));
    const Wide high = f(_mm256_cvtps_pd(_mm256_extractf128_ps(x.p[i], 1)));
    x.p[i] = _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
#else
    HalfRegister half[2];
    std::memcpy(half, &x.p[i], sizeof half);
    for (HalfRegister& h : half)
      h = __builtin_convertvector(f(__builtin_convertvector(h, Wide)), HalfRegister);
    std::memcpy(&x.p[i], half, sizeof half);
#endif
  });
  return x;
}

// 2^y = power (1 + rest) for |y| <= 1000: y = n + f, and 2^f - 1 = f times a polynomial in f, of a
// relative error below 3e-10.
struct Exp2 {
  Wide power, rest;
};
SNN_HD Exp2 exp2_parts(Wide y) {
  // Adding and taking away 1.5 * 2^52 rounds to the nearest integer, which is in its last bits.
  const Wide shift = wide(6755399441055744.0), shifted = y + shift, f = y - (shifted - shift);
  Wide q = fused(f, wide(1.5297323760701075e-05), 0.0001546144469856913);
  q = fused(q, f, 0.001333350238616277);
  q = fused(q, f, 0.009618056678524637);
  q = fused(q, f, 0.055504108839096185);
  q = fused(q, f, 0.24022650922288757);
  q = fused(q, f, 0.6931471805599453);
  return {(Wide)((bits_of(shifted) << 52) + bits_of(wide(1))), f * q};
}
SNN_HD Wide exp2_wide(Wide y) {
  const Exp2 e = exp2_parts(clamp(y, -300, 300));
  return fused(e.power, e.rest, e.power);
}

// log2(x) of x >= 0 that is no subnormal double: x = 2^e m, m in sqrt(1/2)..sqrt(2), and with
// s = (m - 1) / (m + 1) a polynomial in s^2 of a relative error below 5e-12.
SNN_HD Wide log2_wide(Wide x) {
  const WideBits bits = bits_of(x);
  Wide m = (Wide)((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  Wide e = (Wide)(((bits >> 52) & 0x7ff) | 0x4330000000000000) - wide(4503599627370496.0 + 1023);
  const WideBits upper = m > wide(1.4142135623730951);
  m = upper ? m * 0.5 : m, e = upper ? e + 1 : e;
  const Wide s = (m - 1) / (m + 1), q = s * s;
  Wide p = fused(q, wide(0.3407120415619086), 0.41167376623771057);
  p = fused(p, q, 0.5770835660048659);
  p = fused(p, q, 0.9617966734515485);
  p = fused(p, q, 2.885390081789987);
  const Wide y = fused(s, p, e), inf = wide(INFINITY);
  return x == wide(0) ? -inf : x < inf ? y : x;
}

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

SNN_HD Lanes<float> full_exp(Lanes<float> x) {
  return in_double(x, [](Wide v) { return exp2_wide(v * kLog2e); });
}
SNN_HD Lanes<double> full_exp(Lanes<double> x) {
  return each(x, [](double v) { return std::exp(v); });
}

SNN_HD Lanes<float> full_log(Lanes<float> x) {
  return in_double(x, [](Wide v) {
    const Wide y = log2_wide(v) * kLn2;
    return v < wide(0) ? wide(NAN) : y;
  });
}
SNN_HD Lanes<double> full_log(Lanes<double> x) {
  return each(x, [](double v) { return std::log(v); });
}

SNN_HD Lanes<float> full_tanh(Lanes<float> x) {
  return in_double(x, [](Wide v) {
    const Exp2 e = exp2_parts(clamp(magnitude(v) * (2 * kLog2e), 0, 100));
    const Wide less_one = fused(e.power, e.rest, e.power - 1);  // without loss near 0
    return with_sign(less_one / (less_one + 2), v);
  });
}
SNN_HD Lanes<double> full_tanh(Lanes<double> x) {
  return each(x, [](double v) { return std::tanh(v); });
}

// 0 where exp(-x) is beyond float, as PyTorch has it.
SNN_HD Lanes<float> full_sigmoid(Lanes<float> x) {
  return in_double(x, [](Wide v) {
    const Wide y = 1 / (exp2_wide(v * -kLog2e) + 1);
    return v < wide(-88.72283905206835) ? wide(0) : y;
  });
}
SNN_HD Lanes<double> full_sigmoid(Lanes<double> x) {
  return each(x, [](double v) { return 1 / (1 + std::exp(-v)); });
}

// x^y, the same y in all lanes.
SNN_HD Lanes<float> full_pow(Lanes<float> x, Lanes<float> y) {
  const double exponent = y.p[0][0];
  const bool whole = exponent == std::floor(exponent), odd = std::fmod(exponent, 2) != 0;
  if (exponent == 0) return Lanes<float>(1);
  return in_double(x, [&](Wide v) {
    const Wide p = exp2_wide(log2_wide(magnitude(v)) * exponent);
    if (whole) return odd ? with_sign(p, v) : p;
    return v < wide(0) && v > wide(-INFINITY) ? wide(NAN) : p;
  });
}
SNN_HD Lanes<double> full_pow(Lanes<double> x, Lanes<double> y) { return pow_(x, y); }

template <class R>
SNN_HD Lanes<R> full_sqrt(Lanes<R> x) {
#if defined(__AVX2__)
  if constexpr (sizeof(R) == 4)
    each_register([&](int i) { x.p[i] = _mm256_sqrt_ps(x.p[i]); });
  else
    each_register([&](int i) { x.p[i] = _mm256_sqrt_pd(x.p[i]); });
  return x;
#elif defined(__SSE2__)
  if constexpr (sizeof(R) == 4)
    each_register([&](int i) { x.p[i] = _mm_sqrt_ps(x.p[i]); });
  else
    each_register([&](int i) { x.p[i] = _mm_sqrt_pd(x.p[i]); });
  return x;
#else
  return each(x, [](R v) { return std::sqrt(v); });
#endif
}

}  // namespace SNN_ISA
}  // namespace snnfast
