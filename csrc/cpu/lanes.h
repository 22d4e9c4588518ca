// Some registers of numbers that behave like one: the CPU's value type for the formulas in
// include/. A step is a chain of dependent operations, and several registers side by side hide
// their latency. Built on the compilers' vector extensions in the width of the target's registers,
// so the same source serves SSE2, AVX2, AVX-512 and NEON. Each instruction set is compiled in a
// namespace of its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "platform.h"

#if defined(__SSE2__)
#pragma GCC diagnostic push
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own header, on purpose
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace snnfast {
inline namespace SNN_ISA {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 2;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32, kRegisters = 4;
#else
constexpr int kRegisterBytes = 16, kRegisters = 4;
#endif

// Calls f for every register. Spelled out, so that the index is a constant where the compiler
// decides what may live in a register; a loop is unrolled too late for that.
template <class F>
SNN_HD void each_register(F&& f) {
  f(0), f(1);
  if constexpr (kRegisters == 4) f(2), f(3);
}
// The same for the first of each two.
template <class F>
SNN_HD void each_pair(F&& f) {
  f(0);
  if constexpr (kRegisters == 4) f(2);
}

template <class R>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(kRegisterBytes)));
  typedef float loose __attribute__((vector_size(kRegisterBytes), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(kRegisterBytes)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(kRegisterBytes)));
  typedef double loose __attribute__((vector_size(kRegisterBytes), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(kRegisterBytes)));
};

template <class R>
struct Mask {
  typename Register<R>::mask p[kRegisters];
};

template <class R>
struct Lanes {
  using real = R;
  using reg = typename Register<R>::type;
  static constexpr int kCount = kRegisters * kRegisterBytes / int(sizeof(R));
  static constexpr int kPerRegister = kRegisterBytes / int(sizeof(R));
  reg p[kRegisters];

  Lanes() = default;
  // Copied register by register: a block copy would use narrower ones, and a wide load of what was
  // just stored in pieces has to wait for memory.
  SNN_HD Lanes(const Lanes& other) { *this = other; }
  SNN_HD Lanes& operator=(const Lanes& other) {
    each_register([&](int i) { p[i] = other.p[i]; });
    return *this;
  }
  SNN_HD explicit Lanes(R value) {
    each_register([&](int i) { p[i] = value - reg{}; });
  }
  SNN_HD explicit Lanes(int value) : Lanes(R(value)) {}
};

#define SNN_BINARY(op)                                        \
  template <class R>                                          \
  SNN_HD Lanes<R> operator op(Lanes<R> a, Lanes<R> b) {       \
    each_register([&](int i) { a.p[i] = a.p[i] op b.p[i]; }); \
    return a;                                                 \
  }
SNN_BINARY(+)
SNN_BINARY(-)
SNN_BINARY(*)
SNN_BINARY(/)
#undef SNN_BINARY

#define SNN_COMPARE(op)                                       \
  template <class R>                                          \
  SNN_HD Mask<R> operator op(Lanes<R> a, Lanes<R> b) {        \
    Mask<R> m;                                                \
    each_register([&](int i) { m.p[i] = a.p[i] op b.p[i]; }); \
    return m;                                                 \
  }
SNN_COMPARE(>=)
SNN_COMPARE(>)
SNN_COMPARE(<)
SNN_COMPARE(==)
SNN_COMPARE(!=)
#undef SNN_COMPARE

template <class R>
SNN_HD Lanes<R> select(Mask<R> m, Lanes<R> a, Lanes<R> b) {
  each_register([&](int i) { a.p[i] = m.p[i] ? a.p[i] : b.p[i]; });
  return a;
}

template <class R>
SNN_HD Lanes<R> operator-(Lanes<R> x) {
  each_register([&](int i) { x.p[i] = -x.p[i]; });
  return x;
}

template <class R>
SNN_HD Lanes<R> abs_(Lanes<R> x) {
  using mask = typename Register<R>::mask;
  const mask magnitude = ~((mask{} + 1) << (8 * sizeof(R) - 1));
  each_register([&](int i) { x.p[i] = (typename Register<R>::type)((mask)x.p[i] & magnitude); });
  return x;
}

// 1 / y in gradients: an estimate, one Newton step; some 1.5 ulp, in half of the time of a
// division. Of Inf the step would make NaN: 0 instead. A NaN passes.
#if defined(__AVX512F__)
#define SNN_INTRINSIC(name) _mm512_##name
SNN_HD __m512 reciprocal(__m512 y) {
  const __m512 r = _mm512_rcp14_ps(y), rest = _mm512_fnmadd_ps(y, r, _mm512_set1_ps(1.0f));
  const __mmask16 usual = _mm512_cmp_ps_mask(y, _mm512_set1_ps(3.0e38f), _CMP_NGE_UQ);
  return _mm512_maskz_fmadd_ps(usual, rest, r, r);
}
#elif defined(__AVX2__) && defined(__FMA__)
#define SNN_INTRINSIC(name) _mm256_##name
SNN_HD __m256 reciprocal(__m256 y) {
  y = _mm256_min_ps(_mm256_set1_ps(3.0e38f), y);
  const __m256 r = _mm256_rcp_ps(y), rest = _mm256_fnmadd_ps(y, r, _mm256_set1_ps(1.0f));
  return _mm256_fmadd_ps(rest, r, r);
}
#endif
#if defined(SNN_INTRINSIC)
SNN_HD Lanes<float> mad_(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
  each_register([&](int i) { a.p[i] = SNN_INTRINSIC(fmadd_ps)(a.p[i], b.p[i], c.p[i]); });
  return a;
}
SNN_HD Lanes<float> larger_(Lanes<float> a, Lanes<float> b) {
  each_register([&](int i) { a.p[i] = SNN_INTRINSIC(max_ps)(b.p[i], a.p[i]); });
  return a;
}
SNN_HD Lanes<float> divide_(Lanes<float> a, Lanes<float> b) {
  each_register([&](int i) { a.p[i] *= reciprocal(b.p[i]); });
  return a;
}
SNN_HD Lanes<double> divide_(Lanes<double> a, Lanes<double> b) { return a / b; }
#else
template <class R>
SNN_HD Lanes<R> divide_(Lanes<R> a, Lanes<R> b) {
  return a / b;
}
#endif

