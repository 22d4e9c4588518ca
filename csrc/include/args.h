// What Python packs: the values of snnfast/backends/spec.py field by field, ints and bools as
// int64_t, floats as double, and the numbers of the dtypes.
#pragma once

#include <cstdint>

namespace snnfast {

enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct LifArgs {
  int64_t charge, divide, hard, detach_reset, surrogate, spiking, is_static;
  double rate, theta, reset, a, b;
  int64_t steps, channels, inner;
};

struct StepwiseArgs {
  int64_t self_target, skip_all_wrong, entropy, ignore_index;
  double weights[4];
  double ce_temperature, temperature, entropy_temperature, kl_scale, label_smoothing;
  double gradient_scale;
};

struct TssdArgs {
  int64_t per_step, ignore_index;
  double weights[3];
  double ce_all, ce_student, temperature, kl_scale, label_smoothing;
  int64_t student_steps;
  double gradient_scale;
};

}  // namespace snnfast
