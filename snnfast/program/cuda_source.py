"""A step as CUDA C++: its programs as functions on one neuron's numbers, and the two kernels that
hand them to the walk over time (csrc/cuda/neuron.cuh)."""

import functools
from typing import NamedTuple

from snnfast.program.ir import TRUTH, Program
from snnfast.program.source import Numbers, Writer, folded
from snnfast.program.step import Step

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&&", "or": "||", "ge": ">=", "gt": ">", "le": "<=",
    "lt": "<", "eq": "==", "ne": "!=",
}  # fmt: skip
_CALLS = {
    "min": "minimum({}, {})", "max": "maximum({}, {})", "pow": "power({}, {})", "neg": "-({})",
    "abs": "abs_({})", "exp": "expf({})", "log": "logf({})", "sqrt": "sqrt_({})",
    "tanh": "tanhf({})", "sigmoid": "sigmoid({})", "not": "!{}", "where": "{} ? {} : {}",
    "spike": "{} >= {} ? 1.0f : 0.0f", "surrogate": "gradient<SNN_SURROGATE>({}, c[0], c[1])",
    "fma": "mad_({}, {}, {})", "div": "{} / {}", "inverse": "reciprocal_({})",
    "exact_quotient": "exact_quotient({}, {}, {})",
}  # fmt: skip
_TEXT = """
namespace snnfast {{
namespace cuda {{
struct Step {{
  static constexpr int kInputs = {inputs}, kOutputs = {outputs}, kStates = {states};
  static constexpr int kParams = {params}, kNumbers = {numbers};
{functions}
}};
}}  // namespace cuda
}}  // namespace snnfast

extern "C" __global__ void __launch_bounds__(snnfast::cuda::kThreads, SNN_BLOCKS)
    snnfast_neuron(const snnfast::cuda::{kind}<snnfast::cuda::Step> p) {{
  snnfast::cuda::walk(p);
}}
"""


class Source(NamedTuple):
    """A kernel, behind ``#include "neuron.cuh"``, and the numbers that it takes at its end."""

    text: str
    numbers: tuple[float, ...]


@functools.lru_cache(1024)
def forward_source(step: Step) -> Source:
    numbers = Numbers()
    return _source(step, numbers, "forward", _function("forward", step.forward, numbers))


@functools.lru_cache(1024)
def backward_source(step: Step) -> Source:
    """The numbers stand behind the surrogate's a and b."""
    numbers = Numbers(("a", "b"))
    functions = (
        _function("advance", step.advance, numbers),
        _function("adjoint", step.adjoint, numbers, "const float* ds, const float* dv, "),
    )
    return _source(step, numbers, "backward", *functions)


def _source(step: Step, numbers: Numbers, kind: str, *functions: str) -> Source:
    text = _TEXT.format(
        kind=kind.title(), inputs=step.inputs, outputs=step.outputs, states=step.states,
        params=step.params, numbers=len(numbers.names()), functions="\n".join(functions),
    )  # fmt: skip
    return Source(text, tuple(numbers.values))


def _function(name: str, program: Program, numbers: Numbers, more: str = "") -> str:
    """Fills r with the results."""
    writer = _Writer(folded(program), numbers)
    lines = [
        f"const {'bool' if writer.nodes[place].op in TRUTH else 'float'} n{place} = {text};"
        for place, text in writer.lines()
    ]
    for k, result in enumerate(writer.program.results):
        lines.append(f"r[{k}] = {'0.0f' if result is None else writer.value(result)};")
    head = f"  SNN_DEVICE static void {name}(const float* x, const float* v, const float* p, {more}"
    return "\n    ".join([head + "const float* c, float* r) {", *lines]) + "\n  }"


class _Writer(Writer):
    INFIX, CALLS, LITERAL = _INFIX, _CALLS, "{}f"
