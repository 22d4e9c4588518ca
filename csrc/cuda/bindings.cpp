// Python module snnfast._cuda: structs of csrc/cuda/*_args.h in, as bytes, a cudaError_t out.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "launch.h"

namespace py = pybind11;
using namespace snnfast::cuda;

namespace {

template <class Args>
Args unpack(std::string_view bytes) {
  Args args;
  if (bytes.size() != sizeof args)
    throw std::invalid_argument("snnfast._cuda: expected " + std::to_string(sizeof args) +
                                " bytes of arguments, got " + std::to_string(bytes.size()));
  std::memcpy(&args, bytes.data(), sizeof args);
  return args;
}

// launcher(stream, choices and structs...) on `device`, which is torch's current one: to put back
// another here would make a context there.
template <class Launcher, class... Args>
int run(Launcher launcher, int device, std::uintptr_t stream, const Args&... args) {
  py::gil_scoped_release release;
  if (const int status = cudaSetDevice(device)) return status;
  return launcher(reinterpret_cast<void*>(stream), args...);
}

template <class Launcher>
struct PerDtype {
  Launcher float32, float16, bfloat16;
  Launcher operator[](int dtype) const {
    if (dtype == snnfast::kFloat32) return float32;
    if (dtype == snnfast::kFloat16) return float16;
    if (dtype == snnfast::kBFloat16) return bfloat16;
    throw std::invalid_argument("snnfast._cuda: no such dtype");
  }
};

template <class>
using Bytes = std::string_view;

// name(dtype, vector, device, stream, structs...): a launch over neurons.
template <class... Args>
void def_neurons(py::module_& m, const char* name,
                 PerDtype<int (*)(void*, bool, const Args&...)> launchers) {
  m.def(name, [=](int dtype, bool vector, int device, std::uintptr_t stream, Bytes<Args>... args) {
    return run(launchers[dtype], device, stream, vector, unpack<Args>(args)...);
  });
}

// name(dtype, resident, threads, shared, device, stream, rows, numbers): one over rows of logits.
template <class Numbers>
void def_rows(py::module_& m, const char* name,
              PerDtype<int (*)(void*, const RowGrid&, const RowArgs&, const Numbers&)> launchers) {
  m.def(name, [=](int dtype, bool resident, int threads, int shared, int device,
                  std::uintptr_t stream, std::string_view rows, std::string_view numbers) {
    const RowGrid grid{resident, threads, shared};
    return run(launchers[dtype], device, stream, grid, unpack<RowArgs>(rows),
               unpack<Numbers>(numbers));
  });
}

// name(device, stream, structs...).
template <class... Args>
void def_sums(py::module_& m, const char* name, int (*launcher)(void*, const Args&...)) {
  m.def(name, [=](int device, std::uintptr_t stream, Bytes<Args>... args) {
    return run(launcher, device, stream, unpack<Args>(args)...);
  });
}

void def_spikes(py::module_& m, const char* name, int (*launcher)(void*, int, const SpikesArgs&)) {
  m.def(name, [=](int size, int device, std::uintptr_t stream, std::string_view args) {
    return run(launcher, device, stream, size, unpack<SpikesArgs>(args));
  });
}

}  // namespace

#define SNN_EACH(launcher) \
  {launchers::launcher<Float32>, launchers::launcher<Float16>, launchers::launcher<BFloat16>}

PYBIND11_MODULE(_cuda, m) {
  def_neurons<ForwardArgs, NeuronArgs>(m, "lif_forward", SNN_EACH(lif_forward));
  def_neurons<BackwardArgs, NeuronArgs>(m, "lif_backward", SNN_EACH(lif_backward));
  def_neurons<ForwardArgs, NeuronArgs, NormArgs>(m, "norm_lif_forward", SNN_EACH(norm_lif_forward));
  def_neurons<BackwardArgs, NeuronArgs, NormArgs>(m, "norm_lif_backward",
                                                  SNN_EACH(norm_lif_backward));
  def_neurons<MapArgs, NormArgs>(m, "norm_stats", SNN_EACH(norm_stats));
  def_neurons<MapArgs, NormArgs>(m, "norm_dy", SNN_EACH(norm_dy));
  def_sums(m, "norm_prepare", launchers::norm_prepare);
  def_sums(m, "norm_finish", launchers::norm_finish);
  def_rows<StepwiseNumbers>(m, "stepwise_rows", SNN_EACH(stepwise_rows));
  def_rows<TssdNumbers>(m, "tssd_rows", SNN_EACH(tssd_rows));
  def_sums(m, "finish_loss", launchers::finish_loss);
  m.def("scale_gradient", [](int dtype, int device, std::uintptr_t stream, std::string_view args) {
    const PerDtype<int (*)(void*, const ScaleArgs&)> launchers SNN_EACH(scale_gradient);
    return run(launchers[dtype], device, stream, unpack<ScaleArgs>(args));
  });
  def_spikes(m, "pack_spikes", launchers::pack_spikes);
  def_spikes(m, "unpack_spikes", launchers::unpack_spikes);
  m.def("probe",
        [](int device) { return run([](void*) { return launchers::probe(); }, device, 0); });
  m.def("error_string",
        [](int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); });
  py::dict sizes;  // of the structs, for those who pack them
  sizes["ForwardArgs"] = sizeof(ForwardArgs), sizes["BackwardArgs"] = sizeof(BackwardArgs);
  sizes["NeuronArgs"] = sizeof(NeuronArgs), sizes["NormArgs"] = sizeof(NormArgs);
  sizes["MapArgs"] = sizeof(MapArgs), sizes["TotalArgs"] = sizeof(TotalArgs);
  sizes["PreparedArgs"] = sizeof(PreparedArgs), sizes["FinishedArgs"] = sizeof(FinishedArgs);
  sizes["RowArgs"] = sizeof(RowArgs), sizes["StepwiseNumbers"] = sizeof(StepwiseNumbers);
  sizes["TssdNumbers"] = sizeof(TssdNumbers), sizes["FinishArgs"] = sizeof(FinishArgs);
  sizes["ScaleArgs"] = sizeof(ScaleArgs), sizes["SpikesArgs"] = sizeof(SpikesArgs);
  m.attr("SIZES") = sizes;
}
