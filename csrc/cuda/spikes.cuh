// Spikes to bits and back, b + 1/8 bytes an element. Elements are looked at as the words that they
// are in memory, so there is one kernel for each size: kSize is 4 (fp32) or 2 (fp16, bf16).
//
// The 8 elements of a byte are 16 or 32 bytes and belong to one thread; the bytes of neighbouring
// threads lie side by side.
#pragma once

#include "io.cuh"
#include "spikes_args.h"

namespace snnfast {
namespace cuda {

SNN_DEVICE unsigned load_byte(const unsigned char* p) {
#if defined(__CUDA_ARCH__)
  unsigned value;
  asm volatile("ld.global.u8 %0, [%1];" : "=r"(value) : "l"(p));
  return value;
#else
  SNN_HOST_ACCESS(p, 1);
  return *p;
#endif
}

SNN_DEVICE void store_byte(unsigned char* p, unsigned value) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.u8 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
  SNN_HOST_ACCESS(p, 1);
  *p = static_cast<unsigned char>(value);
#endif
}

// The 8 elements of one byte, as 32-bit words of 1 or 2 of them.
template <int kSize>
struct Octet {
  static constexpr int kWords = 2 * kSize;
  static constexpr int kPerWord = 4 / kSize;
  unsigned word[kWords];

  SNN_DEVICE void load(const char* s) {
    SNN_UNROLL
    for (int k = 0; k < kWords; k += 4) load_16_bytes(s + 4 * k, word + k);
  }
  // The first `count`; zeros behind them.
  SNN_DEVICE void load_some(const char* s, int count) {
    SNN_UNROLL
    for (int j = 0; j < 8; ++j) {
      unsigned one = 0;
      if (j < count) {
        if constexpr (kSize == 4) {
          float value;
          load_element(s + 4 * j, value);
          one = bits_of(value);
        } else {
          unsigned short value;
          load_element(s + 2 * j, value);
          one = value;
        }
      }
      const int shift = j % kPerWord * 16;
      word[j / kPerWord] = shift ? word[j / kPerWord] | one << shift : one;
    }
  }
  SNN_DEVICE unsigned element(int j) const {
    if constexpr (kSize == 4) return word[j];
    return word[j / 2] >> (j % 2 * 16) & 0xffffu;
  }
  SNN_DEVICE unsigned byte() const {
    constexpr unsigned kMagnitude = kSize == 4 ? 0x7fffffffu : 0x7fffu;
    unsigned bits = 0;
    SNN_UNROLL
    for (int j = 0; j < 8; ++j) bits |= (element(j) & kMagnitude) != 0 ? 1u << j : 0u;
    return bits;
  }

  SNN_DEVICE void set(unsigned bits, unsigned one) {
    SNN_UNROLL
    for (int k = 0; k < kWords; ++k) {
      word[k] = bits >> (k * kPerWord) & 1u ? one : 0u;
      if constexpr (kSize == 2) word[k] |= bits >> (2 * k + 1) & 1u ? one << 16 : 0u;
    }
  }
  SNN_DEVICE void store(char* s) const {
    SNN_UNROLL
    for (int k = 0; k < kWords; k += 4) store_16_bytes(s + 4 * k, word + k);
  }
  SNN_DEVICE void store_some(char* s, int count) const {
    SNN_UNROLL
    for (int j = 0; j < 8; ++j) {
      if (j >= count) continue;
      if constexpr (kSize == 4)
        store_element(s + 4 * j, float_of(element(j)));
      else
        store_element(s + 2 * j, static_cast<unsigned short>(element(j)));
    }
  }
};

// The bytes of a thread: the first one, and whether all of the block's are whole and aligned.
struct PackRange {
  i64 byte;
  bool whole;
};

SNN_DEVICE PackRange pack_range(const SpikesArgs& p) {
  const i64 first = i64(blockIdx.x) * (kPackThreads * kPackBytes);
  const bool inside = (first + kPackThreads * kPackBytes) * 8 <= p.n;
  return {first + threadIdx.x, inside && p.aligned != 0};
}

template <int kSize>
SNN_DEVICE void pack_spikes(const SpikesArgs& p) {
  const char* s = static_cast<const char*>(p.s);
  const PackRange range = pack_range(p);
  Octet<kSize> some[kPackBytes];
  if (range.whole) {  // all loads are in flight before the first is used
    SNN_UNROLL
    for (int k = 0; k < kPackBytes; ++k)
      some[k].load(s + (range.byte + k * kPackThreads) * (8 * kSize));
  }
  SNN_UNROLL
  for (int k = 0; k < kPackBytes; ++k) {
    const i64 byte = range.byte + k * kPackThreads, left = p.n - byte * 8;
    if (left <= 0) break;
    if (!range.whole) some[k].load_some(s + byte * (8 * kSize), left < 8 ? int(left) : 8);
    store_byte(p.bits + byte, some[k].byte());
  }
}

template <int kSize>
SNN_DEVICE void unpack_spikes(const SpikesArgs& p) {
  char* s = static_cast<char*>(p.s);
  const PackRange range = pack_range(p);
  unsigned bits[kPackBytes];
  SNN_UNROLL
  for (int k = 0; k < kPackBytes; ++k) {
    const i64 byte = range.byte + k * kPackThreads;
    bits[k] = byte * 8 < p.n ? load_byte(p.bits + byte) : 0;
  }
  SNN_UNROLL
  for (int k = 0; k < kPackBytes; ++k) {
    const i64 byte = range.byte + k * kPackThreads, left = p.n - byte * 8;
    if (left <= 0) break;
    Octet<kSize> some;
    some.set(bits[k], p.one);
    if (range.whole)
      some.store(s + byte * (8 * kSize));
    else
      some.store_some(s + byte * (8 * kSize), left < 8 ? int(left) : 8);
  }
}

}  // namespace cuda
}  // namespace snnfast

// NVRTC compiles one kernel at a time: SNN_PACK or SNN_UNPACK, with SNN_SIZE.
#if defined(SNN_PACK) || defined(SNN_UNPACK)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kPackThreads)
    snnfast_spikes(const snnfast::cuda::SpikesArgs p) {
#if defined(SNN_PACK)
  snnfast::cuda::pack_spikes<SNN_SIZE>(p);
#else
  snnfast::cuda::unpack_spikes<SNN_SIZE>(p);
#endif
}
#endif
