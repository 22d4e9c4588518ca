// The walk over time on a CPU, for any neuron of include/neuron.h with one state variable.
//
// The neurons of a tile go through a step together, a few registers of them at a time: their state
// stays in L1 from step to step. The steps of a neuron are a chain of dependent operations, the
// neurons are not, so the processor works on the next ones meanwhile. Backward recomputes H of a
// segment from x and the state at its border, then walks the segment in reverse.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "lanes.h"
#include "lif.h"
#include "neuron.h"
#include "norm.h"
#include "rows.h"
#include "tiles.h"

namespace snnfast {
inline namespace SNN_ISA {

// The time constants of a tile's neurons, one for all of them...
template <class R>
struct SharedRate {
  R divisor, factor;
  SNN_HD Rate<Lanes<R>> at(int64_t) const { return {Lanes<R>(divisor), Lanes<R>(factor)}; }
};

// ...or one per channel, spread over the neurons.
template <class R>
struct ChannelRates {
  bool divide;
  TileRow<R> value[1];
  ChannelRates(const LifLayer& layer, const R* rates, int64_t begin, int64_t n)
      : divide(layer.divide) {
    const bool one = layer.channels == 1;
    Channels(layer.channels, one ? n : layer.inner, one ? 0 : begin, n).spread({rates}, value);
  }
  SNN_HD Rate<Lanes<R>> at(int64_t i) const {
    Lanes<R> v = load(value[0].at + i);
    return {v, divide ? Lanes<R>(1) / v : v};
  }
};

// Dividing by it and multiplying with its reciprocal give the same bits.
template <class R>
bool is_power_of_two(R x) {
  int exponent;
  return std::frexp(x, &exponent) == R(0.5);
}

// Calls f(neuron, rates) for a tile; where one rate serves all, whether it divides is a constant in
// the loops that f holds. kSpread: fewer loops, and none of them for one rate.
template <class R, bool kSpread, class Neuron, class F>
SNN_HD void with_rates(Neuron neuron, const LifLayer& layer, int64_t begin, int64_t n, F&& f) {
  const R* rates = static_cast<const R*>(layer.rates);
  const R rate = rates ? *rates : R(layer.rate);
  const auto spread = [&] { f(neuron, ChannelRates<R>(layer, rates ? rates : &rate, begin, n)); };
  if constexpr (Neuron::kIntegrates) {
    f(neuron, SharedRate<R>{1, 1});
  } else if constexpr (kSpread) {
    spread();
  } else if (rates && layer.channels > 1) {
    spread();
  } else if (neuron.divide && !is_power_of_two(rate)) {
    neuron.divide = true;
    f(neuron, SharedRate<R>{rate, R(1) / rate});
  } else {
    const R factor = neuron.divide ? R(1) / rate : rate;
    neuron.divide = false;
    f(neuron, SharedRate<R>{rate, factor});
  }
}

// The spike, or in the smooth twin the primitive at H - theta. kSmooth is compiled for double
// alone.
template <bool kSmooth, class Neuron, class V>
SNN_HD V fire(const Neuron& neuron, V h) {
  if constexpr (kSmooth) {
    using R = typename V::real;
    return each(h, [&](R lane) {
      return primitive<R>(neuron.surrogate, lane - neuron.theta, neuron.a, neuron.b);
    });
  } else {
    return neuron.fire(h);
  }
}

template <bool kSmooth, class Neuron, class V>
SNN_HD V reset(const Neuron& neuron, V h, V s) {
  return kSmooth ? neuron.smooth_reset(h, s) : neuron.reset(h, s);
}

// What one step of forward asks for: its successor's input; what the next tile reads and writes.
struct Asked {
  Ahead next, later, later_s;
};

// One step of a row: spikes into `s`, the state in place.
template <bool kSmooth, class Neuron, class Rates, class R>
void step_row(const Neuron neuron, const Rates& rates, int64_t vectors, Asked asked, const R* x,
              R* state, Out<R> s) {
  for (int64_t k = 0; k < vectors; ++k) {
    const int64_t i = k * Lanes<R>::kCount;
    asked.next.fetch(i), asked.later.fetch_later(i), asked.later_s.fetch_later(i);
    auto h = neuron.charge(load(x + i), load(state + i), rates.at(i));
    auto spike = fire<kSmooth>(neuron, h);
    s.template put<true>(i, spike);
    store(state + i, reset<kSmooth>(neuron, h, spike));
  }
}

// Rows of two steps, or of the first alone, to 16 bits from 16 or from floats.
template <class SX, class SS>
struct NarrowSteps {
  bool two, stream;
  SX* x[2];
  SS* s[2];
  Asked asked[2];
};

// The same where spikes have 16 bits, converted on the way: of two steps, between which the state
// stays in registers. (Of more, the processor could not begin the next vector's meanwhile.)
template <class Neuron, class Rates, class SX, class SS>
SNN_HD void narrow_steps(const Neuron neuron, const Rates& rates, const NarrowSteps<SX, SS> steps,
                         int64_t vectors, float* state) {
  using V = Lanes<float>;
  using Order = Ordered<SX, SS>;
  for (int64_t i = 0; i < vectors * V::kCount; i += V::kCount) {
    V v = Order::from(load(state + i));
    Rate<V> rate = rates.at(i);
    rate = {Order::from(rate.divisor), Order::from(rate.factor)};
    const auto step = [&](int k) SNN_INLINE {
      const auto& [next, later, later_s] = steps.asked[k];
      next.template fetch<sizeof(SX)>(i), later.template fetch_later<sizeof(SX)>(i);
      later_s.template fetch_later<sizeof(SS)>(i);
      const V h = neuron.charge(Order::load(steps.x[k] + i), v, rate), spike = neuron.fire(h);
      Order::put_spikes(steps.s[k] + i, spike, steps.stream);
      v = neuron.reset(h, spike);
    };
    step(0);
    if (steps.two) step(1);
    store(state + i, Order::back(v));
  }
}

// One step of a row without the spikes, keeping H: `before` is the state before the step, `after`
// behind it.
template <bool kSmooth, bool kReal, class Neuron, class Rates, class R>
void recompute_row(const Neuron neuron, const Rates& rates, int64_t vectors, Ahead next, In<R> x,
                   const R* before, R* h, R* after) {
  for (int64_t k = 0; k < vectors; ++k) {
    const int64_t i = k * Lanes<R>::kCount;
    next.fetch(i);
    auto h_t = neuron.charge(x.template load<kReal>(i), load(before + i), rates.at(i));
    store(h + i, h_t);
    store(after + i, reset<kSmooth>(neuron, h_t, fire<kSmooth>(neuron, h_t)));
  }
}

// What a step of the adjoint asks for: what the block of steps that follows it reads and writes.
struct AskedLater {
  Ahead x, ds, dx;
  SNN_HD void fetch(int64_t i) const { x.fetch_later(i), ds.fetch_later(i), dx.fetch_later(i); }
};

// The adjoint of a step, from the gradient of V_t to that of V_{t-1}. x and `before` are read, and
// `dfactor` added to, for the gradient of 1/tau alone.
template <bool kSmooth, bool kReal, bool kWantRate, class Neuron, class Rates, class R>
SNN_HD void adjoint_row(Neuron neuron, const Rates& rates, int64_t vectors, AskedLater asked,
                        In<R> x, const R* before, const R* h, const R* g, In<R> ds, const R* dafter,
                        R* dbefore, R* dfactor, Out<R> dx) {
  using V = Lanes<R>;
  neuron.spiking = !kSmooth;
  for (int64_t k = 0; k < vectors; ++k) {
    const int64_t i = k * V::kCount;
    asked.fetch(i);
    V h_t = load(h + i), x_t(0), v(0);
    if constexpr (kWantRate) x_t = x.template load<kReal>(i), v = load(before + i);
    auto d = neuron.adjoint(x_t, v, h_t, fire<kSmooth>(neuron, h_t), load(g + i),
                            ds.template load<kReal>(i), load(dafter + i), rates.at(i));
    store(dbefore + i, d.dv);
    if (kWantRate) store(dfactor + i, load(dfactor + i) + d.drate);
    dx.template put<kReal>(i, d.dx);
  }
}

// The same in float for one rate for all, which is not learned, with the surrogate's gradient
// computed on the way.
template <int kSurrogate, bool kDetach, bool kReal, class Neuron>
void plain_adjoint_row(Neuron neuron, float factor, int64_t vectors, AskedLater asked,
                       const float* h, In<float> ds, const float* dafter, float* dbefore,
                       Out<float> dx) {
  using V = Lanes<float>;
  neuron.spiking = true, neuron.detach_reset = kDetach;
  for (int64_t i = 0; i < vectors * V::kCount; i += V::kCount) {
    asked.fetch(i);
    const V h_t = load(h + i);
    const V g = gradient<kSurrogate>(h_t - V(neuron.theta), neuron.a, neuron.b);
    const auto d = neuron.adjoint(V(0), V(0), h_t, neuron.fire(h_t), g, ds.template load<kReal>(i),
                                  load(dafter + i), Rate<V>{V(0), V(factor)});
    store(dbefore + i, d.dv);
    dx.template put<kReal>(i, d.dx);
  }
}

// Calls f(whether all rows of a loop are of R), a constant.
template <class R, class F>
SNN_HD void with_real(bool real, F&& f) {
  if constexpr (sizeof(R) == 8)
    f(std::true_type());
  else
    real ? f(std::true_type()) : f(std::false_type());
}

// Calls it where that is what the row is, and says whether; of the surrogates the usual ones:
// fifteen formulas would be compiled into every loop.
template <class Neuron, class... Args>
bool plain_adjoint(const Neuron& neuron, bool real, float factor, Args... args) {
  const auto run = [&](auto surrogate) {
    constexpr int kId = decltype(surrogate)::value;
    with_real<float>(real, [&](auto real) {
      neuron.detach_reset ? plain_adjoint_row<kId, true, real>(neuron, factor, args...)
                          : plain_adjoint_row<kId, false, real>(neuron, factor, args...);
    });
  };
  if (neuron.surrogate == kSigmoid) return run(Id<kSigmoid>()), true;
  if (neuron.surrogate == kATan) return run(Id<kATan>()), true;
  return false;
}

template <bool kSmooth, class R, class Neuron, class Rates>
void forward_tile(const Neuron neuron, const Rates& rates, const LifLayer& layer,
                  const LifForward& io, int64_t begin, int64_t tile) {
  const int64_t n = layer.n, vectors = vectors_of<R>(tile);
  const R* const v0 = static_cast<const R*>(io.v0);
  R* const v_out = static_cast<R*>(io.v);
  R* const borders = static_cast<R*>(io.borders);
  Source<R> x(io.x, layer.dtype, io.x_stride, io.norm, begin, tile);
  Writer<R> s(io.s, layer.dtype, n, begin, tile, 2 * layer.steps * n);
  alignas(64) R state[kTile], rows[2][kTile];
  set_row(state, v0 ? v0 + begin : nullptr, tile, neuron.r);

  for (int64_t t = 0, count; t < layer.steps; t += count) {
    count = s.narrow() && !io.v_every_step && t + 1 < layer.steps ? 2 : 1;
    if (borders && t > 0 && t % kSegment == 0)
      copy_row(borders + (t / kSegment - 1) * n + begin, state, tile);
    In<R> x_at[2];
    Asked asked[2];
    for (int k = 0; k < count; ++k) {
      const Ahead later = x.ahead_of_tile(t + k);
      const Ahead next = t + k + count < layer.steps ? x.ahead(t + k + count) : x.ahead_of_tile(k);
      x_at[k] = x.read(t + k, rows[k], later, x.residual().ahead_of_tile(t + k));
      // What is normalised lies in L1, and reading it has asked for the rest.
      const Ahead here{static_cast<const char*>(x_at[k].row), 0};
      asked[k] = {x.normal() ? here : next, x.normal() ? here : later, s.ahead_of_tile(t + k)};
    }
    if (s.narrow()) {
      if constexpr (sizeof(R) == 4) {
        with_narrow(x_at[0].dtype, s.row(t).dtype, [&](auto* from, auto* to) {
          NarrowSteps<std::remove_pointer_t<decltype(from)>, std::remove_pointer_t<decltype(to)>>
              steps{count == 2, s.row(t).stream, {}, {}, {asked[0], asked[1]}};
          for (int k = 0; k < count; ++k) {
            steps.x[k] = static_cast<decltype(from)>(x_at[k].row);
            steps.s[k] = static_cast<decltype(to)>(s.row(t + k).row);
          }
          narrow_steps(neuron, rates, steps, vectors, state);
        });
      }
    } else {
      step_row<kSmooth>(neuron, rates, vectors, asked[0], static_cast<const R*>(x_at[0].row), state,
                        s.row(t));
    }
    for (int k = 0; k < count; ++k) s.write(t + k);
    if (io.v_every_step) copy_row(v_out + t * n + begin, state, tile);
  }
  if (v_out && !io.v_every_step) copy_row(v_out + begin, state, tile);
}

template <bool kSmooth, bool kWantRate, class R, class Neuron, class Rates>
void backward_tile(const Neuron neuron, const Rates& rates, const LifLayer& layer,
                   const LifBackward& io, int64_t chunk, int64_t begin, int64_t tile) {
  const int64_t n = layer.n, vectors = vectors_of<R>(tile);
  const R* const borders = static_cast<const R*>(io.borders);
  const R* const dv = static_cast<const R*>(io.dv);
  const R* const v0 = static_cast<const R*>(io.v0);
  Source<R> x(io.x, layer.dtype, io.x_stride, io.norm, begin, tile);
  Reader<R> ds(io.ds, layer.dtype, io.ds_stride, begin, tile);
  Writer<R> dx(io.dx, layer.dtype, io.sum_dx ? 0 : n, begin, tile,
               io.sum_dx || x.normal() ? 0 : 3 * layer.steps * n, io.sum_dx);
  alignas(64) R h[kSegment][kTile], g[kTile], before[kWantRate ? kSegment + 1 : 1][kTile];
  alignas(64) R dstate[kTile], dfactor[kTile], centred[kSegment][kTile];
  alignas(64) R x_rows[kWantRate ? kSegment : 1][kTile];
  In<R> x_at[kWantRate ? kSegment : 1];
  const R* dx_at[kSegment];
  Moments<R> moments;
  const R* dafter = get_row<R>(dv && !io.dv_every_step ? dv + begin : nullptr, tile, 0, dstate);
  if (kWantRate) set_row<R>(dfactor, nullptr, tile, 0);

  const int64_t last = (layer.steps - 1) / kSegment * kSegment;
  for (int64_t first = last; first >= 0; first -= kSegment) {
    const int steps = int(std::min<int64_t>(kSegment, layer.steps - first));
    const R* start = first > 0 ? borders + (first / kSegment - 1) * n : v0;
    const R* const origin = get_row(start ? start + begin : nullptr, tile, neuron.r, before[0]);
    const auto before_at = [&](int t) { return t == 0 ? origin : before[kWantRate ? t : 0]; };
    // Step t asks for one of the segment before; or of the next tile's last, and where that is the
    // shorter one, of what comes behind it.
    const auto coming = [&](const auto& rows, int64_t t) {
      if (first > 0) return rows.ahead(first - kSegment + t);
      return rows.ahead_of_tile(last + t < layer.steps ? last + t : last - kSegment + t);
    };
    for (int t = 0; t < steps; ++t) {
      const Ahead next = t + 1 < steps ? x.ahead(first + t + 1) : ds.ahead(first + t);
      // Where nobody reads X again, H takes its place.
      const int kept = kWantRate ? t : 0;
      x_at[kept] = x.read(first + t, kWantRate ? x_rows[t] : h[t], coming(x, t),
                          coming(x.residual(), t), centred[t]);
      with_real<R>(x_at[kept].real(), [&](auto real) {
        recompute_row<kSmooth, real>(neuron, rates, vectors, next, x_at[kept], before_at(t), h[t],
                                     before[kWantRate ? t + 1 : 0]);
      });
    }
    for (int t = steps - 1; t >= 0; --t) {
      if (io.dv_every_step) {
        if (dafter != dstate) set_row<R>(dstate, nullptr, tile, 0);
        dafter = dstate;
        add_row(dstate, dv + (first + t) * n + begin, tile);
      }
      const int k = steps - 1 - t;
      const AskedLater asked{coming(x, k), coming(ds, k), coming(dx, k)};
      const In<R> given = ds.null() ? In<R>{get_row<R>(nullptr, tile, 0, g)} : ds.read(first + t);
      const Out<R> out = x.normal() ? dx.keep(first + t) : dx.row(first + t);
      if (x.normal()) dx_at[t] = static_cast<const R*>(out.row);
      const In<R>& x_t = x_at[kWantRate ? t : 0];
      const bool real = x_t.real() && given.real() && out.real();
      bool done = false;
      if constexpr (!kWantRate && std::is_same_v<Rates, SharedRate<float>>)
        done = plain_adjoint(neuron, real, rates.factor, vectors, asked, h[t], given, dafter,
                             dstate, out);
      if (!done) {
        neuron.gradients(reinterpret_cast<const Lanes<R>*>(h[t]), reinterpret_cast<Lanes<R>*>(g),
                         int(vectors));
        with_real<R>(real, [&](auto real) {
          adjoint_row<kSmooth, real, kWantRate>(neuron, rates, vectors, asked, x_t, before_at(t),
                                                h[t], g, given, dafter, dstate, dfactor, out);
        });
      }
      dafter = dstate;
      x.normal() ? dx.write_kept(first + t) : dx.write(first + t);
    }
    if (x.normal() && !io.sum_dx) moments.add(steps, vectors, dx_at, centred[0]);
  }
  if (x.normal()) {
    if (io.sum_dx) moments.add(1, vectors, dx_at, centred[0]);  // one y for all steps
    double* sums = io.norm.partial + chunk * 2 * io.norm.channels;
    x.channels().add(moments.sum.at, sums);
    x.channels().add(moments.product.at, sums + io.norm.channels);
  }
  dx.finish();
  if (io.dv0) copy_row(static_cast<R*>(io.dv0) + begin, dstate, tile);
  if (kWantRate) {
    Channels(layer.channels, layer.inner, begin, tile)
        .add(dfactor, io.partial + chunk * layer.channels);
  }
}

template <bool kSmooth, class R, class Neuron>
void scan_forward(const Neuron& neuron, const LifLayer& layer, const LifForward& io) {
  for_each_tile(layer, [&](int64_t begin, int64_t tile) {
    with_rates<R, sizeof(R) == 8>(neuron, layer, begin, tile, [&](auto tuned, const auto& rates) {
      forward_tile<kSmooth, R>(tuned, rates, layer, io, begin, tile);
    });
  });
}

template <bool kSmooth, bool kWantRate, class R, class Neuron>
void scan_backward(const Neuron& neuron, const LifLayer& layer, const LifBackward& io) {
  const int64_t chunks = chunk_count(layer), sums = io.norm.mean ? 2 * io.norm.channels : 0;
  if (kWantRate) std::fill(io.partial, io.partial + chunks * layer.channels, 0.0);
  std::fill(io.norm.partial, io.norm.partial + chunks * sums, 0.0);
  for_each_tile_of(chunks, layer, [&](int64_t chunk, int64_t begin, int64_t tile) {
    with_rates<R, kWantRate>(neuron, layer, begin, tile, [&](auto tuned, const auto& rates) {
      backward_tile<kSmooth, kWantRate, R>(tuned, rates, layer, io, chunk, begin, tile);
    });
  });
  if (kWantRate && io.drate) {
    const double* total = add_chunks(io.partial, chunks, layer.channels);
    std::copy(total, total + layer.channels, static_cast<R*>(io.drate));
  }
  const double* total = add_chunks(io.norm.partial, chunks, sums);
  std::copy(total, total + sums, static_cast<R*>(io.norm.sums));
}

}  // namespace SNN_ISA
}  // namespace snnfast
