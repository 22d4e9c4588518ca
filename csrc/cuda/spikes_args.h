// What Python hands to the packing kernels: snnfast/backends/cuda/spikes.py mirrors the struct.
#pragma once

#include "args.h"

namespace snnfast {
namespace cuda {

constexpr int kPackThreads = 128;
constexpr int kPackBytes = 4;  // bytes of bits that a thread makes or reads

struct SpikesArgs {
  void* s;              // [n]
  unsigned char* bits;  // [ceil(n / 8)]; element i is bit i % 8 of byte i / 8
  i64 n;
  unsigned one;  // the word of 1
  int aligned;   // s, to 16 bytes
};

}  // namespace cuda
}  // namespace snnfast
