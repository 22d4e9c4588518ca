// Four registers of numbers that behave like one: the CPU's value type for the formulas in
// include/. A step is a chain of dependent operations, and several registers side by side hide
// their latency. Built on the compilers' vector extensions in the width of the target's registers,
// so the same source serves SSE2, AVX2 and NEON. Each instruction set is compiled in a namespace of
// its own.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "platform.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace snnfast {
inline namespace SNN_ISA {

#if defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kRegisters = 4;

// Calls f for every register. Spelled out, so that the index is a constant where the compiler
// decides what may live in a register; a loop is unrolled too late for that.
template <class F>
SNN_HD void each_register(F&& f) {
  f(0), f(1), f(2), f(3);
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

#if defined(__AVX2__) && defined(__FMA__)
SNN_HD Lanes<float> mad_(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
  each_register([&](int i) { a.p[i] = _mm256_fmadd_ps(a.p[i], b.p[i], c.p[i]); });
  return a;
}
SNN_HD Lanes<float> larger_(Lanes<float> a, Lanes<float> b) {
  each_register([&](int i) { a.p[i] = _mm256_max_ps(b.p[i], a.p[i]); });
  return a;
}
// a / b in gradients: an estimate of 1/b, one Newton step; some 1.5 ulp, in half of the time of a
// division. Inf is brought down to where the step does not make NaN of it; a NaN passes.
SNN_HD Lanes<float> divide_(Lanes<float> a, Lanes<float> b) {
  each_register([&](int i) {
    __m256 y = _mm256_min_ps(_mm256_set1_ps(3.0e38f), b.p[i]);
    __m256 r = _mm256_rcp_ps(y);
    r = _mm256_fmadd_ps(_mm256_fnmadd_ps(y, r, _mm256_set1_ps(1.0f)), r, r);
    a.p[i] = a.p[i] * r;
  });
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

// ---- memory ------------------------------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SNN_HD float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
SNN_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// binary16 -> binary32: shift the mantissa into place and let a multiplication renormalise.
SNN_HD float widen(Half x) {
  uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  float value = magnitude >= 0x0f800000u ? bits_to_float(magnitude + 0x70000000u)  // Inf and NaN
                                         : bits_to_float(magnitude) * bits_to_float(0x77800000u);
  return bits_to_float(float_to_bits(value) | uint32_t(x.bits & 0x8000u) << 16);
}

// binary32 -> binary16, to nearest even.
inline Half narrow_half(float x) {
  uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, m = bits & 0x7fffffffu;
  uint32_t out;
  if (m > 0x7f800000u) {
    out = 0x7e00u;
  } else if (m >= 0x477ff000u) {
    out = 0x7c00u;
  } else if (m < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa's last bit
    out = float_to_bits(bits_to_float(m) + 0.5f) - 0x3f000000u;
  } else {
    out = (m + 0xc8000fffu + (m >> 13 & 1)) >> 13;
  }
  return Half{uint16_t(out | sign)};
}

SNN_HD float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
SNN_HD float widen(float x) { return x; }
SNN_HD double widen(double x) { return x; }

// Writes that go past the caches; p must be aligned to the size of what is written.
#if defined(__SSE2__)
constexpr bool kCanStream = true;
template <class T>
SNN_HD void stream_bytes(void* p, T value) {
  if constexpr (sizeof(T) == 8) {
    long long bits;
    std::memcpy(&bits, &value, 8);
    _mm_stream_si64(static_cast<long long*>(p), bits);
  } else if constexpr (sizeof(T) == 16) {
    _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)value);
#if defined(__AVX2__)
  } else {
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)value);
#endif
  }
}
// Makes a thread's streamed writes visible before it meets the others.
inline void finish_streaming() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
template <class T>
SNN_HD void stream_bytes(void* p, T value) {
  std::memcpy(p, &value, sizeof value);
}
inline void finish_streaming() {}
#endif

