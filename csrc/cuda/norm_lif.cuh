// Normalisation before a LIF layer: what the walk over time (scan.cuh) is fed with, and the
// launches that go with it. For b bytes an element, all steps of a neuron in one thread:
//
//   forward    reads y [and the residual], writes s                 2b [3b]
//   backward   reads y, ds [and the residual], writes dx, sums      3b [4b]
//   recompute  reads y, ds, writes dy: dX is computed again         3b   (backward, kRecompute)
//
// X is never written. Charge and reset are chosen at run time: with them as template parameters
// there would be six times as many kernels, and the few selects that this costs are hidden by
// memory. NVRTC compiles one kernel at a time, with the constants of lif.cuh and SNN_NORM_FORWARD
// and SNN_NORM_BACKWARD; SNN_NORM_STATS or SNN_NORM_DY with SNN_IO and SNN_LANES; or
// SNN_NORM_TOTALS, which is what follows from them.
#pragma once

#include "lif.cuh"
#include "norm_sums.cuh"
#include "norm_totals.cuh"

namespace snnfast {
namespace cuda {

#if defined(SNN_CHARGE)
using NormNeuron = ScanLif<SNN_CHARGE, SNN_HARD>;
#else
using NormNeuron = ScanNeuron<LifOf<float, Chosen> >;
#endif

// Y and the residual as they lie in memory.
template <class Io, int kLanes, int kSteps>
struct Normal {
  struct Segment {
    Pack<Io, kLanes> y[kSteps], r[kSteps];
  };
  const NormArgs& q;

  SNN_DEVICE const char* residual(i64 at) const {
    return static_cast<const char*>(q.residual) + at * i64(sizeof(typename Io::Element));
  }
  template <class Args>
  SNN_DEVICE void load(const Args& p, Segment& segment, const char* y, i64 bytes, i64 i, i64 base,
                       int n) const {
    load_steps<kSteps>(segment.y, y, bytes, n);
    if (flag(p, kHasResidual))
      load_steps<kSteps>(segment.r, residual(base * q.residual_stride + i),
                         q.residual_stride * i64(sizeof(typename Io::Element)), n);
  }
};

// X = (Y - mean) scale + bias, each step rounded, of n lanes from `first` on.
template <int n, class Pack>
SNN_DEVICE void normalise(const Pack& y, int first, const float* mean, const float* scale,
                          const float* bias, float* x) {
  SNN_UNROLL
  for (int j = 0; j < n; ++j) x[j] = (y[first + j] - mean[j]) * scale[j] + bias[j];
}

template <int n, class Pack>
SNN_DEVICE void add_pack(float* x, const Pack& r, int first) {
  SNN_UNROLL
  for (int j = 0; j < n; ++j) x[j] += r[first + j];
}

template <class Io, int kLanes, int kSteps>
struct Charged : Normal<Io, kLanes, kSteps> {
  using Base = Normal<Io, kLanes, kSteps>;
  using Segment = typename Base::Segment;
  float row[3][kLanes];

  SNN_DEVICE Charged(const NormArgs& q, i64 i) : Base{q} {
    const Place<kLanes> place(q.at, i);
    place.load({q.mean, q.scale, q.bias}, row);
  }
  SNN_DEVICE void step(const ForwardArgs& p, const Segment& segment, int, int t, float* x) const {
    normalise<kLanes>(segment.y[t], 0, row[0], row[1], row[2], x);
    if (flag(p, kHasResidual)) add_pack<kLanes>(x, segment.r[t], 0);
  }
};

constexpr int kBackwardNumbers = 6;  // a neuron has in shared memory

// Backward, with what a thread has for each of its neurons in shared memory: registers are full.
// Either adds up dX and dX (Y - mean) of each of the thread's neurons, or (kRecompute) stores
// dY = a dX + b (Y - mean) + c.
template <class Io, int kLanes, int kSteps>
struct Backward : Normal<Io, kLanes, kSteps> {
  using Base = Normal<Io, kLanes, kSteps>;
  using Segment = typename Base::Segment;
  static constexpr int kParts = kLanes > 4 ? kLanes / 4 : 1;
  static constexpr int kPart = kLanes / kParts;
  enum { kMean, kScale, kBias, kFirst, kSecond, kThird };  // the sums, or a, b and c
  Own<kLanes> own;
  float mean[kPart], scale[kPart], bias[kPart], sum[kPart], moment[kPart];

