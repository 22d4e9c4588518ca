// Python module snnfast._cuda: argument structs in (csrc/cuda/args.h, as bytes), a status out.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "distill_launch.h"
#include "launch.h"
#include "norm_launch.h"
#include "spikes_launch.h"

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

// f() with `device` as the current one; a cudaError_t.
template <class F>
int on_device(int device, F&& f) {
  py::gil_scoped_release release;
  int before = device;
  if (const int status = cudaGetDevice(&before)) return status;
  if (const int status = cudaSetDevice(device)) return status;
  const int status = f();
  if (before != device) cudaSetDevice(before);
  return status;
}

template <class Args>
using Launcher = int (*)(const Launch&, const Args&, const LifArgs&);

template <class Args>
int run(Launcher<Args> const (&launchers)[3], int dtype, int charge, bool hard, bool vector,
        int device, std::uintptr_t stream, std::string_view args, std::string_view lif_args) {
  if (dtype < 0 || dtype > 2 || charge < 0 || charge > 2)
    throw std::invalid_argument("snnfast._cuda: no such dtype or charge");
  const Args p = unpack<Args>(args);
  const LifArgs lif = unpack<LifArgs>(lif_args);
  const Launch launch{charge, hard, vector, reinterpret_cast<void*>(stream)};
  return on_device(device, [&] { return launchers[dtype](launch, p, lif); });
}

template <class Args>
using RowLauncher = int (*)(const RowLaunch&, const RowArgs&, const Args&);

// The rows of a loss, then their sum.
template <class Args>
int run_loss(RowLauncher<Args> const (&launchers)[3], int dtype, bool resident, int threads,
             int shared, int device, std::uintptr_t stream, std::string_view rows,
             std::string_view args, std::string_view finish) {
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("snnfast._cuda: no such dtype");
  const RowArgs p = unpack<RowArgs>(rows);
  const Args a = unpack<Args>(args);
  const FinishArgs f = unpack<FinishArgs>(finish);
  const RowLaunch launch{resident, threads, shared, reinterpret_cast<void*>(stream)};
  return on_device(device, [&] {
    const int status = launchers[dtype](launch, p, a);
    return status ? status : finish_loss(launch.stream, f);
  });
}

int run_scale(int dtype, int device, std::uintptr_t stream, std::string_view args) {
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("snnfast._cuda: no such dtype");
  constexpr decltype(&scale_gradient_float32) kLaunchers[3] = {
      scale_gradient_float32, scale_gradient_float16, scale_gradient_bfloat16};
  const ScaleArgs p = unpack<ScaleArgs>(args);
  return on_device(device, [&] { return kLaunchers[dtype](reinterpret_cast<void*>(stream), p); });
}

template <class Args>
using NormLauncher = int (*)(const NormLaunch&, const Args&, const LifArgs&, const NormArgs&);
using MapLauncher = int (*)(const NormLaunch&, const MapArgs&, const NormArgs&);

// A launch over the neurons, then the totals of its sums where `total` has any.
template <class F>
int run_norm(F&& f, int dtype, bool vector, int device, std::uintptr_t stream,
             std::string_view norm, std::string_view total) {
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("snnfast._cuda: no such dtype");
  const NormArgs q = unpack<NormArgs>(norm);
  const TotalArgs sums = total.empty() ? TotalArgs{} : unpack<TotalArgs>(total);
  const NormLaunch launch{vector, reinterpret_cast<void*>(stream)};
  return on_device(device, [&] {
    const int status = f(launch, q);
    return status || total.empty() ? status : norm_totals(launch.stream, sums);
  });
}

template <class Args>
void def_norm(py::module_& m, const char* name, NormLauncher<Args> f32, NormLauncher<Args> f16,
              NormLauncher<Args> bf16) {
  m.def(name, [=](int dtype, bool vector, int device, std::uintptr_t stream, std::string_view args,
                  std::string_view lif, std::string_view norm, std::string_view total) {
    const Args p = unpack<Args>(args);
    const LifArgs neuron = unpack<LifArgs>(lif);
    const NormLauncher<Args> launchers[3] = {f32, f16, bf16};
    return run_norm([&](auto& l, auto& q) { return launchers[dtype](l, p, neuron, q); }, dtype,
                    vector, device, stream, norm, total);
  });
}

