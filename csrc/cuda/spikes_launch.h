// The launchers of the packing kernels. The status is a cudaError_t; 0 is success.
#pragma once

#include "spikes_args.h"

namespace snnfast {
namespace cuda {

// `size`: bytes of an element, 4 or 2. `stream` is a cudaStream_t.
int launch_pack(int size, void* stream, const SpikesArgs& p);
int launch_unpack(int size, void* stream, const SpikesArgs& p);

}  // namespace cuda
}  // namespace snnfast