// The sum of a register's lanes, in pairs.
template <class V>
SNN_HD auto sum_lanes(V v) {
  constexpr int kCount = sizeof v / sizeof v[0];
  typename std::remove_reference<decltype(v[0])>::type lane[kCount];
  std::memcpy(lane, &v, sizeof v);
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
  return lane[0];
}

// One lane at a time through f: for functions that no speed hangs on.
template <class R, class F>
inline Lanes<R> each(Lanes<R> x, F f) {
  for (int i = 0; i < kRegisters; ++i)
    for (int j = 0; j < Lanes<R>::kPerRegister; ++j) x.p[i][j] = f(x.p[i][j]);
  return x;
}

SNN_HD Lanes<double> exp_(Lanes<double> x) {
  return each(x, [](double v) { return std::exp(v); });
}

// exp(x) for x <= 0, to 2 ulp: x = n ln2 + f, a polynomial in f, n added to the exponent. Below
// the smallest normal number the result is 0.
SNN_HD Lanes<float> exp_(Lanes<float> x) {
  using V = Lanes<float>;
  using I = Register<float>::mask;
  V clamped = select(x < V(-87.0f), V(-87.0f), x);
  V scaled = clamped * V(1.44269504f);
  V n, power;
  each_register([&](int i) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    n.p[i] = (scaled.p[i] + 12582912.0f) - 12582912.0f;
    I exponent = __builtin_convertvector(n.p[i], I) + 127;
    power.p[i] = (Register<float>::type)(exponent << 23);
  });
  V f = mad_(n, V(-0.693359375f), clamped);
  f = mad_(n, V(2.12194440e-4f), f);
  V y = V(1.9875691500e-4f);
  y = mad_(y, f, V(1.3981999507e-3f));
  y = mad_(y, f, V(8.3334519073e-3f));
  y = mad_(y, f, V(4.1665795894e-2f));
  y = mad_(y, f, V(1.6666665459e-1f));
  y = mad_(y, f, V(5.0000001201e-1f));
  y = mad_(y * f, f, f) + V(1);
  // A NaN passes both comparisons by and leaves through f.
  return select(x < V(-87.0f), V(0), y * power);
}

// exp(x by) for x by <= 0, in gradients: 2^y of y = n + f, as (1 + f polynomial(f)) 2^n, to some
// |y| 2^-23. Below the smallest normal number it ends in 0, and there a NaN passes, too.
SNN_HD Lanes<float> exp_scaled_(Lanes<float> x, float by) {
  using V = Lanes<float>;
  using I = Register<float>::mask;
  // A sum that is rounded to a whole number, whose last bits are n as an exponent has it: 0 at the
  // least.
  const V magic(12582912.0f + 127), y = larger_(x * V(by * 1.44269504f), V(-127.0f));
  const V shifted = y + magic, f = y - (shifted - magic);
  V power;
  each_register([&](int i) { power.p[i] = (V::reg)((I)shifted.p[i] << 23); });
  V p(1.5403512749e-4f);
  p = mad_(p, f, V(1.3390735478e-3f));
  p = mad_(p, f, V(9.6182374937e-3f));
  p = mad_(p, f, V(5.5503574336e-2f));
  p = mad_(p, f, V(2.4022649794e-1f));
  p = mad_(p, f, V(6.9314718792e-1f));
  return mad_(power, p * f, power);
}

SNN_HD Lanes<double> log_(Lanes<double> x) {
  return each(x, [](double v) { return std::log(v); });
}

// log(x) for normal x > 0, to 1 ulp: x = 2^n m with m in sqrt(1/2)..sqrt(2), a polynomial in m - 1.
SNN_HD Lanes<float> log_(Lanes<float> x) {
  using V = Lanes<float>;
  using I = Register<float>::mask;
  V n, m;
  each_register([&](int i) {
    // Taking the bits of sqrt(1/2) away rounds n to where m falls around 1.
    I bits = (I)x.p[i] - 0x3f3504f3;
    n.p[i] = __builtin_convertvector(bits >> 23, V::reg);
    m.p[i] = (V::reg)((bits & 0x007fffff) + 0x3f3504f3);
  });
  V f = m - V(1), square = f * f;
  V y = V(7.0376836292e-2f);
  y = mad_(y, f, V(-1.1514610310e-1f));
  y = mad_(y, f, V(1.1676998740e-1f));
  y = mad_(y, f, V(-1.2420140846e-1f));
  y = mad_(y, f, V(1.4249322787e-1f));
  y = mad_(y, f, V(-1.6668057665e-1f));
  y = mad_(y, f, V(2.0000714765e-1f));
  y = mad_(y, f, V(-2.4999993993e-1f));
  y = mad_(y, f, V(3.3333331174e-1f));
  y = y * f * square;
  y = mad_(n, V(-2.12194440e-4f), y) - square * V(0.5f);
  y = mad_(n, V(0.693359375f), f + y);
  return select(x == x, y, x);
}

template <class R>
inline Lanes<R> pow_(Lanes<R> x, Lanes<R> y) {
  R exponent = y.p[0][0];
  return each(x, [exponent](R v) { return std::pow(v, exponent); });
}

}  // namespace SNN_ISA
}  // namespace snnfast
