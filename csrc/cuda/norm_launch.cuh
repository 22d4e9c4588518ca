// From a NormLaunch to the kernel that serves it, for one dtype.
#pragma once

#include "norm.cuh"
#include "norm_launch.h"

namespace snnfast {
namespace cuda {

template <class Io, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_lif(const __grid_constant__ ForwardArgs p, const __grid_constant__ LifArgs lif,
             const __grid_constant__ NormArgs q) {
  norm_forward<Io, kLanes, kSteps>(p, lif, q);
}

template <class Io, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_lif_backward(const __grid_constant__ BackwardArgs p, const __grid_constant__ LifArgs lif,
                      const __grid_constant__ NormArgs q) {
  norm_backward<Io, kLanes, kSteps>(p, lif, q, snnfast_shared);
}

template <class Io, int kLanes>
__global__ void __launch_bounds__(kThreads)
    norm_stats_of(const __grid_constant__ MapArgs p, const __grid_constant__ NormArgs q) {
  norm_stats<Io, kLanes>(p, q, snnfast_shared);
}

template <class Io, int kLanes>
__global__ void __launch_bounds__(kThreads)
    norm_apply_to(const __grid_constant__ MapArgs p, const __grid_constant__ NormArgs q) {
  norm_apply<Io, kLanes>(p, q);
}

// Shared memory of a block: six numbers a neuron, or three and one a thread.
constexpr int shared_rows(int lanes) { return 6 * lanes * kThreads * int(sizeof(float)); }
constexpr int shared_stats(int lanes) { return (3 * lanes + 1) * kThreads * int(sizeof(float)); }
constexpr int shared_none(int) { return 0; }

template <class Kernel, class... Args>
int launch_norm(Kernel kernel, i64 blocks, int threads, int shared, void* stream, Args... args) {
  void* pointers[] = {&args...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)),
                          dim3(unsigned(threads)), pointers, size_t(shared),
                          static_cast<cudaStream_t>(stream));
}

}  // namespace cuda
}  // namespace snnfast

// kernel<Io, lanes, steps>, and kernel<Io, lanes>, as the launch wants it.
#define SNN_SCAN_LAUNCHER(name, dtype, Io, kernel, Args, shared)                                   \
  int snnfast::cuda::norm_##name##_##dtype(const NormLaunch& l, const Args& p, const LifArgs& lif, \
                                           const NormArgs& q) {                                    \
    constexpr int kLanes = 4 * Io::kPerWord;                                                       \
    const auto chosen = !l.vector      ? kernel<Io, 1, kSegment>                                   \
                        : p.steps <= 4 ? kernel<Io, kLanes, 4>                                     \
                                       : kernel<Io, kLanes, kSegment>;                             \
    return launch_norm(chosen, q.at.blocks, kThreads, shared(l.vector ? kLanes : 1), l.stream, p,  \
                       lif, q);                                                                    \
  }
#define SNN_MAP_LAUNCHER(name, dtype, Io, kernel, shared)                                         \
  int snnfast::cuda::norm_##name##_##dtype(const NormLaunch& l, const MapArgs& p,                 \
                                           const NormArgs& q) {                                   \
    constexpr int kLanes = 4 * Io::kPerWord;                                                      \
    const auto chosen = l.vector ? kernel<Io, kLanes> : kernel<Io, 1>;                            \
    return launch_norm(chosen, q.at.blocks, kThreads, shared(l.vector ? kLanes : 1), l.stream, p, \
                       q);                                                                        \
  }
#define SNN_NORM_LAUNCHERS(dtype, Io)                                                  \
  SNN_SCAN_LAUNCHER(forward, dtype, Io, norm_lif, ForwardArgs, shared_none)            \
  SNN_SCAN_LAUNCHER(backward, dtype, Io, norm_lif_backward, BackwardArgs, shared_rows) \
  SNN_MAP_LAUNCHER(stats, dtype, Io, norm_stats_of, shared_stats)                      \
  SNN_MAP_LAUNCHER(apply, dtype, Io, norm_apply_to, shared_none)