// The last-level cache of one core's neighbourhood, or a usual size where the system does not say.
// (sysconf adds up all of the chip's.)
inline int64_t cache_bytes() {
  int64_t kilobytes = 0;
  if (FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long long value = 0;
    if (std::fscanf(file, "%lld", &value) == 1) kilobytes = value;
    std::fclose(file);
  }
  return kilobytes > 0 ? kilobytes << 10 : int64_t(32) << 20;
}

// How a dtype lies in memory and what it is in registers. stream() is a store past the caches to an
// address that is a multiple of a register's size.
template <class Storage>
struct Io;

template <class R>
struct IoSame {
  using Real = R;
  using V = Lanes<R>;
  using loose = typename Register<R>::loose;
  SNN_HD static V load(const R* p) {
    V v;
    each_register([&](int i) { v.p[i] = *(const loose*)(p + i * V::kPerRegister); });
    return v;
  }
  SNN_HD static void store(R* p, V v) {
    each_register([&](int i) { *(loose*)(p + i * V::kPerRegister) = v.p[i]; });
  }
  SNN_HD static void stream(R* p, V v) {
    each_register([&](int i) { stream_bytes(p + i * V::kPerRegister, v.p[i]); });
  }
};
template <>
struct Io<float> : IoSame<float> {};
template <>
struct Io<double> : IoSame<double> {};

template <>
struct Io<BFloat16> {
  using Real = float;
  using V = Lanes<float>;
  static constexpr int kPer = V::kPerRegister;
  typedef uint16_t u16 __attribute__((vector_size(2 * kPer)));
  typedef uint32_t u32 __attribute__((vector_size(4 * kPer)));

  SNN_HD static V load(const BFloat16* p) {
    V v;
    each_register([&](int i) {
      u16 half;
      std::memcpy(&half, p + i * kPer, sizeof half);
      v.p[i] = (V::reg)(__builtin_convertvector(half, u32) << 16);
    });
    return v;
  }
  // To nearest even; a NaN keeps a set mantissa bit instead of rounding into Inf.
  SNN_HD static u16 narrow(V::reg v) {
    u32 bits = (u32)v;
    u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    u32 is_nan = (u32)(v != v);
    return __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), u16);
  }
  SNN_HD static void store(BFloat16* p, V v) {
    each_register([&](int i) {
      u16 half = narrow(v.p[i]);
      std::memcpy(p + i * kPer, &half, sizeof half);
    });
  }
  SNN_HD static void stream(BFloat16* p, V v) {
    each_register([&](int i) { stream_bytes(p + i * kPer, narrow(v.p[i])); });
  }
};

template <>
struct Io<Half> {
  using Real = float;
  using V = Lanes<float>;

  SNN_HD static V load(const Half* p) {
    V v;
#if defined(__F16C__)
    each_register([&](int i) {
      __m128i half;
      std::memcpy(&half, p + i * 8, 16);
      v.p[i] = (V::reg)_mm256_cvtph_ps(half);
    });
#else
    float lanes[V::kCount];
    for (int i = 0; i < V::kCount; ++i) lanes[i] = widen(p[i]);
    v = Io<float>::load(lanes);
#endif
    return v;
  }
#if defined(__F16C__)
  SNN_HD static __m128i narrow(V::reg v) {
    return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  }
  SNN_HD static void store(Half* p, V v) {
    each_register([&](int i) { _mm_storeu_si128((__m128i*)(p + i * 8), narrow(v.p[i])); });
  }
  SNN_HD static void stream(Half* p, V v) {
    each_register([&](int i) { stream_bytes(p + i * 8, narrow(v.p[i])); });
  }
#else
  SNN_HD static void store(Half* p, V v) {
    float lanes[V::kCount];
    Io<float>::store(lanes, v);
    for (int i = 0; i < V::kCount; ++i) p[i] = narrow_half(lanes[i]);
  }
  SNN_HD static void stream(Half* p, V v) { store(p, v); }
#endif
};

}  // namespace SNN_ISA

}  // namespace snnfast