  SNN_DEVICE Backward(const BackwardArgs& p, const NormArgs& q, const Place<kLanes>& place,
                      float* shared)
      : Base{q}, own{shared} {
    own.keep(kMean, place, {q.mean, q.scale, q.bias});
    if (flag(p, kRecompute))
      own.keep(kFirst, place, {q.a, q.b, q.c});
    else
      own.clear(kFirst), own.clear(kSecond);
  }
  SNN_DEVICE void enter(int part) {
    own.get(kMean, part, mean), own.get(kScale, part, scale), own.get(kBias, part, bias);
    fill<kPart>(sum, 0.0f), fill<kPart>(moment, 0.0f);
  }
  SNN_DEVICE void leave(const BackwardArgs& p, int part) {
    if (!flag(p, kRecompute)) own.add(kFirst, part, sum), own.add(kSecond, part, moment);
  }
  SNN_DEVICE void step(const BackwardArgs& p, const Segment& segment, int part, int t,
                       float* x) const {
    normalise<kPart>(segment.y[t], part * kPart, mean, scale, bias, x);
    if (flag(p, kHasResidual)) add_pack<kPart>(x, segment.r[t], part * kPart);
  }
  // The residual comes from memory again: kept, it would take more registers than there are.
  SNN_DEVICE void again(const BackwardArgs& p, const Segment& segment, int part, i64 i, i64 base,
                        int t, float* x) const {
    fill<kPart>(x, 0.0f);
    if (!flag(p, kHasDrate)) return;
    float by[kPart], shift[kPart];
    own.get(kScale, part, by), own.get(kBias, part, shift);
    normalise<kPart>(segment.y[t], part * kPart, mean, by, shift, x);
    if (flag(p, kHasResidual)) {
      Pack<Io, kLanes> r;
      r.load(this->residual((base + t) * this->q.residual_stride + i));
      add_pack<kPart>(x, r, part * kPart);
    }
  }
  SNN_DEVICE void collect(const BackwardArgs& p, const Segment& segment, int part, int t,
                          const float* dx) {
    if (flag(p, kRecompute)) return;
    SNN_UNROLL
    for (int j = 0; j < kPart; ++j) {
      sum[j] += dx[j];
      moment[j] = mad_(dx[j], segment.y[t][part * kPart + j] - mean[j], moment[j]);
    }
  }
  SNN_DEVICE bool stores(const BackwardArgs& p) const { return flag(p, kHasDx); }
  SNN_DEVICE void dy(const Pack<Io, kLanes>& y, int part, float* d) const {
    float a[kPart], b[kPart], c[kPart];
    own.get(kFirst, part, a), own.get(kSecond, part, b), own.get(kThird, part, c);
    SNN_UNROLL
    for (int j = 0; j < kPart; ++j)
      d[j] = mad_(a[j], d[j], mad_(b[j], y[part * kPart + j] - mean[j], c[j]));
  }
  SNN_DEVICE void convert(const BackwardArgs& p, const Segment& segment, int part, int t,
                          float* d) const {
    if (flag(p, kRecompute)) dy(segment.y[t], part, d);
  }
  SNN_DEVICE void convert_sum(const BackwardArgs& p, i64 i, float* d) {
    if (!flag(p, kRecompute)) return;
    Pack<Io, kLanes> y;  // the same at every step
    y.load(static_cast<const typename Io::Element*>(p.x) + i);
    SNN_UNROLL
    for (int part = 0; part < kParts; ++part) {
      own.get(kMean, part, mean);
      dy(y, part, d + part * kPart);
    }
  }
};

template <class Io, int kLanes, int kSteps>
SNN_DEVICE void norm_lif_forward(const ForwardArgs& p, const NeuronArgs& lif, const NormArgs& q) {
  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;
  if (thread * kLanes >= p.neurons) return;
  Charged<Io, kLanes, kSteps> source(q, thread * kLanes);
  scan_forward<Io, kLanes, kSteps>(p, NormNeuron(lif), source, thread);
}

template <class Io, int kLanes, int kSteps>
SNN_DEVICE void norm_lif_backward(const BackwardArgs& p, const NeuronArgs& lif, const NormArgs& q,
                                  void* shared) {
  const NormNeuron neuron(lif);
  float* const memory = static_cast<float*>(shared);
  i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;
  Backward<Io, kLanes, kSteps> source(p, q, Place<kLanes>(q.at, thread * kLanes), memory);
  for (i64 tile = blockIdx.x; tile < q.at.tiles; tile += q.at.blocks) {
    if (thread * kLanes < p.neurons) scan_backward<Io, kLanes, kSteps>(p, neuron, source, thread);
    thread += q.at.blocks * kThreads;
  }
  if (flag(p, kRecompute)) return;
  __syncthreads();
  const SlotSums<kLanes> slots(q.at, memory + source.kFirst * SlotSums<kLanes>::kTile);
  slots.each([&](int slot) {
    const float sum = slots.total(slot, [&](int k) { return slots.first(k); });
    const float moment = slots.total(slot, [&](int k) { return slots.second(k); });
    slots.store(q.parts, slot, sum, moment);
  });
}

}  // namespace cuda
}  // namespace snnfast

#if defined(SNN_NORM_FORWARD)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads, snnfast::cuda::kBlocks)
    snnfast_norm_lif(const __grid_constant__ snnfast::cuda::ForwardArgs p,
                     const __grid_constant__ snnfast::cuda::NeuronArgs lif,
                     const __grid_constant__ snnfast::cuda::NormArgs q) {
  using namespace snnfast::cuda;
  norm_lif_forward<SNN_IO, SNN_LANES, SNN_STEPS>(p, lif, q);
}
#elif defined(SNN_NORM_BACKWARD)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads, snnfast::cuda::kBlocks)
    snnfast_norm_lif(const __grid_constant__ snnfast::cuda::BackwardArgs p,
                     const __grid_constant__ snnfast::cuda::NeuronArgs lif,
                     const __grid_constant__ snnfast::cuda::NormArgs q) {
  using namespace snnfast::cuda;
  norm_lif_backward<SNN_IO, SNN_LANES, SNN_STEPS>(p, lif, q, snnfast_shared);
}
#elif defined(SNN_NORM_STATS) || defined(SNN_NORM_DY)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads)
    snnfast_norm_lif(const __grid_constant__ snnfast::cuda::MapArgs p,
                     const __grid_constant__ snnfast::cuda::NormArgs q) {
  using namespace snnfast::cuda;
#if defined(SNN_NORM_STATS)
  norm_stats<SNN_IO, SNN_LANES>(p, q, snnfast_shared);
#else
  norm_dy<SNN_IO, SNN_LANES>(p, q);
#endif
}
#elif defined(SNN_NORM_TOTALS)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kTotalThreads)
    snnfast_norm_lif(const __grid_constant__ snnfast::cuda::TotalArgs p,
                     const __grid_constant__ snnfast::cuda::SNN_NORM_TOTALS q) {
  snnfast::cuda::norm_totals(p, q, snnfast_shared);
}
#endif
