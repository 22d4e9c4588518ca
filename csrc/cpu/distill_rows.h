// Rows of the batch as csrc/include/distill.h wants them, in buffers that stay in cache: with few
// classes the lanes of a vector are samples, and no sum over classes crosses lanes; with many they
// are classes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../include/distill.h"
#include "distill.h"
#include "lanes.h"
#include "memory.h"
#include "rows.h"

namespace snnfast {
inline namespace SNN_ISA {

SNN_HD void narrow(float x, float* to) { *to = x; }
SNN_HD void narrow(double x, double* to) { *to = x; }
SNN_HD void narrow(float x, Half* to) { *to = narrow_half(x); }
SNN_HD void narrow(float x, BFloat16* to) {
  const uint32_t bits = float_to_bits(x);
  to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A square block from rows `from_row` apart to rows `to_row` apart, rows becoming columns.
#if defined(__AVX2__)
constexpr int64_t kBlock = 8;
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * from_row);
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      a[4 * i + 2 * j] = _mm256_shuffle_ps(b[4 * i + j], b[4 * i + j + 2], 0x44);
      a[4 * i + 2 * j + 1] = _mm256_shuffle_ps(b[4 * i + j], b[4 * i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_row, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_row, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}
#else
constexpr int64_t kBlock = 4;
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t i = 0; i < kBlock; ++i)
    for (int64_t j = 0; j < kBlock; ++j) to[j * to_row + i] = from[i * from_row + j];
}
#endif

// What both ways to lay out a row have. All vectors of a row lie one after the other; gradients
// take the place of the logits that they belong to.
template <class Real>
struct RowBuffers {
  using R = Real;
  using V = Lanes<R>;
  static constexpr int64_t kLanes = V::kCount;

  int64_t steps, chunks, classes;
  R *z, *other, *y, *slots, *caches;
  V y_index;

  // `steps_of_other`: 0, 1 (the teacher's) or T (auxiliary logits).
  RowBuffers(int64_t t, int64_t k, int64_t c, int64_t steps_of_other)
      : steps(t), chunks(k), classes(c) {
    const int64_t vectors = t + steps_of_other + 1 + kSlots + kCaches;
    z = static_cast<R*>(memory_.take(size_t(vectors * k * kLanes) * sizeof(R)));
    other = at(z, t, 0), y = at(other, steps_of_other, 0);
    slots = at(y, 1, 0), caches = at(slots, kSlots, 0);
  }

  SNN_HD R* at(R* base, int64_t t, int64_t k) const { return base + (t * chunks + k) * kLanes; }
  template <class F>
  SNN_HD void each(F&& f) const {
    for (int64_t k = 0; k < chunks; ++k) f(int(k));
  }
  SNN_HD V logit(int64_t t, int k) const { return load(at(z, t, k)); }
  SNN_HD V teacher(int k) const { return load(at(other, 0, k)); }
  SNN_HD V aux(int64_t t, int k) const { return load(at(other, t, k)); }
  SNN_HD V label(int k) const { return load(at(y, 0, k)); }
  SNN_HD V label_index() const { return y_index; }
  SNN_HD void keep(int slot, int k, V v) { store(at(slots, slot, k), v); }
  SNN_HD V kept(int slot, int k) const { return load(at(slots, slot, k)); }
  SNN_HD void cache(int slot, int k, V v) { store(at(caches, slot, k), v); }
  template <class F>
  SNN_HD V cached(int slot, int k, F&&) const {
    return load(at(caches, slot, k));
  }
  SNN_HD void gradient(int64_t t, int k, V g) { store(at(z, t, k), g); }
  SNN_HD void aux_gradient(int64_t t, int k, V g) { store(at(other, t, k), g); }

 private:
  Memory memory_;
};

// Lanes are samples: element (t, c) of sample j lies at vector (t, c), lane j.
template <class Real>
struct SampleLanes : RowBuffers<Real> {
  using Base = RowBuffers<Real>;
  using R = Real;
  using V = Lanes<R>;
  static constexpr int64_t kSamples = V::kCount;

  SampleLanes(int64_t t, int64_t c, int64_t steps_of_other) : Base(t, c, c, steps_of_other) {}

