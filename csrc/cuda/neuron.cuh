// All timesteps of neurons that a program defines, one launch a direction: the walk of scan.cuh for
// any numbers of inputs, outputs, states and parameters. Behind this header stands the kernel, with
// its step (snnfast/program/cuda_source.py), functions of one neuron that fill r:
//
//   forward(x, v, p, c, r)           outputs and new states, of inputs, states, params and numbers
//   advance(x, v, p, c, r)           the new states alone
//   adjoint(x, v, p, ds, dv, c, r)   gradients of inputs, states and params
//
// Bytes per neuron and step, b those of an element: forward b for each input and output, backward b
// for each input, output and gradient of an input; for T > 8, 4/8 for each state each way.
//
// Backward walks through SNN_PART of a thread's neurons at once, for what is held of their steps to
// find room in the registers.
//
// NVRTC compiles one configuration at a time: SNN_IO, SNN_LANES, SNN_STEPS, SNN_PART, SNN_BLOCKS,
// SNN_SURROGATE and SNN_FLAGS (lif_args.h: kHasV0, kHasV, kEveryState, kHasBorders, kHasDv0). Sets
// have a bit for each tensor: SNN_PER_CHANNEL (params [channels], else []), SNN_PER_LANE (of these,
// where a thread's neurons may be of several channels) and, backward, SNN_DS (given), SNN_DX,
// SNN_SUM_DX (summed over time) and SNN_DP (wanted).
#pragma once

#include "scan.cuh"

namespace snnfast {
namespace cuda {

// As near as 2 ulp; minimum and maximum are NaN where either is.
SNN_DEVICE float minimum(float x, float y) { return x < y || x != x ? x : y; }
SNN_DEVICE float maximum(float x, float y) { return x > y || x != x ? x : y; }
SNN_DEVICE float sigmoid(float x) { return reciprocal_(1.0f + expf(-x)); }
SNN_CALL float power(float x, float y) { return float(pow(double(x), double(y))); }

SNN_HD constexpr bool in(int set, int which) { return (set >> which & 1) != 0; }
SNN_HD constexpr int some(int n) { return n > 0 ? n : 1; }  // there are no arrays of none

// Where a direction's tensors stand among its arguments: inputs [T, N], states [N] (null: they
// start at `rest`), params, borders [states, segments - 1, N]; forward outputs [T, N] and new
// states; backward gradients of these, then those of inputs, states and params ([N], or a number a
// thread).
template <class Step>
struct At {
  static constexpr int kV0 = Step::kInputs, kP = kV0 + Step::kStates;
  static constexpr int kBorders = kP + Step::kParams;
  static constexpr int kS = kBorders + 1, kV = kS + Step::kOutputs;
  static constexpr int kDx = kV + Step::kStates, kDv0 = kDx + Step::kInputs;
  static constexpr int kDp = kDv0 + Step::kStates;
};

// Strides count elements: time strides of the inputs and, backward, of the gradients of outputs.
template <class Step, int kTensors, int kStrides>
struct WalkArgs {
  char* tensor[kTensors];
  i64 steps, neurons, channels, inner, border_stride, stride[kStrides];
  float number[(Step::kStates + Step::kNumbers) / 2 * 2 + 2];  // rest, then the step's

  SNN_DEVICE float* state(int which) const { return reinterpret_cast<float*>(tensor[which]); }
};
template <class Of>
struct Forward : WalkArgs<Of, At<Of>::kDx, Of::kInputs> {
  using Step = Of;
};
template <class Of>
struct Backward : WalkArgs<Of, At<Of>::kDp + Of::kParams, Of::kInputs + Of::kOutputs> {
  using Step = Of;
};

// What a thread has of each of n numbers: one for each of its neurons.
template <int n, int kLanes>
struct Rows {
  float row[some(n)][kLanes];

