"""A step as the text of a Triton module: its programs as functions on tiles, and two kernels that
hand them to the walk over time (snnfast/kernels/neuron.py).

The text depends on the structure alone: constants other than 0, 1 and -1 are arguments, so that
steps that differ in them share what is compiled.
"""

import functools
import math
from typing import NamedTuple

import torch

from snnfast.program.evaluate import evaluate
from snnfast.program.ir import LEAVES, TRUTH, Builder, Node, Program
from snnfast.program.step import Step

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "ge": ">=", "gt": ">", "le": "<=",
    "lt": "<", "eq": "==", "ne": "!=",
}  # fmt: skip
_CALLS = {
    "min": "minimum", "max": "maximum", "pow": "power", "neg": "negate", "abs": "tl.abs",
    "exp": "exp", "log": "log", "sqrt": "tl.sqrt_rn", "tanh": "tanh", "sigmoid": "sigmoid",
    "where": "tl.where",
}  # fmt: skip
_LEAVES = {"input": "x", "state": "v", "param": "p", "dout": "ds", "dstate": "dv"}
_ORDINARY = 2.0**100
"""Quotients by numbers up to this, and down to its inverse, are exact by way of the reciprocal."""
_HEAD = '''"""A neuron's step, written by snnfast.program.triton_source."""

import triton
import triton.language as tl

from snnfast.kernels.lif_step import exact_quotient
from snnfast.kernels.neuron import walk_backward, walk_forward
from snnfast.kernels.operations import exp, log, maximum, minimum, negate, power, sigmoid, tanh
from snnfast.kernels.surrogate import gradient
'''


class Source(NamedTuple):
    """A module of two kernels, ``neuron_forward`` and ``neuron_backward``, and what numbers each of
    them takes at its end."""

    text: str
    forward: tuple[float, ...]
    backward: tuple[float, ...]


@functools.lru_cache(1024)
def source(step: Step) -> Source:
    """The module of ``step``; ``backward``'s numbers stand behind the surrogate's a and b."""
    forward, backward = _Numbers(()), _Numbers(("a", "b"))
    parts = [
        _HEAD,
        _function("forward", step.forward, forward),
        _function("advance", step.advance, backward),
        _function("adjoint", step.adjoint, backward),
        _forward_kernel(step, forward),
        _backward_kernel(step, backward),
    ]
    return Source("\n\n".join(parts), tuple(forward.values), tuple(backward.values))


class _Numbers:
    """The constants that a kernel takes, behind others by name."""

    def __init__(self, before: tuple[str, ...]):
        self.before = before
        self.values: list[float] = []

    def name(self, value: float) -> str:
        """How a function refers to one."""
        texts = [repr(known) for known in self.values]  # in which -0.0 is not 0.0
        if repr(value) not in texts:
            self.values.append(value)
            texts.append(repr(value))
        return f"c[{len(self.before) + texts.index(repr(value))}]"

    def names(self) -> list[str]:
        return [*self.before, *(f"c{k}" for k in range(len(self.values)))]


