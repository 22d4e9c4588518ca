// Packing of one instruction set (SNN_ISA, given by the build). Elements are compared as the words
// that they are in memory: all dtypes of one size share a loop, and only exact 0 and 1 pass for
// spikes.
#include "spikes.h"

#include <algorithm>
#include <cstring>

#include "storage.h"

namespace snnfast {
namespace {

constexpr int64_t kGroup = 32;          // elements that a loop takes at a time: one word of bits
constexpr int64_t kLook = 1024;         // elements between two looks at what is no spike
constexpr int64_t kChunk = 32 * kLook;  // what a thread takes
constexpr int64_t kAlone = 2 * kChunk;  // up to here a second thread costs more than it brings

template <class W>
struct Words {
  typedef W type __attribute__((vector_size(kRegisterBytes)));
  typedef W loose __attribute__((vector_size(kRegisterBytes), aligned(sizeof(W)), may_alias));
  static constexpr int kCount = kRegisterBytes / int(sizeof(W));
  static constexpr W kSign = W(W(1) << (8 * sizeof(W) - 1));
};

// The word that 1 is, as an argument of f.
template <class F>
auto with_one(int dtype, F&& f) {
  if (dtype == kFloat32) return f(uint32_t(0x3f800000));
  if (dtype == kFloat64) return f(uint64_t(0x3ff0000000000000));
  return f(uint16_t(dtype == kFloat16 ? 0x3c00 : 0x3f80));
}

// Bit i is set where lane i of a comparison is; the lanes of `low` come first.
template <class V>
SNN_HD uint32_t bits_of(const V* m, uint32_t) {
  uint32_t bits = 0;
  for (int k = 0; k < kGroup * 4 / kRegisterBytes; ++k) {
#if defined(__AVX2__)
    bits |= uint32_t(_mm256_movemask_ps((__m256)m[k])) << (8 * k);
#elif defined(__SSE2__)
    bits |= uint32_t(_mm_movemask_ps((__m128)m[k])) << (4 * k);
#else
    for (int j = 0; j < 4; ++j) bits |= uint32_t(m[k][j] & 1) << (4 * k + j);
#endif
  }
  return bits;
}
template <class V>
SNN_HD uint32_t bits_of(const V* m, uint64_t) {
  uint32_t bits = 0;
  for (int k = 0; k < kGroup * 8 / kRegisterBytes; ++k) {
#if defined(__AVX2__)
    bits |= uint32_t(_mm256_movemask_pd((__m256d)m[k])) << (4 * k);
#elif defined(__SSE2__)
    bits |= uint32_t(_mm_movemask_pd((__m128d)m[k])) << (2 * k);
#else
    for (int j = 0; j < 2; ++j) bits |= uint32_t(m[k][j] & 1) << (2 * k + j);
#endif
  }
  return bits;
}
template <class V>
SNN_HD uint32_t bits_of(const V* m, uint16_t) {
#if defined(__AVX2__)
  // Packing works within the halves of a register; the permutation puts the quarters in order.
  const __m256i bytes = _mm256_packs_epi16((__m256i)m[0], (__m256i)m[1]);
  return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
#elif defined(__SSE2__)
  const auto half = [&](int k) {
    return uint32_t(_mm_movemask_epi8(_mm_packs_epi16((__m128i)m[k], (__m128i)m[k + 1])));
  };
  return half(0) | half(2) << 16;
#else
  uint32_t bits = 0;
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 8; ++j) bits |= uint32_t(m[k][j] & 1) << (8 * k + j);
  return bits;
#endif
}

// The bits of kGroup elements; `other` gets a set bit where one is neither 0 nor `one`.
template <class W>
SNN_HD uint32_t pack_group(const W* s, W one, typename Words<W>::type& other) {
  using V = typename Words<W>::type;
  constexpr int kRegs = int(kGroup) / Words<W>::kCount;
  V mask[kRegs];
  for (int k = 0; k < kRegs; ++k) {
    const V v = *(const typename Words<W>::loose*)(s + k * Words<W>::kCount);
    mask[k] = (V)((v & V(W(~Words<W>::kSign) - V{})) != 0);  // -0 is a 0, NaN is none
    other |= (V)(v != 0) & (V)(v != one);
  }
  return bits_of(mask, W());
}

template <class W>
bool any(const typename Words<W>::type& v) {
  W all = 0;
  for (int j = 0; j < Words<W>::kCount; ++j) all |= v[j];
  return all != 0;
}

// Elements [begin, end); begin is a multiple of kGroup.
template <class W>
bool pack_range(const PackSpikes& job, W one, int64_t begin, int64_t end) {
  const W* s = static_cast<const W*>(job.s);
  for (int64_t at = begin; at < end; at += kLook) {
    const int64_t stop = std::min(at + kLook, end), whole = at + (stop - at) / kGroup * kGroup;
    typename Words<W>::type other = {};
    for (int64_t i = at; i < whole; i += kGroup) {
      const uint32_t bits = pack_group(s + i, one, other);
      std::memcpy(job.bits + i / 8, &bits, 4);
    }
    if (whole < stop) {
      W tail[kGroup] = {};
      std::memcpy(tail, s + whole, size_t(stop - whole) * sizeof(W));
      const uint32_t bits = pack_group(tail, one, other);
      std::memcpy(job.bits + whole / 8, &bits, size_t(stop - whole + 7) / 8);
    }
    if (job.only_if_spikes && any<W>(other)) return false;
  }
  return true;
}

template <class W>
bool pack(const PackSpikes& job, W one) {
  // Most tensors that are no spikes show it at once, before other threads are woken.
  if (job.n <= kAlone) return pack_range(job, one, 0, job.n);
  if (!pack_range(job, one, 0, kLook)) return false;
  const int64_t chunks = (job.n - kLook + kChunk - 1) / kChunk;
  bool refused = false;
#pragma omp parallel for num_threads(job.threads) schedule(static)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = kLook + c * kChunk;
    if (__atomic_load_n(&refused, __ATOMIC_RELAXED)) continue;
    if (!pack_range(job, one, begin, std::min(begin + kChunk, job.n)))
      __atomic_store_n(&refused, true, __ATOMIC_RELAXED);
  }
  return !refused;
}

