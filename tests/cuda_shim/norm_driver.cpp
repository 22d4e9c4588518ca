// The device code of a normalised LIF layer as a library for the host, one block after the other.
// The choice among the kernels is that of csrc/cuda/norm_launch.cuh.
#include "block.h"
//
#include "norm.cuh"

namespace {
using namespace snnfast;
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

// f<Io, kLanes, kSteps>() of the launch's dtype and width.
template <class Io, class F>
int widths(bool vector, i64 steps, F&& f) {
  constexpr int kLanes = 4 * Io::kPerWord;
  if (!vector) return f.template operator()<Io, 1, kSegment>();
  if (steps <= 4) return f.template operator()<Io, kLanes, 4>();
  return f.template operator()<Io, kLanes, kSegment>();
}
template <class F>
int all(int dtype, bool vector, i64 steps, F&& f) {
  return dtype == 0   ? widths<Float32>(vector, steps, f)
         : dtype == 1 ? widths<Float16>(vector, steps, f)
                      : widths<BFloat16>(vector, steps, f);
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

int shim_forward(int dtype, int vector, int shared, const void* args, const void* lif,
                 const void* norm) {
  const auto& p = *static_cast<const ForwardArgs*>(args);
  const auto& l = *static_cast<const LifArgs*>(lif);
  const auto& q = *static_cast<const NormArgs*>(norm);
  return all(dtype, vector != 0, p.steps, [&]<class Io, int kLanes, int kSteps>() {
    return grid(q.at.blocks, kThreads, shared,
                [&](void*) { norm_forward<Io, kLanes, kSteps>(p, l, q); });
  });
}
int shim_backward(int dtype, int vector, int shared, const void* args, const void* lif,
                  const void* norm) {
  const auto& p = *static_cast<const BackwardArgs*>(args);
  const auto& l = *static_cast<const LifArgs*>(lif);
  const auto& q = *static_cast<const NormArgs*>(norm);
  return all(dtype, vector != 0, p.steps, [&]<class Io, int kLanes, int kSteps>() {
    return grid(q.at.blocks, kThreads, shared,
                [&](void* memory) { norm_backward<Io, kLanes, kSteps>(p, l, q, memory); });
  });
}
int shim_stats(int dtype, int vector, int shared, const void* args, const void* norm) {
  const auto& p = *static_cast<const MapArgs*>(args);
  const auto& q = *static_cast<const NormArgs*>(norm);
  return all(dtype, vector != 0, p.steps, [&]<class Io, int kLanes, int>() {
    return grid(q.at.blocks, kThreads, shared,
                [&](void* memory) { norm_stats<Io, kLanes>(p, q, memory); });
  });
}
int shim_apply(int dtype, int vector, int shared, const void* args, const void* norm) {
  const auto& p = *static_cast<const MapArgs*>(args);
  const auto& q = *static_cast<const NormArgs*>(norm);
  return all(dtype, vector != 0, p.steps, [&]<class Io, int kLanes, int>() {
    return grid(q.at.blocks, kThreads, shared, [&](void*) { norm_apply<Io, kLanes>(p, q); });
  });
}
int shim_totals(const void* args) {
  const auto& p = *static_cast<const TotalArgs*>(args);
  return grid((p.at.channels + p.lanes - 1) / p.lanes, kTotalThreads,
              kTotalThreads * int(sizeof(double)), [&](void* memory) { norm_totals(p, memory); });
}
int shim_sizes(int which) {
  const std::size_t sizes[] = {sizeof(NormArgs), sizeof(MapArgs), sizeof(TotalArgs)};
  return int(sizes[which]);
}
}
