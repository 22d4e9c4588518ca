// How numbers lie in memory, in each dtype, and how they come into registers and back.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "lanes.h"

namespace snnfast {
inline namespace SNN_ISA {

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
  } else if constexpr (sizeof(T) == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)value);
#endif
#if defined(__AVX512F__)
  } else {
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)value);
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

// Half the last-level cache of one core's neighbourhood, or of a usual one where the system does
// not say (sysconf adds up all of the chip's): so much may be expected to stay there beside what
// others put there.
inline int64_t cache_bytes() {
  int64_t kilobytes = 0;
  if (FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long long value = 0;
    if (std::fscanf(file, "%lld", &value) == 1) kilobytes = value;
    std::fclose(file);
  }
  return (kilobytes > 0 ? kilobytes << 10 : int64_t(32) << 20) / 2;
}

// Two registers of integers between -2^15 and 2^15 - 1 as one of half their width.
typedef int16_t Shorts __attribute__((vector_size(kRegisterBytes)));
SNN_HD Shorts shorts_of(Register<float>::mask a, Register<float>::mask b) {
#if defined(__AVX512BW__)
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i packed = _mm512_packs_epi32((__m512i)a, (__m512i)b);
  return (Shorts)_mm512_permutexvar_epi64(in_order, packed);
#elif defined(__AVX2__)
  return (Shorts)_mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xd8);
#elif defined(__SSE2__)
  return (Shorts)_mm_packs_epi32((__m128i)a, (__m128i)b);
#else
  typedef int16_t Part __attribute__((vector_size(kRegisterBytes / 2)));
  const Part both[2] = {__builtin_convertvector(a, Part), __builtin_convertvector(b, Part)};
  Shorts v;
  std::memcpy(&v, both, sizeof v);
  return v;
#endif
}

// How a dtype lies in memory and what it is in registers. stream() is a store past the caches to an
// address that is a multiple of a register's size. In 16 bits, what is
// known to be 0 or 1 (kSpikes) needs no rounding.
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

// In 16 bits: two registers become one, so that all stores are as wide as a register.
template <class S>
struct IoNarrow {
  using Real = float;
  using V = Lanes<float>;
  using I = Register<float>::mask;
  template <bool kSpikes = false>
  SNN_HD static void store(S* p, V v) {
    each_pair([&](int i) {
      const Shorts both = narrow<kSpikes>(v.p[i], v.p[i + 1]);
      std::memcpy(p + i * V::kPerRegister, &both, sizeof both);
    });
  }
  template <bool kSpikes = false>
  SNN_HD static void stream(S* p, V v) {
    each_pair(
        [&](int i) { stream_bytes(p + i * V::kPerRegister, narrow<kSpikes>(v.p[i], v.p[i + 1])); });
  }

 private:
  template <bool kSpikes>
  SNN_HD static Shorts narrow(V::reg a, V::reg b) {
    // The upper half of 1.0f has all bits of a narrower 1, too.
    if constexpr (kSpikes) return shorts_of((I)a >> 16, (I)b >> 16) & Io<S>::kOne;
    return Io<S>::round(a, b);
  }
};

template <>
struct Io<BFloat16> : IoNarrow<BFloat16> {
  static constexpr int16_t kOne = 0x3f80;
  SNN_HD static V load(const BFloat16* p) {
    typedef uint16_t u16 __attribute__((vector_size(2 * V::kPerRegister)));
    V v;
    each_register([&](int i) {
      u16 half;
      std::memcpy(&half, p + i * V::kPerRegister, sizeof half);
      v.p[i] = (V::reg)(__builtin_convertvector(half, I) << 16);
    });
    return v;
  }
  // To nearest even; a NaN keeps a set mantissa bit instead of rounding into Inf.
  SNN_HD static Shorts round(V::reg a, V::reg b) { return shorts_of(upper(a), upper(b)); }

 private:
  SNN_HD static I upper(V::reg v) {
    typedef uint32_t u32 __attribute__((vector_size(kRegisterBytes)));
    const u32 bits = (u32)v;
    const I rounded = (I)(bits + 0x7fffu + (bits >> 16 & 1)) >> 16, is_nan = v != v;
    return is_nan ? I{} + 0x7fc0 : rounded;
  }
};

