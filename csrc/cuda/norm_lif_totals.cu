#include "launch.cuh"
#include "norm_sums.cuh"

namespace snnfast {
namespace cuda {

__global__ void __launch_bounds__(kTotalThreads)
    norm_totals_of(const __grid_constant__ TotalArgs p) {
  norm_totals(p, snnfast_shared);
}

int launchers::norm_totals(void* stream, const TotalArgs& p) {
  const i64 blocks = (p.at.channels + p.lanes - 1) / p.lanes;
  return launch(norm_totals_of, {blocks, kTotalThreads, kTotalThreads * int(sizeof(double))},
                stream, p);
}

}  // namespace cuda
}  // namespace snnfast
