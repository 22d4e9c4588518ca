// What the bindings hand to the interpreter of neurons' programs, and its entries for each
// instruction set.
#pragma once

#include <cstdint>

#include "lif.h"

namespace snnfast {

constexpr int kOperands = 4;

// to = operation(of...), all of them places: of the values that a program reads and writes, in the
// order constants, hoisted values, parameters, inputs, states, gradients of the outputs and of the
// states, results, registers.
struct Instruction {
  int32_t operation, to, of[kOperands];
};

// A program as Python encodes it.
struct ProgramCode {
  int64_t constants, hoisted, results, registers, instructions;
  const double* constant;   // [constants]
  const Instruction* code;  // [hoisted + instructions]; a hoisted value is an instruction's
};

template <class T>
struct Array {
  const T* data;
  int64_t count;
  const T& operator[](int64_t k) const { return data[k]; }
};

// A sequence [T, N] of dense steps, or, of gradients that are summed over time, [N].
struct Sequence {
  void* data;
  int64_t stride;  // between steps, in elements
  bool sum;
};

struct Parameter {
  const void* data;  // [channels], or []
  bool per_channel;
};

struct ProgramLayer {
  int dtype, threads;
  int64_t steps, n, channels, inner;
  Array<double> rest;      // where a state starts that is null
  Array<Sequence> inputs;  // [T, N]
  Array<void*> states;     // [N] or null
  Array<Parameter> params;
  int64_t outputs;
};

// Results: the outputs, then the new states; of `advance` those alone; of `adjoint` the gradients
// of the inputs, the states and the parameters. Only a new state, or its gradient, is read again.
struct ProgramForward {
  ProgramCode forward;
  Array<Sequence> outputs;  // [T, N]
  Array<void*> new_states;  // [N] or [T, N] each; or none
  bool every_step;
  void* borders;  // [states, segments - 1, N] or null
};

struct ProgramBackward {
  ProgramCode advance, adjoint;
  const void* borders;      // [states, segments - 1, N], null where T fits one segment
  Array<Sequence> douts;    // [T, N] or null
  Array<Sequence> dstates;  // [T, N], [N] (sum) or null
  Array<Sequence> dinputs;  // [T, N], [N] (sum) or null
  Array<void*> dstates0;    // [N] or null
  Array<void*> dparams;     // [channels], [] or null
  double* partial;          // scratch for them, [kMaxChunks, channels or 1 of each]
};

#define SNN_PROGRAM(isa)                                                  \
  const char* program_operation_##isa(int64_t i);                         \
  void program_forward_##isa(const ProgramLayer&, const ProgramForward&); \
  void program_backward_##isa(const ProgramLayer&, const ProgramBackward&);
SNN_PROGRAM(baseline)
SNN_PROGRAM(avx2)
#undef SNN_PROGRAM

}  // namespace snnfast
