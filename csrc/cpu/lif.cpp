// The LIF kernels of one instruction set (SNN_ISA, given by the build): which neuron. Those in
// float64, where the build asks for them (SNN_FLOAT64).
#include "lif.h"

#include "scan.h"

namespace snnfast {
namespace {

// Where there is a better instruction set (SNN_SLOW, given by the build), kernels for machines of
// long ago are few and soon compiled.
#if defined(SNN_SLOW)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

// Calls f(neuron) with the layer's neuron, its equations chosen when compiling; or, in float64,
// where it may be slow and where asked for (kChosen), in every step.
template <class R, bool kChosen = false, class F>
void with_neuron(const LifLayer& l, F&& f) {
  auto call = [&](auto neuron) {
    neuron = {R(l.theta),
              R(l.reset),
              l.divide != 0,
              l.detach_reset != 0,
              l.spiking != 0,
              int(l.surrogate),
              R(l.a),
              R(l.b),
              decltype(neuron.how)::of(l.charge, l.hard)};
    f(neuron);
  };
  if constexpr (kSlow || kChosen || sizeof(R) == 8)
    call(LifOf<R, Chosen>());
  else if (l.charge == kIntegrate)
    l.hard ? call(Lif<R, kIntegrate, true>()) : call(Lif<R, kIntegrate, false>());
  else if (l.charge == kDecayInput)
    l.hard ? call(Lif<R, kDecayInput, true>()) : call(Lif<R, kDecayInput, false>());
  else
    l.hard ? call(Lif<R, kDecayState, true>()) : call(Lif<R, kDecayState, false>());
}

#if defined(SNN_FLOAT64)
template <bool kSmooth>
void forward_double(const LifLayer& layer, const LifForward& io) {
  with_neuron<double>(layer,
                      [&](auto& neuron) { scan_forward<kSmooth, double>(neuron, layer, io); });
}

// The loops with the gradient of 1/tau are the slower ones; float64 always takes them.
template <bool kSmooth>
void backward_double(const LifLayer& layer, const LifBackward& io) {
  with_neuron<double>(
      layer, [&](auto& neuron) { scan_backward<kSmooth, true, double>(neuron, layer, io); });
}
#endif

}  // namespace

void SNN_ISA_NAME(lif_forward)(const LifLayer& layer, const LifForward& io) {
  if (layer.dtype == kFloat64) return lif_forward_float64(layer, io);
  with_neuron<float>(layer, [&](auto& neuron) { scan_forward<false, float>(neuron, layer, io); });
}

void SNN_ISA_NAME(lif_backward)(const LifLayer& layer, const LifBackward& io) {
  if (layer.dtype == kFloat64) return lif_backward_float64(layer, io);
  if (io.drate)
    return with_neuron<float, true>(
        layer, [&](auto& neuron) { scan_backward<false, true, float>(neuron, layer, io); });
  with_neuron<float>(layer,
                     [&](auto& neuron) { scan_backward<false, false, float>(neuron, layer, io); });
}

#if defined(SNN_FLOAT64)
void lif_forward_float64(const LifLayer& layer, const LifForward& io) {
  layer.spiking ? forward_double<false>(layer, io) : forward_double<true>(layer, io);
}

void lif_backward_float64(const LifLayer& layer, const LifBackward& io) {
  layer.spiking ? backward_double<false>(layer, io) : backward_double<true>(layer, io);
}
#endif

}  // namespace snnfast
