// Normalisation of the rows of a tile, on the way into a neuron and back.
#pragma once

#include "rows.h"

namespace snnfast {
inline namespace SNN_ISA {

// A row with one value per neuron of a tile, and room behind it for a register that starts in it.
template <class R>
struct TileRow {
  alignas(64) R at[kTile + Lanes<R>::kPerRegister];
};

// Which channels the neurons of a tile belong to.
class Channels {
 public:
  Channels(int64_t count, int64_t inner, int64_t begin, int64_t n)
      : count_(count), inner_(inner), n_(n) {
    if (!count) return;
    const int64_t run = begin / inner;
    first_ = run % count, left_ = inner - (begin - run * inner);
  }
  // Of the first neuron; and whether the others have the same.
  int64_t first() const { return first_; }
  bool one() const { return count_ == 1 || n_ <= left_; }
  // f(index in the tile, channel, length) for every run of neurons of one channel.
  template <class F>
  SNN_HD void for_each_run(F&& f) const {
    int64_t c = first_, left = left_;
    for (int64_t i = 0; i < n_;) {
      const int64_t run = std::min(left, n_ - i);
      f(i, c, run);
      i += run, left = inner_;
      if (++c == count_) c = 0;
    }
  }
  // f(index in the tile, channel, length) for every run of neurons of successive channels, where
  // these are the innermost axis.
  template <class F>
  SNN_HD void for_each_row(F&& f) const {
    for (int64_t i = 0, c = first_; i < n_; c = 0) {
      const int64_t run = std::min(count_ - c, n_ - i);
      f(i, c, run);
      i += run;
    }
  }
  // One value per channel each, spread over the neurons.
  template <class R, int kCount>
  void spread(const void* const (&from)[kCount], TileRow<R> (&to)[kCount]) const {
    using Reg = typename Register<R>::type;
    const auto each = [](auto f) {
      for (int k = 0; k < kCount; ++k) f(k);
    };
    if (inner_ == 1) {
      for_each_row([&](int64_t i, int64_t c, int64_t run) {
        each([&](int k) { copy_row(to[k].at + i, static_cast<const R*>(from[k]) + c, run); });
      });
    } else {
      // Whole registers, whose ends the next run takes over.
      for_each_run([&](int64_t i, int64_t c, int64_t run) {
        Reg value[kCount];
        each([&](int k) { value[k] = static_cast<const R*>(from[k])[c] - Reg{}; });
        for (int64_t j = 0; j < run; j += Lanes<R>::kPerRegister)
          each([&](int k) { *(typename Register<R>::loose*)(to[k].at + i + j) = value[k]; });
      });
    }
    // The lanes behind a tail are computed with, if not stored.
    each([&](int k) { std::fill(to[k].at + n_, to[k].at + kTile, R(1)); });
  }
  // sums[c] += row[i] over the neurons of every channel.
  template <class R>
  void add(const R* row, double* sums) const {
    if (inner_ == 1) {
      for_each_row([&](int64_t i, int64_t c, int64_t run) {
        for (int64_t j = 0; j < run; ++j) sums[c + j] += double(row[i + j]);
      });
    } else {
      for_each_run(
          [&](int64_t i, int64_t c, int64_t run) { sums[c] += double(sum_of(row + i, run)); });
    }
  }

 private:
  // The sum of n elements.
  template <class R>
  SNN_HD static R sum_of(const R* p, int64_t n) {
    constexpr int kPer = Lanes<R>::kPerRegister;
    typename Register<R>::type sums = {};
    int64_t i = 0;
    for (; i + kPer <= n; i += kPer) sums += *(const typename Register<R>::loose*)(p + i);
    R total = sum_lanes(sums);
    for (; i < n; ++i) total += p[i];
    return total;
  }

  int64_t count_, inner_, n_, first_ = 0, left_ = 0;
};

// Rows of X = (Y - mean) scale + bias [+ residual] of a tile, computed when they are read; or of X
// as it is.
template <class R>
class Source {
 public:
  using V = Lanes<R>;
  Source(const void* x, int dtype, int64_t stride, const LifNorm& norm, int64_t begin, int64_t n)
      : y_(x, dtype, stride, begin, n),
        residual_(norm.residual, dtype, norm.residual_stride, begin, n),
        channels_(norm.channels, norm.inner, begin, n),
        vectors_(vectors_of<R>(n)),
        normal_(norm.mean != nullptr) {
    if (!normal_) return;
    channels_.spread({norm.mean, norm.scale, norm.bias}, rows_);
  }
  Ahead ahead(int64_t t) const { return y_.ahead(t); }
  Ahead ahead_of_tile(int64_t t) const { return y_.ahead_of_tile(t); }
  const Reader<R>& residual() const { return residual_; }

  // The row of step t: where it lies; or normalised in `x`, when rows of Y and of the residual that
  // are wanted later are asked for. `centred` gets Y - mean unless it is null.
  In<R> read(int64_t t, R* x, Ahead later, Ahead later_residual, R* centred = nullptr) {
    const In<R> y = y_.read(t);
    if (!normal_) return y;
    const bool more = !residual_.null();
    const In<R> r = more ? residual_.read(t) : In<R>{};
    for (int64_t i = 0; i < vectors_ * V::kCount; i += V::kCount) {
      later.fetch_later(i);
      const V d = y.load(i) - load(rows_[0].at + i);
      if (centred) store(centred + i, d);
      V x_i = d * load(rows_[1].at + i) + load(rows_[2].at + i);
      if (more) later_residual.fetch_later(i), x_i = x_i + r.load(i);
      store(x + i, x_i);
    }
    return {x};
  }
  bool normal() const { return normal_; }
  const Channels& channels() const { return channels_; }

 private:
  Reader<R> y_, residual_;
  Channels channels_;
  int64_t vectors_;
  bool normal_;
  TileRow<R> rows_[3];  // mean, scale, bias
};

// Sums over time of d and of d times something, one of each for every neuron of a tile.
template <class R>
struct Moments {
  TileRow<R> sum, product;
  bool empty = true;
  // Of rows of d; those of `by` are kTile apart.
  void add(int steps, int64_t vectors, const R* const* d, const R* by) {
    using V = Lanes<R>;
    for (int64_t i = 0; i < vectors * V::kCount; i += V::kCount) {
      V first(0), second(0);
      if (!empty) first = load(sum.at + i), second = load(product.at + i);
      for (int t = 0; t < steps; ++t) {
        const V v = load(d[t] + i);
        first = first + v;
        second = mad_(v, load(by + t * kTile + i), second);
      }
      store(sum.at + i, first), store(product.at + i, second);
    }
    empty = false;
  }
};

}  // namespace SNN_ISA
}  // namespace snnfast