  SNN_HD V sum(V v) const { return v; }
  SNN_HD V max(V v) const { return v; }
  SNN_HD V live(int, V e) const { return e; }
  SNN_HD V index(int k) const { return V(R(k)); }

  // Lanes behind the last sample hold it, too.
  void read(const Logits& from, int64_t t, int64_t b, int64_t n, R* to) {
    if (from.dtype == kFloat32 && from.column == 1 && n == kSamples && this->classes >= kBlock) {
      for (int64_t i = 0; i < t; ++i) {
        const auto* p = static_cast<const float*>(from.data) + i * from.step + b * from.row;
        blocks([&](int64_t j, int64_t c) {
          transpose(p + j * from.row + c, from.row, this->at(to, i, c) + j, kSamples);
        });
      }
      return;
    }
    with_storage(from.dtype, [&](auto* null) {
      const auto* base = static_cast<decltype(null)>(from.data);
      for (int64_t j = 0; j < kSamples; ++j)
        for (int64_t i = 0; i < t; ++i) {
          const auto* p = base + i * from.step + (b + std::min(j, n - 1)) * from.row;
          R* q = this->at(to, i, 0) + j;
          for (int64_t c = 0; c < this->classes; ++c)
            q[c * kSamples] = R(widen(p[c * from.column]));
        }
    });
  }
  // The gradient of the n samples from b on; zeros where a sample does not count.
  void write(const R* from, int dtype, void* gradient, int64_t batch, int64_t b, int64_t n,
             const bool* counts) {
    bool all = n == kSamples;
    for (int64_t j = 0; j < n; ++j) all &= counts[j];
    if (dtype == kFloat32 && all && this->classes >= kBlock) {
      for (int64_t i = 0; i < this->steps; ++i) {
        float* p = static_cast<float*>(gradient) + (i * batch + b) * this->classes;
        const R* q = from + i * this->classes * kSamples;
        blocks([&](int64_t j, int64_t c) {
          transpose(q + c * kSamples + j, kSamples, p + j * this->classes + c, this->classes);
        });
      }
      return;
    }
    with_storage(dtype, [&](auto* null) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(null)>>;
      if constexpr (std::is_same_v<S, double> == std::is_same_v<R, double>)
        for (int64_t i = 0; i < this->steps; ++i)
          for (int64_t j = 0; j < n; ++j) {
            S* p = static_cast<S*>(gradient) + (i * batch + b + j) * this->classes;
            const R* q = from + i * this->classes * kSamples + j;
            for (int64_t c = 0; c < this->classes; ++c)
              narrow(counts[j] ? q[c * kSamples] : R(0), p + c);
          }
    });
  }
  // Lane j of y.
  SNN_HD R* label_at(int64_t c, int64_t j) { return this->y + c * kSamples + j; }

 private:
  // f(first sample, first class) of square blocks that cover all; the last classes lie in two.
  template <class F>
  void blocks(F&& f) const {
    for (int64_t j = 0; j < kSamples; j += kBlock)
      for (int64_t c = 0; c < this->classes; c += kBlock)
        f(j, c + kBlock <= this->classes ? c : this->classes - kBlock);
  }
};

// Lanes are classes of one sample; those behind the last hold the first, and count nothing.
template <class Real>
struct ClassLanes : RowBuffers<Real> {
  using Base = RowBuffers<Real>;
  using R = Real;
  using V = Lanes<R>;
  static constexpr int64_t kSamples = 1;
  V mask, iota;

  ClassLanes(int64_t t, int64_t c, int64_t steps_of_other)
      : Base(t, (c + V::kCount - 1) / V::kCount, c, steps_of_other) {
    R lane[V::kCount], alive[V::kCount];
    for (int64_t i = 0; i < V::kCount; ++i) {
      lane[i] = R(i);
      alive[i] = (this->chunks - 1) * V::kCount + i < c;
    }
    iota = load(lane), mask = load(alive);
  }

