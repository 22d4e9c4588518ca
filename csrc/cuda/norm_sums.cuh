// Channels on CUDA: where those of a thread's neurons lie, sums over them that do not depend on the
// order of execution, and the two passes over memory that need no neuron:
//
//   stats   reads y                 b bytes an element
//   dy      reads y, dx, writes dy  3b
//
// A block adds up its channels in shared memory and leaves a few numbers for each; one more launch
// adds those (norm_totals.cuh). No atomics: the same input gives the same bits.
#pragma once

#include "io.cuh"
#include "norm_lif_args.h"
#include "scan.cuh"

namespace snnfast {
namespace cuda {

// Shared memory of a block with so many numbers a thread.
constexpr int shared_bytes(int numbers) { return numbers * kThreads * int(sizeof(float)); }

// n / by: a product and a shift, as 32 bits do nearly always (Granlund and Montgomery 1994).
SNN_DEVICE i64 quotient(i64 n, i64 by, unsigned factor, int shift) {
  if (n >> 31) return n / by;
  return (high_product(unsigned(n), factor) + unsigned(n)) >> shift;
}

// The channels of kLanes neighbouring neurons.
template <int kLanes>
struct Place {
  i64 channel, offset, channels, inner;
  int layout;

  SNN_DEVICE Place(const Tiles& at, i64 i)
      : channels(at.channels), inner(at.inner), layout(at.layout) {
    const i64 run = quotient(i, inner, at.inner_factor, at.inner_shift);
    offset = i - run * inner;
    channel = run - quotient(run, channels, at.channels_factor, at.channels_shift) * channels;
  }

  // n vectors [channels]: the loads of all are under way before one is waited for.
  template <int n>
  SNN_DEVICE void load(const float* const (&from)[n], float (&value)[n][kLanes]) const {
    if (kLanes == 1 || opaque(layout) == kOneChannel) {
      SNN_UNROLL
      for (int k = 0; k < n; ++k) load_element(from[k] + channel, value[k][0]);
      SNN_UNROLL
      for (int k = 0; k < n * kLanes; ++k) value[k / kLanes][k % kLanes] = value[k / kLanes][0];
    } else if (opaque(layout) == kRowOfChannels) {
      SNN_UNROLL
      for (int k = 0; k < n; ++k) load_state<kLanes>(from[k] + channel, value[k]);
    } else {
      i64 left = inner - offset, c = channel;
      SNN_UNROLL
      for (int j = 0; j < kLanes; ++j) {
        SNN_UNROLL
        for (int k = 0; k < n; ++k) load_element(from[k] + c, value[k][j]);
        if (--left == 0) {
          left = inner;
          if (++c == channels) c = 0;
        }
      }
    }
  }
};

// Vectors of a number for each neuron of a tile in shared memory, of which a thread reads and
// writes those of its own neurons; four at once where it has as many, laid out so that the threads
// of a warp are in each other's way no more than that takes.
template <int kLanes>
struct Own {
  static constexpr int kPart = kLanes > 4 ? 4 : kLanes;
  struct alignas(4 * kPart) Part {
    float value[kPart];
  };
  float* const shared;
  static_assert(__alignof__(snnfast_shared) % sizeof(Part) == 0, "where a vector begins");

  // Where neuron k of the tile lies in a vector.
  SNN_DEVICE static int place(int k) {
    const int thread = k / kLanes, lane = k % kLanes;
    return (lane / kPart * kThreads + thread) * kPart + lane % kPart;
  }
  SNN_DEVICE Part* at(int which, int part) const {
    Part* p = reinterpret_cast<Part*>(shared) + (which * (kLanes / kPart) + part) * kThreads +
              threadIdx.x;
    SNN_HOST_ACCESS(p, sizeof(Part));
    return p;
  }
  SNN_DEVICE void get(int which, int part, float* value) const {
    const Part from = *at(which, part);
    SNN_UNROLL
    for (int j = 0; j < kPart; ++j) value[j] = from.value[j];
  }
  SNN_DEVICE void put(int which, const float* value) const {
    SNN_UNROLL
    for (int part = 0; part < kLanes / kPart; ++part) {
      Part to;
      SNN_UNROLL
      for (int j = 0; j < kPart; ++j) to.value[j] = value[part * kPart + j];
      *at(which, part) = to;
    }
  }
  // Three vectors [channels], to the vectors from `which` on.
  SNN_DEVICE void keep(int which, const Place<kLanes>& place, const float* const (&from)[3]) const {
    float value[3][kLanes];
    place.load(from, value);
    put(which, value[0]), put(which + 1, value[1]), put(which + 2, value[2]);
  }
  SNN_DEVICE void clear(int which) const {
    float zero[kLanes];
    fill<kLanes>(zero, 0.0f);
    put(which, zero);
  }
  SNN_DEVICE void add(int which, int part, const float* value) const {
    Part to = *at(which, part);
    SNN_UNROLL
    for (int j = 0; j < kPart; ++j) to.value[j] += value[j];
    *at(which, part) = to;
  }
};

// Sums over the neurons of a tile that share a channel, of up to three numbers of each neuron.
template <int kLanes>
struct SlotSums {
  static constexpr int kTile = kThreads * kLanes;
  const Tiles& at;
  float* const shared;  // Own vectors `first` to `third`, then `count`, a number for each thread
  i64 before;           // neurons of the first channel in front of the tile
  int lane;

