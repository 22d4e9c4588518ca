// The interpreter of neurons' programs, for one instruction set (SNN_ISA, given by the build): an
// instruction is a loop over the neurons of a tile, whose values lie in rows that stay in L1.
// Backward advances through a segment from the states at its border, keeping those of every step,
// then runs the adjoint step by step in reverse.
#include "program.h"

#include <utility>

#include "machine.h"
#include "tiles.h"

namespace snnfast {
inline namespace SNN_ISA {
namespace {

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

// What backward sums up of a parameter: a number, or one for each channel.
inline int64_t sums_of(const ProgramLayer& layer, int64_t k) {
  return layer.params[k].per_channel ? layer.channels : 1;
}
inline int64_t all_sums(const ProgramLayer& layer) {
  int64_t count = 0;
  for (int64_t k = 0; k < layer.params.count; ++k) count += sums_of(layer, k);
  return count;
}

// Backward of one tile.
template <class R>
class Backward {
 public:
  Backward(const ProgramLayer& layer, const ProgramBackward& io, int64_t begin, int64_t n)
      : layer_(layer),
        io_(io),
        begin_(begin),
        n_(n),
        room_(bytes()),
        tile_(layer, begin, n, room_),
        advance_(io.advance, layer, tile_, room_),
        adjoint_(io.adjoint, layer, tile_, room_) {
    xs_ = room_.take<RowsIn<R>>(inputs_), dxs_ = room_.take<RowsOut<R>>(inputs_);
    dss_ = room_.take<RowsIn<R>>(outputs_);
    x_at_ = room_.take<const R*>(inputs_ * kSegment);
    now_ = room_.take<R*>(states_), next_ = room_.take<R*>(states_);
    x_rows_ = rows(inputs_ * kSegment), dx_rows_ = rows(inputs_), ds_rows_ = rows(outputs_);
    before_ = rows(states_ * kSegment), sums_ = rows(params_), zeros_ = rows(1);
    std::fill(zeros_, zeros_ + Lanes<R>::kCount, R(0));
    std::fill(sums_, sums_ + params_ * kRow<R>, R(0));
    const int64_t moved = (2 * inputs_ + outputs_) * layer.steps * layer.n;
    for (int64_t k = 0; k < inputs_; ++k) {
      const Sequence &x = layer.inputs[k], &dx = io.dinputs[k];
      xs_[k] = {x.data, layer.dtype, x.stride, begin, n};
      dxs_[k] = {dx.data, layer.dtype, dx.stride, begin, n, dx.sum ? 0 : moved, dx.sum};
      std::fill(dx_row(k), dx_row(k + dx.sum), R(0));
    }
    for (int64_t k = 0; k < outputs_; ++k)
      dss_[k] = {io.douts[k].data, layer.dtype, io.douts[k].stride, begin, n};
    for (int64_t k = 0; k < states_; ++k) {
      const R* last = io.dstates[k].sum ? static_cast<const R*>(io.dstates[k].data) : nullptr;
      now_[k] = rows(1), next_[k] = rows(1);
      set_row(now_[k], last ? last + begin : nullptr, n, R(0));
    }
    for (int64_t k = 0; k < params_; ++k)
      adjoint_.result[inputs_ + states_ + k] = {sums_ + k * kRow<R>, 1, nullptr, true};
  }

  // Sums of the parameters' gradients are added to `partial`.
  void run(double* partial) {
    const int64_t last = (layer_.steps - 1) / kSegment * kSegment;
    for (int64_t first = last; first >= 0; first -= kSegment) {
      const int64_t steps = std::min<int64_t>(kSegment, layer_.steps - first);
      recompute(first, steps);
      for (int64_t t = steps - 1; t >= 0; --t) {
        Fetch fetch = adjoint_.fetch(n_);
        for (int64_t k = 0; k < inputs_ && t == 0; ++k)
          fetch.add(first > 0 ? xs_[k].ahead(first - kSegment) : xs_[k].ahead_of_tile(last));
        adjoin(first, t, fetch);
      }
    }
    for (int64_t k = 0; k < inputs_; ++k)
      if (io_.dinputs[k].data) dxs_[k].finish(dx_row(k));
    for (int64_t k = 0; k < states_; ++k)
      if (io_.dstates0[k]) copy_row(static_cast<R*>(io_.dstates0[k]) + begin_, now_[k], n_);
    const Channels all(1, layer_.n, begin_, n_);
    for (int64_t k = 0; k < params_; partial += sums_of(layer_, k++)) {
      const Channels& channels = layer_.params[k].per_channel ? tile_.channels : all;
      if (io_.dparams[k]) channels.add(sums_ + k * kRow<R>, partial);
    }
  }

 private:
  int64_t bytes() const {
    const int64_t rows = inputs_ * (kSegment + 1) + outputs_ + states_ * (kSegment + 2) + params_;
    return Tile<R>::bytes(layer_) + Machine<R>::bytes(io_.advance, layer_) +
           Machine<R>::bytes(io_.adjoint, layer_) + Workspace::bytes<RowsIn<R>>(inputs_) +
           Workspace::bytes<RowsOut<R>>(inputs_) + Workspace::bytes<RowsIn<R>>(outputs_) +
           Workspace::bytes<const R*>(inputs_ * kSegment) + 2 * Workspace::bytes<R*>(states_) +
           (rows + 1) * Workspace::bytes<R>(kRow<R>);
  }
  R* rows(int64_t count) { return room_.take<R>(count * kRow<R>); }
  R* dx_row(int64_t k) { return dx_rows_ + k * kRow<R>; }
  R* state_at(int64_t k, int64_t t) { return before_ + (k * kSegment + t) * kRow<R>; }
  const R*& x_at(int64_t k, int64_t t) { return x_at_[k * kSegment + t]; }

  // The inputs of a segment's steps, and the states before each.
  void recompute(int64_t first, int64_t steps) {
    for (int64_t k = 0; k < states_; ++k) {
      const R* v = start_of<R>(layer_, io_.borders, k, first);
      set_row(state_at(k, 0), v ? v + begin_ : nullptr, n_, R(layer_.rest[k]));
    }
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t k = 0; k < inputs_; ++k)
        x_at(k, t) = xs_[k].read(first + t, x_rows_ + (k * kSegment + t) * kRow<R>);
      if (t + 1 == steps) return;
      Fetch fetch = advance_.fetch(n_);
      for (int64_t k = 0; k < inputs_; ++k) {
        advance_.input[k] = reads(x_at(k, t));
        fetch.add(xs_[k].ahead(first + t + 1));
        if (io_.dinputs[k].data) fetch.add(dxs_[k].ahead(first + t));
      }
      for (int64_t k = 0; k < outputs_ && t + 2 == steps; ++k)
        if (io_.douts[k].data) fetch.add(dss_[k].ahead(first + t + 1));
      for (int64_t k = 0; k < states_; ++k) {
        advance_.state[k] = reads(state_at(k, t));
        advance_.result[k] = reads(state_at(k, t + 1));
      }
      advance_.run(fetch);
    }
  }

  // The adjoint of step t of a segment.
  void adjoin(int64_t first, int64_t t, Fetch& fetch) {
    for (int64_t k = 0; k < inputs_; ++k) {
      adjoint_.input[k] = reads(x_at(k, t));
      if (io_.dinputs[k].data) adjoint_.result[k] = writes(dxs_[k], first + t, dx_row(k));
    }
    for (int64_t k = 0; k < outputs_; ++k) {
      const R* ds = dss_[k].read(first + t, ds_rows_ + k * kRow<R>);
      adjoint_.dout[k] = ds ? reads(ds) : Place<R>{zeros_, 0};
      if (ds && t > 0) fetch.add(dss_[k].ahead(first + t - 1));
    }
    for (int64_t k = 0; k < states_; ++k) {
      const Sequence& given = io_.dstates[k];
      if (given.data && !given.sum)
        add_row(now_[k], static_cast<const R*>(given.data) + (first + t) * layer_.n + begin_, n_);
      adjoint_.state[k] = reads(state_at(k, t));
      adjoint_.dstate[k] = reads(now_[k]), adjoint_.result[inputs_ + k] = reads(next_[k]);
    }
    adjoint_.run(fetch);
    std::swap(now_, next_);
    for (int64_t k = 0; k < inputs_; ++k)
      if (io_.dinputs[k].data) dxs_[k].write(first + t, dx_row(k));
  }

  const ProgramLayer& layer_;
  const ProgramBackward& io_;
  const int64_t inputs_ = layer_.inputs.count, outputs_ = layer_.outputs;
  const int64_t states_ = layer_.states.count, params_ = layer_.params.count;
  const int64_t begin_, n_;
  Workspace room_;
  const Tile<R> tile_;
  const Machine<R> advance_, adjoint_;
  RowsIn<R>*xs_, *dss_;
  RowsOut<R>* dxs_;
  const R** x_at_;                                              // [inputs, kSegment]
  R **now_, **next_;                                            // the gradients of the states
  R *x_rows_, *dx_rows_, *ds_rows_, *before_, *sums_, *zeros_;  // before_: [states, kSegment]
};

template <class R>
void forward(const ProgramLayer& layer, const ProgramForward& io) {
  for_each_tile(layer, [&](int64_t begin, int64_t n) { forward_tile<R>(layer, io, begin, n); });
}

template <class R>
void backward(const ProgramLayer& layer, const ProgramBackward& io) {
  const int64_t chunks = chunk_count(layer), count = all_sums(layer);
  std::fill(io.partial, io.partial + chunks * count, 0.0);
  for_each_tile_of(chunks, layer, [&](int64_t chunk, int64_t begin, int64_t n) {
    Backward<R>(layer, io, begin, n).run(io.partial + chunk * count);
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
