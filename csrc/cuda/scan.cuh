// The walk over time, forward and backward, for any neuron with charge, fire, reset, gradients and
// adjoint (csrc/include/neuron.h). One thread owns kLanes neighbouring neurons and all their steps;
// kSteps of them, a segment, lie in registers at once.
//
//   forward    reads x, writes s                     2b bytes per neuron and step
//   backward   reads x and ds, writes dx             3b
//   T > 8      V at the borders of segments          + 4/8 each way
//
// All loads of a segment are issued before the first is used. Backward walks the segments from the
// last to the first and recomputes H of one segment from x and V at its border. Registers cannot be
// indexed at run time, so every loop over steps has kSteps turns and `t < n` guards each.
#pragma once

#include "io.cuh"
#include "lif_args.h"
#include "neuron.h"

namespace snnfast {
namespace cuda {

// Opaque to the compiler, which would copy the whole loop for each value of a flag.
template <class Args>
SNN_DEVICE bool flag(const Args& p, int which) {
#if defined(SNN_FLAGS)
  return (SNN_FLAGS & which) != 0;
#else
  return (opaque(p.flags) & which) != 0;
#endif
}

// The time constants of a thread's neurons.
template <int kLanes>
struct Rates {
  float value[kLanes];
  Rate<float> rate[kLanes];

