// Python module snnfast._cuda: argument structs in (csrc/cuda/args.h, as bytes), a status out.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

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

template <class Args>
using Launcher = int (*)(const Launch&, const Args&, const LifArgs&);

template <class Args>
int run(Launcher<Args> const (&launchers)[3], int dtype, int charge, bool hard, bool vector,
        int device, std::uintptr_t stream, std::string_view args, std::string_view lif_args) {
  if (dtype < 0 || dtype > 2 || charge < 0 || charge > 2)
    throw std::invalid_argument("snnfast._cuda: no such dtype or charge");
  const Args p = unpack<Args>(args);
  const LifArgs lif = unpack<LifArgs>(lif_args);
  py::gil_scoped_release release;
  int before = device;
  if (const int status = cudaGetDevice(&before)) return status;
  if (const int status = cudaSetDevice(device)) return status;
  const Launch launch{charge, hard, vector, reinterpret_cast<void*>(stream)};
  const int status = launchers[dtype](launch, p, lif);
  if (before != device) cudaSetDevice(before);
  return status;
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
  m.def("error_string",
        [](int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); });
  m.attr("KERNEL_ARGS") =
      py::make_tuple(sizeof(ForwardArgs), sizeof(BackwardArgs), sizeof(LifArgs));
}
