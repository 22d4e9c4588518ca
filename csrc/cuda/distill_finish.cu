#include "distill.cuh"
#include "launch.cuh"

namespace snnfast {
namespace cuda {

__global__ void __launch_bounds__(kFinishThreads)
    distill_finish(const __grid_constant__ FinishArgs p) {
  finish_loss(p, snnfast_shared);
}

int launchers::finish_loss(void* stream, const FinishArgs& p) {
  return launch(distill_finish, {p.rows > 0, kFinishThreads, kFinishBytes}, stream, p);
}

}  // namespace cuda
}  // namespace snnfast
