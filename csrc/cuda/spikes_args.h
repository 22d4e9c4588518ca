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
  int* exact;           // [1], 1 before: packing makes it 0 where an element is neither +0 nor 1
  i64 n;
  unsigned one;  // the word of 1
  int flags;
};

enum SpikesFlags : int {
  kLook = 1,    // exact is wanted
  kVector = 2,  // s is aligned to 16 bytes
};

}  // namespace cuda
}  // namespace snnfast
