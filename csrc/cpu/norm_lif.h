// The passes of a normalisation that need no neuron.
#pragma once

#include "lif.h"

namespace snnfast {

// Mean and biased variance of every channel over all steps and neurons.
struct NormStats {
  int dtype, threads;
  int64_t steps, n;
  const void* y;  // [T, N]
  int64_t stride;
  int64_t channels, inner;
  void *mean, *var;  // [channels]
  double* partial;   // scratch, [kMaxChunks, 2, channels]
};

// The gradient of Y: dy = a dx + b (y - mean) + c, everything but dx and y one value per channel.
struct NormDy {
  int dtype, threads;
  int64_t steps, n;
  const void* y;  // [T, N]
  int64_t stride;
  const void* dx;  // [T, N]
  void* dy;        // [T, N], may be dx
  int64_t channels, inner;
  const void *mean, *a, *b, *c;  // [channels]
};

void norm_stats_baseline(const NormStats&);
void norm_dy_baseline(const NormDy&);
void norm_stats_avx2(const NormStats&);
void norm_dy_avx2(const NormDy&);
void norm_stats_avx512(const NormStats&);
void norm_dy_avx512(const NormDy&);

}  // namespace snnfast
