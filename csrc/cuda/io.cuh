// What lies in memory and what is computed with: 16-byte packs of fp32, fp16 or bf16 and the fp32
// numbers in them. No CUDA header is needed, so that NVRTC compiles this without a toolkit; a host
// compiler gets the same conversions as integer arithmetic (tests/cuda_shim/).
#pragma once

#include "args.h"
#include "platform.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define SNN_DEVICE __device__ __forceinline__
#define SNN_CALL __device__ __noinline__
#else
#define SNN_DEVICE inline
#define SNN_CALL inline
#endif

// Where the host runs this code, it may want to look at every access.
#if !defined(SNN_HOST_ACCESS)
#define SNN_HOST_ACCESS(p, bytes)
#endif

// Of a block, as large as its launch says. Vectors of four floats lie in it.
extern __shared__ __align__(16) double snnfast_shared[];

namespace snnfast {
namespace cuda {

SNN_DEVICE float float_of(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

SNN_DEVICE unsigned bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
#endif
}

// The upper half of a product.
SNN_DEVICE unsigned high_product(unsigned a, unsigned b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return unsigned((unsigned long long)a * b >> 32);
#endif
}

// Each dtype: its element, and a 32-bit word of 1 or 2 elements to and from fp32. Rounding is to
// nearest even.
struct Float32 {
  using Element = float;
  static constexpr int kPerWord = 1;
  SNN_DEVICE static float widen(unsigned word, int) { return float_of(word); }
  SNN_DEVICE static unsigned narrow(float a, float) { return bits_of(a); }
};

struct Float16 {
  using Element = unsigned short;
  static constexpr int kPerWord = 2;

  SNN_DEVICE static float widen(unsigned word, int j) {
    const unsigned half = j ? word >> 16 : word & 0xffffu;
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)half));
    return value;
#else
    // The exponent moves into place and a multiplication renormalises.
    const unsigned magnitude = (half & 0x7fffu) << 13;
    const float value = magnitude >= 0x0f800000u ? float_of(magnitude + 0x70000000u)
                                                 : float_of(magnitude) * float_of(0x77800000u);
    return float_of(bits_of(value) | (half & 0x8000u) << 16);
#endif
  }

  SNN_DEVICE static unsigned narrow(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    return word;
#else
    return narrow_one(a) | narrow_one(b) << 16;
#endif
  }

  SNN_DEVICE static unsigned narrow_one(float a) {
    const unsigned bits = bits_of(a), sign = bits >> 16 & 0x8000u, m = bits & 0x7fffffffu;
    if (m > 0x7f800000u) return 0x7fffu;  // NaN
    if (m >= 0x477ff000u) return sign | 0x7c00u;
    // Subnormal: adding 0.5 aligns the last bit of the mantissa.
    if (m < 0x38800000u) return sign | (bits_of(float_of(m) + 0.5f) - 0x3f000000u);
    return sign | ((m + 0xc8000fffu + (m >> 13 & 1u)) >> 13);
  }
};

struct BFloat16 {
  using Element = unsigned short;
  static constexpr int kPerWord = 2;

  SNN_DEVICE static float widen(unsigned word, int j) {
    return float_of(j ? word & 0xffff0000u : word << 16);
  }

  SNN_DEVICE static unsigned narrow(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    return word;
#else
    return narrow_one(a) | narrow_one(b) << 16;
#endif
  }

  SNN_DEVICE static unsigned narrow_one(float a) {
    const unsigned bits = bits_of(a);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // NaN
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  }
};

// Accesses of 16 bytes and of one element. Written out, since the compiler splits some vectors and
// forgets that an address is global; volatile, so that a segment's loads stay together.
SNN_DEVICE void load_16_bytes(const void* p, unsigned* w) {
#if defined(__CUDA_ARCH__)
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "l"(p));
#else
  SNN_HOST_ACCESS(p, 16);
  __builtin_memcpy(w, p, 16);
#endif
}

SNN_DEVICE void store_16_bytes(void* p, const unsigned* w) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]),
               "r"(w[3])
               : "memory");
#else
  SNN_HOST_ACCESS(p, 16);
  __builtin_memcpy(p, w, 16);
#endif
}

SNN_DEVICE void load_element(const void* p, float& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(p));
#else
  SNN_HOST_ACCESS(p, sizeof value);
  value = *static_cast<const float*>(p);
#endif
}

