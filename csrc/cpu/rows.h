// Rows: one timestep of a tile of neurons, in memory in the tensors' dtype, in the loops in R
// (float, or double). A row that is already R is read and written where it lies; any other goes
// through a buffer in L1, and so do the tails that fill no whole vector. The loops know neither.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.h"
#include "lif.h"

namespace snnfast {
inline namespace SNN_ISA {

// The steps between two stored states, and the neurons that go through them together: few enough
// for what backward holds of them to stay in L1 or close to it.
constexpr int kSegment = 8;
constexpr int64_t kTile = 512;

template <class R>
constexpr int64_t vectors_of(int64_t n) {
  return (n + Lanes<R>::kCount - 1) / Lanes<R>::kCount;
}

template <class R>
SNN_HD Lanes<R> load(const R* p) {
  return Io<R>::load(p);
}
template <class R>
SNN_HD void store(R* p, Lanes<R> v) {
  Io<R>::store(p, v);
}

template <class R>
void copy_row(R* to, const R* from, int64_t n) {
  std::memcpy(to, from, size_t(n) * sizeof(R));
}
template <class R>
void add_row(R* sum, const R* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
}
// A row from memory, or the same number everywhere. The lanes behind a tail are computed with, if
// not stored, so they get numbers, too.
template <class R>
void set_row(R* row, const R* from, int64_t n, R otherwise) {
  if (!from || n < kTile) std::fill(row, row + kTile, otherwise);
  if (from) copy_row(row, from, n);
}

// Where the next row lies: a loop asks for it, vector by vector, while it works on this one.
struct Ahead {
  const char* row;
  int64_t itemsize;
  SNN_HD void fetch(int64_t i) const {
    __builtin_prefetch(row + i * itemsize);
    __builtin_prefetch(row + i * itemsize + 64);
  }
};

// Where a loop puts its row: in L1 or in memory, and then past the caches if that is wanted; or,
// for a sum over time, on top of what is there.
template <class R>
struct Out {
  R* row;
  bool stream, add;
  SNN_HD void put(int64_t i, Lanes<R> v) const {
    if (stream) return Io<R>::stream(row + i, v);
    if (add) v = v + load(row + i);
    store(row + i, v);
  }
};

// Calls f with a null pointer to what the dtype is in memory.
template <class F>
void with_storage(int dtype, F&& f) {
  if (dtype == kFloat32) return f(static_cast<const float*>(nullptr));
  if (dtype == kFloat64) return f(static_cast<const double*>(nullptr));
  if (dtype == kFloat16) return f(static_cast<const Half*>(nullptr));
  f(static_cast<const BFloat16*>(nullptr));
}

inline int64_t itemsize_of(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Whether a row of n elements can be used where it lies.
template <class R>
bool lies_well(int dtype, int64_t n) {
  return itemsize_of(dtype) == int64_t(sizeof(R)) && n % Lanes<R>::kCount == 0;
}

template <class S>
void widen_row(const void* from, float* to, int64_t n) {
  constexpr int kCount = Lanes<float>::kCount;
  const S* p = static_cast<const S*>(from);
  int64_t i = 0;
  for (; i + kCount <= n; i += kCount) store(to + i, Io<S>::load(p + i));
  if (i < n) {
    S tail[kCount] = {};
    std::memcpy(tail, p + i, size_t(n - i) * sizeof(S));
    store(to + i, Io<S>::load(tail));
  }
}

template <class S>
void narrow_row(const float* from, void* to, int64_t n, bool stream) {
  constexpr int kCount = Lanes<float>::kCount;
  S* p = static_cast<S*>(to);
  int64_t i = 0;
  for (; i + kCount <= n; i += kCount)
    stream ? Io<S>::stream(p + i, load(from + i)) : Io<S>::store(p + i, load(from + i));
  if (i < n) {
    S tail[kCount];
    Io<S>::store(tail, load(from + i));
    std::memcpy(p + i, tail, size_t(n - i) * sizeof(S));
  }
}

// The rows of one tile of a [T, N] that is read; a null tensor reads as null.
template <class R>
class RowsIn {
 public:
  RowsIn(const void* base, int dtype, int64_t stride, int64_t begin, int64_t n)
      : itemsize_(itemsize_of(dtype)),
        base_(base ? static_cast<const char*>(base) + begin * itemsize_ : nullptr),
        stride_(stride * itemsize_),
        n_(n),
        dtype_(dtype) {}

  Ahead ahead(int64_t t) const {
    // A prefetch never faults, wherever it points: a null tensor needs no case of its own.
    return {base_ + t * stride_, itemsize_};
  }
  // The same row of the tile that follows.
  Ahead ahead_of_tile(int64_t t) const { return {base_ + t * stride_ + n_ * itemsize_, itemsize_}; }
  // The row where it lies, or in `to`.
  const R* read(int64_t t, R* to) const {
    if (!base_) return nullptr;
    const char* row = base_ + t * stride_;
    if (lies_well<R>(dtype_, n_)) return reinterpret_cast<const R*>(row);
    if constexpr (sizeof(R) == 4) {
      if (dtype_ == kFloat16) return widen_row<Half>(row, to, n_), to;
      if (dtype_ == kBFloat16) return widen_row<BFloat16>(row, to, n_), to;
    }
    set_row(to, reinterpret_cast<const R*>(row), n_, R(0));
    return to;
  }

 private:
  int64_t itemsize_;
  const char* base_;
  int64_t stride_, n_;
  int dtype_;
};

// The same with room for the rows of a segment side by side.
template <class R>
class Reader : public RowsIn<R> {
 public:
  using RowsIn<R>::RowsIn;
  const R* read(int64_t t) { return RowsIn<R>::read(t, buffer_ + t % kSegment * kTile); }

 private:
  alignas(64) R buffer_[kSegment * kTile];
};

// The rows of one tile of a [T, N] that is written; or, where `sum`, their sum over time.
template <class R>
class RowsOut {
 public:
  // Outputs that no cache could hold until they are read again go past it (which saves reading the
  // lines that they overwrite), where all rows begin on a register's boundary. `moved`: the
  // elements that the whole call moves, 0 where they are wanted soon.
  RowsOut(void* base, int dtype, int64_t stride, int64_t begin, int64_t n, int64_t moved,
          bool sum = false)
      : itemsize_(itemsize_of(dtype)),
        base_(static_cast<char*>(base) + begin * itemsize_),
        stride_(stride * itemsize_),
        n_(n),
        dtype_(dtype),
        direct_(!sum && lies_well<R>(dtype, n)),
        sum_(sum) {
    static const int64_t kCacheBytes = cache_bytes();
    stream_ = kCanStream && !sum && moved * itemsize_ > kCacheBytes &&
              reinterpret_cast<uintptr_t>(base_) % kRegisterBytes == 0 &&
              stride_ % kRegisterBytes == 0;
  }

  // Where the row belongs, or `buffer`, from which write() then takes it; for a sum the buffer is
  // 0 before the first row and finish() takes it.
  Out<R> row(int64_t t, R* buffer) {
    if (direct_) return {reinterpret_cast<R*>(base_ + t * stride_), stream_, false};
    return {buffer, false, sum_};
  }
  // A row in memory, or where nothing is asked for.
  Ahead ahead(int64_t t) const {
    static constexpr char kNowhere[64] = {};
    if (stream_ || sum_) return {kNowhere, 0};
    return {base_ + t * stride_, itemsize_};
  }
  // From row to row, in elements.
  int64_t step() const { return direct_ ? stride_ / itemsize_ : kTile; }
  bool sums() const { return sum_; }
  void write(int64_t t, const R* buffer) {
    if (!direct_ && !sum_) put(base_ + t * stride_, buffer);
  }
  void finish(const R* buffer) {
    if (sum_) put(base_, buffer);
  }

 private:
  void put(char* row, const R* from) {
    if constexpr (sizeof(R) == 4) {
      if (dtype_ == kFloat16) return narrow_row<Half>(from, row, n_, stream_);
      if (dtype_ == kBFloat16) return narrow_row<BFloat16>(from, row, n_, stream_);
    }
    copy_row(reinterpret_cast<R*>(row), from, n_);
  }

  int64_t itemsize_;
  char* base_;
  int64_t stride_, n_;
  int dtype_;
  bool direct_, stream_, sum_;
};

// The same with room for the rows of a segment, which stay where they were put until the next.
template <class R>
class Writer : public RowsOut<R> {
 public:
  template <class... Args>
  explicit Writer(Args... args) : RowsOut<R>(args...) {
    if (this->sums()) std::fill(buffer_, buffer_ + kTile, R(0));
  }
  Out<R> row(int64_t t) { return RowsOut<R>::row(t, at(t)); }
  void write(int64_t t) { RowsOut<R>::write(t, at(t)); }
  void finish() { RowsOut<R>::finish(buffer_); }

 private:
  R* at(int64_t t) { return buffer_ + (this->sums() ? 0 : t % kSegment * kTile); }
  alignas(64) R buffer_[kSegment * kTile];
};

}  // namespace SNN_ISA
}  // namespace snnfast
