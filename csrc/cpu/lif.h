// What the bindings hand to a LIF kernel, and the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "args.h"

namespace snnfast {

// One layer and its parameters.
struct LifLayer : LifArgs {
  int dtype, threads;
  int64_t n;          // the neurons of one timestep
  const void* rates;  // [channels], or null: `rate` for all
};

// A normalisation before the charge, X = (Y - mean) scale + bias [+ residual], unfused: a fused one
// would flip spikes. Neuron i belongs to channel (i / inner) % channels.
struct LifNorm {
  const void *mean, *scale, *bias;  // [channels]; null: there is no normalisation
  const void* residual;             // [T, N] or null
  int64_t residual_stride;
  int64_t channels, inner;
  // Backward: sums over steps and neurons of dX and of dX (Y - mean), [2, channels], and scratch
  // for them, [kMaxChunks, 2, channels].
  void* sums;
  double* partial;
};

// Steps are [N] and dense; a stride is the distance between steps, in elements.
struct LifForward {
  const void* x;  // [T, N]
  int64_t x_stride;
  const void* v0;  // [N] or null
  void* s;         // [T, N]
  void* v;         // [N], [T, N] or null
  bool v_every_step;
  void* borders;  // [segments - 1, N] or null
  LifNorm norm;
};

struct LifBackward {
  const void* x;  // [T, N]
  int64_t x_stride;
  const void* v0;       // [N] or null
  const void* borders;  // [segments - 1, N], null where T fits one segment
  const void* ds;       // [T, N] or null
  int64_t ds_stride;
  const void* dv;  // [N], [T, N] or null
  bool dv_every_step;
  void* dx;  // [T, N], or [N] where summed over time
  bool sum_dx;
  void* dv0;        // [N] or null
  void* drate;      // [channels] or null: gradient of 1/tau
  double* partial;  // scratch for it, [kMaxChunks * channels]
  LifNorm norm;     // dx is the gradient of X then, and of the residual
};

// Sums over neurons are taken per chunk, then over chunks: the order, and so every bit of the
// result, depends on the sizes alone and not on the number of threads. Equal parts for 48, 64, 96
// and 192 of them.
constexpr int64_t kMaxChunks = 192;

// SNN_ISA_NAME(lif_forward) is the function's name in the instruction set being compiled.
#define SNN_PASTE(name, isa) name##_##isa
#define SNN_EXPAND(name, isa) SNN_PASTE(name, isa)
#define SNN_ISA_NAME(name) SNN_EXPAND(name, SNN_ISA)

void lif_forward_baseline(const LifLayer&, const LifForward&);
void lif_backward_baseline(const LifLayer&, const LifBackward&);
void lif_forward_avx2(const LifLayer&, const LifForward&);
void lif_backward_avx2(const LifLayer&, const LifBackward&);
void lif_forward_avx512(const LifLayer&, const LifForward&);
void lif_backward_avx512(const LifLayer&, const LifBackward&);
// float64 is there to check gradients with, not for speed: one instruction set for all machines.
void lif_forward_float64(const LifLayer&, const LifForward&);
void lif_backward_float64(const LifLayer&, const LifBackward&);

}  // namespace snnfast
