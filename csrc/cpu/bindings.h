// What the files of snnfast._C share: the kernels of the instruction set in use, and addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "compiled.h"
#include "distill.h"
#include "lif.h"
#include "norm_lif.h"
#include "program.h"
#include "spikes.h"

namespace py = pybind11;
namespace snnfast {

struct Kernels {
  const char* name = "baseline";
  void (*forward)(const LifLayer&, const LifForward&) = lif_forward_baseline;
  void (*backward)(const LifLayer&, const LifBackward&) = lif_backward_baseline;
  void (*norm_stats)(const NormStats&) = norm_stats_baseline;
  void (*norm_dy)(const NormDy&) = norm_dy_baseline;
  void (*stepwise)(const StepwiseArgs&, const DistillIo&) = stepwise_loss_baseline;
  void (*tssd)(const TssdArgs&, const DistillIo&) = tssd_loss_baseline;
  void (*scale)(const Scale&) = scale_gradient_baseline;
  bool (*pack)(const PackSpikes&) = pack_spikes_baseline;
  void (*unpack)(const UnpackSpikes&) = unpack_spikes_baseline;
  const char* (*program_operation)(int64_t) = program_operation_baseline;
  void (*program_forward)(const ProgramLayer&, const ProgramForward&) = program_forward_baseline;
  void (*program_backward)(const ProgramLayer&, const ProgramBackward&) = program_backward_baseline;
  void (*run_compiled)(const ProgramLayer&, const Compiled&) = run_compiled_baseline;
};
extern Kernels kernels;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline std::unique_ptr<double[]> scratch(int64_t n) {
  return std::unique_ptr<double[]>(new double[size_t(n)]);  // not set to 0
}

}  // namespace snnfast