  SNN_DEVICE SlotSums(const Tiles& at, float* shared)
      : at(at), shared(shared), lane(int(threadIdx.x) & (at.group - 1)) {
    const i64 first = i64(blockIdx.x) * kTile;
    before = first - quotient(first, at.inner, at.inner_factor, at.inner_shift) * at.inner;
  }

  SNN_DEVICE float load(int at) const {
    SNN_HOST_ACCESS(shared + at, 4);
    return shared[at];
  }
  SNN_DEVICE float first(int k) const { return load(Own<kLanes>::place(k)); }
  SNN_DEVICE float second(int k) const { return load(kTile + Own<kLanes>::place(k)); }
  SNN_DEVICE float third(int k) const { return load(2 * kTile + Own<kLanes>::place(k)); }
  SNN_DEVICE float count(int k) const { return load(3 * kTile + k / kLanes); }

  // f(slot) for every slot, `group` threads of a warp having the same; all threads come along.
  template <class F>
  SNN_DEVICE void each(F&& f) const {
    const int at_once = kThreads / at.group;
    for (int base = 0; base < at.slots; base += at_once) f(base + int(threadIdx.x) / at.group);
  }
  // The sum of f(neuron) over a slot, known to its group. The group shares out the runs of
  // neighbouring neurons, or where they are short goes through one each.
  template <class Sum = float, class F>
  SNN_DEVICE Sum total(int slot, F&& f) const {
    const bool share = at.inner >= at.group;
    const i64 period = at.channels * at.inner, run = share ? 0 : lane * period;
    const i64 step = share ? period : period * at.group;
    Sum sum = 0;
    if (slot < at.slots) {
      for (i64 from = slot * at.inner - before + run; from < kTile; from += step) {
        const int begin = from < 0 ? 0 : int(from);
        const int end = from + at.inner < kTile ? int(from + at.inner) : kTile;
        for (int k = begin + (share ? lane : 0); k < end; k += share ? at.group : 1) sum += f(k);
      }
    }
    for (int lanes = at.group / 2; lanes > 0; lanes /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum;
  }
  // Numbers of a slot to parts [blocks, slots, ...].
  template <class... Floats>
  SNN_DEVICE void store(float* parts, int slot, Floats... value) const {
    if (slot >= at.slots || lane != 0) return;
    parts += (i64(blockIdx.x) * at.slots + slot) * i64(sizeof...(value));
    (store_element(parts++, value), ...);
  }
};

// Mean and sum of squares about it of what a thread has met of each of its neurons (n of each), and
// sums over the m that came since, relative to the mean. They are merged (Chan et al. 1979)
// whenever they are as many, so a few times only, and rounding is relative to the spread of the
// values, wherever they lie and whichever came first. The mean is the sum of two floats; the sums
// are relative to the first of them.
template <int kLanes>
struct Moments {
  float mean[kLanes], rest[kLanes], square[kLanes], sum[kLanes], spread[kLanes];
  i64 n, m;

