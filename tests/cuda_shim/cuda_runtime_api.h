// As much of the CUDA runtime as csrc/cuda calls, for a host compiler. shim.cpp has the rest.
#pragma once

#include <cstddef>
#include <cstdint>

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;

constexpr cudaError_t cudaErrorInvalidValue = 1;

struct dim3 {
  unsigned x, y = 1, z = 1;
  explicit dim3(unsigned x) : x(x) {}
};

struct cudaFuncAttributes {};

cudaError_t cudaSetDevice(int device);
const char* cudaGetErrorString(cudaError_t status);
