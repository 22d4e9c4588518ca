// The device code of the distillation losses as a library for the host, one block after the other.
// The choice among the kernels is that of csrc/cuda/distill_launch.cuh.
#include "block.h"
//
#include "platform.h"

// What the device computes with where it differs from the host: a product and 2^x, and fused sums.
namespace snnfast {
inline namespace SNN_ISA {
inline float exp_(float x) { return std::exp2(x * 1.44269504f); }
inline float mad_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
}  // namespace SNN_ISA
}  // namespace snnfast

#include "distill.cuh"

namespace {
using namespace snnfast::cuda;

template <class Body>
int grid(i64 blocks, int threads, int shared, Body&& body) {
  blockDim.x = unsigned(threads);
  try {
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
      Block::run(blockDim.x, std::size_t(shared), [&] { body(Block::current()->shared()); });
  } catch (const std::exception&) {
    return 700;  // cudaErrorIllegalAddress
  }
  return 0;
}

template <class Io, class Args>
int rows(bool resident, int threads, int shared, const RowArgs& p, const Args& args) {
  return grid(p.rows, threads, shared, [&](double* memory) {
    resident ? distill_row<Io, true>(p, args, memory) : distill_row<Io, false>(p, args, memory);
  });
}

template <class Args>
int all_rows(int dtype, bool resident, int threads, int shared, const void* p, const void* args) {
  const auto& r = *static_cast<const RowArgs*>(p);
  const auto& a = *static_cast<const Args*>(args);
  return dtype == 0   ? rows<Float32>(resident, threads, shared, r, a)
         : dtype == 1 ? rows<Float16>(resident, threads, shared, r, a)
                      : rows<BFloat16>(resident, threads, shared, r, a);
}

template <class Io>
int scale(const ScaleArgs& p) {
  const i64 per_block = kScaleThreads * 4 * Io::kPerWord;
  return grid((p.n + per_block - 1) / per_block, kScaleThreads, 0,
              [&](double*) { scale_gradient<Io>(p); });
}
}  // namespace

extern "C" {
void shim_clear() { allowed.clear(), counts.clear(); }
void shim_allow(std::uintptr_t from, std::uintptr_t to) {
  allowed.emplace_back(from, to), counts.push_back(0);
}
// Bytes that went to or from the i-th range that was allowed.
std::int64_t shim_bytes(int i) { return counts[std::size_t(i)]; }
void shim_backwards(int yes) { backwards = yes != 0; }

int shim_stepwise(int dtype, int resident, int threads, int shared, const void* p, const void* a) {
  return all_rows<StepwiseArgs>(dtype, resident != 0, threads, shared, p, a);
}
int shim_tssd(int dtype, int resident, int threads, int shared, const void* p, const void* a) {
  return all_rows<TssdArgs>(dtype, resident != 0, threads, shared, p, a);
}
int shim_finish(const void* args) {
  const FinishArgs& p = *static_cast<const FinishArgs*>(args);
  return grid(1, kFinishThreads, kScratch * int(sizeof(double)),
              [&](double* memory) { finish_loss(p, memory); });
}
int shim_scale(int dtype, const void* args) {
  const ScaleArgs& p = *static_cast<const ScaleArgs*>(args);
  return dtype == 0 ? scale<Float32>(p) : dtype == 1 ? scale<Float16>(p) : scale<BFloat16>(p);
}
int shim_sizes(int which) {
  const std::size_t sizes[] = {sizeof(RowArgs), sizeof(StepwiseArgs), sizeof(TssdArgs),
                               sizeof(FinishArgs), sizeof(ScaleArgs)};
  return int(sizes[which]);
}
// A block of two warps whose threads part: 1 where that was noticed.
int shim_notices_divergence() {
  shim_clear();
  return grid(1, 64, 0, [&](double*) {
           if (threadIdx.x < 40) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
         }) != 0;
}
}