def _rounded(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


def _folded(program: Program) -> Program:
    """What depends on constants alone becomes one, and a quotient by a power of two a product."""
    builder = Builder()

    def simpler(node: Node, places: list[int]) -> int | None:
        args = [builder.nodes[places[a]] for a in node.args]
        if node.op == "const":
            return builder.constant(_rounded(node.number))
        if node.op in TRUTH or node.op == "surrogate" or node.op in LEAVES:
            return None
        if all(arg.op == "const" for arg in args):
            of = Node(node.op, tuple(range(len(args))))
            (value,) = evaluate(Program((*args, of), (len(args),)), {"": [torch.zeros(())]})
            return builder.constant(value.item())
        if node.op == "div" and args[1].op == "const":
            mantissa, exponent = math.frexp(args[1].number)
            if abs(mantissa) == 0.5 and abs(exponent) < 100:
                inverse = builder.constant(1.0 / args[1].number)
                return builder.add("mul", places[node.args[0]], inverse)
        return None

    places = builder.copy(program, simpler)
    return builder.program(None if r is None else places[r] for r in program.results)


def _function(name: str, program: Program, numbers: _Numbers) -> str:
    """``program`` as a function that gives its results in a tuple, each a tile."""
    adjoint = name == "adjoint"
    leaves = ["x", "v", "p", *(["ds", "dv"] if adjoint else []), "c", *(["ID"] if adjoint else [])]
    parameters = ", ".join(f"{leaf}: tl.constexpr" if leaf == "ID" else leaf for leaf in leaves)
    lines = ["@triton.jit", f"def {name}_step({parameters}):"]
    program = _folded(program)
    uniform = _uniform(program)

    def tile(place: int | None) -> str:
        if place is None:
            return "tl.zeros(x[0].shape, tl.float32)"
        op, _, number = program.nodes[place]
        if op == "const":
            return f"tl.full(x[0].shape, {number!r}, tl.float32)" if _plain(number) else (
                f"tl.zeros(x[0].shape, tl.float32) + {numbers.name(number)}"
            )
        return f"tl.broadcast_to(n{place}, x[0].shape)" if uniform[place] else f"n{place}"

    for place, node in enumerate(program.nodes):
        if node.op != "const":
            lines.append(f"    n{place} = {_expression(program, node, numbers, uniform)}")
    results = [tile(r) for r in program.results]
    lines.append(f"    return ({', '.join(results)}{',' if results else ''})")
    return "\n".join(lines) + "\n"


def _plain(number: float) -> bool:
    return repr(number) in ("0.0", "1.0", "-1.0")


def _uniform(program: Program) -> list[bool]:
    """Which values are the same for all neurons, or at least for those of a channel."""
    found: list[bool] = []
    for op, args, _ in program.nodes:
        found.append(all(found[a] for a in args) if op not in LEAVES else op == "param")
    return found


def _expression(program: Program, node: Node, numbers: _Numbers, uniform: list[bool]) -> str:
    op, args, number = node
    if op in LEAVES:
        widened = op in ("input", "dout")
        return f"{_LEAVES[op]}[{int(number)}]" + ".to(tl.float32)" * widened
    of = [program.nodes[a] for a in args]
    alone = all(n.op == "const" for n in of)

    def value(k: int) -> str:
        if of[k].op != "const":
            return f"n{args[k]}"
        plain = _plain(of[k].number) and not alone and op != "pow"
        return repr(of[k].number) if plain else numbers.name(of[k].number)

    values = [value(k) for k in range(len(args))]
    if op == "div":
        return _quotient(of[1], values, numbers, uniform[args[1]])
    if op == "spike":
        return f"tl.where({values[0]} >= 0.0, 1.0, 0.0)"
    if op == "surrogate":
        tile = f"tl.broadcast_to({values[0]}, x[0].shape)" if uniform[args[0]] else values[0]
        return f"gradient({tile}, c[0], c[1], ID)"
    if op == "not":
        return f"{values[0]} == 0"
    if op in _INFIX:
        return f"{values[0]} {_INFIX[op]} {values[1]}"
    return f"{_CALLS[op]}({', '.join(values)})"


def _quotient(divisor: Node, values: list[str], numbers: _Numbers, uniform: bool) -> str:
    """Exact; by a number or a parameter with the reciprocal, which is the same at every step."""
    top, bottom = values
    if divisor.op == "const":
        if 1.0 / _ORDINARY <= abs(divisor.number) <= _ORDINARY:
            inverse = numbers.name(_rounded(1.0 / divisor.number))
            return f"exact_quotient({top}, {bottom}, {inverse})"
    elif uniform:
        return f"exact_quotient({top}, {bottom}, tl.div_rn(1.0, {bottom}))"
    return f"tl.div_rn({top}, {bottom})"


def _several(letter: str, count: int) -> list[str]:
    return [f"{letter}{k}" for k in range(count)]


def _typed(names: list[str]) -> list[str]:
    return [f"{name}: tl.int64" for name in names]


def _group(names: list[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


_SIZES = ["steps: tl.int32", "n: tl.int64", "channels", "inner"]


def _kernel(name: str, parameters: list[str], walk: str, arguments: list[str]) -> str:
    return "\n".join([
        '@triton.jit(do_not_specialize=["steps", "channels", "inner"])',
        f"def neuron_{name}({', '.join(parameters)}):",
        f"    {walk}({', '.join(arguments)})",
        "",
    ])  # fmt: skip


def _leaves(step: Step) -> tuple[list[list[str]], list[list[str]]]:
    """(parameters, groups of arguments) of what both kernels read."""
    x, dx = _several("x", step.inputs), _several("x_stride", step.inputs)
    v, rest, p = _several("v", step.states), _several("rest", step.states), _several("p", step.params)
    return [x, _typed(dx), v, rest, p], [x, dx, v, rest, p]


def _forward_kernel(step: Step, numbers: _Numbers) -> str:
    parameters, groups = _leaves(step)
    s, w = _several("s", step.outputs), _several("w", step.states)
    flat = [*sum(parameters, []), *s, *w, "borders", "border_stride: tl.int64", *_SIZES]
    arguments = [_group(g) for g in (*groups, s, w)] + ["borders", "border_stride"]
    arguments += ["steps", "n", "channels", "inner", _group(numbers.names()), "forward_step", "L"]
    flat += [*numbers.names(), "L: tl.constexpr"]
    return _kernel("forward", flat, "walk_forward", arguments)


def _backward_kernel(step: Step, numbers: _Numbers) -> str:
    parameters, groups = _leaves(step)
    ds, strides = _several("ds", step.outputs), _several("ds_stride", step.outputs)
    after = [_several("dw", step.states), _several("dx", step.inputs)]
    after += [_several("dv", step.states), _several("dp", step.params)]
    flat = [*sum(parameters, []), "borders", "border_stride: tl.int64", *ds, *_typed(strides)]
    flat += [*sum(after, []), *_SIZES, *numbers.names(), "ID: tl.constexpr", "L: tl.constexpr"]
    arguments = [_group(g) for g in groups] + ["borders", "border_stride"]
    arguments += [_group(g) for g in (ds, strides, *after)] + ["steps", "n", "channels", "inner"]
    arguments += [_group(numbers.names()), "advance_step", "adjoint_step", "ID", "L"]
    return _kernel("backward", flat, "walk_backward", arguments)
