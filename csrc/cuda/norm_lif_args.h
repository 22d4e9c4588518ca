// What Python hands to the launches of a normalisation: snnfast/backends/cuda/norm_lif.py mirrors
// these structs.
#pragma once

#include "lif_args.h"

namespace snnfast {
namespace cuda {

constexpr int kTotalThreads = 256;

// Where the channels of a thread's neighbouring neurons lie.
enum Layout : int {
  kAnyChannels = 0,
  kOneChannel = 1,     // they are of the same
  kRowOfChannels = 2,  // of neighbouring ones, 16 bytes of them aligned
};

// The neurons fall into tiles of kThreads kLanes; block i takes the tiles i, i + blocks, ... Where
// there are more tiles than blocks, `blocks` tiles hold a whole number of samples, so that a thread
// meets the same channels in each. Neuron i belongs to channel (i / inner) % channels.
//
// `slots` is how many channels a tile may touch; slot k is the k-th from that of its first neuron.
// `group` threads, a power of two of at most 32, add up a slot.
struct Tiles {
  i64 channels, inner, tiles, blocks;
  int slots, group, layout, channels_shift, inner_shift;
  unsigned channels_factor, inner_factor;  // quotient() of norm_sums.cuh
  int unused;
};

// X = (Y - mean) scale + bias [+ residual]; dY = a dX + b (Y - mean) + c.
struct NormArgs {
  const float* mean;  // [channels], and so are the next five
  const float* scale;
  const float* bias;
  const float* a;
  const float* b;
  const float* c;
  const void* residual;  // [T, N], time stride residual_stride
  float* parts;          // [blocks, slots, 2]: sums of dX and dX (Y - mean)
  i64 residual_stride;
  Tiles at;
};

// The passes without a neuron.
struct MapArgs {
  const void* x;   // [T, N], time stride x_stride
  const void* dx;  // [T, N]
  void* dy;        // [T, N]
  i64 steps, neurons, x_stride;
};

// Adds up parts [blocks, slots, width] into two vectors [channels]: mean and variance (width 4:
// count, mean in two parts and sum of squares about it), or the sums of backward (width 2). Null:
// the vectors are given.
struct TotalArgs {
  const float* parts;
  const void* y;  // with statistics
  float* first;
  float* second;
  double count;  // of elements of a channel
  i64 tile;      // neurons
  int dtype;
  int lanes;  // channels that a block adds up side by side, a power of two
  Tiles at;
};

// What follows from the two, as snnfast/backends/spec.py has it, all [channels].
struct PreparedArgs {
  float* inv_std;
  float* scale;
  const float* weight;  // null: 1
  float* running_mean;  // null: there are none
  float* running_var;
  float momentum, unbias, eps;
  int unused;
};

struct FinishedArgs {
  const float* scale;
  const float* inv_std;
  float* dweight;
  float* b;
  float* c;
  float count;
  int unused;
};

}  // namespace cuda
}  // namespace snnfast
