// Spikes as bits: what the bindings hand to the packing kernels of each instruction set.
#pragma once

#include <cstdint>

#include "lif.h"

namespace snnfast {

// Element i is bit i % 8 of byte i / 8; the bits behind the last element are 0.
struct PackSpikes {
  int dtype, threads;
  int64_t n;
  const void* s;  // [n]
  uint8_t* bits;  // [ceil(n / 8)]
  bool only_if_spikes;
};

struct UnpackSpikes {
  int dtype, threads;
  int64_t n;
  const uint8_t* bits;  // [ceil(n / 8)]
  void* s;              // [n]
};

// Whatever is not 0 becomes a 1. Where `only_if_spikes`: false at the first element whose bits are
// neither those of 0 nor those of 1, and then `bits` is unfinished; else true.
bool pack_spikes_baseline(const PackSpikes&);
bool pack_spikes_avx2(const PackSpikes&);
void unpack_spikes_baseline(const UnpackSpikes&);
void unpack_spikes_avx2(const UnpackSpikes&);

}  // namespace snnfast
