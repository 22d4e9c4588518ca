#include "distill_launch.cuh"

namespace snnfast {
namespace cuda {

__global__ void __launch_bounds__(kFinishThreads)
    distill_finish(const __grid_constant__ FinishArgs p) {
  finish_loss(p, snnfast_shared);
}

int finish_loss(void* stream, const FinishArgs& p) {
  return launch_kernel(distill_finish, 1, kFinishThreads, kScratch * int(sizeof(double)), stream,
                       p);
}

}  // namespace cuda
}  // namespace snnfast
