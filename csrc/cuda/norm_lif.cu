// The kernels of norm_lif for one dtype, SNN_IO, and the choice among them.
#include "launch.cuh"
#include "norm_lif.cuh"

namespace snnfast {
namespace cuda {

template <class Io, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_lif(const __grid_constant__ ForwardArgs p, const __grid_constant__ NeuronArgs neuron,
             const __grid_constant__ NormArgs q) {
  norm_lif_forward<Io, kLanes, kSteps>(p, neuron, q);
}

template <class Io, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, kBlocks)
    norm_lif(const __grid_constant__ BackwardArgs p, const __grid_constant__ NeuronArgs neuron,
             const __grid_constant__ NormArgs q) {
  norm_lif_backward<Io, kLanes, kSteps>(p, neuron, q, snnfast_shared);
}

template <class Io, int kLanes>
__global__ void __launch_bounds__(kThreads)
    norm_stats_of(const __grid_constant__ MapArgs p, const __grid_constant__ NormArgs q) {
  norm_stats<Io, kLanes>(p, q, snnfast_shared);
}

template <class Io, int kLanes>
__global__ void __launch_bounds__(kThreads)
    norm_dy_of(const __grid_constant__ MapArgs p, const __grid_constant__ NormArgs q) {
  norm_dy<Io, kLanes>(p, q);
}

// Io is in the name: the linker keeps one of what bears the same name in two dtypes' objects.
template <class Io, class Args>
int launch_scan(void* stream, bool vector, const Args& p, const NeuronArgs& neuron,
                const NormArgs& q, int numbers) {
  constexpr int kLanes = 4 * Io::kPerWord;
  void (*kernel)(Args, NeuronArgs, NormArgs) = norm_lif<Io, 1, kSegment>;
  if (vector && p.steps <= 4) kernel = norm_lif<Io, kLanes, 4>;
  if (vector && p.steps > 4) kernel = norm_lif<Io, kLanes, kSegment>;
  return launch(kernel, {q.at.blocks, kThreads, shared_bytes(numbers)}, stream, p, neuron, q);
}

using Io = SNN_IO;
constexpr int kLanes = 4 * Io::kPerWord;

namespace launchers {

template <>
int norm_lif_forward<Io>(void* stream, bool vector, const ForwardArgs& p, const NeuronArgs& neuron,
                         const NormArgs& q) {
  return launch_scan<Io>(stream, vector, p, neuron, q, 0);
}

template <>
int norm_lif_backward<Io>(void* stream, bool vector, const BackwardArgs& p,
                          const NeuronArgs& neuron, const NormArgs& q) {
  return launch_scan<Io>(stream, vector, p, neuron, q, kBackwardNumbers * (vector ? kLanes : 1));
}

template <>
int norm_stats<Io>(void* stream, bool vector, const MapArgs& p, const NormArgs& q) {
  const auto kernel = vector ? norm_stats_of<Io, kLanes> : norm_stats_of<Io, 1>;
  const int shared = shared_bytes(kStatsNumbers * (vector ? kLanes : 1) + 1);
  return launch(kernel, {q.at.blocks, kThreads, shared}, stream, p, q);
}

template <>
int norm_dy<Io>(void* stream, bool vector, const MapArgs& p, const NormArgs& q) {
  const auto kernel = vector ? norm_dy_of<Io, kLanes> : norm_dy_of<Io, 1>;
  return launch(kernel, {q.at.blocks, kThreads}, stream, p, q);
}

}  // namespace launchers
}  // namespace cuda
}  // namespace snnfast
