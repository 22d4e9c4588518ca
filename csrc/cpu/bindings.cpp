// snnfast._C: pointers and numbers in, nothing out. The instruction set is chosen at run time.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "channels.h"
#include "dlpack.h"
#include "program_bindings.h"
#include "unpack.h"

namespace snnfast {
namespace {

// Those that this machine can run, the best last.
std::vector<Kernels> all_kernels() {
  std::vector<Kernels> all(1);
#if defined(SNN_HAVE_AVX2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    all.push_back({"avx2", lif_forward_avx2, lif_backward_avx2, norm_stats_avx2, norm_dy_avx2,
                   stepwise_loss_avx2, tssd_loss_avx2, scale_gradient_avx2, pack_spikes_avx2,
                   unpack_spikes_avx2, program_operation_avx2, program_forward_avx2,
                   program_backward_avx2, run_compiled_avx2});
    // Processors without VBMI2 lower their clock for registers of 64 bytes.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi2")) {
      Kernels k = all.back();
      k.name = "avx512";
      k.forward = lif_forward_avx512, k.backward = lif_backward_avx512;
      k.norm_stats = norm_stats_avx512, k.norm_dy = norm_dy_avx512;
      all.push_back(k);
    }
  }
#endif
  return all;
}

}  // namespace

Kernels kernels = all_kernels().back();

