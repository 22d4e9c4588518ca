// The packing kernels of csrc/cuda as a library for the host: every thread of the grid in turn.
#include "shim.h"
//
#include "spikes.cuh"

namespace {
using namespace snnfast::cuda;

template <class Thread>
int run(const SpikesArgs& p, Thread thread) {
  constexpr i64 kPerBlock = i64(kPackThreads) * kPackBytes * 8;
  try {
    for (blockIdx.x = 0; blockIdx.x * kPerBlock < p.n; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < kPackThreads; ++threadIdx.x) thread(p);
  } catch (const std::exception&) {
    return 700;  // cudaErrorIllegalAddress
  }
  return 0;
}
}  // namespace

extern "C" {
void shim_clear() { allowed.clear(), counts.clear(); }
void shim_allow(std::uintptr_t from, std::uintptr_t to) {
  allowed.emplace_back(from, to);
  counts.push_back(0);
}
// Bytes that went to or from the tensor of that number.
std::int64_t shim_moved(int which) { return counts.at(std::size_t(which)); }
int shim_args() { return sizeof(SpikesArgs); }
int shim_pack(int size, const SpikesArgs* p) {
  return run(*p, size == 4 ? pack_spikes<4> : pack_spikes<2>);
}
int shim_unpack(int size, const SpikesArgs* p) {
  return run(*p, size == 4 ? unpack_spikes<4> : unpack_spikes<2>);
}
}