template <>
struct Io<Half> : IoNarrow<Half> {
  static constexpr int16_t kOne = 0x3c00;
#if defined(__F16C__)
  SNN_HD static V load(const Half* p) {
    V v;
    each_register([&](int i) { v.p[i] = widened(p + i * V::kPerRegister); });
    return v;
  }
  SNN_HD static Shorts round(V::reg a, V::reg b) {
    const auto low = narrowed(a), high = narrowed(b);
    Shorts v;
    std::memcpy(&v, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
    return v;
  }

 private:
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
#if defined(__AVX512F__)
  SNN_HD static V::reg widened(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  SNN_HD static __m256i narrowed(V::reg v) { return _mm512_cvtps_ph(v, kNearest); }
#else
  SNN_HD static V::reg widened(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  SNN_HD static __m128i narrowed(V::reg v) { return _mm256_cvtps_ph(v, kNearest); }
#endif
#else
  SNN_HD static V load(const Half* p) {
    float lanes[V::kCount];
    for (int i = 0; i < V::kCount; ++i) lanes[i] = widen(p[i]);
    return Io<float>::load(lanes);
  }
  SNN_HD static Shorts round(V::reg a, V::reg b) {
    Shorts v;
    for (int i = 0; i < V::kPerRegister; ++i) {
      v[i] = int16_t(narrow_half(a[i]).bits);
      v[i + V::kPerRegister] = int16_t(narrow_half(b[i]).bits);
    }
    return v;
  }
#endif
};

// Lanes in another order, in which two numbers that share 32 bits of bfloat16 lie in two registers:
// of `paired` one has what was at the even places of two, the other what was at the odd ones.
SNN_HD Lanes<float> paired(Lanes<float> v) {
  const auto pair = [&](int a, int b) {
#if defined(__AVX512F__)
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = v.p[a], second = v.p[b];
    v.p[a] = _mm512_permutex2var_ps(first, even, second);
    v.p[b] = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
#elif defined(__AVX2__)
    const __m256 even = _mm256_shuffle_ps(v.p[a], v.p[b], 0x88);
    const __m256 odd = _mm256_shuffle_ps(v.p[a], v.p[b], 0xdd);
    v.p[a] = (Lanes<float>::reg)_mm256_permute4x64_epi64((__m256i)even, 0xd8);
    v.p[b] = (Lanes<float>::reg)_mm256_permute4x64_epi64((__m256i)odd, 0xd8);
#else
    const auto first = v.p[a], second = v.p[b];
    constexpr int kHalf = Lanes<float>::kPerRegister / 2;
    for (int k = 0; k < kHalf; ++k) {
      v.p[a][k] = first[2 * k], v.p[a][k + kHalf] = second[2 * k];
      v.p[b][k] = first[2 * k + 1], v.p[b][k + kHalf] = second[2 * k + 1];
    }
#endif
  };
  each_pair([&](int i) { pair(i, i + 1); });
  return v;
}
SNN_HD Lanes<float> unpaired(Lanes<float> v) {
  const auto part = [&](int a, int b) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 even = v.p[a], odd = v.p[b];
    v.p[a] = _mm512_permutex2var_ps(even, low, odd);
    v.p[b] = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
#elif defined(__AVX2__)
    const __m256 low = _mm256_unpacklo_ps(v.p[a], v.p[b]);
    const __m256 high = _mm256_unpackhi_ps(v.p[a], v.p[b]);
    v.p[a] = _mm256_permute2f128_ps(low, high, 0x20);
    v.p[b] = _mm256_permute2f128_ps(low, high, 0x31);
#else
    const auto even = v.p[a], odd = v.p[b];
    constexpr int kHalf = Lanes<float>::kPerRegister / 2;
    for (int k = 0; k < kHalf; ++k) {
      v.p[a][2 * k] = even[k], v.p[a][2 * k + 1] = odd[k];
      v.p[b][2 * k] = even[k + kHalf], v.p[b][2 * k + 1] = odd[k + kHalf];
    }
#endif
  };
  each_pair([&](int i) { part(i, i + 1); });
  return v;
}

// The order of lanes that suits a loop from numbers in SX to numbers in SS: as they lie in
// memory...
template <class SX, class SS>
struct Ordered {
  using In = Io<std::remove_const_t<SX>>;
  using V = typename In::V;
  SNN_HD static V from(V v) { return v; }
  SNN_HD static V back(V v) { return v; }
  SNN_HD static V load(const SX* p) { return In::load(p); }
  SNN_HD static void put_spikes(SS* p, V v, bool stream) {
    if (stream)
      Io<SS>::template stream<true>(p, v);
    else
      Io<SS>::template store<true>(p, v);
  }
};

// ...or in pairs, so that a shift and a mask widen them, and narrow spikes.
template <>
struct Ordered<const BFloat16, BFloat16> {
  using V = Lanes<float>;
  using I = Register<float>::mask;
  SNN_HD static V from(V v) { return paired(v); }
  SNN_HD static V back(V v) { return unpaired(v); }
  SNN_HD static V load(const BFloat16* p) {
    V v;
    const auto part = [&](int i) {
      I bits;
      std::memcpy(&bits, p + i * V::kPerRegister, sizeof bits);
      v.p[i] = (V::reg)(bits << 16), v.p[i + 1] = (V::reg)(bits & -65536);
    };
    each_pair(part);
    return v;
  }
  SNN_HD static void put_spikes(BFloat16* p, V v, bool stream) {
    each_pair([&](int i) {
      const I both = (I)v.p[i] >> 16 | (I)v.p[i + 1];
      if (stream)
        stream_bytes(p + i * V::kPerRegister, both);
      else
        std::memcpy(p + i * V::kPerRegister, &both, sizeof both);
    });
  }
};

}  // namespace SNN_ISA

}  // namespace snnfast
