// What one instruction set (SNN_ISA, given by the build) does around compiled walks.
#include "compiled.h"

#include "norm.h"
#include "tiles.h"

namespace snnfast {
namespace {

template <class R>
struct Scratch {
  struct Row {
    TileRow<R> of[1];
  };
  std::vector<Row> rows, sums;
  std::vector<const void*> row_at;
  std::vector<void*> sum_at;

  void hold(const Compiled& job) {
    rows.resize(job.rows.size()), sums.resize(job.sums.size());
    row_at.clear(), sum_at.clear();
    for (auto& row : rows) row_at.push_back(row.of->at);
    for (auto& sum : sums) sum_at.push_back(sum.of->at);
  }
};

template <class R>
void run(const Compiled& job) {
  const int64_t chunks = chunk_count(job), count = job.channels * int64_t(job.sums.size());
  std::vector<double> partial(size_t(chunks * count));  // [chunks, sums, channels]
  for_each_tile(job, [&](int64_t chunk, int64_t begin, int64_t n) {
    static thread_local Scratch<R> scratch;
    scratch.hold(job);
    const Channels channels(job.channels, job.inner, begin, n), one(1, n, 0, n);
    for (size_t k = 0; k < job.rows.size(); ++k)
      channels.spread({reinterpret_cast<const void*>(job.rows[k])}, scratch.rows[k].of);
    job.walk(job.args, scratch.row_at.data(), scratch.sum_at.data(), begin, n);
    double* sums = partial.data() + chunk * count;
    for (size_t k = 0; k < job.sums.size(); ++k, sums += job.channels)
      (job.sums[k].second ? channels : one).add(scratch.sums[k].of->at, sums);
  });
  const double* total = add_chunks(partial.data(), chunks, count);
  for (const auto& [address, of_channels] : job.sums) {
    std::copy(total, total + (of_channels ? job.channels : 1), reinterpret_cast<R*>(address));
    total += job.channels;
  }
}

}  // namespace

void SNN_ISA_NAME(run_compiled)(const Compiled& job) {
  job.wide ? run<double>(job) : run<float>(job);
}

}  // namespace snnfast