  SNN_DEVICE float* operator[](int k) { return row[k]; }
  SNN_DEVICE void get(int j, float* to) const {
    SNN_UNROLL
    for (int k = 0; k < n; ++k) to[k] = row[k][j];
  }
  SNN_DEVICE void set(int j, const float* from) {
    SNN_UNROLL
    for (int k = 0; k < n; ++k) row[k][j] = from[k];
  }
  SNN_DEVICE void clear() {
    SNN_UNROLL
    for (int k = 0; k < n; ++k) fill<kLanes>(row[k], 0.0f);
  }
  // States, or their gradients: of neuron i on, `offset` being where those of a step begin.
  template <class Args>
  SNN_DEVICE void store(const Args& p, int first, i64 offset) const {
    SNN_UNROLL
    for (int k = 0; k < n; ++k)
      if (p.tensor[first + k]) store_state<kLanes>(p.state(first + k) + offset, row[k]);
  }
};

// The values of a thread's parameters.
template <int n, int kLanes>
struct Params {
  Rows<n, kLanes> loaded;

  template <class Args>
  SNN_DEVICE void load(const Args& p, i64 i) {
    constexpr int kP = At<typename Args::Step>::kP;
    i64 place = 0, channel = 0;
    if (SNN_PER_CHANNEL) {
      const i64 run = i / p.inner;
      place = i - run * p.inner, channel = run % p.channels;
    }
    SNN_UNROLL
    for (int k = 0; k < n; ++k) {
      const i64 at = in(SNN_PER_CHANNEL, k) ? channel : 0;
      if (!in(SNN_PER_LANE, k)) load_element(p.state(kP + k) + at, loaded[k][0]);
    }
    SNN_UNROLL
    for (int j = 0; j < (SNN_PER_LANE ? kLanes : 0); ++j) {
      SNN_UNROLL
      for (int k = 0; k < n; ++k)
        if (in(SNN_PER_LANE, k)) load_element(p.state(kP + k) + channel, loaded[k][j]);
      if (++place == p.inner) {
        place = 0;
        if (++channel == p.channels) channel = 0;
      }
    }
  }
  // Apart from load(), so that the segment's loads are under way before one is waited for.
  SNN_DEVICE void make(Rows<n, kLanes>& to) const {
    SNN_UNROLL
    for (int k = 0; k < n; ++k) {
      fill<kLanes>(to[k], opaque(loaded.row[k][0]));
      if (!in(SNN_PER_LANE, k)) continue;
      SNN_UNROLL
      for (int j = 1; j < kLanes; ++j) to[k][j] = opaque(loaded.row[k][j]);
    }
  }
};

// The states before the first step.
template <int n, int kLanes, class Args>
SNN_DEVICE void begin(const Args& p, i64 i, Rows<n, kLanes>& to) {
  constexpr int kV0 = At<typename Args::Step>::kV0;
  SNN_UNROLL
  for (int k = 0; k < n; ++k) {
    if (flag(p, kHasV0) && p.tensor[kV0 + k])
      load_state<kLanes>(p.state(kV0 + k) + i, to[k]);
    else
      fill<kLanes>(to[k], p.number[k]);
  }
}

// The sequences of a segment, where there are such.
template <int n, class Io, int kLanes, int kSteps>
struct Sequences {
  Pack<Io, kLanes> pack[some(n)][kSteps];