void def_map(py::module_& m, const char* name, MapLauncher f32, MapLauncher f16, MapLauncher bf16) {
  m.def(name, [=](int dtype, bool vector, int device, std::uintptr_t stream, std::string_view args,
                  std::string_view norm, std::string_view total) {
    const MapArgs p = unpack<MapArgs>(args);
    const MapLauncher launchers[3] = {f32, f16, bf16};
    return run_norm([&](auto& l, auto& q) { return launchers[dtype](l, p, q); }, dtype, vector,
                    device, stream, norm, total);
  });
}

int run_spikes(int (*launcher)(int, void*, const SpikesArgs&), int size, int device,
               std::uintptr_t stream, std::string_view args) {
  const SpikesArgs p = unpack<SpikesArgs>(args);
  return on_device(device, [&] { return launcher(size, reinterpret_cast<void*>(stream), p); });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.def("lif_forward", [](int dtype, int charge, bool hard, bool vector, int device,
                          std::uintptr_t stream, std::string_view args, std::string_view lif) {
    return run<ForwardArgs>({lif_forward_float32, lif_forward_float16, lif_forward_bfloat16}, dtype,
                            charge, hard, vector, device, stream, args, lif);
  });
  m.def("lif_backward", [](int dtype, int charge, bool hard, bool vector, int device,
                           std::uintptr_t stream, std::string_view args, std::string_view lif) {
    return run<BackwardArgs>({lif_backward_float32, lif_backward_float16, lif_backward_bfloat16},
                             dtype, charge, hard, vector, device, stream, args, lif);
  });
  m.def("stepwise_loss",
        [](int dtype, bool resident, int threads, int shared, int device, std::uintptr_t stream,
           std::string_view rows, std::string_view args, std::string_view finish) {
          return run_loss<StepwiseArgs>(
              {stepwise_rows_float32, stepwise_rows_float16, stepwise_rows_bfloat16}, dtype,
              resident, threads, shared, device, stream, rows, args, finish);
        });
  m.def("tssd_loss", [](int dtype, bool resident, int threads, int shared, int device,
                        std::uintptr_t stream, std::string_view rows, std::string_view args,
                        std::string_view finish) {
    return run_loss<TssdArgs>({tssd_rows_float32, tssd_rows_float16, tssd_rows_bfloat16}, dtype,
                              resident, threads, shared, device, stream, rows, args, finish);
  });
  m.def("scale_gradient", &run_scale);
  def_norm<ForwardArgs>(m, "norm_forward", norm_forward_float32, norm_forward_float16,
                        norm_forward_bfloat16);
  def_norm<BackwardArgs>(m, "norm_backward", norm_backward_float32, norm_backward_float16,
                         norm_backward_bfloat16);
  def_map(m, "norm_stats", norm_stats_float32, norm_stats_float16, norm_stats_bfloat16);
  def_map(m, "norm_apply", norm_apply_float32, norm_apply_float16, norm_apply_bfloat16);
  m.def("pack_spikes", [](int size, int device, std::uintptr_t stream, std::string_view args) {
    return run_spikes(launch_pack, size, device, stream, args);
  });
  m.def("unpack_spikes", [](int size, int device, std::uintptr_t stream, std::string_view args) {
    return run_spikes(launch_unpack, size, device, stream, args);
  });
  m.def("error_string",
        [](int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); });
  m.attr("KERNEL_ARGS") =
      py::make_tuple(sizeof(ForwardArgs), sizeof(BackwardArgs), sizeof(LifArgs));
  m.attr("NORM_ARGS") = py::make_tuple(sizeof(NormArgs), sizeof(MapArgs), sizeof(TotalArgs));
  m.attr("DISTILL_ARGS") = py::make_tuple(sizeof(RowArgs), sizeof(StepwiseArgs), sizeof(TssdArgs),
                                          sizeof(FinishArgs), sizeof(ScaleArgs));
  m.attr("SPIKES_ARGS") = sizeof(SpikesArgs);
}
