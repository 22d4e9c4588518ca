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
_COMPARISONS = TRUTH - {"and", "or", "not"}
_FUNCTIONS = ("exp", "log", "tanh", "sigmoid", "pow")
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
    held: int
    """How many values of each step backward holds until it comes back to it."""


@functools.lru_cache(1024)
def source(step: Step) -> Source:
    """The module of ``step``; ``backward``'s numbers stand behind the surrogate's a and b."""
    forward, backward = _Numbers(()), _Numbers(("a", "b"))
    advance = _Writer(_folded(step.advance), backward)
    adjoint = _Writer(_folded(step.adjoint), backward)
    parts = [
        _HEAD,
        _Writer(_folded(step.forward), forward).function("def forward_step(x, v, p, c):"),
        advance.function("def advance_step(x, v, p, c):"),
        adjoint.function("def adjoint_step(x, v, p, ds, dv, c, ID: tl.constexpr):"),
        _kernel("forward", step, forward),
        _kernel("backward", step, backward),
    ]
    numbers = tuple(forward.values), tuple(backward.values)
    return Source("\n\n".join(parts), *numbers, _held(advance, adjoint))


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


class _Writer:
    """A program as the text of a function that gives its results in a tuple, each a tile.

    Values that only gradients need are written for speed: with products fused into sums, and
    quotients by numbers and parameters as products.
    """

    def __init__(self, program: Program, numbers: _Numbers):
        self.program, self.nodes, self.numbers = program, program.nodes, numbers
        self.uniform: list[bool] = []  # the same for all neurons, or for those of a channel
        self.gradient: list[bool] = []
        for op, args, _ in self.nodes:
            leaf = op in LEAVES
            self.uniform.append(op == "param" if leaf else all(self.uniform[a] for a in args))
            starts = op in ("dout", "dstate", "surrogate")
            self.gradient.append(starts or any(self.gradient[a] for a in args))
        self.fused: set[int] = set()  # what is written as part of another value
        self.reads = [0] * len(self.nodes)
        for place in (*(a for n in self.nodes for a in n.args), *program.results):
            if place is not None:
                self.reads[place] += 1

    def function(self, head: str) -> str:
        lines = []
        for place in range(len(self.nodes) - 1, -1, -1):
            if self.nodes[place].op != "const" and place not in self.fused:
                lines.append(f"    n{place} = {self.expression(place)}")
        results = "".join(f"{self.tile(r)}, " for r in self.program.results)
        return "\n".join(["@triton.jit", head, *reversed(lines), f"    return ({results})", ""])

    def tile(self, place: int | None) -> str:
        zeros = "tl.zeros(x[0].shape, tl.float32)"
        if place is None:
            return zeros
        node = self.nodes[place]
        if node.op == "const":
            return f"{zeros} + {self.numbers.name(node.number)}"
        return f"tl.broadcast_to(n{place}, x[0].shape)" if self.uniform[place] else f"n{place}"

    def value(self, place: int, plain: bool = True) -> str:
        op, _, number = self.nodes[place]
        if op != "const":
            return f"n{place}"
        literal = plain and repr(number) in ("0.0", "1.0", "-1.0")
        return repr(number) if literal else self.numbers.name(number)

    def expression(self, place: int) -> str:
        op, args, number = self.nodes[place]
        if op in LEAVES:
            half = op in ("input", "dout")
            return f"{_LEAVES[op]}[{int(number)}]" + ".to(tl.float32)" * half
        alone = all(self.nodes[a].op == "const" for a in args)
        values = [self.value(a, not alone and op != "pow") for a in args]
        if op in ("add", "sub"):
            found = self.contracted(op, args, values)
            if found:
                return found
        if op == "div":
            return self.quotient(place, *values)
        if op == "spike":
            u, theta = self.compared(args[0])
            return f"tl.where({u} >= {theta}, 1.0, 0.0)"
        if op in _COMPARISONS and self.is_zero(args[1]):
            u, theta = self.compared(args[0])
            return f"{u} {_INFIX[op]} {theta}"
        if op == "surrogate":
            return f"gradient({self.tile(args[0])}, c[0], c[1], ID)"
        if op == "not":
            return f"{values[0]} == 0"
        if op in _INFIX:
            return f"{values[0]} {_INFIX[op]} {values[1]}"
        return f"{_CALLS[op]}({', '.join(values)})"

    def is_zero(self, place: int) -> bool:
        return self.nodes[place].op == "const" and self.nodes[place].number == 0.0

    def compared(self, place: int) -> tuple[str, str]:
        """What to compare for a comparison of u with 0: of u = h - theta, a number, h and theta,
        without the difference."""
        op, args, _ = self.nodes[place]
        theta = self.nodes[args[1]] if op == "sub" else None
        if theta is None or theta.op != "const" or not math.isfinite(theta.number):
            return self.value(place), "0.0"
        self.reads[place] -= 1
        if not self.reads[place]:
            self.fused.add(place)
        return self.value(args[0]), self.value(args[1])

    def contracted(self, op: str, args: tuple, values: list[str]) -> str | None:
        """A sum with a product of a gradient that nobody else reads."""
        for k in (1, 0):
            product = self.product(args[k])
            if product is not None:
                first, second, places = product
                self.fused.update(places)
                other = values[1 - k]
                if op == "sub" and k == 1:
                    first = f"negate({first})"
                elif op == "sub":
                    other = f"negate({other})"
                return f"tl.fma({first}, {second}, {other})"
        return None

    def product(self, place: int) -> tuple[str, str, list[int]] | None:
        """(factor, factor, the places that they stand for)."""
        op, args, _ = self.nodes[place]
        if not self.gradient[place] or self.reads[place] > 1:
            return None
        if op == "neg":
            inner = self.product(args[0])
            return inner and (f"negate({inner[0]})", inner[1], [*inner[2], place])
        if op == "mul":
            return self.value(args[0], False), self.value(args[1], False), [place]
        return None

    def quotient(self, place: int, top: str, bottom: str) -> str:
        """Exact but for gradients; by a number or a parameter by way of its reciprocal, which is
        the same at every step."""
        divisor = self.nodes[place].args[1]
        op, _, number = self.nodes[divisor]
        inverse = f"tl.div_rn(1.0, {bottom})"
        if op == "const" and 1.0 / _ORDINARY <= abs(number) <= _ORDINARY:
            inverse = self.numbers.name(_rounded(1.0 / number))
        elif op == "const" or not self.uniform[divisor]:
            return f"tl.div_rn({top}, {bottom})"
        if self.gradient[place]:
            return f"{top} * {inverse}"
        return f"exact_quotient({top}, {bottom}, {inverse})"


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


def _kernel(name: str, step: Step, numbers: _Numbers) -> str:
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
