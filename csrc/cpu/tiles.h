// Tiles of the neurons of one timestep, and the chunks of tiles that threads take.
#pragma once

#include <algorithm>

#include "lif.h"
#include "rows.h"

namespace snnfast {
inline namespace SNN_ISA {

// A thread is worth waking for some ten microseconds of work: so many elements.
constexpr int64_t kGrain = 32768;

// Runs f(chunk, begin, size) over all tiles, `chunks` of them in parallel. The team has the size of
// torch's, whether there is work for all or not: for one of another size the OpenMP runtime would
// end threads, and start them anew at torch's next call.
template <class Job, class F>
void for_each_tile_of(int64_t chunks, const Job& job, F&& f) {
  const int64_t tiles = (job.n + kTile - 1) / kTile;
#pragma omp parallel for schedule(static) num_threads(job.threads) if (chunks > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile) {
      const int64_t begin = tile * kTile;
      f(chunk, begin, std::min(kTile, job.n - begin));
    }
    finish_streaming();
  }
}

// Runs f(begin, size) over all tiles, a chunk for each thread that is worth waking.
template <class Job, class F>
void for_each_tile(const Job& job, F&& f) {
  const int64_t worth = std::max<int64_t>(1, job.n * job.steps / kGrain);
  for_each_tile_of(std::min<int64_t>({(job.n + kTile - 1) / kTile, worth, job.threads}), job,
                   [&](int64_t, int64_t begin, int64_t n) { f(begin, n); });
}

// Where there are sums: two grains each, since every chunk has sums of its own for all channels, to
// be cleared and added up.
template <class Job>
int64_t chunk_count(const Job& job) {
  const int64_t tiles = (job.n + kTile - 1) / kTile;
  return std::min({tiles, kMaxChunks, std::max<int64_t>(1, job.n * job.steps / (2 * kGrain))});
}

// Adds up what every chunk has left in partial [chunks, count], in the first.
inline const double* add_chunks(double* partial, int64_t chunks, int64_t count) {
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < count; ++i) partial[i] += partial[chunk * count + i];
  return partial;
}

}  // namespace SNN_ISA
}  // namespace snnfast
