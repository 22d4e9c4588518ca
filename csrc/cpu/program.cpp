// The interpreter of neurons' programs, for one instruction set (SNN_ISA, given by the build): an
// instruction is a loop over the neurons of a tile, whose values lie in rows that stay in L1.
// Backward advances through a segment from the states at its border, keeping those of every step,
// then runs the adjoint step by step in reverse.
#include "program.h"

#include <utility>

#include "memory.h"
#include "norm.h"
#include "operations.h"
#include "tiles.h"

namespace snnfast {
inline namespace SNN_ISA {
namespace {

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
    for (int64_t k = 0; k < code.before; ++k)
      execute(code.code[k], tile.wide ? count_ : Lanes<R>::kCount);
  }

  Place<R>*input, *state, *dout, *dstate, *result;

  void run(Fetch& fetch) const {
    fetch.start();
    const Instruction *in = code_.code + code_.before, *end = in + code_.instructions;
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
  if (row.stream) return {buffer, 1, row.row, false};
  return {row.row, 1, nullptr, row.add};
}

// The place of a state before step `first` of a segment.
template <class R>
const R* start_of(const ProgramLayer& layer, const void* borders, int64_t k, int64_t first) {
  const int64_t segments = (layer.steps + kSegment - 1) / kSegment;
  if (first == 0) return static_cast<const R*>(layer.states[k]);
  return static_cast<const R*>(borders) + (k * (segments - 1) + first / kSegment - 1) * layer.n;
}

template <class R>
void forward_tile(const ProgramLayer& layer, const ProgramForward& io, int64_t begin, int64_t n) {
  const int64_t inputs = layer.inputs.count, outputs = layer.outputs, states = layer.states.count;
  const int64_t rows = inputs + outputs + 2 * states;
  Workspace room(Tile<R>::bytes(layer) + Machine<R>::bytes(io.forward, layer) +
                 Workspace::bytes<RowsIn<R>>(inputs) + Workspace::bytes<RowsOut<R>>(outputs) +
                 2 * Workspace::bytes<R*>(states) + rows * Workspace::bytes<R>(kRow<R>));
  const Tile<R> tile(layer, begin, n, room);
  const Machine<R> step(io.forward, layer, tile, room);
  RowsIn<R>* const xs = room.take<RowsIn<R>>(inputs);
  RowsOut<R>* const ss = room.take<RowsOut<R>>(outputs);
  R **now = room.take<R*>(states), **next = room.take<R*>(states);
  R* const buffers = room.take<R>(kRow<R> * (inputs + outputs));
  const int64_t moved = (inputs + outputs) * layer.steps * layer.n;
  for (int64_t k = 0; k < inputs; ++k)
    xs[k] = {layer.inputs[k].data, layer.dtype, layer.inputs[k].stride, begin, n};
  for (int64_t k = 0; k < outputs; ++k)
    ss[k] = {io.outputs[k].data, layer.dtype, io.outputs[k].stride, begin, n, moved};
  for (int64_t k = 0; k < states; ++k) {
    now[k] = room.take<R>(kRow<R>), next[k] = room.take<R>(kRow<R>);
    const R* v0 = start_of<R>(layer, nullptr, k, 0);
    set_row(now[k], v0 ? v0 + begin : nullptr, n, R(layer.rest[k]));
  }

  for (int64_t t = 0; t < layer.steps; ++t) {
    Fetch fetch = step.fetch(n);
    for (int64_t k = 0; k < inputs; ++k) {
      step.input[k] = reads(xs[k].read(t, buffers + k * kRow<R>));
      fetch.add(t + 1 < layer.steps ? xs[k].ahead(t + 1) : xs[k].ahead_of_tile(0));
    }
    for (int64_t k = 0; k < outputs; ++k)
      step.result[k] = writes(ss[k], t, buffers + (inputs + k) * kRow<R>);
    for (int64_t k = 0; k < states; ++k) {
      if (io.borders && t > 0 && t % kSegment == 0)
        copy_row(const_cast<R*>(start_of<R>(layer, io.borders, k, t)) + begin, now[k], n);
      step.state[k] = reads(now[k]), step.result[outputs + k] = reads(next[k]);
    }
    step.run(fetch);
    std::swap(now, next);
    for (int64_t k = 0; k < outputs; ++k) ss[k].write(t, buffers + (inputs + k) * kRow<R>);
    for (int64_t k = 0; k < io.new_states.count; ++k) {
      R* const to = static_cast<R*>(io.new_states[k]) + begin;
      if (io.every_step) copy_row(to + t * layer.n, now[k], n);
      if (!io.every_step && t + 1 == layer.steps) copy_row(to, now[k], n);
    }
  }
}

template <class R>
void add_row(R* sum, const R* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
}

// What backward sums up of a parameter: a number, or one for each channel.
inline int64_t sums_of(const ProgramLayer& layer, int64_t k) {
  return layer.params[k].per_channel ? layer.channels : 1;
}
inline int64_t all_sums(const ProgramLayer& layer) {
  int64_t count = 0;
  for (int64_t k = 0; k < layer.params.count; ++k) count += sums_of(layer, k);
  return count;
}

template <class R>
void backward_tile(const ProgramLayer& layer, const ProgramBackward& io, int64_t chunk,
                   int64_t begin, int64_t n) {
  const int64_t inputs = layer.inputs.count, outputs = layer.outputs, states = layer.states.count;
  const int64_t params = layer.params.count;
  const int64_t rows = inputs * (kSegment + 1) + outputs + states * (kSegment + 2) + params;
  Workspace room(Tile<R>::bytes(layer) + Machine<R>::bytes(io.advance, layer) +
                 Machine<R>::bytes(io.adjoint, layer) + Workspace::bytes<RowsIn<R>>(inputs) +
                 Workspace::bytes<RowsIn<R>>(outputs) + Workspace::bytes<RowsOut<R>>(inputs) +
                 Workspace::bytes<const R*>(inputs * kSegment) + 2 * Workspace::bytes<R*>(states) +
                 (rows + 1) * Workspace::bytes<R>(kRow<R>));
  const Tile<R> tile(layer, begin, n, room);
  const Machine<R> advance(io.advance, layer, tile, room), adjoint(io.adjoint, layer, tile, room);
  RowsIn<R>*const xs = room.take<RowsIn<R>>(inputs), *const dss = room.take<RowsIn<R>>(outputs);
  RowsOut<R>* const dxs = room.take<RowsOut<R>>(inputs);
  const R** const x_at = room.take<const R*>(inputs * kSegment);
  R **now = room.take<R*>(states), **next = room.take<R*>(states);
  const auto row = [&](int64_t count = 1) { return room.take<R>(count * kRow<R>); };
  R *const x_rows = row(inputs * kSegment), *const dx_rows = row(inputs);
  R *const ds_rows = row(outputs), *const before = row(states * kSegment);
  R *const sums = row(params), *const zeros = row();
  std::fill(zeros, zeros + Lanes<R>::kCount, R(0));
  std::fill(sums, sums + params * kRow<R>, R(0));
  const auto x_row = [&](int64_t k, int64_t t) { return x_rows + (k * kSegment + t) * kRow<R>; };
  const auto state_at = [&](int64_t k, int64_t t) { return before + (k * kSegment + t) * kRow<R>; };

  const int64_t moved = (2 * inputs + outputs) * layer.steps * layer.n;
  for (int64_t k = 0; k < inputs; ++k) {
    const Sequence &x = layer.inputs[k], &dx = io.dinputs[k];
    xs[k] = {x.data, layer.dtype, x.stride, begin, n};
    dxs[k] = {dx.data, layer.dtype, dx.stride, begin, n, dx.sum ? 0 : moved, dx.sum};
    if (dx.sum) std::fill(dx_rows + k * kRow<R>, dx_rows + (k + 1) * kRow<R>, R(0));
  }
  for (int64_t k = 0; k < outputs; ++k)
    dss[k] = {io.douts[k].data, layer.dtype, io.douts[k].stride, begin, n};
  for (int64_t k = 0; k < states; ++k) {
    const R* last = io.dstates[k].sum ? static_cast<const R*>(io.dstates[k].data) : nullptr;
    now[k] = row(), next[k] = row();
    set_row(now[k], last ? last + begin : nullptr, n, R(0));
  }
  for (int64_t k = 0; k < params; ++k)
    adjoint.result[inputs + states + k] = {sums + k * kRow<R>, 1, nullptr, true};

  const int64_t last = (layer.steps - 1) / kSegment * kSegment;
  for (int64_t first = last; first >= 0; first -= kSegment) {
    const int64_t steps = std::min<int64_t>(kSegment, layer.steps - first);
    for (int64_t k = 0; k < states; ++k) {
      const R* v = start_of<R>(layer, io.borders, k, first);
      set_row(state_at(k, 0), v ? v + begin : nullptr, n, R(layer.rest[k]));
    }
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t k = 0; k < inputs; ++k)
        x_at[k * kSegment + t] = xs[k].read(first + t, x_row(k, t));
      if (t + 1 == steps) break;
      Fetch fetch = advance.fetch(n);
      for (int64_t k = 0; k < inputs; ++k) {
        advance.input[k] = reads(x_at[k * kSegment + t]);
        fetch.add(xs[k].ahead(first + t + 1));
        if (io.dinputs[k].data) fetch.add(dxs[k].ahead(first + t));
      }
      for (int64_t k = 0; k < states; ++k) {
        advance.state[k] = reads(state_at(k, t));
        advance.result[k] = reads(state_at(k, t + 1));
      }
      for (int64_t k = 0; k < outputs && t + 2 == steps; ++k)
        if (io.douts[k].data) fetch.add(dss[k].ahead(first + t + 1));
      advance.run(fetch);
    }
    for (int64_t t = steps - 1; t >= 0; --t) {
      Fetch fetch = adjoint.fetch(n);
      for (int64_t k = 0; k < inputs; ++k) {
        adjoint.input[k] = reads(x_at[k * kSegment + t]);
        if (io.dinputs[k].data)
          adjoint.result[k] = writes(dxs[k], first + t, dx_rows + k * kRow<R>);
        if (t == 0)
          fetch.add(first > 0 ? xs[k].ahead(first - kSegment) : xs[k].ahead_of_tile(last));
      }
      for (int64_t k = 0; k < outputs; ++k) {
        const R* ds = dss[k].read(first + t, ds_rows + k * kRow<R>);
        adjoint.dout[k] = ds ? reads(ds) : Place<R>{zeros, 0};
        if (ds && t > 0) fetch.add(dss[k].ahead(first + t - 1));
      }
      for (int64_t k = 0; k < states; ++k) {
        const Sequence& given = io.dstates[k];
        if (given.data && !given.sum)
          add_row(now[k], static_cast<const R*>(given.data) + (first + t) * layer.n + begin, n);
        adjoint.state[k] = reads(state_at(k, t));
        adjoint.dstate[k] = reads(now[k]), adjoint.result[inputs + k] = reads(next[k]);
      }
      adjoint.run(fetch);
      std::swap(now, next);
      for (int64_t k = 0; k < inputs; ++k)
        if (io.dinputs[k].data) dxs[k].write(first + t, dx_rows + k * kRow<R>);
    }
  }
  for (int64_t k = 0; k < inputs; ++k)
    if (io.dinputs[k].data) dxs[k].finish(dx_rows + k * kRow<R>);
  for (int64_t k = 0; k < states; ++k)
    if (io.dstates0[k]) copy_row(static_cast<R*>(io.dstates0[k]) + begin, now[k], n);
  double* partial = io.partial + chunk * all_sums(layer);
  for (int64_t k = 0; k < params; partial += sums_of(layer, k++)) {
    const Channels all(1, layer.n, begin, n);
    if (io.dparams[k])
      (layer.params[k].per_channel ? tile.channels : all).add(sums + k * kRow<R>, partial);
  }
}