SNN_DEVICE void load_element(const void* p, unsigned short& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(p));
#else
  SNN_HOST_ACCESS(p, sizeof value);
  value = *static_cast<const unsigned short*>(p);
#endif
}

SNN_DEVICE void store_element(void* p, float value) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory");
#else
  SNN_HOST_ACCESS(p, sizeof value);
  *static_cast<float*>(p) = value;
#endif
}

SNN_DEVICE void store_element(void* p, unsigned short value) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"(value) : "memory");
#else
  SNN_HOST_ACCESS(p, sizeof value);
  *static_cast<unsigned short*>(p) = value;
#endif
}

// kLanes neighbouring neurons as they lie in memory: 16 bytes, or one element (kLanes = 1).
template <class Io, int kLanes>
struct Pack {
  static_assert(kLanes == 4 * Io::kPerWord, "a pack is one 16-byte access");
  unsigned word[4];

  SNN_DEVICE void load(const void* p) { load_16_bytes(p, word); }
  SNN_DEVICE float operator[](int j) const {
    return Io::widen(word[j / Io::kPerWord], j % Io::kPerWord);
  }
  SNN_DEVICE static void store(void* p, const float* value) {
    unsigned w[4];
    SNN_UNROLL
    for (int k = 0; k < 4; ++k)
      w[k] = Io::narrow(value[k * Io::kPerWord], value[k * Io::kPerWord + Io::kPerWord - 1]);
    store_16_bytes(p, w);
  }
  // n neighbouring numbers, one or of an even place, to where a pack is put together.
  template <int n>
  SNN_DEVICE void set(int first, const float* value) {
    if constexpr (n < Io::kPerWord) {
      unsigned& pair = word[first / 2];
      const unsigned half = Io::narrow(*value, *value), kept = first % 2 ? 0xffffu : 0xffff0000u;
      pair = (pair & kept) | (half & ~kept);
    } else {
      SNN_UNROLL
      for (int j = 0; j < n; j += Io::kPerWord)
        word[(first + j) / Io::kPerWord] = Io::narrow(value[j], value[j + Io::kPerWord - 1]);
    }
  }
  SNN_DEVICE void store(void* p) const { store_16_bytes(p, word); }
};

template <class Io>
struct Pack<Io, 1> {
  using Element = typename Io::Element;
  Element element;

  SNN_DEVICE void load(const void* p) { load_element(p, element); }
  SNN_DEVICE float operator[](int) const {
    if constexpr (Io::kPerWord == 1)
      return element;
    else
      return Io::widen(element, 0);
  }
  SNN_DEVICE static void store(void* p, const float* value) {
    Pack pack;
    pack.set<1>(0, value);
    pack.store(p);
  }
  template <int>
  SNN_DEVICE void set(int, const float* value) {
    if constexpr (Io::kPerWord == 1)
      element = *value;
    else
      element = Element(Io::narrow(*value, *value));
  }
  SNN_DEVICE void store(void* p) const { store_element(p, element); }
};

// States and their gradients: fp32, in the same order as the neurons.
template <int kLanes>
SNN_DEVICE void load_state(const float* p, float* value) {
  if constexpr (kLanes == 1) {
    load_element(p, *value);
  } else {
    SNN_UNROLL
    for (int k = 0; k < kLanes; k += 4) {
      unsigned w[4];
      load_16_bytes(p + k, w);
      SNN_UNROLL
      for (int j = 0; j < 4; ++j) value[k + j] = float_of(w[j]);
    }
  }
}

template <int kLanes>
SNN_DEVICE void store_state(float* p, const float* value) {
  if constexpr (kLanes == 1) {
    store_element(p, *value);
  } else {
    SNN_UNROLL
    for (int k = 0; k < kLanes; k += 4) {
      unsigned w[4];
      SNN_UNROLL
      for (int j = 0; j < 4; ++j) w[j] = bits_of(value[k + j]);
      store_16_bytes(p + k, w);
    }
  }
}

// p + bytes as one addition. The compiler otherwise makes a multiplication of every step's address.
template <class Char>
SNN_DEVICE Char* advance(Char* p, i64 bytes) {
#if defined(__CUDA_ARCH__)
  asm("add.s64 %0, %0, %1;" : "+l"(p) : "l"(bytes));
  return p;
#else
  return p + bytes;
#endif
}

// The same value, of which the compiler knows nothing.
SNN_DEVICE int opaque(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}
SNN_DEVICE float opaque(float value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(value));
#endif
  return value;
}

}  // namespace cuda
}  // namespace snnfast
