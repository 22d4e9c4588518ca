// What bindings.cpp calls: a launch each, compiled once for every dtype where that matters. Structs
// go in, a cudaError_t comes out; 0 is success. `stream` is a cudaStream_t.
#pragma once

#include "distill_args.h"
#include "lif_args.h"
#include "norm_lif_args.h"
#include "spikes_args.h"

namespace snnfast {
namespace cuda {

struct Float32;  // io.cuh
struct Float16;
struct BFloat16;

namespace launchers {

// `vector`: 16-byte accesses, for which N and the strides must be multiples of 16 bytes and every
// pointer aligned to them.
template <class Io>
int lif_forward(void* stream, bool vector, const ForwardArgs& p, const NeuronArgs& neuron);
template <class Io>
int lif_backward(void* stream, bool vector, const BackwardArgs& p, const NeuronArgs& neuron);

template <class Io>
int norm_lif_forward(void* stream, bool vector, const ForwardArgs& p, const NeuronArgs& neuron,
                     const NormArgs& q);
template <class Io>
int norm_lif_backward(void* stream, bool vector, const BackwardArgs& p, const NeuronArgs& neuron,
                      const NormArgs& q);
template <class Io>
int norm_stats(void* stream, bool vector, const MapArgs& p, const NormArgs& q);
template <class Io>
int norm_dy(void* stream, bool vector, const MapArgs& p, const NormArgs& q);
int norm_prepare(void* stream, const TotalArgs& p, const PreparedArgs& q);
int norm_finish(void* stream, const TotalArgs& p, const FinishedArgs& q);

template <class Io>
int stepwise_rows(void* stream, const RowGrid& grid, const RowArgs& p, const StepwiseNumbers& a);
template <class Io>
int tssd_rows(void* stream, const RowGrid& grid, const RowArgs& p, const TssdNumbers& a);
template <class Io>
int scale_gradient(void* stream, const ScaleArgs& p);
int finish_loss(void* stream, const FinishArgs& p);

// `size`: bytes of an element, 4 or 2.
int pack_spikes(void* stream, int size, const SpikesArgs& p);
int unpack_spikes(void* stream, int size, const SpikesArgs& p);

// Whether the current device and its driver take a kernel of this module.
int probe();

}  // namespace launchers
}  // namespace cuda
}  // namespace snnfast
