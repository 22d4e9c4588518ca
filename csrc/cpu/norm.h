// Normalisation of the rows of a tile, on the way into a neuron and back.
#pragma once

#include "rows.h"

namespace snnfast {
inline namespace SNN_ISA {

// f(index in the tile, channel, length) for every run of neurons of one channel.
template <class F>
void for_each_run(int64_t channels, int64_t inner, int64_t begin, int64_t n, F&& f) {
  int64_t c = begin / inner % channels, left = inner - begin % inner;
  for (int64_t i = 0; i < n;) {
    const int64_t run = std::min(left, n - i);
    f(i, c, run);
    i += run, left = inner;
    if (++c == channels) c = 0;
  }
}

// One value per channel, spread over the neurons of a tile.
template <class R>
void spread(const void* from, int64_t channels, int64_t inner, int64_t begin, int64_t n, R* to) {
  const R* values = static_cast<const R*>(from);
  if (inner == 1) {
    for (int64_t i = 0, c = begin % channels; i < n; c = 0) {
      const int64_t run = std::min(channels - c, n - i);
      copy_row(to + i, values + c, run);
      i += run;
    }
  } else {
    for_each_run(channels, inner, begin, n, [&](int64_t i, int64_t c, int64_t run) {
      for (int64_t j = 0; j < run; ++j) to[i + j] = values[c];
    });
  }
  // The lanes behind a tail are computed with, if not stored.
  for (int64_t i = n; i < kTile; ++i) to[i] = R(1);
}

// The sum of n elements.
template <class R>
R sum_of(const R* p, int64_t n) {
  constexpr int kPer = Lanes<R>::kPerRegister;
  typename Register<R>::type sums = {};
  int64_t i = 0;
  for (; i + kPer <= n; i += kPer) sums += *(const typename Register<R>::loose*)(p + i);
  R total(0);
  for (; i < n; ++i) total += p[i];
  for (int k = 0; k < kPer; ++k) total += sums[k];
  return total;
}

// sums[c] += row[i] over the neurons of every channel.
template <class R>
void add_to_channels(const R* row, int64_t channels, int64_t inner, int64_t begin, int64_t n,
                     double* sums) {
  if (inner == 1) {
    for (int64_t i = 0, c = begin % channels; i < n; c = 0) {
      const int64_t run = std::min(channels - c, n - i);
      for (int64_t j = 0; j < run; ++j) sums[c + j] += double(row[i + j]);
      i += run;
    }
  } else {
    for_each_run(channels, inner, begin, n, [&](int64_t i, int64_t c, int64_t run) {
      sums[c] += double(sum_of(row + i, run));
    });
  }
}

// Rows of X = (Y - mean) scale + bias [+ residual], computed when they are read; or of X as it is.
template <class R>
class Source {
 public:
  Source(const void* x, int dtype, int64_t stride, const LifNorm& norm, int64_t begin, int64_t n)
      : y_(x, dtype, stride, begin, n),
        residual_(norm.residual, dtype, norm.residual_stride, begin, n),
        vectors_(vectors_of<R>(n)),
        normal_(norm.mean != nullptr) {
    if (!normal_) return;
    spread(norm.mean, norm.channels, norm.inner, begin, n, mean_);
    spread(norm.scale, norm.channels, norm.inner, begin, n, scale_);
    spread(norm.bias, norm.channels, norm.inner, begin, n, bias_);
  }
  Ahead ahead(int64_t t) const { return y_.ahead(t); }
  Ahead ahead_of_tile(int64_t t) const { return y_.ahead_of_tile(t); }
  const R* read(int64_t t) {
    const R* y = y_.read(t);
    if (!normal_) return y;
    const R* r = residual_.read(t);
    for (int64_t k = 0; k < vectors_; ++k) {
      const int64_t i = k * Lanes<R>::kCount;
      auto x = (load(y + i) - load(mean_ + i)) * load(scale_ + i) + load(bias_ + i);
      store(x_ + i, r ? x + load(r + i) : x);
    }
    return x_;
  }
  // Adds d and d (y - mean) of step t to two rows.
  void add_sums(int64_t t, const R* d, R* sum, R* moment) {
    const R* y = y_.read(t);
    for (int64_t k = 0; k < vectors_; ++k) {
      const int64_t i = k * Lanes<R>::kCount;
      const auto g = load(d + i);
      store(sum + i, load(sum + i) + g);
      store(moment + i, mad_(g, load(y + i) - load(mean_ + i), load(moment + i)));
    }
  }
  bool normal() const { return normal_; }

 private:
  Reader<R> y_, residual_;
  int64_t vectors_;
  bool normal_;
  alignas(64) R x_[kTile], mean_[kTile], scale_[kTile], bias_[kTile];
};

}  // namespace SNN_ISA
}  // namespace snnfast
