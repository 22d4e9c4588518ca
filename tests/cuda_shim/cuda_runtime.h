// What a host compiler lacks to take the device code: the qualifiers, the place of a thread in the
// grid, barriers and shuffles, and memory that faults. A launch runs the threads of a block as
// fibers of one host thread, one block after the other.
#pragma once

#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__
#define __launch_bounds__(...)

struct Place {
  unsigned x;
};
extern Place blockIdx, threadIdx, blockDim;

// Throws where the access is misaligned, or outside the tensors of the launch.
void check_access(const void* p, std::size_t bytes);
#define SNN_HOST_ACCESS(p, bytes) check_access(p, bytes)

void __syncthreads();

// `value`, of at most 8 bytes, becomes that of the thread `lanes` away (xor).
void exchange(void* value, std::size_t bytes, unsigned lanes);

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  exchange(&value, sizeof value, unsigned(lanes));
  return value;
}

// What the device says to a kernel: the status that the tests want.
extern int probed;
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return probed;
}

// Parameters of a kernel, which may touch the tensors whose addresses are among them.
struct Words {
  const std::uint64_t* from;
  std::size_t count;
};

cudaError_t run_grid(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                     const Words* words, std::size_t parameters, void (*body)(void*), void* of);

template <class... Args, std::size_t... k>
cudaError_t run_kernel(void (*kernel)(Args...), dim3 grid, dim3 block, void** args,
                       std::size_t shared, cudaStream_t stream, std::index_sequence<k...>) {
  const Words words[] = {{static_cast<const std::uint64_t*>(args[k]), sizeof(Args) / 8}...};
  auto body = [&] { kernel(*static_cast<const Args*>(args[k])...); };
  const auto call = [](void* of) { (*static_cast<decltype(body)*>(of))(); };
  return run_grid(grid, block, shared, stream, words, sizeof...(Args), call, &body);
}

template <class... Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args...), dim3 grid, dim3 block, void** args,
                             std::size_t shared, cudaStream_t stream) {
  return run_kernel(kernel, grid, block, args, shared, stream, std::index_sequence_for<Args...>());
}
