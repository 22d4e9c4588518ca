#include "launch.cuh"
#include "spikes.cuh"

namespace snnfast {
namespace cuda {

template <int kSize>
__global__ void __launch_bounds__(kPackThreads) pack(const __grid_constant__ SpikesArgs p) {
  pack_spikes<kSize>(p);
}

template <int kSize>
__global__ void __launch_bounds__(kPackThreads) unpack(const __grid_constant__ SpikesArgs p) {
  unpack_spikes<kSize>(p);
}

static Grid grid_of(const SpikesArgs& p) {
  constexpr i64 kPerBlock = i64(kPackThreads) * kPackBytes * 8;
  return {(p.n + kPerBlock - 1) / kPerBlock, kPackThreads};
}

int launchers::pack_spikes(void* stream, int size, const SpikesArgs& p) {
  return launch(size == 4 ? pack<4> : pack<2>, grid_of(p), stream, p);
}

int launchers::unpack_spikes(void* stream, int size, const SpikesArgs& p) {
  return launch(size == 4 ? unpack<4> : unpack<2>, grid_of(p), stream, p);
}

int launchers::probe() {
  cudaFuncAttributes found;
  return cudaFuncGetAttributes(&found, pack<4>);
}

}  // namespace cuda
}  // namespace snnfast
