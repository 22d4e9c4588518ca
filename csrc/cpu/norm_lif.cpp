// The statistics of one instruction set (SNN_ISA, given by the build), and the second pass of
// backward.
#include "norm_lif.h"

#include <algorithm>
#include <cmath>

#include "norm.h"
#include "tiles.h"

namespace snnfast {
inline namespace SNN_ISA {

// Mean and variance from sums of Y - k, k near the mean: of a few of the channel's values, spread
// over its neurons and steps, the one that is nearest to their mean without the least and the
// largest of them, of which one may lie far away. A value and not that mean: what the values of a
// channel have in common, zeros behind the bits of a half precision above all, is then left to the
// differences, else each of them would end in the same bits of k and all sums be rounded in the
// same direction.
template <class R>
void channel_stats(const NormStats& job) {
  const int64_t C = job.channels, inner = job.inner, chunks = chunk_count(job);
  constexpr int64_t kFew = 16;
  const int64_t of_channel = job.n / C, few = std::min(kFew, of_channel);
  R* const mean = static_cast<R*>(job.mean);
  R* const var = static_cast<R*>(job.var);
  with_storage(job.dtype, [&](auto* null) {
    const auto* const y = static_cast<decltype(null)>(job.y);
    for (int64_t c = 0; c < C; ++c) {
      double values[kFew], sum = 0, least = INFINITY, most = -INFINITY;
      for (int64_t j = 0; j < few; ++j) {
        const int64_t t = j * job.steps / few, i = j * of_channel / few;
        const int64_t neuron = i / inner * C * inner + c * inner + i % inner;
        const double value = values[j] = double(widen(y[t * job.stride + neuron]));
        sum += value, least = std::min(least, value), most = std::max(most, value);
      }
      const double middle = few > 2 ? (sum - least - most) / double(few - 2) : sum / double(few);
      mean[c] = R(*std::min_element(values, values + few, [&](double a, double b) {
        return std::abs(a - middle) < std::abs(b - middle);
      }));
    }
  });
  std::fill(job.partial, job.partial + chunks * 2 * C, 0.0);
  for_each_tile_of(chunks, job, [&](int64_t chunk, int64_t begin, int64_t tile) {
    using V = Lanes<R>;
    const Channels channels(C, inner, begin, tile);
    Reader<R> y(job.y, job.dtype, job.stride, begin, tile);
    TileRow<R> k[1], sum, square;
    channels.spread({job.mean}, k);
    In<R> rows[kSegment];
    for (int64_t first = 0; first < job.steps; first += kSegment) {
      const int steps = int(std::min<int64_t>(kSegment, job.steps - first));
      Ahead next[kSegment];
      for (int t = 0; t < steps; ++t)
        rows[t] = y.read(first + t), next[t] = y.ahead_of_tile(first + t);
      for (int64_t i = 0; i < tile; i += V::kCount) {
        const V k_i = load(k[0].at + i);
        V sum_i(0), square_i(0);
        if (first > 0) sum_i = load(sum.at + i), square_i = load(square.at + i);
        for (int t = 0; t < steps; ++t) {
          next[t].fetch_later(i);
          const V d = rows[t].load(i) - k_i;
          sum_i = sum_i + d;
          square_i = mad_(d, d, square_i);
        }
        store(sum.at + i, sum_i), store(square.at + i, square_i);
      }
    }
    double* sums = job.partial + chunk * 2 * C;
    channels.add(sum.at, sums);
    channels.add(square.at, sums + C);
  });
  const double count = double(of_channel) * double(job.steps);
  const double* total = add_chunks(job.partial, chunks, 2 * C);
  for (int64_t c = 0; c < C; ++c) {
    const double shift = total[c] / count, square = total[C + c] / count;
    mean[c] = R(double(mean[c]) + shift);
    var[c] = R(std::max(square - shift * shift, 0.0));  // NaN stays NaN
  }
}

template <class R>
void normalisation_dy(const NormDy& job) {
  for_each_tile(job, [&](int64_t begin, int64_t tile) {
    using V = Lanes<R>;
    const Channels channels(job.channels, job.inner, begin, tile);
    Reader<R> y(job.y, job.dtype, job.stride, begin, tile);
    Reader<R> dx(job.dx, job.dtype, job.n, begin, tile);
    // What is overwritten where it was read is in cache already.
    Writer<R> dy(job.dy, job.dtype, job.n, begin, tile,
                 job.dy == job.dx ? 0 : 3 * job.steps * job.n);
    TileRow<R> rows[4];
    channels.spread({job.mean, job.a, job.b, job.c}, rows);
    const auto& [mean, a, b, c] = rows;
    for (int64_t t = 0; t < job.steps; ++t) {
      const Ahead later[] = {y.ahead_of_tile(t), dx.ahead_of_tile(t), dy.ahead_of_tile(t)};
      const In<R> row = y.read(t), d = dx.read(t);
      const Out<R> out = dy.row(t);
      for (int64_t i = 0; i < tile; i += V::kCount) {
        for (const Ahead& row : later) row.fetch_later(i);
        const V centred = mad_(load(b.at + i), row.load(i) - load(mean.at + i), load(c.at + i));
        out.put(i, mad_(load(a.at + i), d.load(i), centred));
      }
      dy.write(t);
    }
  });
}

}  // namespace SNN_ISA

void SNN_ISA_NAME(norm_stats)(const NormStats& job) {
  job.dtype == kFloat64 ? channel_stats<double>(job) : channel_stats<float>(job);
}

void SNN_ISA_NAME(norm_dy)(const NormDy& job) {
  job.dtype == kFloat64 ? normalisation_dy<double>(job) : normalisation_dy<float>(job);
}

}  // namespace snnfast
