// The LIF kernels of one instruction set (SNN_ISA, given by the build): which neuron, float or
// double.
#include "lif.h"

#include "scan.h"

namespace snnfast {
namespace {

// Calls f(neuron) with the layer's neuron, its equations chosen when compiling.
template <class R, class F>
void with_neuron(const LifLayer& l, F&& f) {
  auto call = [&](auto neuron) {
    neuron = {R(l.theta),     R(l.reset),       l.divide != 0, l.detach_reset != 0,
              l.spiking != 0, int(l.surrogate), R(l.a),        R(l.b)};
    f(neuron);
  };
  if (l.charge == kIntegrate)
    return l.hard ? call(Lif<R, kIntegrate, true>()) : call(Lif<R, kIntegrate, false>());
  if (l.charge == kDecayInput)
    return l.hard ? call(Lif<R, kDecayInput, true>()) : call(Lif<R, kDecayInput, false>());
  return l.hard ? call(Lif<R, kDecayState, true>()) : call(Lif<R, kDecayState, false>());
}

}  // namespace

void SNN_ISA_NAME(lif_forward)(const LifLayer& layer, const LifForward& io) {
  if (layer.dtype == kFloat64 && !layer.spiking) {
    with_neuron<double>(layer,
                        [&](auto& neuron) { scan_forward<true, double>(neuron, layer, io); });
  } else if (layer.dtype == kFloat64) {
    with_neuron<double>(layer,
                        [&](auto& neuron) { scan_forward<false, double>(neuron, layer, io); });
  } else {
    with_neuron<float>(layer, [&](auto& neuron) { scan_forward<false, float>(neuron, layer, io); });
  }
}

void SNN_ISA_NAME(lif_backward)(const LifLayer& layer, const LifBackward& io) {
  // The loops with the gradient of 1/tau are the slower ones; float64 always takes them.
  if (layer.dtype == kFloat64 && !layer.spiking) {
    with_neuron<double>(
        layer, [&](auto& neuron) { scan_backward<true, true, double>(neuron, layer, io); });
  } else if (layer.dtype == kFloat64) {
    with_neuron<double>(
        layer, [&](auto& neuron) { scan_backward<false, true, double>(neuron, layer, io); });
  } else if (io.drate) {
    with_neuron<float>(layer,
                       [&](auto& neuron) { scan_backward<false, true, float>(neuron, layer, io); });
  } else {
    with_neuron<float>(
        layer, [&](auto& neuron) { scan_backward<false, false, float>(neuron, layer, io); });
  }
}

}  // namespace snnfast
