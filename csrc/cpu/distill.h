// What the bindings hand to a distillation kernel, and the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "lif.h"

namespace snnfast {

// [T, B, C] of any strides (in elements), or [B, C] and dense; null data: there is none.
struct Logits {
  const void* data;
  int dtype;
  int64_t step, row, column;
};

struct DistillIo {
  int threads;
  int64_t steps, rows, classes;
  Logits logits, other;   // other: the teacher's [B, C], or the auxiliary ones [T, B, C]
  const int64_t* labels;  // [B], or null: class probabilities [B, C]
  Logits probabilities;
  double smoothing;
  int64_t ignore_index;
  void* gradient;        // [T, B, C] in the logits' dtype, or null
  void* other_gradient;  // the same for the auxiliary logits
  double* parts;         // [B, 4]: every row's terms; 0 where the row does not count
};

// scaled = gradient * factor, n elements of the dtype; the product is rounded once.
struct Scale {
  int dtype, threads;
  int64_t n;
  const void* gradient;
  void* scaled;
  double factor;
};

#define SNN_DISTILL(isa)                                                \
  void stepwise_loss_##isa(const StepwiseArgs& loss, const DistillIo&); \
  void tssd_loss_##isa(const TssdArgs& loss, const DistillIo&);         \
  void scale_gradient_##isa(const Scale&);
SNN_DISTILL(baseline)
SNN_DISTILL(avx2)
#undef SNN_DISTILL
// float64 is there to check gradients with, not for speed: one instruction set for all machines.
void stepwise_loss_float64(const StepwiseArgs& loss, const DistillIo&);
void tssd_loss_float64(const TssdArgs& loss, const DistillIo&);

}  // namespace snnfast