  SNN_DEVICE Moments() : n(0), m(0) {
    fill<kLanes>(mean, 0.0f), fill<kLanes>(rest, 0.0f), fill<kLanes>(square, 0.0f);
    fill<kLanes>(sum, 0.0f), fill<kLanes>(spread, 0.0f);
  }
  template <int kAhead, class Pack>
  SNN_DEVICE void add(const Pack (&pack)[kAhead], int count) {
    if (n == 0) {
      SNN_UNROLL
      for (int j = 0; j < kLanes; ++j) mean[j] = pack[0][j];
    }
    SNN_UNROLL
    for (int t = 0; t < kAhead; ++t) {
      if (t < count) {
        SNN_UNROLL
        for (int j = 0; j < kLanes; ++j) {
          const float d = pack[t][j] - mean[j];
          sum[j] += d;
          spread[j] = mad_(d, d, spread[j]);
        }
      }
    }
    m += count;
    if (m >= n) merge();
  }
  SNN_DEVICE void merge() {
    const float part = reciprocal_(float(m));
    const float weight = float(m) * reciprocal_(float(n + m)), both = float(n) * weight;
    n += m, m = 0;
    SNN_UNROLL
    for (int j = 0; j < kLanes; ++j) {
      const float middle = sum[j] * part, off = middle - rest[j];
      square[j] += mad_(off * both, off, mad_(-sum[j], middle, spread[j]));
      rest[j] = mad_(off, weight, rest[j]);
      const float moved = mean[j] + rest[j];
      rest[j] -= moved - mean[j];
      mean[j] = moved;
    }
    fill<kLanes>(sum, 0.0f), fill<kLanes>(spread, 0.0f);
  }
};

constexpr int kStatsNumbers = 3;  // a neuron has in shared memory, and one more a thread

// Leaves count, mean (in two parts) and sum of squares about it of each of a block's channels.
template <class Io, int kLanes>
SNN_DEVICE void norm_stats(const MapArgs& p, const NormArgs& q, void* shared) {
  using Element = typename Io::Element;
  constexpr int kAhead = 8;
  const Element* y = static_cast<const Element*>(p.x);
  const i64 bytes = p.x_stride * i64(sizeof(Element));
  i64 i = (i64(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  Moments<kLanes> met;
  for (i64 tile = blockIdx.x; tile < q.at.tiles; tile += q.at.blocks) {
    if (i < p.neurons) {
      for (i64 base = 0; base < p.steps; base += kAhead) {
        Pack<Io, kLanes> pack[kAhead];
        const int count = steps_from<kAhead>(base, p.steps);
        load_steps<kAhead>(pack, reinterpret_cast<const char*>(y + i) + base * bytes, bytes, count);
        met.add(pack, count);
      }
    }
    i += q.at.blocks * kThreads * kLanes;
  }
  if (met.m > 0) met.merge();
  const SlotSums<kLanes> slots(q.at, static_cast<float*>(shared));
  const Own<kLanes> own{static_cast<float*>(shared)};
  own.put(0, met.mean), own.put(1, met.rest), own.put(2, met.square);
  SNN_HOST_ACCESS(slots.shared + 3 * slots.kTile + threadIdx.x, 4);
  slots.shared[3 * slots.kTile + threadIdx.x] = float(met.n);
  __syncthreads();
  slots.each([&](int slot) {
    const float count = slots.total(slot, [&](int k) { return slots.count(k); });
    const double sum = slots.template total<double>(slot, [&](int k) {
      return double(slots.count(k)) * (double(slots.first(k)) + slots.second(k));
    });
    const double middle = count > 0.0f ? sum / count : 0.0;
    const float mean = float(middle), rest = float(middle - mean);
    const float square = slots.total(slot, [&](int k) {
      const float d = (slots.first(k) - mean) + (slots.second(k) - rest);
      return mad_(slots.count(k) * d, d, slots.third(k));
    });
    slots.store(q.parts, slot, count, mean, rest, square);
  });
}

// dY = a dX + b (Y - mean) + c; dy may be dx.
template <class Io, int kLanes>
SNN_DEVICE void norm_dy(const MapArgs& p, const NormArgs& q) {
  constexpr int kAhead = 4;
  constexpr i64 kBytes = sizeof(typename Io::Element);
  const i64 i = (i64(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  if (i >= p.neurons) return;
  const i64 y_bytes = p.x_stride * kBytes, bytes = p.neurons * kBytes;
  const char* y = static_cast<const char*>(p.x) + i * kBytes;
  const char* dx = static_cast<const char*>(p.dx) + i * kBytes;
  char* dy = static_cast<char*>(p.dy) + i * kBytes;
  const Place<kLanes> place(q.at, i);
  float row[4][kLanes];
  place.load({q.mean, q.a, q.b, q.c}, row);
  for (i64 base = 0; base < p.steps; base += kAhead) {
    Pack<Io, kLanes> from[kAhead], grad[kAhead];
    const int count = steps_from<kAhead>(base, p.steps);
    load_steps<kAhead>(from, y + base * y_bytes, y_bytes, count);
    load_steps<kAhead>(grad, dx + base * bytes, bytes, count);
    SNN_UNROLL
    for (int t = 0; t < kAhead; ++t) {
      if (t < count) {
        float value[kLanes];
        SNN_UNROLL
        for (int j = 0; j < kLanes; ++j)
          value[j] =
              mad_(row[1][j], grad[t][j], mad_(row[2][j], from[t][j] - row[0][j], row[3][j]));
        Pack<Io, kLanes>::store(dy, value);
        dy = advance(dy, bytes);
      }
    }
  }
}

}  // namespace cuda
}  // namespace snnfast
