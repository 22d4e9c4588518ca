// The kernels of the distillation losses: one block a row of the batch, with all its timesteps
// (csrc/include/distill.h has the formulas); one block that adds up the rows' terms; and the
// gradient's scaling. For b bytes a logit
//
//   rows      reads T C b, writes T C b (resident)   a block of 32 to 256 threads
//   finish    reads 24 B                             one block
//   scale     reads T B C b, writes as much
//
// Sums are taken in a fixed order: the same input gives the same bits. NVRTC compiles one kernel at
// a time, named by SNN_IO and SNN_RESIDENT with SNN_STEPWISE or SNN_TSSD, by SNN_IO with SNN_SCALE,
// or by SNN_FINISH.
#pragma once

#include "distill_row.cuh"

namespace snnfast {
namespace cuda {

template <class Row>
SNN_DEVICE void row_terms(Row& row, const StepwiseNumbers& a, float (&terms)[4]) {
  StepwiseRow<float> s = {};  // power: an exponential is no dearer here
  s.inv_ce = a.inv_ce, s.inv_tau = a.inv_tau, s.inv_h = a.inv_h, s.kl_scale = a.kl_scale;
  s.g_ce = a.g_ce, s.g_kl = a.g_kl, s.g_self = a.g_self, s.g_h = a.g_h;
  s.self_target = a.self_target, s.skip_all_wrong = a.skip_all_wrong != 0;
  s.entropy = a.entropy != 0, s.shared_ce = a.shared_ce != 0, s.shared_h = a.shared_h != 0;
  s.teacher = row.p.other != nullptr, s.gradient = row.p.gradient != nullptr;
  row.template read<false>(a.self_target == kSelfCorrect);
  stepwise_row(row, s, terms);
}

template <class Row>
SNN_DEVICE void row_terms(Row& row, const TssdNumbers& a, float (&terms)[4]) {
  TssdRow<float> s = {};
  s.inv_tau = a.inv_tau, s.kl_scale = a.kl_scale, s.ce_all = a.ce_all, s.ce_student = a.ce_student;
  s.g_all = a.g_all, s.g_student = a.g_student;
  s.g_temporal = a.g_temporal, s.g_spatial = a.g_spatial;
  s.student_steps = a.student_steps, s.per_step = a.per_step != 0;
  s.aux = row.p.other != nullptr, s.gradient = row.p.gradient != nullptr;
  s.aux_gradient = row.p.aux_gradient != nullptr;
  row.template read<true>(false);
  tssd_row(row, s, terms);
}

template <class Io, bool kResident, class Args>
SNN_DEVICE void distill_row(const RowArgs& p, const Args& args, void* shared) {
  BlockRow<Io, kResident> row(p, static_cast<float*>(shared));
  float terms[4] = {};
  if (row.counts()) {
    row_terms(row, args, terms);
  } else {
    row.each([&](int k) {
      SNN_NO_UNROLL
      for (i64 t = 0; t < p.steps; ++t) {
        if (p.gradient) row.gradient(t, k, 0);
        if (p.aux_gradient) row.aux_gradient(t, k, 0);
      }
    });
  }
  if (threadIdx.x == 0) store_state<4>(p.parts + row.b * 4, terms);
}

// The means over the rows that count, NaN where none does. In double, of which there is little.
SNN_DEVICE void finish_loss(const FinishArgs& p, void* shared) {
  constexpr int kAhead = 4;  // rows under way at once
  double n = 0, sums[4] = {};
  for (i64 first = threadIdx.x; first < p.rows; first += kAhead * kFinishThreads) {
    float part[kAhead][4] = {};
    bool counts[kAhead];
    SNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const i64 b = first + k * kFinishThreads;
      counts[k] = b < p.rows;
      if (counts[k]) load_state<4>(p.parts + b * 4, part[k]);
      if (counts[k] && p.labels) counts[k] = load_label(p.labels + b) != p.ignore_index;
    }
    SNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      SNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[i] += part[k][i];
      n += counts[k] ? 1 : 0;
    }
  }
  int half = 0;
  const auto total = [&](double v) {
    return reduce<kFinishThreads / 32>(v, static_cast<double*>(shared), half,
                                       [](double a, double b) { return a + b; });
  };
  n = total(n);
  SNN_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] = total(sums[i]);
  if (threadIdx.x != 0) return;
  double loss = 0;
  SNN_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < p.term_count) {
      const double term = sums[i] / (p.steps * n);
      store_element(p.terms + i, float(term));
      if (p.weights[i] != 0) loss += p.weights[i] * term;
    }
  }
  store_element(p.loss, float(loss));
  store_element(p.unit, float(1 / (p.unit_scale * (n > 0 ? n : 1))));
}

// scaled = gradient (grad_output unit): 16 bytes a thread, or what is left of them.
template <class Io>
SNN_DEVICE void scale_gradient(const ScaleArgs& p) {
  constexpr int kLanes = 4 * Io::kPerWord;
  const auto* from = static_cast<const typename Io::Element*>(p.gradient);
  auto* to = static_cast<typename Io::Element*>(p.scaled);
  const i64 i = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * kLanes;
  float factor, unit;
  load_element(p.grad_output, factor);
  load_element(p.unit, unit);
  factor *= unit;
  const bool aligned = (reinterpret_cast<unsigned long long>(from) % 16 |
                        reinterpret_cast<unsigned long long>(to) % 16) == 0;
  if (aligned && i + kLanes <= p.n) {
    Pack<Io, kLanes> pack;
    pack.load(from + i);
    float value[kLanes];
    SNN_UNROLL
    for (int j = 0; j < kLanes; ++j) value[j] = pack[j] * factor;
    Pack<Io, kLanes>::store(to + i, value);
    return;
  }
  for (i64 j = i; j < p.n && j < i + kLanes; ++j) {
    Pack<Io, 1> one;
    one.load(from + j);
    const float value = one[0] * factor;
    Pack<Io, 1>::store(to + j, &value);
  }
}

}  // namespace cuda
}  // namespace snnfast

#if defined(SNN_STEPWISE) || defined(SNN_TSSD)
#if defined(SNN_STEPWISE)
using SnnArgs = snnfast::cuda::StepwiseNumbers;
#else
using SnnArgs = snnfast::cuda::TssdNumbers;
#endif
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kRowThreads, snnfast::cuda::kRowBlocks)
    snnfast_distill(const __grid_constant__ snnfast::cuda::RowArgs p,
                    const __grid_constant__ SnnArgs args) {
  using namespace snnfast::cuda;
  distill_row<SNN_IO, SNN_RESIDENT>(p, args, snnfast_shared);
}
#elif defined(SNN_FINISH)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kFinishThreads)
    snnfast_distill(const __grid_constant__ snnfast::cuda::FinishArgs p) {
  snnfast::cuda::finish_loss(p, snnfast_shared);
}
#elif defined(SNN_SCALE)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kScaleThreads)
    snnfast_distill(const __grid_constant__ snnfast::cuda::ScaleArgs p) {
  snnfast::cuda::scale_gradient<snnfast::cuda::SNN_IO>(p);
}
#endif
