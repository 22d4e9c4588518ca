// The kernels of the distillation losses for one dtype, SNN_IO, and the choice among them.
#include "distill.cuh"
#include "launch.cuh"

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

using Io = SNN_IO;

// Io is in the name: the linker keeps one of what bears the same name in two dtypes' objects.
template <class Io, class Args>
int launch_rows(void* stream, const RowGrid& g, const RowArgs& p, const Args& args) {
  const auto kernel = g.resident ? distill_rows<Io, true, Args> : distill_rows<Io, false, Args>;
  return launch(kernel, {p.rows, g.threads, g.shared}, stream, p, args);
}

namespace launchers {

template <>
int stepwise_rows<Io>(void* stream, const RowGrid& grid, const RowArgs& p,
                      const StepwiseNumbers& a) {
  return launch_rows<Io>(stream, grid, p, a);
}

template <>
int tssd_rows<Io>(void* stream, const RowGrid& grid, const RowArgs& p, const TssdNumbers& a) {
  return launch_rows<Io>(stream, grid, p, a);
}

template <>
int scale_gradient<Io>(void* stream, const ScaleArgs& p) {
  constexpr int kPerBlock = kScaleThreads * 4 * Io::kPerWord;
  return launch(distill_scale<Io>, {(p.n + kPerBlock - 1) / kPerBlock, kScaleThreads}, stream, p);
}

}  // namespace launchers
}  // namespace cuda
}  // namespace snnfast
