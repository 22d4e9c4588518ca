// snnfast._C: pointers and numbers in, nothing out. The instruction set is chosen at run time.
#include <pybind11/pybind11.h>

#include <vector>

#include "lif.h"

namespace py = pybind11;
namespace snnfast {
namespace {

#if defined(SNN_HAVE_AVX2)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

struct Kernels {
  const char* name = "baseline";
  void (*forward)(const LifLayer&, const LifForward&) = lif_forward_baseline;
  void (*backward)(const LifLayer&, const LifBackward&) = lif_backward_baseline;
};

Kernels best_kernels() {
  Kernels k;
#if defined(SNN_HAVE_AVX2)
  if (has_avx2()) k = {"avx2", lif_forward_avx2, lif_backward_avx2};
#endif
  return k;
}
Kernels kernels = best_kernels();

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The fields of LifSpec in their order, then what the tensors say.
LifLayer layer_of(const py::tuple& spec, int dtype, int threads, int64_t n, uintptr_t rates) {
  LifLayer l{};
  l.dtype = dtype, l.threads = threads, l.n = n, l.rates = pointer<const void>(rates);
  int i = 0;
  auto next = [&] { return spec[i++]; };
  l.steps = next().cast<int64_t>();
  l.charge = next().cast<int>();
  l.rate = next().cast<double>();
  l.divide = next().cast<bool>();
  l.theta = next().cast<double>();
  l.r = next().cast<double>();
  l.hard = next().cast<bool>();
  l.detach_reset = next().cast<bool>();
  l.surrogate = next().cast<int>();
  l.a = next().cast<double>();
  l.b = next().cast<double>();
  l.spiking = next().cast<bool>();
  l.channels = next().cast<int64_t>();
  l.inner = next().cast<int64_t>();
  return l;
}

void forward(const py::tuple& spec, int dtype, int threads, int64_t n, uintptr_t rates, uintptr_t x,
             int64_t x_stride, uintptr_t v0, uintptr_t s, uintptr_t v, bool v_every_step,
             uintptr_t borders) {
  LifLayer layer = layer_of(spec, dtype, threads, n, rates);
  LifForward io{pointer<void>(x), x_stride,     pointer<void>(v0),     pointer<void>(s),
                pointer<void>(v), v_every_step, pointer<void>(borders)};
  py::gil_scoped_release release;
  kernels.forward(layer, io);
}

void backward(const py::tuple& spec, int dtype, int threads, int64_t n, uintptr_t rates,
              uintptr_t x, int64_t x_stride, uintptr_t v0, uintptr_t borders, uintptr_t ds,
              int64_t ds_stride, uintptr_t dv, bool dv_every_step, uintptr_t dx, bool sum_dx,
              uintptr_t dv0, uintptr_t drate) {
  LifLayer layer = layer_of(spec, dtype, threads, n, rates);
  std::vector<double> partial(drate || dtype == kFloat64 ? size_t(kMaxChunks * layer.channels) : 0);
  LifBackward io{pointer<void>(x),  x_stride,  pointer<void>(v0),  pointer<void>(borders),
                 pointer<void>(ds), ds_stride, pointer<void>(dv),  dv_every_step,
                 pointer<void>(dx), sum_dx,    pointer<void>(dv0), pointer<void>(drate),
                 partial.data()};
  py::gil_scoped_release release;
  kernels.backward(layer, io);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "snnfast's CPU kernels";
  m.def("lif_forward", &forward);
  m.def("lif_backward", &backward);
  m.def("instruction_set", [] { return kernels.name; });
  // For tests: the kernels that an older machine would run.
  m.def("use_baseline", [](bool yes) { kernels = yes ? Kernels{} : best_kernels(); });
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
}

}  // namespace snnfast
