// The end of a reduction over channels: what blocks have left is added up in double, and what
// follows from it (channels.h) goes out in the same launch. A block takes `lanes` channels side by
// side; its threads share out the parts, kAhead of which are under way at once.
#pragma once

#include "channels.h"
#include "io.cuh"
#include "norm_lif_args.h"

namespace snnfast {
namespace cuda {

constexpr int kMostSums = 3;
constexpr int kTotalBytes = kMostSums * kTotalThreads * int(sizeof(double));

SNN_DEVICE float first_element(int dtype, const void* y, i64 at) {
  if (dtype == kFloat32) {
    float value;
    load_element(static_cast<const float*>(y) + at, value);
    return value;
  }
  unsigned short half;
  load_element(static_cast<const unsigned short*>(y) + at, half);
  return dtype == kFloat16 ? Float16::widen(half, 0) : BFloat16::widen(half, 0);
}

// Mean and variance, of parts of count, mean in two parts and sum of squares about it. Means are
// added up relative to the first element of the channel, which an offset takes away.
struct Statistics {
  static constexpr int kWidth = 4, kSums = 3;
  double origin;

  SNN_DEVICE Statistics(const TotalArgs& p, i64 c)
      : origin(first_element(p.dtype, p.y, c * p.at.inner)) {}
  SNN_DEVICE static void load(const float* from, float* part) { load_state<4>(from, part); }
  SNN_DEVICE void add(const float* part, double* sums) const {
    if (!(part[0] > 0.0f)) return;
    const double off = (double(part[1]) - origin) + part[2];
    sums[0] += part[0] * off;
    sums[1] += part[3];
    sums[2] += part[0] * off * off;
  }
  SNN_DEVICE void end(const TotalArgs& p, const double* sums, float& mean, float& var) const {
    const double shift = sums[0] / p.count;
    const double square = (sums[1] + (sums[2] - sums[0] * shift)) / p.count;
    mean = float(origin + shift);
    var = square < 0 ? 0.0f : float(square);
  }
};

// The sums of dX and of dX (Y - mean).
struct Sums {
  static constexpr int kWidth = 2, kSums = 2;

  SNN_DEVICE Sums(const TotalArgs&, i64) {}
  SNN_DEVICE static void load(const float* from, float* part) {
    load_element(from, part[0]), load_element(from + 1, part[1]);
  }
  SNN_DEVICE void add(const float* part, double* sums) const {
    sums[0] += part[0], sums[1] += part[1];
  }
  SNN_DEVICE void end(const TotalArgs&, const double* sums, float& sum, float& moment) const {
    sum = float(sums[0]), moment = float(sums[1]);
  }
};

SNN_DEVICE Statistics totals_before(const PreparedArgs&, const TotalArgs& p, i64 c) {
  return {p, c};
}
SNN_DEVICE Sums totals_before(const FinishedArgs&, const TotalArgs& p, i64 c) { return {p, c}; }

SNN_DEVICE void move_towards(float* running, float value, float share) {
  float before;
  load_element(running, before);
  store_element(running, towards(before, value, share));
}

SNN_DEVICE void follow(const PreparedArgs& q, i64 c, float mean, float var) {
  float weight = 1.0f;
  if (q.weight) load_element(q.weight + c, weight);
  if (q.running_mean) {
    move_towards(q.running_mean + c, mean, q.momentum);
    move_towards(q.running_var + c, var * q.unbias, q.momentum);
  }
  const float inv_std = inverse_std(var, q.eps);
  store_element(q.inv_std + c, inv_std);
  store_element(q.scale + c, weight * inv_std);
}

SNN_DEVICE void follow(const FinishedArgs& q, i64 c, float sum, float moment) {
  float scale, inv_std;
  load_element(q.scale + c, scale);
  load_element(q.inv_std + c, inv_std);
  store_element(q.dweight + c, moment * inv_std);
  store_element(q.b + c, slope_of(scale, inv_std, moment, q.count));
  store_element(q.c + c, shift_of(scale, sum, q.count));
}

// The channel that a block's first neuron belongs to, and how far in it lies, moved on by as many
// blocks as a thread leaves out: without a division for each.
struct FirstChannel {
  i64 channel, offset, channels, inner, more_channels, more_offset;

  SNN_DEVICE FirstChannel(const TotalArgs& p, i64 block, i64 step)
      : channel(block * p.tile / p.at.inner % p.at.channels),
        offset(block * p.tile % p.at.inner),
        channels(p.at.channels),
        inner(p.at.inner),
        more_channels(step * p.tile / p.at.inner % p.at.channels),
        more_offset(step * p.tile % p.at.inner) {}
  SNN_DEVICE void advance() {
    offset += more_offset, channel += more_channels;
    if (offset >= inner) offset -= inner, ++channel;
    if (channel >= channels) channel -= channels;
  }
  SNN_DEVICE i64 slot_of(i64 c) const {
    return c >= channel ? c - channel : c - channel + channels;
  }
};

// Adds up the parts of channel c in all threads of its lane; the sum is thread `lane`'s.
template <class Total>
SNN_DEVICE void add_up(const TotalArgs& p, const Total& total, i64 c, double* scratch,
                       double (&sums)[Total::kSums]) {
  constexpr int kAhead = 8;
  const int rows = kTotalThreads / p.lanes, row = int(threadIdx.x) / p.lanes;
  FirstChannel first(p, row, rows);
  for (i64 block = row; block < p.at.blocks;) {
    float part[kAhead][Total::kWidth];
    SNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const i64 slot = first.slot_of(c);
      SNN_UNROLL
      for (int j = 0; j < Total::kWidth; ++j) part[k][j] = 0.0f;
      if (block < p.at.blocks && slot < p.at.slots)
        Total::load(p.parts + (block * p.at.slots + slot) * Total::kWidth, part[k]);
      block += rows, first.advance();
    }
    SNN_UNROLL
    for (int k = 0; k < kAhead; ++k) total.add(part[k], sums);
  }
  SNN_UNROLL
  for (int k = 0; k < Total::kSums; ++k) scratch[k * kTotalThreads + threadIdx.x] = sums[k];
  for (int half = kTotalThreads / 2; half >= p.lanes; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) >= half) continue;
    SNN_UNROLL
    for (int k = 0; k < Total::kSums; ++k) {
      double* const at = scratch + k * kTotalThreads + threadIdx.x;
      at[0] = sums[k] += at[half];
    }
  }
}

template <class Follows>
SNN_DEVICE void norm_totals(const TotalArgs& p, const Follows& q, void* shared) {
  const i64 own = i64(blockIdx.x) * p.lanes + int(threadIdx.x) % p.lanes;
  const i64 c = own < p.at.channels ? own : p.at.channels - 1;
  float first, second;
  if (p.parts) {
    const auto total = totals_before(q, p, c);
    double sums[total.kSums] = {};
    add_up(p, total, c, static_cast<double*>(shared), sums);
    total.end(p, sums, first, second);
  }
  if (int(threadIdx.x) >= p.lanes || c != own) return;
  if (p.parts) {
    store_element(p.first + c, first);
    store_element(p.second + c, second);
  } else {
    load_element(p.first + c, first);
    load_element(p.second + c, second);
  }
  follow(q, c, first, second);
}

}  // namespace cuda
}  // namespace snnfast