namespace {

LifLayer layer_of(std::string_view layer, int dtype, int threads, int64_t n, uintptr_t rates) {
  return {unpack<LifArgs>(layer), dtype, threads, n, pointer<const void>(rates)};
}

// Row k of a tensor [., channels] in the dtype of a state.
void* row(uintptr_t rows, int k, int64_t channels, int dtype) {
  return pointer<char>(rows) + k * channels * (dtype == kFloat64 ? 8 : 4);
}

// The rows of `stats` and `totals`, as snnfast/backends/spec.py has them.
enum { kMean, kVar, kInvStd, kScale };
enum { kSum, kMoment, kDWeight, kB, kC };

// A normalisation, as norm_lif's functions have it: the addresses of stats, bias and a residual,
// the distance of its steps, channels and inner.
using NormArgs = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;

LifNorm norm_of(const std::optional<NormArgs>& args, int dtype) {
  if (!args) return {};
  const auto [stats, bias, residual, stride, channels, inner] = *args;
  return {row(stats, kMean, channels, dtype),
          row(stats, kScale, channels, dtype),
          pointer<void>(bias),
          pointer<void>(residual),
          stride,
          channels,
          inner,
          nullptr,
          nullptr};
}

// What follows from the sums of dX and of dX (Y - mean) over `count` values of a channel; 0: their
// statistics are constants.
template <class R>
void finish_norm(int64_t channels, const R* stats, R* totals, R count) {
  const R *inv_std = stats + kInvStd * channels, *scale = stats + kScale * channels;
  for (int64_t i = 0; i < channels; ++i) {
    const R sum = totals[i], moment = totals[kMoment * channels + i];
    totals[kDWeight * channels + i] = moment * inv_std[i];
    totals[kB * channels + i] = slope_of(scale[i], inv_std[i], moment, count);
    totals[kC * channels + i] = shift_of(scale[i], sum, count);
  }
}

void norm_finish(int dtype, int64_t channels, uintptr_t stats, uintptr_t totals, double count) {
  if (dtype == kFloat64)
    finish_norm(channels, pointer<double>(stats), pointer<double>(totals), count);
  else
    finish_norm(channels, pointer<float>(stats), pointer<float>(totals), float(count));
}

void forward(std::string_view args, int dtype, int threads, int64_t n, uintptr_t rates, uintptr_t x,
             int64_t x_stride, uintptr_t v0, uintptr_t s, uintptr_t v, bool v_every_step,
             uintptr_t borders, const std::optional<NormArgs>& norm) {
  LifLayer layer = layer_of(args, dtype, threads, n, rates);
  LifForward io{pointer<void>(x), x_stride,     pointer<void>(v0),      pointer<void>(s),
                pointer<void>(v), v_every_step, pointer<void>(borders), norm_of(norm, dtype)};
  py::gil_scoped_release release;
  kernels.forward(layer, io);
}

void backward(std::string_view args, int dtype, int threads, int64_t n, uintptr_t rates,
              uintptr_t x, int64_t x_stride, uintptr_t v0, uintptr_t borders, uintptr_t ds,
              int64_t ds_stride, uintptr_t dv, bool dv_every_step, uintptr_t dx, bool sum_dx,
              uintptr_t dv0, uintptr_t drate, const std::optional<NormArgs>& norm, uintptr_t totals,
              double count) {
  LifLayer layer = layer_of(args, dtype, threads, n, rates);
  const bool rate = drate || dtype == kFloat64;
  const auto partial = scratch(rate ? kMaxChunks * layer.channels : 0);
  LifBackward io{pointer<void>(x),   x_stride,
                 pointer<void>(v0),  pointer<void>(borders),
                 pointer<void>(ds),  ds_stride,
                 pointer<void>(dv),  dv_every_step,
                 pointer<void>(dx),  sum_dx,
                 pointer<void>(dv0), pointer<void>(drate),
                 partial.get(),      norm_of(norm, dtype)};
  const auto norm_partial = scratch(kMaxChunks * 2 * io.norm.channels);
  io.norm.sums = pointer<void>(totals), io.norm.partial = norm_partial.get();
  py::gil_scoped_release release;
  kernels.backward(layer, io);
  if (norm) norm_finish(dtype, io.norm.channels, std::get<0>(*norm), totals, count);
}

// What follows from the statistics of [channels]: the running ones, if there are any, take a share
// `momentum` of them (of the variance times `unbias`), and scale = weight / sqrt(var + eps).
template <class R>
void prepare_norm(int64_t channels, R* stats, const R* weight, R* running_mean, R* running_var,
                  R momentum, R unbias, R eps) {
  for (int64_t c = 0; c < channels; ++c) {
    const R mean = stats[kMean * channels + c], var = stats[kVar * channels + c];
    if (running_mean) {
      running_mean[c] = towards(running_mean[c], mean, momentum);
      running_var[c] = towards(running_var[c], var * unbias, momentum);
    }
    const R inv_std = stats[kInvStd * channels + c] = inverse_std(var, eps);
    stats[kScale * channels + c] = weight ? weight[c] * inv_std : inv_std;
  }
}

void norm_prepare(int dtype, int64_t channels, uintptr_t stats, uintptr_t weight,
                  uintptr_t running_mean, uintptr_t running_var, double momentum, double unbias,
                  double eps) {
  const auto run = [&](auto zero) {
    using R = decltype(zero);
    prepare_norm(channels, pointer<R>(stats), pointer<const R>(weight), pointer<R>(running_mean),
                 pointer<R>(running_var), R(momentum), R(unbias), R(eps));
  };
  dtype == kFloat64 ? run(0.0) : run(0.0f);
}

void norm_stats(int dtype, int threads, int64_t steps, int64_t n, int64_t stride, int64_t channels,
                int64_t inner, double momentum, double unbias, double eps, uintptr_t y,
                uintptr_t stats, uintptr_t weight, uintptr_t running_mean, uintptr_t running_var) {
  py::gil_scoped_release release;
  const auto partial = scratch(kMaxChunks * 2 * channels);
  kernels.norm_stats({dtype, threads, steps, n, pointer<void>(y), stride, channels, inner,
                      row(stats, kMean, channels, dtype), row(stats, kVar, channels, dtype),
                      partial.get()});
  norm_prepare(dtype, channels, stats, weight, running_mean, running_var, momentum, unbias, eps);
}

void norm_dy(int dtype, int threads, int64_t steps, int64_t n, int64_t stride, int64_t channels,
             int64_t inner, uintptr_t y, uintptr_t dx, uintptr_t dy, uintptr_t stats,
             uintptr_t totals) {
  py::gil_scoped_release release;
  kernels.norm_dy({dtype, threads, steps, n, pointer<void>(y), stride, pointer<void>(dx),
                   pointer<void>(dy), channels, inner, row(stats, kMean, channels, dtype),
                   row(stats, kScale, channels, dtype), row(totals, kB, channels, dtype),
                   row(totals, kC, channels, dtype)});
}

// Where the results of a loss go, in float or, for float64, in double.
struct Results {
  uintptr_t loss, terms, unit, gradient, other_gradient;
};

template <class R>
void finish(const DistillIo& io, const Results& to, const double* weights, int terms, double steps,
            double gradient_scale) {
  int64_t n = 0;
  double sums[4] = {}, loss = 0;
  for (int64_t b = 0; b < io.rows; ++b) {
    n += !io.labels || io.labels[b] != io.ignore_index;
    for (int i = 0; i < terms; ++i) sums[i] += io.parts[b * 4 + i];
  }
  for (int i = 0; i < terms; ++i) {
    const double term = sums[i] / (steps * double(n));
    pointer<R>(to.terms)[i] = R(term);
    if (weights[i] != 0) loss += weights[i] * term;
  }
  *pointer<R>(to.loss) = R(loss);
  *pointer<R>(to.unit) = R(1 / (double(io.steps) * double(n ? n : 1) * gradient_scale));
}

// Fills the results; returns None, or the first label that is no class, with nothing done.
template <class Loss, class Kernel>
py::object run_loss(Kernel kernel, const Loss& loss, int terms, DistillIo io, const Results& to,
                    double steps) {
  io.smoothing = loss.label_smoothing, io.ignore_index = loss.ignore_index;
  for (int64_t b = 0; io.labels && b < io.rows; ++b)
    if ((io.labels[b] < 0 || io.labels[b] >= io.classes) && io.labels[b] != io.ignore_index)
      return py::int_(io.labels[b]);
  io.gradient = pointer<void>(to.gradient), io.other_gradient = pointer<void>(to.other_gradient);
  {
    py::gil_scoped_release release;
    const auto parts = scratch(io.rows * 4);
    io.parts = parts.get();
    kernel(loss, io);
    const bool wide = io.logits.dtype == kFloat64;
    (wide ? finish<double> : finish<float>)(io, to, loss.weights, terms, steps,
                                            loss.gradient_scale);
  }
  return py::none();
}

// Sizes and tensors of a loss; strides count elements.
DistillIo io_of(int threads, int64_t steps, int64_t rows, int64_t classes, uintptr_t logits,
                int dtype, const std::array<int64_t, 3>& strides, uintptr_t labels,
                uintptr_t probabilities, int probabilities_dtype, uintptr_t other, int other_dtype,
                const std::array<int64_t, 3>& other_strides) {
  DistillIo io{};
  io.threads = threads, io.steps = steps, io.rows = rows, io.classes = classes;
  io.logits = {pointer<void>(logits), dtype, strides[0], strides[1], strides[2]};
  io.labels = pointer<int64_t>(labels);
  io.probabilities = {pointer<void>(probabilities), probabilities_dtype, 0, classes, 1};
  io.other = {pointer<void>(other), other_dtype, other_strides[0], other_strides[1],
              other_strides[2]};
  return io;
}

#define SNN_PROBLEM                                                                       \
  int threads, int64_t steps, int64_t rows, int64_t classes, uintptr_t logits, int dtype, \
      const std::array<int64_t, 3>&strides, uintptr_t labels, uintptr_t probabilities,    \
      int probabilities_dtype, uintptr_t other, int other_dtype,                          \
      const std::array<int64_t, 3>&other_strides
#define SNN_IO                                                                        \
  io_of(threads, steps, rows, classes, logits, dtype, strides, labels, probabilities, \
        probabilities_dtype, other, other_dtype, other_strides)

py::object stepwise_loss(std::string_view args, SNN_PROBLEM, uintptr_t loss, uintptr_t terms,
                         uintptr_t unit, uintptr_t gradient) {
  const auto l = unpack<StepwiseArgs>(args);
  return run_loss(kernels.stepwise, l, 4, SNN_IO, {loss, terms, unit, gradient, 0}, double(steps));
}

py::object tssd_loss(std::string_view args, SNN_PROBLEM, uintptr_t loss, uintptr_t terms,
                     uintptr_t unit, uintptr_t gradient, uintptr_t aux_gradient) {
  const auto l = unpack<TssdArgs>(args);
  return run_loss(kernels.tssd, l, 3, SNN_IO, {loss, terms, unit, gradient, aux_gradient}, 1.0);
}

#undef SNN_PROBLEM
#undef SNN_IO

void scale_gradient(int dtype, int threads, int64_t n, uintptr_t gradient, uintptr_t grad_output,
                    uintptr_t unit, uintptr_t scaled) {
  const double factor = dtype == kFloat64
                            ? *pointer<double>(grad_output) * *pointer<double>(unit)
                            : double(*pointer<float>(grad_output) * *pointer<float>(unit));
  py::gil_scoped_release release;
  kernels.scale({dtype, threads, n, pointer<void>(gradient), pointer<void>(scaled), factor});
}

bool pack_spikes(int dtype, int threads, int64_t n, uintptr_t s, uintptr_t bits,
                 bool only_if_spikes) {
  py::gil_scoped_release release;
  return kernels.pack(
      {dtype, threads, n, pointer<void>(s), pointer<uint8_t>(bits), only_if_spikes});
}

void unpack_spikes(int dtype, int threads, int64_t n, uintptr_t bits, uintptr_t s) {
  py::gil_scoped_release release;
  kernels.unpack({dtype, threads, n, pointer<uint8_t>(bits), pointer<void>(s)});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "snnfast's CPU kernels";
  m.def("lif_forward", &forward);
  m.def("lif_backward", &backward);
  m.def("norm_stats", &norm_stats);
  m.def("norm_dy", &norm_dy);
  m.def("norm_prepare", &norm_prepare);
  m.def("norm_finish", &norm_finish);
  m.def("stepwise_loss", &stepwise_loss);
  m.def("tssd_loss", &tssd_loss);
  m.def("scale_gradient", &scale_gradient);
  m.def("pack_spikes", &pack_spikes);
  m.def("unpack_spikes", &unpack_spikes);
  m.def("new_result", &new_result);
  m.def("keep_results", [](size_t bytes) { return ResultMemory::own().set_limit(bytes); });
  bind_program(m);
  m.def("instruction_set", [] { return kernels.name; });
  // For tests: the kernels that an older machine would run.
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Kernels& k : all_kernels()) names.push_back(k.name);
    return names;
  });
  m.def("use_instruction_set", [](const std::string& name) {
    for (const Kernels& k : all_kernels())
      if (name == k.name) kernels = k;
  });
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
}

}  // namespace snnfast
