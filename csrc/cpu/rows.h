// Rows: one timestep of a tile of neurons, in memory in the tensors' dtype, in the loops in R
// (float, or double). They are read and written where they lie, vector by vector; those with a tail
// that fills no whole vector go through a buffer in L1, and so do all that are not R where a loop
// (of the interpreter) wants R. The loops know neither.
#pragma once

#include <algorithm>
#include <cstring>

#include "lif.h"
#include "storage.h"

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

// Whether a row of n elements has no tail.
template <class R>
bool is_whole(int64_t n) {
  return n % Lanes<R>::kCount == 0;
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
  if (!from || n < kTile)
    for (int64_t i = 0; i < kTile; i += Lanes<R>::kCount) store(row + i, Lanes<R>(otherwise));
  if (from) copy_row(row, from, n);
}
// The same to read from alone: where it lies, if it has no tail; else in `room`.
template <class R>
const R* get_row(const R* from, int64_t n, R otherwise, R* room) {
  alignas(64) static constexpr R kZeros[kTile] = {};
  if (!from && otherwise == R(0)) return kZeros;
  if (from && is_whole<R>(n)) return from;
  set_row(room, from, n, otherwise);
  return room;
}

// Where a row lies that will be wanted: a loop asks for it, vector by vector, while it works on
// another. What the next step wants is to come to L1; what is wanted a tile later to the cache
// behind it, which keeps many more requests under way and has the room.
struct Ahead {
  const char* row;
  int64_t itemsize;
  // The lines of a vector from i on; kItem: an item's bytes, where a loop knows them.
  template <int kItem = 4>
  SNN_HD void fetch(int64_t i) const {
    for (int k = 0; k < kLines<kItem>; ++k) __builtin_prefetch(row + i * itemsize + 64 * k);
  }
  template <int kItem = 4>
  SNN_HD void fetch_later(int64_t i) const {
    for (int k = 0; k < kLines<kItem>; ++k) __builtin_prefetch(row + i * itemsize + 64 * k, 0, 2);
  }

 private:
  template <int kItem>
  static constexpr int kLines = Lanes<float>::kCount * kItem / 64;
};

// The dtype that is R.
template <class R>
constexpr int kDtypeOf = sizeof(R) == 8 ? kFloat64 : kFloat32;

// A row that a loop reads, in its dtype; kReal: known to be of R, as in Out.
template <class R>
struct In {
  const void* row = nullptr;
  int dtype = kDtypeOf<R>;
  bool real() const { return dtype == kDtypeOf<R>; }
  template <bool kReal = false>
  SNN_HD Lanes<R> load(int64_t i) const {
    if constexpr (sizeof(R) == 4 && !kReal) {
      if (dtype == kBFloat16) return Io<BFloat16>::load(static_cast<const BFloat16*>(row) + i);
      if (dtype == kFloat16) return Io<Half>::load(static_cast<const Half*>(row) + i);
    }
    return Io<R>::load(static_cast<const R*>(row) + i);
  }
};

// Where a loop puts its row: in L1 or in memory, and then past the caches if that is wanted; or,
// for a sum over time, on top of what is there.
template <class R>
struct Out {
  void* row;
  int dtype;
  bool stream, add;
  bool real() const { return dtype == kDtypeOf<R>; }
  template <bool kReal = false>
  SNN_HD void put(int64_t i, Lanes<R> v) const {
    if constexpr (sizeof(R) == 4 && !kReal) {
      if (dtype == kBFloat16) return put_as<BFloat16>(i, v);
      if (dtype == kFloat16) return put_as<Half>(i, v);
    }
    if (add) v = v + load(static_cast<const R*>(row) + i);
    put_as<R>(i, v);
  }

