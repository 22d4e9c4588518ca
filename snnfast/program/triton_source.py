"""A step as the text of a Triton module: its programs as functions on tiles, and two kernels that
hand them to the walk over time (snnfast/kernels/neuron.py)."""

import functools
from typing import NamedTuple

from snnfast.program.ir import TRUTH, Builder
from snnfast.program.source import Numbers, Writer, folded
from snnfast.program.step import Step

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "ge": ">=", "gt": ">", "le": "<=",
    "lt": "<", "eq": "==", "ne": "!=",
}  # fmt: skip
_CALLS = {
    "min": "minimum({}, {})", "max": "maximum({}, {})", "pow": "power({}, {})",
    "neg": "negate({})", "abs": "tl.abs({})", "exp": "exp({})", "log": "log({})",
    "sqrt": "tl.sqrt_rn({})", "tanh": "tanh({})", "sigmoid": "sigmoid({})", "not": "{} == 0",
    "where": "tl.where({}, {}, {})", "spike": "tl.where({} >= {}, 1.0, 0.0)",
    "surrogate": "gradient({}, c[0], c[1], ID)", "fma": "tl.fma({}, {}, {})",
    "div": "tl.div_rn({}, {})", "inverse": "tl.div_rn(1.0, {})",
    "exact_quotient": "exact_quotient({}, {}, {})",
}  # fmt: skip
_HEAD = '''"""A neuron's step, written by snnfast.program.triton_source."""

import triton
import triton.language as tl

from snnfast.kernels.lif_step import exact_quotient
from snnfast.kernels.neuron import walk_backward, walk_forward
from snnfast.kernels.operations import exp, log, maximum, minimum, negate, power, sigmoid, tanh
from snnfast.kernels.surrogate import gradient
'''
_FUNCTIONS = ("exp", "log", "tanh", "sigmoid", "pow")


class Source(NamedTuple):
    """A module of two kernels, ``neuron_forward`` and ``neuron_backward``, and what numbers each of
    them takes at its end."""

    text: str
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    held: int
    """How many values of each step backward holds until it comes back to it."""


@functools.lru_cache(1024)
def source(step: Step) -> Source:
    """The module of ``step``; ``backward``'s numbers stand behind the surrogate's a and b."""
    forward, backward = Numbers(()), Numbers(("a", "b"))
    advance = _Writer(folded(step.advance), backward)
    adjoint = _Writer(folded(step.adjoint), backward)
    parts = [
        _HEAD,
        _Writer(folded(step.forward), forward).function("def forward_step(x, v, p, c):"),
        advance.function("def advance_step(x, v, p, c):"),
        adjoint.function("def adjoint_step(x, v, p, ds, dv, c, ID: tl.constexpr):"),
        _kernel("forward", step, forward),
        _kernel("backward", step, backward),
    ]
    numbers = tuple(forward.values), tuple(backward.values)
    return Source("\n\n".join(parts), *numbers, _held(advance, adjoint))


class _Writer(Writer):
    """A program as the text of a function that gives its results in a tuple, each a tile."""

    INFIX, CALLS = _INFIX, _CALLS

    def function(self, head: str) -> str:
        lines = [f"    n{place} = {text}" for place, text in self.lines()]
        results = "".join(f"{self.argument(r)}, " for r in self.program.results)
        return "\n".join(["@triton.jit", head, *lines, f"    return ({results})", ""])

    def leaf(self, op: str, which: int) -> str:
        return super().leaf(op, which) + ".to(tl.float32)" * (op in ("input", "dout"))

    def argument(self, place: int | None) -> str:
        """A tile."""
        zeros = "tl.zeros(x[0].shape, tl.float32)"
        if place is None:
            return zeros
        node = self.nodes[place]
        if node.op == "const":
            return f"{zeros} + {self.numbers.name(node.number)}"
        return f"tl.broadcast_to(n{place}, x[0].shape)" if self.uniform[place] else f"n{place}"


def _held(advance: _Writer, adjoint: _Writer) -> int:
    """How many values of a step that ``advance`` has are read by what ``adjoint`` alone has: the
    compiler finds that they are the same. A function counts as one more, for what it takes."""
    builder = Builder()
    places = builder.copy(advance.program)
    shared = {at for place, at in enumerate(places) if place not in advance.fused}
    places = builder.copy(adjoint.program)
    shared |= {at for at in places if builder.nodes[at].op == "state"}
    read = {a for at in places if at not in shared for a in builder.nodes[at].args}
    uniform = {at for at, same in zip(places, adjoint.uniform, strict=True) if same}
    functions = sum(builder.nodes[a].op in _FUNCTIONS for a in set(places) - uniform)
    held = read & shared - uniform
    return functions + sum(builder.nodes[a].op not in (*TRUTH, "input") for a in held)


def _kernel(name: str, step: Step, numbers: Numbers) -> str:
    """Parameters one by one, as a launch has them, handed to the walk in tuples."""
    i, o, v, p = step.inputs, step.outputs, step.states, step.params
    parts = [("x", i), ("x_stride", i, "tl.int64"), ("v", v), ("rest", v), ("p", p)]
    borders = ["borders", "border_stride: tl.int64"]
    if name == "forward":
        parts += [("s", o), ("w", v), *borders]
        choices = ["forward_step", "L: tl.constexpr"]
    else:
        parts += [*borders, ("ds", o), ("ds_stride", o, "tl.int64"), ("dw", v)]
        parts += [("dx", i), ("dv", v), ("dp", p)]
        choices = ["advance_step", "adjoint_step", "ID: tl.constexpr", "L: tl.constexpr"]
    parts += ["steps: tl.int32", "n: tl.int64", "channels", "inner"]
    parameters, arguments = [], []
    for part in parts:
        names, kind = [part], ()
        if not isinstance(part, str):
            letter, count, *kind = part
            names = [f"{letter}{k}" for k in range(count)]
        parameters += [": ".join((one, *kind)) for one in names]
        arguments.append(part.split(":")[0] if isinstance(part, str) else _group(names))
    parameters += numbers.names() + [choice for choice in choices if ":" in choice]
    arguments += [_group(numbers.names()), *(choice.split(":")[0] for choice in choices)]
    return (
        '@triton.jit(do_not_specialize=["steps", "channels", "inner"])\n'
        f"def neuron_{name}({', '.join(parameters)}):\n"
        f"    walk_{name}({', '.join(arguments)})\n"
    )


def _group(names: list[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"
