// What Python hands to a launch of LIF: snnfast/backends/cuda/lif.py mirrors these structs.
#pragma once

#include "args.h"

namespace snnfast {
namespace cuda {

constexpr int kThreads = 128;
constexpr int kBlocks = 2;  // resident at least: up to 255 registers a thread
constexpr int kSegment = 8;

// What a launch has and wants. NVRTC gets the set as a constant, SNN_FLAGS.
enum Flags : int {
  kHasV0 = 1,           // else V starts at `rest`
  kHasRate = 2,         // else `divisor` and `factor` hold for all neurons
  kHasV = 4,            // forward: v is wanted; backward: dv is given
  kEveryState = 8,      // v and dv are [T, N], else [N], after the last step
  kHasBorders = 16,     // forward: borders are wanted
  kHasDs = 32,          // else zeros
  kHasDv0 = 64,         // dv0 is wanted
  kHasDrate = 128,      // drate is wanted
  kSumDx = 256,         // dx is [N], the sum over time
  kPerChannel = 512,    // rate is [channels] and drate [N], else [] and a number per thread
  kHasDx = 1024,        // with a norm: dx is wanted
  kHasResidual = 2048,  // with a norm: X has a residual
  kRecompute = 4096,    // with a norm: dx is dY, dX being recomputed, and no sums are wanted
};

// Strides and offsets count elements. Each step of x, s, ds, dx and of the states is dense. A
// static input has stride 0: after its first step it comes out of the cache.
struct ForwardArgs {
  const void* x;      // [T, N], time stride x_stride
  const float* v0;    // [N]
  const float* rate;  // [] or [channels]; neuron i belongs to channel (i / inner) % channels
  void* s;            // [T, N]
  float* v;           // [N] or [T, N]
  float* borders;     // [segments - 1, N]: V before step 8 (k + 1)
  i64 steps, neurons, x_stride, channels, inner;
  float divisor, factor, rest;
  int flags;
};

struct BackwardArgs {
  const void* x;         // as above
  const float* v0;       // as above
  const float* rate;     // as above
  const float* borders;  // as above
  const void* ds;        // [T, N], time stride ds_stride
  const float* dv;       // [N] or [T, N]
  void* dx;              // [T, N] or [N]
  float* dv0;            // [N]
  float* drate;          // [N] or [threads]
  i64 steps, neurons, x_stride, channels, inner, ds_stride;
  float divisor, factor, rest;
  int flags;
};

struct NeuronArgs {
  float theta, reset;
  float a, b;    // the surrogate's parameters
  int multiply;  // a rate tensor holds 1/tau, else tau
  int charge, hard, detach_reset, surrogate;
};

}  // namespace cuda
}  // namespace snnfast
