// What Python hands to a launch of a distillation loss: snnfast/backends/cuda/distill.py mirrors
// these structs.
#pragma once

#include "args.h"

namespace snnfast {
namespace cuda {

constexpr int kRowThreads = 256;  // at most
constexpr int kRowBlocks = 4;     // resident at least: up to 64 registers a thread
constexpr int kScratch = 16;      // floats that reductions need, in front of the resident vectors
constexpr int kFinishThreads = 1024;
constexpr int kFinishBytes = 2 * kFinishThreads / 32 * int(sizeof(double));
constexpr int kScaleThreads = 256;

// One block of `threads` a row. `resident`: rows lie in `shared` bytes of shared memory.
struct RowGrid {
  bool resident;
  int threads, shared;
};

// The rows of a loss, one a block. Strides count elements.
struct RowArgs {
  const void* logits;  // [T, B, C]
  const void* other;   // teacher [B, C], dense, or auxiliary logits [T, B, C] in the logits' dtype
  const i64* labels;   // [B], or null: probabilities
  const void* probabilities;  // [B, C], dense
  void* gradient;             // [T, B, C], dense, or null: not wanted
  void* aux_gradient;         // the same for the auxiliary logits
  float* slots;               // [B, slots, C]; null where the row lies in shared memory
  float* parts;               // [B, 4]: every row's terms, 0 where the row does not count
  i64 steps, rows, classes;
  i64 ignore_index;
  i64 step, row, column;                    // strides of the logits
  i64 other_step, other_row, other_column;  // and of the auxiliary ones
  float on, off;                            // 1 - smoothing, smoothing / C
  int teacher_dtype, probabilities_dtype;
  int other_steps;  // 0, 1 (the teacher) or T
  int slot_count;
};

// StepwiseRow and TssdRow of csrc/include/distill.h; what is missing there stands in RowArgs.
struct StepwiseNumbers {
  float inv_ce, inv_tau, inv_h, kl_scale;
  float g_ce, g_kl, g_self, g_h;
  int self_target, skip_all_wrong, entropy, shared_ce, shared_h;
};

struct TssdNumbers {
  float inv_tau, kl_scale, ce_all, ce_student;
  float g_all, g_student, g_temporal, g_spatial;
  i64 student_steps;
  i64 per_step;
};

// From the rows' terms to the loss.
struct FinishArgs {
  const float* parts;  // [B, 4]
  const i64* labels;   // [B], or null: all rows count
  float* loss;         // []
  float* terms;        // [term_count]
  float* unit;         // []: 1 / (unit_scale max(n, 1)), n the rows that count
  i64 rows, ignore_index;
  double weights[4];
  double steps;  // terms are sums of parts over steps n
  double unit_scale;
  i64 term_count;
};

struct ScaleArgs {
  const void* gradient;      // [n]
  void* scaled;              // [n]
  const float* grad_output;  // []
  const float* unit;         // []
  i64 n;
};

}  // namespace cuda
}  // namespace snnfast
