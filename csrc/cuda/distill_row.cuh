// A row of csrc/include/distill.h held by one block: thread i owns the classes i, i + blockDim.x,
// ... and is the only one to read or write them, so that nothing but sums and maxima needs a
// barrier.
//
//   resident   the row lies in shared memory: logits are read once and gradients written once
//   streaming  longer rows: logits are read again (from L2, mostly) at every use, and vectors that
//              must be kept lie in a workspace
//
// Exponentials are recomputed rather than kept: one instruction and a product.
#pragma once

#include "distill.h"
#include "distill_args.h"
#include "io.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define SNN_NO_UNROLL _Pragma("unroll 1")
#else
#define SNN_NO_UNROLL
#endif

namespace snnfast {
namespace cuda {

// Loads of tensors that nothing writes during the launch.
SNN_DEVICE void load_constant(const float* p, unsigned& word) {
#if defined(__CUDA_ARCH__)
  asm("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(p));
#else
  SNN_HOST_ACCESS(p, 4);
  __builtin_memcpy(&word, p, 4);
#endif
}

SNN_DEVICE void load_constant(const unsigned short* p, unsigned& word) {
#if defined(__CUDA_ARCH__)
  unsigned short half;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(half) : "l"(p));
  word = half;
#else
  SNN_HOST_ACCESS(p, 2);
  word = *p;
#endif
}

SNN_DEVICE i64 load_label(const i64* p) {
  SNN_HOST_ACCESS(p, 8);
  return *p;
}

template <class Io>
SNN_DEVICE float load_one(const void* base, i64 at) {
  unsigned word;
  load_constant(static_cast<const typename Io::Element*>(base) + at, word);
  return Io::widen(word, 0);
}

// The dtype of what is read once a row, teachers and class probabilities, is no template parameter.
SNN_DEVICE float load_any(int dtype, const void* base, i64 at) {
  if (dtype == kFloat32) return load_one<Float32>(base, at);
  return dtype == kFloat16 ? load_one<Float16>(base, at) : load_one<BFloat16>(base, at);
}

SNN_DEVICE float shared_load(const float* p) {
  SNN_HOST_ACCESS(p, 4);
  return *p;
}

SNN_DEVICE void shared_store(float* p, float value) {
  SNN_HOST_ACCESS(p, 4);
  *p = value;
}

// op over a block whose warps are a power of two, at most kWarps, known to all threads and the same
// bits in each. The halves of `scratch`, of a number per warp each, take turns, so that one barrier
// is enough.
template <int kWarps, class T, class Op>
SNN_DEVICE T reduce(T value, T* scratch, int& half, Op&& op) {
  SNN_UNROLL
  for (int lane = 16; lane > 0; lane >>= 1)
    value = op(value, __shfl_xor_sync(0xffffffffu, value, lane));
  const int warps = int(blockDim.x) / 32;
  if (warps > 1) {
    T* of_warps = scratch + half;
    half ^= kWarps;
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warps[int(threadIdx.x) & (warps - 1)];
    SNN_NO_UNROLL
    for (int lane = warps / 2; lane > 0; lane >>= 1)
      value = op(value, __shfl_xor_sync(0xffffffffu, value, lane));
  }
  return value;
}

template <class Io, bool kResident>
struct BlockRow {
  using R = float;
  using V = float;

  const RowArgs& p;
  i64 steps, b;
  int classes;
  float *scratch, *z, *others, *y, *slots;
  float on_label, off_label;
  int target;  // -1: none of the classes
  int half;

  SNN_DEVICE BlockRow(const RowArgs& args, float* shared)
      : p(args), steps(args.steps), b(blockIdx.x), classes(int(args.classes)), half(0) {
    scratch = shared;
    if constexpr (kResident) {
      z = shared + kScratch;
      others = z + int(steps) * classes;
      y = others + p.other_steps * classes;
      slots = y + (p.labels ? 0 : classes);
    } else {
      slots = p.slots + b * p.slot_count * p.classes;
    }
    target = -1;
    on_label = off_label = 0;
  }

  SNN_DEVICE bool counts() const { return !p.labels || load_label(p.labels + b) != p.ignore_index; }

  // All loads of kAhead steps are under way before the first is used.
  template <int kAhead, class Load>
  SNN_DEVICE void fetch(float* to, int n, Load&& load) {
    each([&](int k) {
      for (int base = 0; base < n; base += kAhead) {
        float value[kAhead];
        SNN_UNROLL
        for (int t = 0; t < kAhead; ++t)
          if (base + t < n) value[t] = load(base + t, k);
        SNN_UNROLL
        for (int t = 0; t < kAhead; ++t)
          if (base + t < n) shared_store(to + (base + t) * classes + k, value[t]);
      }
    });
  }

