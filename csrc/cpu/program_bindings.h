// snnfast._C's neurons that a program defines. Part of bindings.cpp: pybind11's headers and
// templates take longer to compile than what either binds.
#pragma once

#include <pybind11/stl.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"

namespace snnfast {
namespace {

// A program's bytes, as snnfast/backends/cpu/encode.py writes them, whose places are the layer's.
ProgramCode code_of(std::string_view bytes, const ProgramLayer& layer) {
  ProgramCode code;
  constexpr size_t kHead = offsetof(ProgramCode, constant);
  const auto refuse = [] { throw std::invalid_argument("snnfast: a program's bytes are none"); };
  if (bytes.size() < kHead) refuse();
  std::memcpy(&code, bytes.data(), kHead);
  code.constant = reinterpret_cast<const double*>(bytes.data() + kHead);
  code.code = reinterpret_cast<const Instruction*>(code.constant + code.constants);
  const int64_t count = code.hoisted + code.instructions;
  if (bytes.size() != kHead + code.constants * sizeof(double) + count * sizeof(Instruction))
    refuse();
  const int64_t places = code.constants + code.hoisted + layer.params.count + layer.inputs.count +
                         2 * layer.states.count + layer.outputs + code.results + code.registers;
  for (int64_t i = 0; i < count; ++i) {
    const Instruction& in = code.code[i];
    if (in.operation < 0 || !kernels.program_operation(in.operation)) refuse();
    for (const int32_t place : {in.to, in.of[0], in.of[1], in.of[2], in.of[3]})
      if (place < 0 || place >= places) refuse();
  }
  return code;
}

using Addresses = std::vector<uintptr_t>;
using Sequences = std::vector<std::tuple<uintptr_t, int64_t, bool>>;  // address, stride, sum

template <class T, class From, class F>
Array<T> array_of(std::vector<T>& room, const std::vector<From>& from, F&& f) {
  for (const auto& value : from) room.push_back(f(value));
  return {room.data(), int64_t(room.size())};
}
Array<Sequence> sequences_of(std::vector<Sequence>& room, const Sequences& from) {
  return array_of(room, from, [](const auto& s) {
    return Sequence{pointer<void>(std::get<0>(s)), std::get<1>(s), std::get<2>(s)};
  });
}
Array<void*> pointers_of(std::vector<void*>& room, const Addresses& from) {
  return array_of(room, from, [](uintptr_t p) { return pointer<void>(p); });
}

// A layer, as snnfast/backends/cpu/interpreted.py has it, and what its tensors' addresses lie in.
using NeuronArgs =
    std::tuple<int, int, int64_t, int64_t, int64_t, int64_t, std::vector<double>, Sequences,
               Addresses, std::vector<std::pair<uintptr_t, bool>>, int64_t>;

struct Neuron {
  std::vector<Sequence> inputs;
  std::vector<void*> states;
  std::vector<Parameter> params;
  ProgramLayer layer;
  explicit Neuron(const NeuronArgs& args) {
    const auto& [dtype, threads, steps, n, channels, inner, rest, inputs_, states_, params_,
                 outputs] = args;
    layer = {dtype, threads, steps, n, channels, inner, {}, {}, {}, {}, outputs};
    layer.rest = {rest.data(), int64_t(rest.size())};
    layer.inputs = sequences_of(inputs, inputs_);
    layer.states = pointers_of(states, states_);
    layer.params = array_of(params, params_, [](const auto& p) {
      return Parameter{pointer<const void>(p.first), p.second};
    });
  }
};

void neuron_forward(const NeuronArgs& args, std::string_view forward, const Sequences& outputs_,
                    const Addresses& new_states_, bool every_step, uintptr_t borders) {
  const Neuron neuron(args);
  std::vector<Sequence> outputs;
  std::vector<void*> new_states;
  const ProgramForward io{code_of(forward, neuron.layer), sequences_of(outputs, outputs_),
                          pointers_of(new_states, new_states_), every_step, pointer<void>(borders)};
  py::gil_scoped_release release;
  kernels.program_forward(neuron.layer, io);
}

void neuron_backward(const NeuronArgs& args, std::string_view advance, std::string_view adjoint,
                     uintptr_t borders, const Sequences& douts_, const Sequences& dstates_,
                     const Sequences& dinputs_, const Addresses& dstates0_,
                     const Addresses& dparams_) {
  const Neuron neuron(args);
  std::vector<Sequence> douts, dstates, dinputs;
  std::vector<void*> dstates0, dparams;
  const ProgramLayer& layer = neuron.layer;
  int64_t sums = 0;
  for (const Parameter& p : neuron.params) sums += p.per_channel ? layer.channels : 1;
  const auto partial = scratch(kMaxChunks * sums);
  const ProgramBackward io{code_of(advance, layer),
                           code_of(adjoint, layer),
                           pointer<void>(borders),
                           sequences_of(douts, douts_),
                           sequences_of(dstates, dstates_),
                           sequences_of(dinputs, dinputs_),
                           pointers_of(dstates0, dstates0_),
                           pointers_of(dparams, dparams_),
                           partial.get()};
  py::gil_scoped_release release;
  kernels.program_backward(layer, io);
}

// A compiled walk over all neurons; dparams: addresses, 0 where not wanted.
void run_compiled(uintptr_t walk, std::string_view code_args, const NeuronArgs& args,
                  const Addresses& dparams_) {
  const Neuron neuron(args);
  std::vector<void*> dparams;
  const auto partial = scratch(kMaxChunks * neuron.layer.channels * int64_t(dparams_.size()));
  const Compiled job{reinterpret_cast<CompiledWalk*>(walk), code_args.data(),
                     pointers_of(dparams, dparams_), partial.get()};
  py::gil_scoped_release release;
  kernels.run_compiled(neuron.layer, job);
}

}  // namespace

inline void bind_program(py::module_& m) {
  m.def("neuron_forward", &neuron_forward);
  m.def("neuron_backward", &neuron_backward);
  m.def("program_operations", [] {
    std::vector<std::string> names;
    while (const char* name = kernels.program_operation(int64_t(names.size())))
      names.emplace_back(name);
    return names;
  });
  m.def("run_compiled", &run_compiled);
  m.attr("TILE") = kTile;
  m.attr("CACHE_BYTES") = cache_bytes();
}

}  // namespace snnfast
