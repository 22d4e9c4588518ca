// What a host compiler lacks to take the device code: the qualifiers, the place of a thread in the
// grid, and memory that faults. A misaligned access, or one outside the tensors of the launch,
// throws here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Place {
  unsigned x;
};
inline Place blockIdx, threadIdx;

// [from, to) of every tensor of the launch, and how many bytes went to or from it.
inline std::vector<std::pair<std::uintptr_t, std::uintptr_t>> allowed;
inline std::vector<std::int64_t> counts;

inline void check_access(const void* p, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  if (at % bytes) throw std::runtime_error("misaligned access");
  for (std::size_t i = 0; i < allowed.size(); ++i) {
    if (at < allowed[i].first || at + bytes > allowed[i].second) continue;
    if (i < counts.size()) counts[i] += std::int64_t(bytes);
    return;
  }
  throw std::runtime_error("access outside the tensors");
}
#define SNN_HOST_ACCESS(p, bytes) check_access(p, bytes)
