// The distillation kernels of one instruction set (SNN_ISA, given by the build): rows of the batch
// over threads, each in buffers of its own. Those in float64 where the build asks for them
// (SNN_FLOAT64).
#include "distill_rows.h"

namespace snnfast {
namespace {

// Logits of a vector's samples, at all steps and classes, that stay in cache together.
constexpr int64_t kFewLogits = 1024;
// Logits below which a second thread costs more than it brings.
constexpr int64_t kAlone = 8192;

// Runs f(row, terms) for all rows of the batch, in tiles of what a Row holds.
template <class Row, class F>
void for_rows(const DistillIo& io, int64_t steps_of_other, F&& f) {
  using R = typename Row::R;
  const int64_t tiles = (io.rows + Row::kSamples - 1) / Row::kSamples;
  [[maybe_unused]] const bool alone = tiles == 1 || io.steps * io.rows * io.classes <= kAlone;
#pragma omp parallel num_threads(io.threads) if (!alone)
  {
    Row row(io.steps, io.classes, steps_of_other);
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t b = tile * Row::kSamples, n = std::min(Row::kSamples, io.rows - b);
      bool counts[Row::V::kCount] = {}, any = false;
      for (int64_t j = 0; j < n; ++j)
        any |= counts[j] = !io.labels || io.labels[b + j] != io.ignore_index;
      typename Row::V terms[4];
      if (any) {
        row.read(io.logits, io.steps, b, n, row.z);
        if (steps_of_other) row.read(io.other, steps_of_other, b, n, row.other);
        read_labels(row, io, b, n);
        f(row, terms);
      }
      for (int i = 0; i < 4; ++i) {
        R lanes[Row::V::kCount];
        if (any) store(lanes, terms[i]);
        for (int64_t j = 0; j < n; ++j)
          io.parts[(b + j) * 4 + i] = counts[j] ? double(lanes[j]) : 0.0;
      }
      if (io.gradient) row.write(row.z, io.logits.dtype, io.gradient, io.rows, b, n, counts);
      if (io.other_gradient)
        row.write(row.other, io.logits.dtype, io.other_gradient, io.rows, b, n, counts);
    }
  }
}

template <class R, class F>
void with_rows(const DistillIo& io, int64_t steps_of_other, F&& f) {
  if constexpr (sizeof(R) == 4) {
    if (io.steps * io.classes <= kFewLogits && io.rows * 2 > Lanes<R>::kCount)
      return for_rows<SampleLanes<R>>(io, steps_of_other, f);
  }
  for_rows<ClassLanes<R>>(io, steps_of_other, f);
}

template <class R>
void stepwise(const StepwiseArgs& l, const DistillIo& io) {
  StepwiseRow<R> p{};
  p.inv_ce = R(1 / l.ce_temperature);
  p.inv_tau = R(1 / l.temperature);
  p.inv_h = R(1 / l.entropy_temperature);
  p.kl_scale = R(l.kl_scale);
  const double s = l.gradient_scale;
  p.g_ce = R(s * l.weights[0] / l.ce_temperature);
  p.g_kl = R(s * l.weights[1] * l.kl_scale / l.temperature);
  p.g_self = R(s * l.weights[2] * l.kl_scale / l.temperature);
  p.g_h = R(-s * l.weights[3] / l.entropy_temperature);
  p.self_target = l.self_target;
  p.skip_all_wrong = l.skip_all_wrong;
  p.entropy = l.entropy;
  p.teacher = io.other.data != nullptr;
  p.gradient = io.gradient != nullptr;
  p.shared_ce = l.ce_temperature == l.temperature;
  p.shared_h = l.entropy_temperature == l.temperature;
  for (int n = 2; n <= 4; ++n)
    if (l.temperature == n * l.ce_temperature && sizeof(R) == 4) p.power = n;
  with_rows<R>(io, p.teacher, [&](auto& row, auto& terms) { stepwise_row(row, p, terms); });
}

template <class R>
void tssd(const TssdArgs& l, const DistillIo& io) {
  TssdRow<R> p{};
  const double s = l.gradient_scale, share = double(io.steps) / double(l.student_steps);
  p.inv_tau = R(1 / l.temperature);
  p.kl_scale = R(l.kl_scale);
  p.ce_all = R(l.ce_all);
  p.ce_student = R(l.ce_student);
  p.g_all = R(s * l.weights[0] * l.ce_all);
  p.g_student = R(s * l.weights[0] * l.ce_student * share);
  p.g_temporal = R(s * l.weights[1] * l.kl_scale / l.temperature * share);
  p.g_spatial = R(s * l.weights[2] * l.kl_scale / l.temperature);
  p.student_steps = l.student_steps;
  p.aux = io.other.data != nullptr;
  p.per_step = l.per_step;
  p.gradient = io.gradient != nullptr;
  p.aux_gradient = io.other_gradient != nullptr;
  with_rows<R>(io, p.aux ? io.steps : 0, [&](auto& row, auto& terms) { tssd_row(row, p, terms); });
}

template <class S>
void scale(const Scale& job) {
  using V = typename Io<S>::V;
  using R = typename Io<S>::Real;
  const S* from = static_cast<const S*>(job.gradient);
  S* to = static_cast<S*>(job.scaled);
  const int64_t vectors = job.n / V::kCount;
  const V factor(R(job.factor));
#pragma omp parallel for num_threads(job.threads) if (job.n > 4 * kAlone) schedule(static)
  for (int64_t k = 0; k < vectors; ++k)
    Io<S>::store(to + k * V::kCount, Io<S>::load(from + k * V::kCount) * factor);
  S tail[V::kCount] = {};
  const int64_t done = vectors * V::kCount;
  std::copy(from + done, from + job.n, tail);
  Io<S>::store(tail, Io<S>::load(tail) * factor);
  std::copy(tail, tail + (job.n - done), to + done);
}

}  // namespace

void SNN_ISA_NAME(stepwise_loss)(const StepwiseArgs& loss, const DistillIo& io) {
  io.logits.dtype == kFloat64 ? stepwise_loss_float64(loss, io) : stepwise<float>(loss, io);
}

void SNN_ISA_NAME(tssd_loss)(const TssdArgs& loss, const DistillIo& io) {
  io.logits.dtype == kFloat64 ? tssd_loss_float64(loss, io) : tssd<float>(loss, io);
}

#if defined(SNN_FLOAT64)
void stepwise_loss_float64(const StepwiseArgs& loss, const DistillIo& io) {
  stepwise<double>(loss, io);
}

void tssd_loss_float64(const TssdArgs& loss, const DistillIo& io) { tssd<double>(loss, io); }
#endif

void SNN_ISA_NAME(scale_gradient)(const Scale& job) {
  if (job.dtype == kFloat32) return scale<float>(job);
  if (job.dtype == kFloat64) return scale<double>(job);
  job.dtype == kFloat16 ? scale<Half>(job) : scale<BFloat16>(job);
}

}  // namespace snnfast