  template <class Args>
  SNN_DEVICE void load(const Args& p, i64 i) {
    if (flag(p, kPerChannel)) {
      const i64 run = i / p.inner;
      i64 place = i - run * p.inner, channel = run % p.channels;
      SNN_UNROLL
      for (int j = 0; j < kLanes; ++j) {
        load_element(p.rate + channel, value[j]);
        if (++place == p.inner) {
          place = 0;
          if (++channel == p.channels) channel = 0;
        }
      }
    } else if (flag(p, kHasRate)) {
      load_element(p.rate, value[0]);
    }
  }
  // Apart from load(), so that the segment's loads are under way before a rate is waited for.
  template <class Args, class Neuron>
  SNN_DEVICE void make(const Args& p, const Neuron& neuron) {
    if (flag(p, kPerChannel)) {
      SNN_UNROLL
      for (int j = 0; j < kLanes; ++j) rate[j] = neuron.rate(opaque(value[j]));
    } else {
      Rate<float> one = {p.divisor, p.factor};
      if (flag(p, kHasRate)) one = neuron.rate(opaque(value[0]));
      SNN_UNROLL
      for (int j = 0; j < kLanes; ++j) rate[j] = one;
    }
  }
  SNN_DEVICE const Rate<float>& operator[](int j) const { return rate[j]; }
};

template <int kLanes>
SNN_DEVICE void fill(float* value, float with) {
  SNN_UNROLL
  for (int j = 0; j < kLanes; ++j) value[j] = with;
}

template <int kLanes>
SNN_DEVICE void add(float* to, const float* value) {
  SNN_UNROLL
  for (int j = 0; j < kLanes; ++j) to[j] += value[j];
}

// Steps in the segment that starts at `base`.
template <int kSteps>
SNN_DEVICE int steps_from(i64 base, i64 steps) {
  return steps - base < kSteps ? int(steps - base) : kSteps;
}

// n steps of one stream, from p on.
template <int kSteps, class Pack>
SNN_DEVICE void load_steps(Pack* pack, const char* p, i64 bytes, int n) {
  SNN_UNROLL
  for (int t = 0; t < kSteps; ++t) {
    if (t < n) pack[t].load(p);
    p = advance(p, bytes);
  }
}

// What the neurons are charged with: x as it is (norm_lif.cuh has another). A Segment is what of it
// lies in registers at once. Backward takes the lanes of a pack in kParts, one after the other, so
// that fewer registers are in use.
template <class Io, int kLanes, int kSteps>
struct Plain {
  static constexpr int kParts = 1;
  struct Segment {
    Pack<Io, kLanes> x[kSteps];
  };
  // Issues the loads of n steps, `x` being where the first lies.
  template <class Args>
  SNN_DEVICE void load(const Args&, Segment& segment, const char* x, i64 bytes, i64, i64, int n) {
    load_steps<kSteps>(segment.x, x, bytes, n);
  }
  // X of a step, and once more for the gradient of 1/tau.
  template <class Args>
  SNN_DEVICE void step(const Args&, const Segment& segment, int, int t, float* x) const {
    SNN_UNROLL
    for (int j = 0; j < kLanes; ++j) x[j] = segment.x[t][j];
  }
  template <class Args>
  SNN_DEVICE void again(const Args& p, const Segment& segment, int, i64, i64, int t,
                        float* x) const {
    step(p, segment, 0, t, x);
  }
  // The gradient of X of a step: a look at it, whether it is stored, and as what.
  SNN_DEVICE void enter(int) {}
  SNN_DEVICE void leave(const BackwardArgs&, int) {}
  SNN_DEVICE void collect(const BackwardArgs&, const Segment&, int, int, const float*) {}
  SNN_DEVICE bool stores(const BackwardArgs&) const { return true; }
  SNN_DEVICE void convert(const BackwardArgs&, const Segment&, int, int, float*) const {}
  SNN_DEVICE void convert_sum(const BackwardArgs&, i64, float*) {}
};

// All steps of the neurons from `thread` kLanes on.
template <class Io, int kLanes, int kSteps, class Neuron, class Source>
SNN_DEVICE void scan_forward(const ForwardArgs& p, const Neuron& neuron, Source& source,
                             i64 thread) {
  constexpr i64 kBytes = sizeof(typename Io::Element);
  const i64 i = thread * kLanes;
  const i64 x_bytes = p.x_stride * kBytes, s_bytes = p.neurons * kBytes;
  const char* x = static_cast<const char*>(p.x) + i * kBytes;
  char* s = static_cast<char*>(p.s) + i * kBytes;
  float v[kLanes];
  Rates<kLanes> rates;

  if (flag(p, kHasV0))
    load_state<kLanes>(p.v0 + i, v);
  else
    fill<kLanes>(v, p.rest);
  rates.load(p, i);
  for (i64 base = 0; base < p.steps; base += kSteps) {
    const int n = steps_from<kSteps>(base, p.steps);
    typename Source::Segment input;
    source.load(p, input, x + base * x_bytes, x_bytes, i, base, n);
    rates.make(p, neuron);
    if (kSteps == kSegment && base > 0 && flag(p, kHasBorders))
      store_state<kLanes>(p.borders + (base / kSegment - 1) * p.neurons + i, v);
    SNN_UNROLL
    for (int t = 0; t < kSteps; ++t) {
      if (t < n) {
        float xt[kLanes], spike[kLanes];
        source.step(p, input, 0, t, xt);
        SNN_UNROLL
        for (int j = 0; j < kLanes; ++j) {
          const float h = neuron.charge(xt[j], v[j], rates[j]);
          spike[j] = neuron.fire(h);
          v[j] = neuron.reset(h, spike[j]);
        }
        Pack<Io, kLanes>::store(s, spike);
        if (flag(p, kEveryState)) store_state<kLanes>(p.v + (base + t) * p.neurons + i, v);
        s = advance(s, s_bytes);
      }
    }
    if constexpr (kSteps < kSegment) break;  // launched for T <= kSteps
  }
  if (flag(p, kHasV) && !flag(p, kEveryState)) store_state<kLanes>(p.v + i, v);
}

template <class Io, int kLanes, int kSteps, class Neuron, class Source>
SNN_DEVICE void scan_backward(const BackwardArgs& p, const Neuron& neuron, Source& source,
                              i64 thread) {
  constexpr i64 kBytes = sizeof(typename Io::Element);
  const i64 i = thread * kLanes;
  const i64 x_bytes = p.x_stride * kBytes, ds_bytes = p.ds_stride * kBytes;
  const i64 dx_bytes = p.neurons * kBytes;
  const char* x = static_cast<const char*>(p.x) + i * kBytes;
  const char* ds = static_cast<const char*>(p.ds) + i * kBytes;
  char* dx = static_cast<char*>(p.dx) + i * kBytes;
  float dv[kLanes], drate[kLanes], sum[kLanes];
  Rates<kLanes> rates;

  if (flag(p, kHasV) && !flag(p, kEveryState))
    load_state<kLanes>(p.dv + i, dv);
  else
    fill<kLanes>(dv, 0.0f);
  rates.load(p, i);
  fill<kLanes>(drate, 0.0f);
  fill<kLanes>(sum, 0.0f);
  const i64 last = kSteps < kSegment ? 0 : (p.steps - 1) / kSegment * kSegment;
  for (i64 base = last; base >= 0; base -= kSteps) {
    const int n = steps_from<kSteps>(base, p.steps);
    float v[kLanes], start[kLanes / Source::kParts];
    if (kSteps == kSegment && base > 0 && flag(p, kHasBorders))
      load_state<kLanes>(p.borders + (base / kSegment - 1) * p.neurons + i, v);
    else if (flag(p, kHasV0))
      load_state<kLanes>(p.v0 + i, v);
    else
      fill<kLanes>(v, p.rest);
    typename Source::Segment input;
    Pack<Io, kLanes> grad[kSteps];
    source.load(p, input, x + base * x_bytes, x_bytes, i, base, n);
    if (flag(p, kHasDs)) {
      load_steps<kSteps>(grad, ds + base * ds_bytes, ds_bytes, n);
    } else {
      SNN_UNROLL
      for (int t = 0; t < kSteps; ++t) grad[t] = {};
    }
    rates.make(p, neuron);

    SNN_UNROLL
    for (int part = 0; part < Source::kParts; ++part) {
      constexpr int kPart = kLanes / Source::kParts;
      const int o = part * kPart;
      float h[kSteps][kPart];
      source.enter(part);
      SNN_UNROLL
      for (int j = 0; j < kPart; ++j) start[j] = v[o + j];
      SNN_UNROLL
      for (int t = 0; t < kSteps; ++t) {
        if (t < n) {
          float xt[kPart];
          source.step(p, input, part, t, xt);
          SNN_UNROLL
          for (int j = 0; j < kPart; ++j) {
            h[t][j] = neuron.charge(xt[j], v[o + j], rates[o + j]);
            v[o + j] = neuron.reset(h[t][j], neuron.fire(h[t][j]));
          }
        }
      }
      char* out = dx + (base + kSteps - 1) * dx_bytes;
      SNN_UNROLL
      for (int t = kSteps - 1; t >= 0; --t) {
        if (t < n) {
          if (flag(p, kEveryState)) {
            float more[kPart];
            load_state<kPart>(p.dv + (base + t) * p.neurons + i + o, more);
            add<kPart>(dv + o, more);
          }
          float g[kPart], xt[kPart], dxt[kPart], dk[kPart];
          neuron.gradients(h[t], g);
          source.again(p, input, part, i, base, t, xt);
          SNN_UNROLL
          for (int j = 0; j < kPart; ++j) {
            // V before this step, from H of the step before: cheaper than to keep it.
            const float hp = h[t > 0 ? t - 1 : 0][j];
            const float vt = t > 0 ? neuron.reset(hp, neuron.fire(hp)) : start[j];
            const Adjoint<float> a = neuron.adjoint(xt[j], vt, h[t][j], neuron.fire(h[t][j]), g[j],
                                                    grad[t][o + j], dv[o + j], rates[o + j]);
            dv[o + j] = a.dv;
            dxt[j] = a.dx;
            dk[j] = a.drate;
          }
          if (flag(p, kHasDrate)) add<kPart>(drate + o, dk);
          source.collect(p, input, part, t, dxt);
          if (flag(p, kSumDx)) {
            add<kPart>(sum + o, dxt);
          } else if (source.stores(p)) {
            source.convert(p, input, part, t, dxt);
            if constexpr (Source::kParts == 1)
              Pack<Io, kLanes>::store(out, dxt);
            else
              grad[t].template set<kPart>(o, dxt);
          }
        }
        out = advance(out, -dx_bytes);
      }
      source.leave(p, part);
    }
    // Whole packs, where the parts of a gradient have taken the place of those of ds.
    if constexpr (Source::kParts > 1) {
      char* out = dx + base * dx_bytes;
      const bool stored = !flag(p, kSumDx) && source.stores(p);
      SNN_UNROLL
      for (int t = 0; t < kSteps; ++t) {
        if (t < n && stored) grad[t].store(out);
        out = advance(out, dx_bytes);
      }
    }
  }
  if (flag(p, kHasDv0)) store_state<kLanes>(p.dv0 + i, dv);
  if (flag(p, kSumDx) && source.stores(p)) {
    source.convert_sum(p, i, sum);
    Pack<Io, kLanes>::store(dx, sum);
  }
  if (flag(p, kHasDrate)) {
    if (flag(p, kPerChannel)) {
      store_state<kLanes>(p.drate + i, drate);
    } else {
      float partial = drate[0];
      SNN_UNROLL
      for (int j = 1; j < kLanes; ++j) partial += drate[j];
      store_element(p.drate + thread, partial);
    }
  }
}

}  // namespace cuda
}  // namespace snnfast