  template <class Args>
  SNN_DEVICE void load(const Args& p, int set, int first, int stride, i64 i, i64 base, int count) {
    constexpr i64 kBytes = sizeof(typename Io::Element);
    SNN_UNROLL
    for (int k = 0; k < n; ++k) {
      if (in(set, k)) {
        const i64 bytes = p.stride[stride + k] * kBytes;
        const char* from = p.tensor[first + k] + base * bytes + i * kBytes;
        load_steps<kSteps>(pack[k], from, bytes, count);
      } else {
        SNN_UNROLL
        for (int t = 0; t < kSteps; ++t) pack[k][t] = {};
      }
    }
  }
  SNN_DEVICE void get(int t, int j, float* to) const {
    SNN_UNROLL
    for (int k = 0; k < n; ++k) to[k] = pack[k][t][j];
  }
};

constexpr int kAll = -1;

template <class Step>
SNN_DEVICE void walk(const Forward<Step>& p) {
  using Io = SNN_IO;
  constexpr int kLanes = SNN_LANES, kSteps = SNN_STEPS;
  constexpr i64 kBytes = sizeof(typename Io::Element);
  using Where = At<Step>;
  const i64 i = (i64(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  if (i >= p.neurons) return;
  Rows<Step::kStates, kLanes> v;
  Params<Step::kParams, kLanes> loaded;
  Rows<Step::kParams, kLanes> params;
  begin(p, i, v);
  loaded.load(p, i);
  for (i64 base = 0; base < p.steps; base += kSteps) {
    const int n = steps_from<kSteps>(base, p.steps);
    Sequences<Step::kInputs, Io, kLanes, kSteps> x;
    x.load(p, kAll, 0, 0, i, base, n);
    loaded.make(params);
    if (kSteps == kSegment && base > 0 && flag(p, kHasBorders)) {
      SNN_UNROLL
      for (int k = 0; k < Step::kStates; ++k) {
        const i64 border = k * p.border_stride + (base / kSegment - 1) * p.neurons + i;
        store_state<kLanes>(p.state(Where::kBorders) + border, v[k]);
      }
    }
    i64 at = base * p.neurons + i;
    SNN_UNROLL
    for (int t = 0; t < kSteps; ++t) {
      if (t < n) {
        Rows<Step::kOutputs, kLanes> s;
        SNN_UNROLL
        for (int j = 0; j < kLanes; ++j) {
          float now[Step::kInputs], before[some(Step::kStates)], of[some(Step::kParams)];
          float r[Step::kOutputs + Step::kStates];
          x.get(t, j, now), v.get(j, before), params.get(j, of);
          Step::forward(now, before, of, p.number + Step::kStates, r);
          s.set(j, r), v.set(j, r + Step::kOutputs);
        }
        SNN_UNROLL
        for (int k = 0; k < Step::kOutputs; ++k)
          Pack<Io, kLanes>::store(p.tensor[Where::kS + k] + at * kBytes, s[k]);
        if (flag(p, kEveryState)) v.store(p, Where::kV, at);
        at += p.neurons;
      }
    }
    if constexpr (kSteps < kSegment) break;  // launched for T <= kSteps
  }
  if (flag(p, kHasV) && !flag(p, kEveryState)) v.store(p, Where::kV, i);
}

template <class Step>
SNN_DEVICE void walk(const Backward<Step>& p) {
  using Io = SNN_IO;
  constexpr int kLanes = SNN_LANES, kSteps = SNN_STEPS;
  constexpr int kInputs = Step::kInputs, kStates = Step::kStates, kParams = Step::kParams;
  constexpr bool kEvery = (SNN_FLAGS & kEveryState) != 0;
  constexpr int kPart = SNN_PART;
  constexpr i64 kBytes = sizeof(typename Io::Element);
  using Where = At<Step>;
  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x, i = thread * kLanes;
  if (i >= p.neurons) return;
  Rows<kStates, kLanes> dv;
  Params<kParams, kLanes> loaded;
  Rows<kParams, kLanes> params, dp;
  Rows<kInputs, kLanes> sum;
  dv.clear(), dp.clear(), sum.clear();
  SNN_UNROLL
  for (int k = 0; k < kStates; ++k)
    if (flag(p, kHasV) && !kEvery && p.tensor[Where::kV + k])
      load_state<kLanes>(p.state(Where::kV + k) + i, dv[k]);
  loaded.load(p, i);
  const i64 last = kSteps < kSegment ? 0 : (p.steps - 1) / kSegment * kSegment;
  for (i64 base = last; base >= 0; base -= kSteps) {
    const int n = steps_from<kSteps>(base, p.steps);
    Rows<kStates, kLanes> v;
    begin(p, i, v);
    if (kSteps == kSegment && base > 0 && flag(p, kHasBorders)) {
      SNN_UNROLL
      for (int k = 0; k < kStates; ++k) {
        const i64 border = k * p.border_stride + (base / kSegment - 1) * p.neurons + i;
        load_state<kLanes>(p.state(Where::kBorders) + border, v[k]);
      }
    }
    Sequences<kInputs, Io, kLanes, kSteps> x;
    Sequences<Step::kOutputs, Io, kLanes, kSteps> ds;
    x.load(p, kAll, 0, 0, i, base, n);
    ds.load(p, SNN_DS, Where::kS, kInputs, i, base, n);
    loaded.make(params);
    SNN_UNROLL
    for (int o = 0; o < kLanes; o += kPart) {
      Rows<kStates, kPart> before[kSteps];
      SNN_UNROLL
      for (int t = 0; t < kSteps; ++t) {
        if (t < n) {
          SNN_UNROLL
          for (int j = 0; j < kPart; ++j) {
            float now[kInputs], held[some(kStates)], of[some(kParams)], r[some(kStates)];
            x.get(t, o + j, now), v.get(o + j, held), params.get(o + j, of);
            before[t].set(j, held);
            if (t + 1 == kSteps) continue;
            Step::advance(now, held, of, p.number + kStates, r);
            v.set(o + j, r);
          }
        }
      }
      SNN_UNROLL
      for (int t = kSteps - 1; t >= 0; --t) {
        if (t < n) {
          Rows<kInputs, kPart> dx;
          SNN_UNROLL
          for (int k = 0; k < kStates; ++k) {
            if (kEvery && p.tensor[Where::kV + k]) {
              float more[kPart];
              const i64 at = (base + t) * p.neurons + i + o;
              load_state<kPart>(p.state(Where::kV + k) + at, more);
              add<kPart>(dv[k] + o, more);
            }
          }
          SNN_UNROLL
          for (int j = 0; j < kPart; ++j) {
            float now[kInputs], held[some(kStates)], of[some(kParams)];
            float given[Step::kOutputs], after[some(kStates)], r[kInputs + kStates + kParams];
            x.get(t, o + j, now), before[t].get(j, held), params.get(o + j, of);
            ds.get(t, o + j, given), dv.get(o + j, after);
            Step::adjoint(now, held, of, given, after, p.number + kStates, r);
            dx.set(j, r), dv.set(o + j, r + kInputs);
            SNN_UNROLL
            for (int k = 0; k < kParams; ++k)
              dp[k][in(SNN_PER_LANE, k) ? o + j : 0] += r[kInputs + kStates + k];
          }
          // A gradient takes the place of its input.
          SNN_UNROLL
          for (int k = 0; k < kInputs; ++k) {
            if (in(SNN_SUM_DX, k))
              add<kPart>(sum[k] + o, dx[k]);
            else if (in(SNN_DX, k))
              x.pack[k][t].template set<kPart>(o, dx[k]);
          }
        }
      }
    }
    SNN_UNROLL
    for (int k = 0; k < kInputs; ++k) {
      char* to = p.tensor[Where::kDx + k] + (base * p.neurons + i) * kBytes;
      SNN_UNROLL
      for (int t = 0; t < kSteps; ++t) {
        if (in(SNN_DX, k) && t < n) x.pack[k][t].store(to);
        to = advance(to, p.neurons * kBytes);
      }
    }
  }
  SNN_UNROLL
  for (int k = 0; k < kInputs; ++k)
    if (in(SNN_SUM_DX, k)) Pack<Io, kLanes>::store(p.tensor[Where::kDx + k] + i * kBytes, sum[k]);
  if (flag(p, kHasDv0)) dv.store(p, Where::kDv0, i);
  SNN_UNROLL
  for (int k = 0; k < kParams; ++k) {
    if (in(SNN_DP & SNN_PER_LANE, k))
      store_state<kLanes>(p.state(Where::kDp + k) + i, dp[k]);
    else if (in(SNN_DP, k))
      store_element(p.state(Where::kDp + k) + thread, dp[k][0]);
  }
}

}  // namespace cuda
}  // namespace snnfast
