// What the bindings hand over to run code that was compiled a moment ago, for one step of a neuron:
// its walk over time.
#pragma once

#include "program.h"
#include "rows.h"

namespace snnfast {

// Takes the neurons begin .. begin + count, at most kTile of them, through all steps. `rows`: the
// parameters of channels, spread over these neurons; `sums`: to be filled with the wanted gradients
// of parameters, summed over time. Rows are in the states' dtype.
using CompiledWalk = void(const void* args, const void* const* rows, void* const* sums,
                          int64_t begin, int64_t count);

struct Compiled {
  CompiledWalk* walk;
  const void* args;      // what the code reads besides
  Array<void*> dparams;  // [channels], [] or null; empty forward
  double* partial;       // scratch for them, [kMaxChunks, dparams, channels]
};

void run_compiled_baseline(const ProgramLayer&, const Compiled&);
void run_compiled_avx2(const ProgramLayer&, const Compiled&);

}  // namespace snnfast