 private:
  template <class S>
  SNN_HD void put_as(int64_t i, Lanes<R> v) const {
    S* const to = static_cast<S*>(row) + i;
    stream ? Io<S>::stream(to, v) : Io<S>::store(to, v);
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

// Calls f with null pointers to what a row that is read and a narrow one that is written are in
// memory: of one dtype, or the former of float.
template <class F>
void with_narrow(int from, int to, F&& f) {
  const float* const real = nullptr;
  const auto call = [&](auto* narrow) {
    from == to ? f(const_cast<const std::remove_pointer_t<decltype(narrow)>*>(narrow), narrow)
               : f(real, narrow);
  };
  to == kFloat16 ? call(static_cast<Half*>(nullptr)) : call(static_cast<BFloat16*>(nullptr));
}

inline int64_t itemsize_of(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Whether so many bytes stay in cache from one call to the next.
inline bool stay_in_cache(int64_t bytes) {
  static const int64_t kCacheBytes = cache_bytes();
  return bytes <= kCacheBytes;
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
  // The row where it lies...
  In<R> at(int64_t t) const { return {base_ + t * stride_, dtype_}; }
  // ...or, if it is not R or has a tail, in `to`.
  const R* read(int64_t t, R* to) const {
    if (!base_) return nullptr;
    const char* row = base_ + t * stride_;
    if (dtype_ == kDtypeOf<R> && is_whole<R>(n_)) return reinterpret_cast<const R*>(row);
    if constexpr (sizeof(R) == 4) {
      if (dtype_ == kFloat16) return widen_row<Half>(row, to, n_), to;
      if (dtype_ == kBFloat16) return widen_row<BFloat16>(row, to, n_), to;
    }
    set_row(to, reinterpret_cast<const R*>(row), n_, R(0));
    return to;
  }
  bool null() const { return !base_; }
  int64_t size() const { return n_; }

 private:
  int64_t itemsize_;
  const char* base_;
  int64_t stride_, n_;
  int dtype_;
};

// The same with room for the rows of a segment side by side, for those with a tail.
template <class R>
class Reader : public RowsIn<R> {
 public:
  using RowsIn<R>::RowsIn;
  In<R> read(int64_t t) {
    if (is_whole<R>(this->size())) return this->at(t);
    return {RowsIn<R>::read(t, buffer_ + t % kSegment * kTile)};
  }

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
        sum_(sum) {
    stream_ = kCanStream && !sum && !stay_in_cache(moved * itemsize_) &&
              reinterpret_cast<uintptr_t>(base_) % kRegisterBytes == 0 &&
              stride_ % kRegisterBytes == 0;
  }

  // The row where it belongs...
  Out<R> at(int64_t t) const { return {base_ + t * stride_, dtype_, stream_, false}; }
  // ...or, if it is not R, has a tail or is a sum, `buffer`, from which write() then takes it; for
  // a sum the buffer is 0 before the first row and finish() takes it.
  Out<R> row(int64_t t, R* buffer) const {
    if (is_real()) return at(t);
    return {buffer, kDtypeOf<R>, false, sum_};
  }
  // The row of the tile that follows, or where nothing is asked for.
  Ahead ahead_of_tile(int64_t t) const { return ahead(base_ + t * stride_ + n_ * itemsize_); }
  Ahead ahead(int64_t t) const { return ahead(base_ + t * stride_); }
  void write(int64_t t, const R* buffer) {
    if (!is_real() && !sum_) put(base_ + t * stride_, buffer);
  }
  void finish(const R* buffer) {
    if (sum_) put(base_, buffer);
  }

 protected:
  bool is_whole_row() const { return !sum_ && is_whole<R>(n_); }
  bool is_real() const { return is_whole_row() && dtype_ == kDtypeOf<R>; }
  bool sums() const { return sum_; }

 private:
  Ahead ahead(const char* row) const {
    static constexpr char kNowhere[64] = {};
    if (stream_ || sum_) return {kNowhere, 0};
    return {row, itemsize_};
  }
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
  bool stream_, sum_;
};

// The same with room for the rows of a segment, for those with a tail or that are kept.
template <class R>
class Writer : public RowsOut<R> {
 public:
  template <class... Args>
  explicit Writer(Args... args) : RowsOut<R>(args...) {
    if (this->sums()) std::fill(buffer_, buffer_ + kTile, R(0));
  }
  Out<R> row(int64_t t) {
    return this->is_whole_row() ? this->at(t) : RowsOut<R>::row(t, buffer(t));
  }
  void write(int64_t t) {
    if (!this->is_whole_row()) RowsOut<R>::write(t, buffer(t));
  }
  bool narrow() const { return this->is_whole_row() && !this->is_real(); }
  // A row in R that stays where it is until the next segment.
  Out<R> keep(int64_t t) { return RowsOut<R>::row(t, buffer(t)); }
  void write_kept(int64_t t) { RowsOut<R>::write(t, buffer(t)); }
  void finish() { RowsOut<R>::finish(buffer_); }

 private:
  R* buffer(int64_t t) { return buffer_ + (this->sums() ? 0 : t % kSegment * kTile); }
  alignas(64) R buffer_[kSegment * kTile];
};

}  // namespace SNN_ISA
}  // namespace snnfast
