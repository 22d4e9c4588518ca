#include "launch.cuh"
#include "norm_totals.cuh"

namespace snnfast {
namespace cuda {

template <class Follows>
__global__ void __launch_bounds__(kTotalThreads)
    norm_totals_of(const __grid_constant__ TotalArgs p, const __grid_constant__ Follows q) {
  norm_totals(p, q, snnfast_shared);
}

template <class Follows>
static int launch_totals(void* stream, const TotalArgs& p, const Follows& q) {
  if (p.lanes <= 0) return cudaErrorInvalidValue;
  const i64 blocks = (p.at.channels + p.lanes - 1) / p.lanes;
  const int shared = p.parts ? kTotalBytes : 0;
  return launch(norm_totals_of<Follows>, {blocks, kTotalThreads, shared}, stream, p, q);
}

int launchers::norm_prepare(void* stream, const TotalArgs& p, const PreparedArgs& q) {
  return launch_totals(stream, p, q);
}

int launchers::norm_finish(void* stream, const TotalArgs& p, const FinishedArgs& q) {
  return launch_totals(stream, p, q);
}

}  // namespace cuda
}  // namespace snnfast
