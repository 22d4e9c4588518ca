// LIF on CUDA: one launch walks over all timesteps (scan.cuh); equations in csrc/include/neuron.h.
//
// Ahead of time (lif.cu) dtype, width, steps a segment, charge and reset are template
// parameters; what else differs is a branch that all threads take alike. NVRTC compiles one
// configuration at a time, every one of these a constant: SNN_IO, SNN_LANES, SNN_STEPS, SNN_CHARGE,
// SNN_HARD, SNN_SURROGATE, SNN_DETACH_RESET and SNN_FLAGS, with SNN_FORWARD or SNN_BACKWARD.
#pragma once

#define SNN_QUOTIENT_BY_FMA

#include "neuron.h"
#include "scan.cuh"

namespace snnfast {
namespace cuda {

template <int n>
struct Floats {
  float value[n];
};

// The choice among fifteen surrogates, once in a kernel instead of once for each step: the call
// passes its numbers in registers and makes the module a third of the size.
template <int n>
SNN_CALL Floats<n> chosen_gradients(int surrogate, float theta, float a, float b, Floats<n> h) {
  Floats<n> g;
  surrogate_gradients(surrogate, theta, a, b, h.value, g.value, n);
  return g;
}

template <class Base>
struct ScanNeuron : Base {
  bool multiply;

  SNN_DEVICE explicit ScanNeuron(const NeuronArgs& p) : multiply(p.multiply != 0) {
    this->theta = p.theta, this->r = p.reset, this->a = p.a, this->b = p.b;
    this->divide = this->spiking = true;
    this->surrogate = p.surrogate, this->detach_reset = p.detach_reset != 0;
    this->how = decltype(this->how)::of(p.charge, p.hard != 0);
#if defined(SNN_SURROGATE)
    this->surrogate = SNN_SURROGATE;
    this->detach_reset = SNN_DETACH_RESET;
#endif
  }

  // From tau, or from 1/tau. One path serves both: where the divisor is NaN, exact_quotient leaves
  // the product.
  SNN_DEVICE Rate<float> rate(float value) const {
    return multiply ? Rate<float>{float_of(~0u), value} : Rate<float>{value, reciprocal_(value)};
  }

  template <int n>
  SNN_DEVICE void gradients(const float (&h)[n], float (&g)[n]) const {
#if defined(SNN_SURROGATE)
    Base::gradients(h, g, n);
#else
    Floats<n> some;
    SNN_UNROLL
    for (int j = 0; j < n; ++j) some.value[j] = h[j];
    some = chosen_gradients(this->surrogate, this->theta, this->a, this->b, some);
    SNN_UNROLL
    for (int j = 0; j < n; ++j) g[j] = some.value[j];
#endif
  }
};

template <int kCharge, bool kHard>
using ScanLif = ScanNeuron<Lif<float, kCharge, kHard>>;

// One thread a pack of kLanes neurons.
template <class Io, int kLanes, int kSteps, class Neuron>
SNN_DEVICE void lif_thread(const ForwardArgs& p, const Neuron& neuron) {
  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;
  if (thread * kLanes >= p.neurons) return;
  Plain<Io, kLanes, kSteps> source;
  scan_forward<Io, kLanes, kSteps>(p, neuron, source, thread);
}

template <class Io, int kLanes, int kSteps, class Neuron>
SNN_DEVICE void lif_thread(const BackwardArgs& p, const Neuron& neuron) {
  const i64 thread = i64(blockIdx.x) * kThreads + threadIdx.x;
  if (thread * kLanes >= p.neurons) return;
  Plain<Io, kLanes, kSteps> source;
  scan_backward<Io, kLanes, kSteps>(p, neuron, source, thread);
}

}  // namespace cuda
}  // namespace snnfast

#if defined(SNN_FORWARD)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads, snnfast::cuda::kBlocks)
    snnfast_lif(const snnfast::cuda::ForwardArgs p, const snnfast::cuda::NeuronArgs lif) {
  using namespace snnfast::cuda;
  lif_thread<SNN_IO, SNN_LANES, SNN_STEPS>(p, ScanLif<SNN_CHARGE, SNN_HARD>(lif));
}
#elif defined(SNN_BACKWARD)
extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads, snnfast::cuda::kBlocks)
    snnfast_lif(const snnfast::cuda::BackwardArgs p, const snnfast::cuda::NeuronArgs lif) {
  using namespace snnfast::cuda;
  lif_thread<SNN_IO, SNN_LANES, SNN_STEPS>(p, ScanLif<SNN_CHARGE, SNN_HARD>(lif));
}
#endif