template <class R>
void forward(const ProgramLayer& layer, const ProgramForward& io) {
  for_each_tile(layer,
                [&](int64_t, int64_t begin, int64_t n) { forward_tile<R>(layer, io, begin, n); });
}

template <class R>
void backward(const ProgramLayer& layer, const ProgramBackward& io) {
  const int64_t chunks = chunk_count(layer), count = all_sums(layer);
  std::fill(io.partial, io.partial + chunks * count, 0.0);
  for_each_tile(layer, [&](int64_t chunk, int64_t begin, int64_t n) {
    backward_tile<R>(layer, io, chunk, begin, n);
  });
  const double* total = add_chunks(io.partial, chunks, count);
  for (int64_t k = 0; k < layer.params.count; ++k) {
    const int64_t sums = sums_of(layer, k);
    if (io.dparams[k]) std::copy(total, total + sums, static_cast<R*>(io.dparams[k]));
    total += sums;
  }
}

}  // namespace
}  // namespace SNN_ISA

const char* SNN_ISA_NAME(program_operation)(int64_t i) {
  return i < kOperationCount ? kOperations[i].name : nullptr;
}

void SNN_ISA_NAME(program_forward)(const ProgramLayer& layer, const ProgramForward& io) {
  layer.dtype == kFloat64 ? forward<double>(layer, io) : forward<float>(layer, io);
}

void SNN_ISA_NAME(program_backward)(const ProgramLayer& layer, const ProgramBackward& io) {
  layer.dtype == kFloat64 ? backward<double>(layer, io) : backward<float>(layer, io);
}

}  // namespace snnfast
