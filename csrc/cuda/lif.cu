// The kernels of lif for one dtype, SNN_IO, and the choice among them.
#include "launch.cuh"
#include "lif.cuh"

namespace snnfast {
namespace cuda {

template <class Io, int kLanes, int kSteps, int kCharge, bool kHard, class Args>
__global__ void __launch_bounds__(kThreads, kBlocks)
    lif(const __grid_constant__ Args p, const __grid_constant__ NeuronArgs neuron) {
  lif_thread<Io, kLanes, kSteps>(p, ScanLif<kCharge, kHard>(neuron));
}

template <class Args>
using Kernel = void (*)(Args, NeuronArgs);

template <class Io, int kLanes, int kSteps, class Args>
Kernel<Args> lif_of(const NeuronArgs& n) {
  if (n.charge == kIntegrate)
    return n.hard ? lif<Io, kLanes, kSteps, kIntegrate, true, Args>
                  : lif<Io, kLanes, kSteps, kIntegrate, false, Args>;
  if (n.charge == kDecayInput)
    return n.hard ? lif<Io, kLanes, kSteps, kDecayInput, true, Args>
                  : lif<Io, kLanes, kSteps, kDecayInput, false, Args>;
  return n.hard ? lif<Io, kLanes, kSteps, kDecayState, true, Args>
                : lif<Io, kLanes, kSteps, kDecayState, false, Args>;
}

template <class Io, class Args>
int launch_lif(void* stream, bool vector, const Args& p, const NeuronArgs& neuron) {
  constexpr int kLanes = 4 * Io::kPerWord;
  const Kernel<Args> kernel = !vector        ? lif_of<Io, 1, kSegment, Args>(neuron)
                              : p.steps <= 4 ? lif_of<Io, kLanes, 4, Args>(neuron)
                                             : lif_of<Io, kLanes, kSegment, Args>(neuron);
  const i64 threads = vector ? p.neurons / kLanes : p.neurons;
  return launch(kernel, {(threads + kThreads - 1) / kThreads, kThreads}, stream, p, neuron);
}

namespace launchers {

template <>
int lif_forward<SNN_IO>(void* stream, bool vector, const ForwardArgs& p, const NeuronArgs& neuron) {
  return launch_lif<SNN_IO>(stream, vector, p, neuron);
}

template <>
int lif_backward<SNN_IO>(void* stream, bool vector, const BackwardArgs& p,
                         const NeuronArgs& neuron) {
  return launch_lif<SNN_IO>(stream, vector, p, neuron);
}

}  // namespace launchers
}  // namespace cuda
}  // namespace snnfast