// Elements [begin, end); begin is a multiple of kGroup.
template <class W>
void unpack_range(const UnpackSpikes& job, W one, int64_t begin, int64_t end, bool stream) {
  using V = typename Words<W>::type;
  constexpr int kCount = Words<W>::kCount;
  W* s = static_cast<W*>(job.s);
  V lane;  // bit j in lane j
  for (int j = 0; j < kCount; ++j) lane[j] = W(W(1) << j);
  const auto values = [&](uint32_t bits, int k) {
    const V some = W(bits >> (k * kCount)) - V{};
    return (V)((some & lane) != 0) & one;
  };
  int64_t i = begin;
  for (; i + kGroup <= end; i += kGroup) {
    uint32_t bits;
    std::memcpy(&bits, job.bits + i / 8, 4);
    for (int k = 0; k < int(kGroup) / kCount; ++k) {
      const V v = values(bits, k);
      if (stream)
        stream_bytes(s + i + k * kCount, v);
      else
        *(typename Words<W>::loose*)(s + i + k * kCount) = v;
    }
  }
  if (i < end) {
    uint32_t bits = 0;
    std::memcpy(&bits, job.bits + i / 8, size_t(end - i + 7) / 8);
    for (int64_t j = 0; i + j < end; ++j) s[i + j] = (bits >> j & 1) ? one : W(0);
  }
}

template <class W>
void unpack(const UnpackSpikes& job, W one) {
  static const int64_t kCacheBytes = cache_bytes();
  const bool stream = kCanStream && job.n * int64_t(sizeof(W)) > kCacheBytes &&
                      reinterpret_cast<uintptr_t>(job.s) % kRegisterBytes == 0;
  const int64_t chunks = (job.n + kChunk - 1) / kChunk;
#pragma omp parallel num_threads(job.n <= kAlone ? 1 : job.threads)
  {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < chunks; ++c)
      unpack_range(job, one, c * kChunk, std::min((c + 1) * kChunk, job.n), stream);
    if (stream) finish_streaming();
  }
}

}  // namespace

bool SNN_ISA_NAME(pack_spikes)(const PackSpikes& job) {
  return with_one(job.dtype, [&](auto one) { return pack(job, one); });
}

void SNN_ISA_NAME(unpack_spikes)(const UnpackSpikes& job) {
  with_one(job.dtype, [&](auto one) { unpack(job, one); });
}

}  // namespace snnfast
