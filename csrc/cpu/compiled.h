// Neurons whose walk over time was compiled when the program ran, and what stays to be done around
// it: tiles and threads, parameters of channels, sums over neurons.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "lif.h"
#include "rows.h"

namespace snnfast {

// Takes the neurons begin .. begin + count, at most kTile of them, through all steps. `rows`: the
// parameters of channels, spread over these neurons; `sums`: to be filled with the gradients of
// parameters, summed over time. Rows are in the states' dtype.
using CompiledWalk = void(const void* args, const void* const* rows, void* const* sums,
                          int64_t begin, int64_t count);

struct Compiled {
  CompiledWalk* walk;
  const void* args;
  int threads;
  int64_t n, steps;
  bool wide;  // states in double
  int64_t channels, inner;
  std::vector<uintptr_t> rows;                   // addresses of parameters [channels]
  std::vector<std::pair<uintptr_t, bool>> sums;  // of gradients, whether [channels] or []
};

void run_compiled_baseline(const Compiled&);
void run_compiled_avx2(const Compiled&);

}  // namespace snnfast
