// The CUDA runtime on the host, and what the tests ask it.
#include "block.h"
#include "neuron.h"
//
#include "io.cuh"

Place blockIdx, threadIdx, blockDim;
int probed = 0;

constexpr std::size_t kShared = 48 * 1024;  // what a block may have without asking
alignas(16) double snnfast_shared[kShared / 8];

namespace {

// [from, to) of a tensor, whether the launch may touch it, and how many bytes went to or from it.
struct Range {
  std::uintptr_t from, to;
  bool given;
  std::int64_t bytes;
};
std::vector<Range> ranges;
std::uintptr_t shared_end;

// The last launch, and the device that is the current one.
struct {
  std::int64_t blocks, threads, shared, device, stream;
} last;
int current_device = 0;
unsigned contexts = 0;  // a bit for each device that has one

void allow_given(const Words* words, std::size_t parameters) {
  for (Range& range : ranges) range.given = false, range.bytes = 0;
  for (std::size_t p = 0; p < parameters; ++p)
    for (std::size_t k = 0; k < words[p].count; ++k)
      for (Range& range : ranges)
        range.given |= words[p].from[k] >= range.from && words[p].from[k] < range.to;
}

}  // namespace

void check_access(const void* p, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  if (at % bytes) throw std::runtime_error("misaligned access");
  for (Range& range : ranges) {
    if (!range.given || at < range.from || at + bytes > range.to) continue;
    range.bytes += std::int64_t(bytes);
    return;
  }
  if (at >= reinterpret_cast<std::uintptr_t>(snnfast_shared) && at + bytes <= shared_end) return;
  throw std::runtime_error("access outside the tensors");
}

void __syncthreads() { Block::current()->wait(0, blockDim.x); }

void exchange(void* value, std::size_t bytes, unsigned lanes) {
  Block::current()->exchange(value, bytes, lanes);
}

cudaError_t run_grid(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                     const Words* words, std::size_t parameters, void (*body)(void*), void* of) {
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return 9;
  if (shared > kShared) return 1;
  last = {grid.x, block.x, std::int64_t(shared), current_device, std::int64_t(stream)};
  allow_given(words, parameters);
  shared_end = reinterpret_cast<std::uintptr_t>(snnfast_shared) + shared;
  blockDim.x = block.x;
  try {
    for (unsigned i = 0; i < grid.x; ++i) {
      blockIdx.x = backwards ? grid.x - 1 - i : i;
      std::memset(static_cast<void*>(snnfast_shared), 0xff, shared);  // NaN
      Block::run(block.x, [=] { body(of); });
    }
  } catch (const std::exception&) {
    return 700;
  }
  return 0;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 7) return 101;
  contexts |= 1u << device;
  return current_device = device, 0;
}
const char* cudaGetErrorString(cudaError_t status) {
  return status == 700   ? "an illegal memory access was encountered"
         : status == 101 ? "invalid device ordinal"
         : status == 9   ? "invalid configuration argument"
                         : "invalid argument";
}

using namespace snnfast;
using namespace snnfast::cuda;

extern "C" {
void shim_clear() { ranges.clear(); }
void shim_allow(std::uintptr_t from, std::uintptr_t to) { ranges.push_back({from, to, false, 0}); }
// Bytes that the last launch took from the i-th range that was allowed, or brought there.
std::int64_t shim_bytes(int i) { return ranges[std::size_t(i)].bytes; }
// Blocks, threads, bytes of shared memory, device and stream of the last launch.
const std::int64_t* shim_last() { return &last.blocks; }
// Those devices that were waken up, since this was last asked.
unsigned shim_contexts() {
  const unsigned found = contexts;
  return contexts = 0, found;
}
void shim_probe(int status) { probed = status; }
void shim_backwards(int yes) { backwards = yes != 0; }

// A block of two warps whose threads part: 1 where that was noticed.
int shim_notices_divergence() {
  const auto body = [](void*) {
    if (threadIdx.x < 40) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  };
  return run_grid(dim3(1), dim3(64), 0, nullptr, nullptr, 0, body, nullptr) != 0;
}

// How many of n quotients exact_quotient gets wrong; d and tau at random, xorshift.
std::int64_t shim_wrong_quotients(std::int64_t n, std::uint64_t seed, float tau_max) {
  std::int64_t wrong = 0;
  const auto next = [&seed] {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed;
  };
  for (std::int64_t i = 0; i < n; ++i) {
    const float tau = 1.0000001f + (tau_max - 1.0f) * float(next() >> 40) * 0x1p-24f;
    // Any sign and mantissa, exponents from 2^-102 to the last.
    const std::uint32_t bits = std::uint32_t(next() >> 32) & 0x807fffffu;
    const float d = float_of(bits | std::uint32_t(25 + next() % 230) << 23);
    wrong += exact_quotient(d, tau, reciprocal_(tau)) != d / tau;
  }
  return wrong;
}
float shim_quotient(float d, float tau) { return exact_quotient(d, tau, reciprocal_(tau)); }
// x rounded to the dtype and back, in place.
void shim_round(int dtype, float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    x[i] = dtype == kFloat16    ? Float16::widen(Float16::narrow(0.0f, x[i]), 1)
           : dtype == kBFloat16 ? BFloat16::widen(BFloat16::narrow(x[i], 0.0f), 0)
                                : x[i];
}
}
