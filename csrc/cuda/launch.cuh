// The one launch of all kernels. With nvcc it goes to a GPU; a plain host compiler gets a
// cudaLaunchKernel that runs the threads one after the other (tests/cuda_shim).
#pragma once

#include <cuda_runtime.h>

#include "launch.h"

namespace snnfast {
namespace cuda {

struct Grid {
  i64 blocks;
  int threads;
  int shared = 0;  // bytes
};

template <class T>
struct Same {
  using Type = T;
};

// The arguments are converted to what the kernel takes, and never the other way round.
template <class... Args>
int launch(void (*kernel)(Args...), const Grid& grid, void* stream,
           typename Same<Args>::Type... args) {
  void* pointers[] = {&args...};
  return cudaLaunchKernel(kernel, dim3(unsigned(grid.blocks)), dim3(unsigned(grid.threads)),
                          pointers, size_t(grid.shared), static_cast<cudaStream_t>(stream));
}

}  // namespace cuda
}  // namespace snnfast
