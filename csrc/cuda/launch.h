// The launchers, one pair per dtype, each compiled from a file of its own.
#pragma once

#include "args.h"

namespace snnfast {
namespace cuda {

// `vector`: 16-byte accesses, for which N and the strides must be multiples of 16 bytes and every
// pointer aligned to them. `stream` is a cudaStream_t. The status is a cudaError_t; 0 is success.
struct Launch {
  int charge;
  bool hard;
  bool vector;
  void* stream;
};

#define SNN_DECLARE(dtype)                                                                 \
  int lif_forward_##dtype(const Launch& launch, const ForwardArgs& p, const LifArgs& lif); \
  int lif_backward_##dtype(const Launch& launch, const BackwardArgs& p, const LifArgs& lif);
SNN_DECLARE(float32)
SNN_DECLARE(float16)
SNN_DECLARE(bfloat16)
#undef SNN_DECLARE

}  // namespace cuda
}  // namespace snnfast
