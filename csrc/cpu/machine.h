// What the interpreter computes with: a tile's parameters, a program and its values, rows that are
// asked for ahead of time, and the memory that all of it lies in.
#pragma once

#include <algorithm>

#include "memory.h"
#include "norm.h"
#include "operations.h"

namespace snnfast {
inline namespace SNN_ISA {

// From row to row: no power of two, so that they do not share lines of the cache.
template <class R>
constexpr int64_t kRow = sizeof(TileRow<R>) / sizeof(R);

// Pieces of a thread's memory, one after the other.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : next_(static_cast<char*>(memory_.take(size_t(bytes)))) {}
  template <class T>
  static constexpr int64_t bytes(int64_t count) {
    return (count * int64_t(sizeof(T)) + 63) / 64 * 64;
  }
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    return piece;
  }

 private:
  Memory memory_;
  char* next_;
};

// The rows that a step asks for, for those that follow; each instruction fetches a share.
class Fetch {
 public:
  Fetch(int64_t n, int64_t instructions) : n_(n), instructions_(instructions) {}
  void add(const Ahead& ahead) {
    if (!ahead.itemsize || count_ == kMost) return;
    const int64_t lines = (n_ * ahead.itemsize + 63) / 64;
    rows_[count_++] = {ahead.row, lines};
    total_ += lines;
  }
  void start() {
    now_ = 0, share_ = (total_ + instructions_ - 1) / std::max<int64_t>(1, instructions_);
  }
  void some() {
    for (int64_t left = share_; left > 0 && now_ < count_;) {
      auto& row = rows_[now_];
      const int64_t lines = std::min(left, row.lines);
      for (int64_t k = 0; k < lines; ++k) __builtin_prefetch(row.at + 64 * k);
      left -= lines, row.at += 64 * lines, row.lines -= lines;
      now_ += row.lines == 0;
    }
  }

 private:
  static constexpr int kMost = 12;
  struct {
    const char* at;
    int64_t lines;
  } rows_[kMost];
  int64_t n_, instructions_, total_ = 0, share_ = 0;
  int count_ = 0, now_ = 0;
};

// A tile of neurons and what its parameters are.
template <class R>
struct Tile {
  int64_t begin, n, count;  // count: n up to whole vectors
  Channels channels;
  Place<R>* params;
  bool wide = false;  // whether a parameter differs within the tile

  static int64_t bytes(const ProgramLayer& layer) {
    return Workspace::bytes<Place<R>>(layer.params.count) +
           layer.params.count * Workspace::bytes<R>(kRow<R>);
  }
  Tile(const ProgramLayer& layer, int64_t begin, int64_t n, Workspace& room)
      : begin(begin),
        n(n),
        count(vectors_of<R>(n) * Lanes<R>::kCount),
        channels(layer.channels, layer.inner, begin, n),
        params(room.take<Place<R>>(layer.params.count)) {
    for (int64_t k = 0; k < layer.params.count; ++k) {
      TileRow<R>(&row)[1] = *reinterpret_cast<TileRow<R>(*)[1]>(room.take<TileRow<R>>(1));
      const Parameter& p = layer.params[k];
      const R* data = static_cast<const R*>(p.data);
      const bool spread = p.per_channel && !channels.one();
      if (spread)
        channels.spread({p.data}, row);
      else
        std::fill(row->at, row->at + Lanes<R>::kCount, data[p.per_channel ? channels.first() : 0]);
      params[k] = {row->at, spread};
      wide = wide || spread;
    }
  }
};

// A program with its values for a tile.
template <class R>
class Machine {
 public:
  static int64_t bytes(const ProgramCode& code, const ProgramLayer& layer) {
    return Workspace::bytes<Place<R>>(first_register(code, layer) + code.registers) +
           code.constants * Workspace::bytes<R>(Lanes<R>::kCount) +
           (code.hoisted + code.registers) * Workspace::bytes<R>(kRow<R>);
  }
  Machine(const ProgramCode& code, const ProgramLayer& layer, const Tile<R>& tile, Workspace& room)
      : code_(code), count_(tile.count) {
    const int64_t first = first_register(code, layer);
    places_ = room.take<Place<R>>(first + code.registers);
    Place<R>* next = places_;
    for (int64_t k = 0; k < code.constants; ++k) {
      R* splat = room.take<R>(Lanes<R>::kCount);
      std::fill(splat, splat + Lanes<R>::kCount, R(code.constant[k]));
      *next++ = {splat, 0};
    }
    for (int64_t k = 0; k < code.hoisted; ++k) *next++ = {room.take<R>(kRow<R>), tile.wide};
    for (int64_t k = 0; k < layer.params.count; ++k) *next++ = tile.params[k];
    input = next, state = input + layer.inputs.count, dout = state + layer.states.count;
    dstate = dout + layer.outputs, result = dstate + layer.states.count;
    for (int64_t k = 0; k < code.registers; ++k) places_[first + k] = {room.take<R>(kRow<R>)};
    for (int64_t k = 0; k < code.hoisted; ++k)
      execute(code.code[k], tile.wide ? count_ : Lanes<R>::kCount);
  }

  Place<R>*input, *state, *dout, *dstate, *result;

  void run(Fetch& fetch) const {
    fetch.start();
    const Instruction *in = code_.code + code_.hoisted, *end = in + code_.instructions;
    for (; in != end; ++in) {
      fetch.some();
      execute(*in, count_);
    }
  }
  Fetch fetch(int64_t n) const { return {n, code_.instructions}; }

 private:
  static int64_t first_register(const ProgramCode& code, const ProgramLayer& layer) {
    return code.constants + code.hoisted + layer.params.count + layer.inputs.count +
           2 * layer.states.count + layer.outputs + code.results;
  }
  void execute(const Instruction& in, int64_t count) const {
    kOperations[in.operation](places_, in, count);
  }

  const ProgramCode& code_;
  int64_t count_;
  Place<R>* places_;
};

template <class R>
Place<R> reads(const R* row) {
  return {const_cast<R*>(row)};
}
// What goes past the caches may be read again from the buffer.
template <class R>
Place<R> writes(RowsOut<R>& to, int64_t t, R* buffer) {
  const Out<R> row = to.row(t, buffer);
  R* const at = static_cast<R*>(row.row);
  if (row.stream) return {buffer, 1, at, false};
  return {at, 1, nullptr, row.add};
}

}  // namespace SNN_ISA
}  // namespace snnfast
