// The launchers of a normalisation; those with a dtype are compiled from a file of their own.
#pragma once

#include "norm_args.h"

namespace snnfast {
namespace cuda {

// As Launch of launch.h.
struct NormLaunch {
  bool vector;
  void* stream;
};

#define SNN_DECLARE(dtype)                                                                       \
  int norm_forward_##dtype(const NormLaunch& launch, const ForwardArgs& p, const LifArgs& lif,   \
                           const NormArgs& q);                                                   \
  int norm_backward_##dtype(const NormLaunch& launch, const BackwardArgs& p, const LifArgs& lif, \
                            const NormArgs& q);                                                  \
  int norm_stats_##dtype(const NormLaunch& launch, const MapArgs& p, const NormArgs& q);         \
  int norm_apply_##dtype(const NormLaunch& launch, const MapArgs& p, const NormArgs& q);
SNN_DECLARE(float32)
SNN_DECLARE(float16)
SNN_DECLARE(bfloat16)
#undef SNN_DECLARE

int norm_totals(void* stream, const TotalArgs& p);

}  // namespace cuda
}  // namespace snnfast
