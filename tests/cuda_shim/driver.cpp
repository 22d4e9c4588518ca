// The device code of csrc/cuda as a library for the host: every thread of the grid in turn. The
// choice among the kernels is that of csrc/cuda/launch.cuh.
#include "shim.h"
//
#include "lif.cuh"

namespace {
using namespace snnfast;
using namespace snnfast::cuda;

template <class Io, int kLanes, int kSteps, int kCharge, bool kHard>
void thread(const ForwardArgs& p, const LifArgs& lif) {
  lif_thread<Io, kLanes, kSteps>(p, ScanLif<kCharge, kHard>(lif));
}
template <class Io, int kLanes, int kSteps, int kCharge, bool kHard>
void thread(const BackwardArgs& p, const LifArgs& lif) {
  lif_thread<Io, kLanes, kSteps>(p, ScanLif<kCharge, kHard>(lif));
}

template <class Io, int kLanes, int kSteps, int kCharge, bool kHard, class Args>
void grid(const Args& p, const LifArgs& lif) {
  const i64 threads = p.neurons / kLanes;
  for (blockIdx.x = 0; blockIdx.x * i64(kThreads) < threads; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x)
      thread<Io, kLanes, kSteps, kCharge, kHard>(p, lif);
}

template <class Io, int kLanes, int kSteps, class Args>
void charges(int charge, bool hard, const Args& p, const LifArgs& lif) {
  using Grid = void (*)(const Args&, const LifArgs&);
  static constexpr Grid kGrids[3][2] = {
      {grid<Io, kLanes, kSteps, 0, false, Args>, grid<Io, kLanes, kSteps, 0, true, Args>},
      {grid<Io, kLanes, kSteps, 1, false, Args>, grid<Io, kLanes, kSteps, 1, true, Args>},
      {grid<Io, kLanes, kSteps, 2, false, Args>, grid<Io, kLanes, kSteps, 2, true, Args>},
  };
  kGrids[charge][hard](p, lif);
}

template <class Io, class Args>
void widths(bool vector, int charge, bool hard, const Args& p, const LifArgs& lif) {
  constexpr int kLanes = 4 * Io::kPerWord;
  if (!vector)
    charges<Io, 1, kSegment>(charge, hard, p, lif);
  else if (p.steps <= 4)
    charges<Io, kLanes, 4>(charge, hard, p, lif);
  else
    charges<Io, kLanes, kSegment>(charge, hard, p, lif);
}

template <class Args>
int run(int dtype, int charge, bool hard, bool vector, const void* args, const void* lif) {
  const Args& p = *static_cast<const Args*>(args);
  const LifArgs& l = *static_cast<const LifArgs*>(lif);
  try {
    if (dtype == 0) widths<Float32>(vector, charge, hard, p, l);
    if (dtype == 1) widths<Float16>(vector, charge, hard, p, l);
    if (dtype == 2) widths<BFloat16>(vector, charge, hard, p, l);
  } catch (const std::exception&) {
    return 700;  // cudaErrorIllegalAddress
  }
  return 0;
}
}  // namespace

extern "C" {
void shim_clear() { allowed.clear(); }
void shim_allow(std::uintptr_t from, std::uintptr_t to) { allowed.emplace_back(from, to); }
int shim_forward(int dtype, int charge, int hard, int vector, const void* p, const void* lif) {
  return run<ForwardArgs>(dtype, charge, hard, vector, p, lif);
}
int shim_backward(int dtype, int charge, int hard, int vector, const void* p, const void* lif) {
  return run<BackwardArgs>(dtype, charge, hard, vector, p, lif);
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
    // Any sign and mantissa, exponents from 2^-60 to 2^60.
    const std::uint32_t bits = std::uint32_t(next() >> 32) & 0x807fffffu;
    const float d = float_of(bits | std::uint32_t(67 + next() % 121) << 23);
    wrong += exact_quotient(d, tau, reciprocal_(tau)) != d / tau;
  }
  return wrong;
}
float shim_quotient(float d, float tau) { return exact_quotient(d, tau, reciprocal_(tau)); }
// x rounded to the dtype and back, in place.
void shim_round(int dtype, float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    x[i] = dtype == 1   ? Float16::widen(Float16::narrow(0.0f, x[i]), 1)
           : dtype == 2 ? BFloat16::widen(BFloat16::narrow(x[i], 0.0f), 0)
                        : x[i];
}
int shim_sizes(int which) {
  return which == 0 ? sizeof(ForwardArgs) : which == 1 ? sizeof(BackwardArgs) : sizeof(LifArgs);
}
}
