#include "spikes.cuh"
#include "spikes_launch.h"

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

static int launch(void (*kernel)(SpikesArgs), void* stream, SpikesArgs p) {
  constexpr i64 kPerBlock = i64(kPackThreads) * kPackBytes * 8;
  void* pointers[] = {&p};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                          dim3(unsigned((p.n + kPerBlock - 1) / kPerBlock)), dim3(kPackThreads),
                          pointers, 0, static_cast<cudaStream_t>(stream));
}

int launch_pack(int size, void* stream, const SpikesArgs& p) {
  return launch(size == 4 ? pack<4> : pack<2>, stream, p);
}

int launch_unpack(int size, void* stream, const SpikesArgs& p) {
  return launch(size == 4 ? unpack<4> : unpack<2>, stream, p);
}

}  // namespace cuda
}  // namespace snnfast
