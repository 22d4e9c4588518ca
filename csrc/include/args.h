// What Python packs: the values of snnfast/backends/spec.py field by field, ints and bools as
// i64, floats as double, and the numbers of the dtypes.
#pragma once

namespace snnfast {

using i64 = long long;

enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct LifArgs {
  i64 charge, divide, hard, detach_reset, surrogate, spiking, is_static;
  double rate, theta, reset, a, b;
  i64 steps, channels, inner;
};

struct StepwiseArgs {
  i64 self_target, skip_all_wrong, entropy, ignore_index;
  double weights[4];
  double ce_temperature, temperature, entropy_temperature, kl_scale, label_smoothing;
  double gradient_scale;
};

struct TssdArgs {
  i64 per_step, ignore_index;
  double weights[3];
  double ce_all, ce_student, temperature, kl_scale, label_smoothing;
  i64 student_steps;
  double gradient_scale;
};

}  // namespace snnfast
