// From a RowLaunch to the kernel that serves it, for one dtype.
#pragma once

#include "distill.cuh"
#include "distill_launch.h"

namespace snnfast {
namespace cuda {

template <class Io, bool kResident, class Args>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    distill_rows(const __grid_constant__ RowArgs p, const __grid_constant__ Args args) {
  distill_row<Io, kResident>(p, args, snnfast_shared);
}

template <class Io>
__global__ void __launch_bounds__(kScaleThreads)
    distill_scale(const __grid_constant__ ScaleArgs p) {
  scale_gradient<Io>(p);
}

template <class Kernel, class... Args>
int launch_kernel(Kernel kernel, i64 blocks, int threads, int shared, void* stream, Args... args) {
  void* pointers[] = {&args...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)),
                          dim3(unsigned(threads)), pointers, size_t(shared),
                          static_cast<cudaStream_t>(stream));
}

template <class Io, class Args>
int launch_rows(const RowLaunch& l, const RowArgs& p, const Args& args) {
  const auto kernel = l.resident ? distill_rows<Io, true, Args> : distill_rows<Io, false, Args>;
  return launch_kernel(kernel, p.rows, l.threads, l.shared, l.stream, p, args);
}

template <class Io>
int launch_scale(void* stream, const ScaleArgs& p) {
  constexpr int kPerBlock = kScaleThreads * 4 * Io::kPerWord;
  return launch_kernel(distill_scale<Io>, (p.n + kPerBlock - 1) / kPerBlock, kScaleThreads, 0,
                       stream, p);
}

}  // namespace cuda
}  // namespace snnfast

#define SNN_DISTILL_LAUNCHERS(dtype, Io)                                                          \
  int snnfast::cuda::stepwise_rows_##dtype(const RowLaunch& l, const RowArgs& p,                  \
                                           const StepwiseArgs& a) {                               \
    return launch_rows<Io>(l, p, a);                                                              \
  }                                                                                               \
  int snnfast::cuda::tssd_rows_##dtype(const RowLaunch& l, const RowArgs& p, const TssdArgs& a) { \
    return launch_rows<Io>(l, p, a);                                                              \
  }                                                                                               \
  int snnfast::cuda::scale_gradient_##dtype(void* stream, const ScaleArgs& p) {                   \
    return launch_scale<Io>(stream, p);                                                           \
  }