  // The target's class is needed with class probabilities only for the target "correct".
  template <bool kAux>
  SNN_DEVICE void read(bool needs_class) {
    if constexpr (kResident) {
      fetch<8>(z, int(steps), [&](int t, int k) { return logit_at(t, k); });
      if (p.other && kAux) fetch<8>(others, int(steps), [&](int t, int k) { return aux_at(t, k); });
      if (p.other && !kAux) fetch<1>(others, 1, [&](int, int k) { return teacher_at(k); });
      if (!p.labels) fetch<1>(y, 1, [&](int, int k) { return probability_at(k) * p.on + p.off; });
    }
    if (p.labels) {
      const i64 label = load_label(p.labels + b);
      const bool known = label >= 0 && label < p.classes;
      if (known) target = int(label);
      off_label = known ? p.off : float_of(~0u);
      on_label = p.on + off_label;
    } else if (needs_class) {
      const float top = top_of(*this, [&](int k) { return probability_at(k); });
      float first = -1e9f;
      each([&](int k) {
        if (probability_at(k) == top) first = larger_(first, -index(k));
      });
      target = -int(max(first));
    }
  }

  SNN_DEVICE float logit_at(i64 t, int k) const {
    return load_one<Io>(p.logits, t * p.step + b * p.row + k * p.column);
  }
  SNN_DEVICE float aux_at(i64 t, int k) const {
    return load_one<Io>(p.other, t * p.other_step + b * p.other_row + k * p.other_column);
  }
  SNN_DEVICE float teacher_at(int k) const {
    return load_any(p.teacher_dtype, p.other, b * p.classes + k);
  }
  SNN_DEVICE float probability_at(int k) const {
    return load_any(p.probabilities_dtype, p.probabilities, b * p.classes + k);
  }

  template <class F>
  SNN_DEVICE void each(F&& f) const {
    for (int k = int(threadIdx.x); k < classes; k += int(blockDim.x)) f(k);
  }
  SNN_DEVICE float logit(i64 t, int k) const {
    if constexpr (kResident) return shared_load(z + int(t) * classes + k);
    return logit_at(t, k);
  }
  SNN_DEVICE float aux(i64 t, int k) const {
    if constexpr (kResident) return shared_load(others + int(t) * classes + k);
    return aux_at(t, k);
  }
  SNN_DEVICE float teacher(int k) const {
    if constexpr (kResident) return shared_load(others + k);
    return teacher_at(k);
  }
  SNN_DEVICE float label(int k) const {
    if (p.labels) return k == target ? on_label : off_label;
    if constexpr (kResident) return shared_load(y + k);
    return probability_at(k) * p.on + p.off;
  }
  SNN_DEVICE float label_index() const { return float(target); }
  SNN_DEVICE float index(int k) const { return float(k); }
  SNN_DEVICE float live(int, float e) const { return e; }

  SNN_DEVICE float sum(float v) {
    return reduce<kScratch / 2>(v, scratch, half, [](float a, float b) { return a + b; });
  }
  SNN_DEVICE float max(float v) {
    return reduce<kScratch / 2>(v, scratch, half, [](float a, float b) { return larger_(a, b); });
  }

  SNN_DEVICE void keep(int slot, int k, float v) {
    if constexpr (kResident)
      shared_store(slots + slot * classes + k, v);
    else
      store_element(slots + i64(slot) * classes + k, v);
  }
  SNN_DEVICE float kept(int slot, int k) const {
    if constexpr (kResident) return shared_load(slots + slot * classes + k);
    float v;
    load_element(slots + i64(slot) * classes + k, v);
    return v;
  }
  SNN_DEVICE void cache(int, int, float) {}
  template <class F>
  SNN_DEVICE float cached(int, int, F&& f) const {
    return f();
  }

  SNN_DEVICE void gradient(i64 t, int k, float g) { store(p.gradient, t, k, g); }
  SNN_DEVICE void aux_gradient(i64 t, int k, float g) { store(p.aux_gradient, t, k, g); }
  SNN_DEVICE void store(void* to, i64 t, int k, float g) const {
    using Element = typename Io::Element;
    Pack<Io, 1>::store(static_cast<Element*>(to) + (t * p.rows + b) * p.classes + k, &g);
  }
};

}  // namespace cuda
}  // namespace snnfast
