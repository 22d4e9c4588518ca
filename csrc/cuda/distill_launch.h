// The launchers of the distillation losses; those with a dtype are compiled from a file of their
// own.
#pragma once

#include "distill_args.h"

namespace snnfast {
namespace cuda {

// One block of `threads` a row. `resident`: rows lie in `shared` bytes of shared memory. `stream`
// is a cudaStream_t. The status is a cudaError_t; 0 is success.
struct RowLaunch {
  bool resident;
  int threads, shared;
  void* stream;
};

#define SNN_DECLARE(dtype)                                                                     \
  int stepwise_rows_##dtype(const RowLaunch& launch, const RowArgs& p, const StepwiseArgs& a); \
  int tssd_rows_##dtype(const RowLaunch& launch, const RowArgs& p, const TssdArgs& a);         \
  int scale_gradient_##dtype(void* stream, const ScaleArgs& p);
SNN_DECLARE(float32)
SNN_DECLARE(float16)
SNN_DECLARE(bfloat16)
#undef SNN_DECLARE

int finish_loss(void* stream, const FinishArgs& p);

}  // namespace cuda
}  // namespace snnfast