  SNN_HD V sum(V v) const {
    auto r = (v.p[0] + v.p[1]) + (v.p[2] + v.p[3]);
    R total(0);
    for (int i = 0; i < V::kPerRegister; ++i) total += r[i];
    return V(total);
  }
  SNN_HD V max(V v) const {
    auto a = v.p[0] < v.p[1] ? v.p[1] : v.p[0], b = v.p[2] < v.p[3] ? v.p[3] : v.p[2];
    auto r = a < b ? b : a;
    R top = r[0];
    for (int i = 1; i < V::kPerRegister; ++i) top = top < r[i] ? r[i] : top;
    return V(top);
  }
  SNN_HD V live(int k, V e) const {
    return k + 1 == this->chunks ? select(mask == V(1), e, V(0)) : e;
  }
  SNN_HD V index(int k) const { return iota + V(R(k * V::kCount)); }

  void read(const Logits& from, int64_t t, int64_t b, int64_t, R* to) {
    with_storage(from.dtype, [&](auto* null) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(null)>>;
      const S* base = static_cast<const S*>(from.data) + b * from.row;
      for (int64_t i = 0; i < t; ++i) {
        const S* p = base + i * from.step;
        R* q = this->at(to, i, 0);
        if constexpr (std::is_same_v<S, R>) {
          if (from.column == 1) copy_row(q, p, this->classes);
        } else if constexpr (sizeof(S) == 2 && sizeof(R) == 4) {
          if (from.column == 1) widen_row<S>(p, q, this->classes);
        }
        if (from.column != 1 || !(std::is_same_v<S, R> || (sizeof(S) == 2 && sizeof(R) == 4)))
          for (int64_t c = 0; c < this->classes; ++c) q[c] = R(widen(p[c * from.column]));
        std::fill(q + this->classes, q + this->chunks * V::kCount, q[0]);
      }
    });
  }
  void write(const R* from, int dtype, void* gradient, int64_t batch, int64_t b, int64_t,
             const bool* counts) {
    const int64_t size = itemsize_of(dtype) * this->classes;
    for (int64_t i = 0; i < this->steps; ++i) {
      char* p = static_cast<char*>(gradient) + (i * batch + b) * size;
      const R* q = from + i * this->chunks * V::kCount;
      if (!*counts) {
        std::memset(p, 0, size_t(size));
      } else if constexpr (sizeof(R) == 8) {
        std::memcpy(p, q, size_t(size));
      } else {
        if (dtype == kFloat16) narrow_row<Half>(q, p, this->classes, false);
        if (dtype == kBFloat16) narrow_row<BFloat16>(q, p, this->classes, false);
        if (dtype == kFloat32) std::memcpy(p, q, size_t(size));
      }
    }
  }
  SNN_HD R* label_at(int64_t c, int64_t) { return this->y + c; }
};

// The target distribution of samples b .. b + n, smoothed, and its class.
template <class Row>
void read_labels(Row& row, const DistillIo& io, int64_t b, int64_t n) {
  using R = typename Row::R;
  const R on = R(1 - io.smoothing), off = R(io.smoothing / double(io.classes));
  R index[Row::V::kCount] = {};
  if (io.labels) {
    std::fill(row.y, row.y + row.chunks * Row::kLanes, off);
    for (int64_t j = 0; j < Row::kSamples; ++j) {
      const int64_t label = io.labels[b + std::min(j, n - 1)];
      if (label == io.ignore_index) continue;
      *row.label_at(label, j) = on + off;
      index[j] = R(label);
    }
  } else {
    row.read(io.probabilities, 1, b, n, row.y);
    for (int64_t j = 0; j < Row::kSamples; ++j) {
      int64_t best = 0;
      for (int64_t c = 1; c < io.classes; ++c)
        if (*row.label_at(c, j) > *row.label_at(best, j)) best = c;
      index[j] = R(best);
    }
    for (int64_t i = 0; i < row.chunks * Row::kLanes; ++i) row.y[i] = row.y[i] * on + off;
  }
  if constexpr (Row::kSamples == 1) {
    std::fill(row.y + io.classes, row.y + row.chunks * Row::kLanes, R(0));
    std::fill(index, index + Row::V::kCount, index[0]);
  }
  row.y_index = load(index);
}

}  // namespace SNN_ISA
}  // namespace snnfast
