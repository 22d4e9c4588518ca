// From a Launch to the kernel that serves it, for one dtype.
#pragma once

#include "launch.h"
#include "lif.cuh"

namespace snnfast {
namespace cuda {

template <class Io, int kLanes, int kSteps, int kCharge, bool kHard>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lif(const __grid_constant__ ForwardArgs p, const __grid_constant__ LifArgs args) {
  lif_thread<Io, kLanes, kSteps>(p, ScanLif<kCharge, kHard>(args));
}

template <class Io, int kLanes, int kSteps, int kCharge, bool kHard>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lif(const __grid_constant__ BackwardArgs p, const __grid_constant__ LifArgs args) {
  lif_thread<Io, kLanes, kSteps>(p, ScanLif<kCharge, kHard>(args));
}

template <class Args>
using Kernel = void (*)(Args, LifArgs);

template <class Io, int kLanes, int kSteps, class Args>
Kernel<Args> chosen(const Launch& launch) {
  static constexpr Kernel<Args> kKernels[3][2] = {
      {lif<Io, kLanes, kSteps, kIntegrate, false>, lif<Io, kLanes, kSteps, kIntegrate, true>},
      {lif<Io, kLanes, kSteps, kDecayInput, false>, lif<Io, kLanes, kSteps, kDecayInput, true>},
      {lif<Io, kLanes, kSteps, kDecayState, false>, lif<Io, kLanes, kSteps, kDecayState, true>},
  };
  return kKernels[launch.charge][launch.hard];
}

template <class Io, class Args>
int launch_lif(const Launch& launch, Args p, LifArgs args) {
  constexpr int kLanes = 4 * Io::kPerWord;
  const Kernel<Args> kernel = !launch.vector ? chosen<Io, 1, kSegment, Args>(launch)
                              : p.steps <= 4 ? chosen<Io, kLanes, 4, Args>(launch)
                                             : chosen<Io, kLanes, kSegment, Args>(launch);
  const i64 threads = launch.vector ? p.neurons / kLanes : p.neurons;
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  void* pointers[] = {&p, &args};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads), pointers, 0,
                          static_cast<cudaStream_t>(launch.stream));
}

}  // namespace cuda
}  // namespace snnfast

#define SNN_LAUNCHERS(dtype, Io)                                                  \
  int snnfast::cuda::lif_forward_##dtype(const Launch& l, const ForwardArgs& p,   \
                                         const LifArgs& a) {                      \
    return launch_lif<Io>(l, p, a);                                               \
  }                                                                               \
  int snnfast::cuda::lif_backward_##dtype(const Launch& l, const BackwardArgs& p, \
                                          const LifArgs& a) {                     \
    return launch_lif<Io>(l, p, a);                                               \
  }
