// What one instruction set (SNN_ISA, given by the build) does around a compiled walk: tiles and
// threads, parameters of channels, sums over neurons.
#include "compiled.h"

#include <vector>

#include "norm.h"
#include "tiles.h"

namespace snnfast {
namespace {

// Rows of a tile and where they are. Types of their own: what the library makes of a type that all
// have would be compiled for one instruction set and run on the other.
template <class R>
class Rows {
 public:
  void hold(int64_t count) {
    rows_.resize(size_t(count)), at_.clear();
    for (Row& row : rows_) at_.push_back({row.of->at});
  }
  TileRow<R> (&operator[](int64_t k))[1] { return rows_[size_t(k)].of; }
  void* const* addresses() const { return reinterpret_cast<void* const*>(at_.data()); }

 private:
  struct Row {
    TileRow<R> of[1];
  };
  struct Address {
    R* at;
  };
  std::vector<Row> rows_;
  std::vector<Address> at_;
};

template <class R>
void run(const ProgramLayer& layer, const Compiled& job) {
  const int64_t chunks = chunk_count(layer), count = job.dparams.count * layer.channels;
  std::fill(job.partial, job.partial + chunks * count, 0.0);
  int64_t per_channel = 0, wanted = 0;
  for (int64_t k = 0; k < layer.params.count; ++k) per_channel += layer.params[k].per_channel;
  for (int64_t k = 0; k < job.dparams.count; ++k) wanted += job.dparams[k] != nullptr;
  for_each_tile_of(chunks, layer, [&](int64_t chunk, int64_t begin, int64_t n) {
    static thread_local Rows<R> rows, sums;
    rows.hold(per_channel), sums.hold(wanted);
    const Channels channels(layer.channels, layer.inner, begin, n), one(1, n, 0, n);
    for (int64_t k = 0, row = 0; k < layer.params.count; ++k)
      if (layer.params[k].per_channel) channels.spread({layer.params[k].data}, rows[row++]);
    job.walk(job.args, rows.addresses(), sums.addresses(), begin, n);
    double* to = job.partial + chunk * count;
    for (int64_t k = 0, row = 0; k < job.dparams.count; ++k, to += layer.channels)
      if (job.dparams[k]) (layer.params[k].per_channel ? channels : one).add(sums[row++]->at, to);
  });
  const double* total = add_chunks(job.partial, chunks, count);
  for (int64_t k = 0; k < job.dparams.count; ++k, total += layer.channels)
    if (job.dparams[k])
      std::copy(total, total + (layer.params[k].per_channel ? layer.channels : 1),
                static_cast<R*>(job.dparams[k]));
}

}  // namespace

void SNN_ISA_NAME(run_compiled)(const ProgramLayer& layer, const Compiled& job) {
  layer.dtype == kFloat64 ? run<double>(layer, job) : run<float>(layer, job);
}

}  // namespace snnfast
