"""A program as text: what the languages that steps are written in have in common.

The text depends on a step's structure alone: constants other than 0, 1 and -1 are arguments, so
that steps that differ in them share what is compiled.
"""

import math

import torch

from snnfast.program.evaluate import evaluate
from snnfast.program.ir import LEAVES, TRUTH, Builder, Node, Program

LETTERS = {"input": "x", "state": "v", "param": "p", "dout": "ds", "dstate": "dv"}
"""What leaves are called in the text."""
_COMPARISONS = TRUTH - {"and", "or", "not"}
_ORDINARY = 2.0**100
"""Quotients by numbers up to this, and down to its inverse, are exact by way of the reciprocal."""


class Numbers:
    """The constants that a kernel takes, behind others by name."""

    def __init__(self, before: tuple[str, ...] = ()):
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


def folded(program: Program) -> Program:
    """What depends on constants alone becomes one, rounded to float32."""
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
        return None

    places = builder.copy(program, simpler)
    return builder.program(None if r is None else places[r] for r in program.results)


class Writer:
    """The values of a program as expressions of a language, each in a line ``n<place>`` of its own.

    Values that only gradients need are written for speed: with products fused into sums, and
    quotients by numbers and parameters as products.
    """

    INFIX: dict[str, str]
    """The operations that are signs between two values..."""
    CALLS: dict[str, str]
    """...and what is filled with the values of the others, ``fma``, ``inverse`` and
    ``exact_quotient`` among them."""
    LITERAL = "{}"

    def __init__(self, program: Program, numbers: Numbers):
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

    def leaf(self, op: str, which: int) -> str:
        return f"{LETTERS[op]}[{which}]"

    def argument(self, place: int) -> str:
        """That of a surrogate."""
        return self.value(place)

    def lines(self) -> list[tuple[int, str]]:
        """(place, expression) in order, of all values that are asked for by name."""
        found = []
        for place in range(len(self.nodes) - 1, -1, -1):
            if self.nodes[place].op != "const" and place not in self.fused:
                found.append((place, self.expression(place)))
        return found[::-1]

    def value(self, place: int, plain: bool = True) -> str:
        op, _, number = self.nodes[place]
        if op != "const":
            return f"n{place}"
        literal = plain and repr(number) in ("0.0", "1.0", "-1.0")
        return self.LITERAL.format(repr(number)) if literal else self.numbers.name(number)

    def call(self, name: str, *values: str) -> str:
        return self.CALLS[name].format(*values)

    def expression(self, place: int) -> str:
        op, args, number = self.nodes[place]
        if op in LEAVES:
            return self.leaf(op, int(number))
        alone = all(self.nodes[a].op == "const" for a in args)
        values = [self.value(a, not alone and op != "pow") for a in args]
        if op in ("add", "sub"):
            found = self.contracted(op, args, values)
            if found:
                return found
        if op == "div":
            return self.quotient(place, *values)
        if op == "spike":
            return self.call(op, *self.compared(args[0]))
        if op in _COMPARISONS and self.is_zero(args[1]):
            u, theta = self.compared(args[0])
            return f"{u} {self.INFIX[op]} {theta}"
        if op == "surrogate":
            return self.call(op, self.argument(args[0]))
        if op in self.INFIX:
            return f"{values[0]} {self.INFIX[op]} {values[1]}"
        return self.call(op, *values)

    def is_zero(self, place: int) -> bool:
        return self.nodes[place].op == "const" and self.nodes[place].number == 0.0

    def compared(self, place: int) -> tuple[str, str]:
        """What to compare for a comparison of u with 0: of u = h - theta, a number, h and theta,
        without the difference."""
        op, args, _ = self.nodes[place]
        theta = self.nodes[args[1]] if op == "sub" else None
        if theta is None or theta.op != "const" or not math.isfinite(theta.number):
            return self.value(place), self.LITERAL.format("0.0")
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
                    first = self.call("neg", first)
                elif op == "sub":
                    other = self.call("neg", other)
                return self.call("fma", first, second, other)
        return None

    def product(self, place: int) -> tuple[str, str, list[int]] | None:
        """(factor, factor, the places that they stand for)."""
        op, args, _ = self.nodes[place]
        if not self.gradient[place] or self.reads[place] > 1:
            return None
        if op == "neg":
            inner = self.product(args[0])
            return inner and (self.call("neg", inner[0]), inner[1], [*inner[2], place])
        if op == "mul":
            return self.value(args[0], False), self.value(args[1], False), [place]
        return None

    def quotient(self, place: int, top: str, bottom: str) -> str:
        """Exact but for gradients; by a number or a parameter by way of its reciprocal, which is
        the same at every step."""
        divisor = self.nodes[place].args[1]
        op, _, number = self.nodes[divisor]
        inverse = self.call("inverse", bottom)
        if op == "const" and 1.0 / _ORDINARY <= abs(number) <= _ORDINARY:
            inverse = self.numbers.name(_rounded(1.0 / number))
        elif op == "const" or not self.uniform[divisor]:
            return self.call("div", top, bottom)
        if self.gradient[place]:
            return f"{top} * {inverse}"
        return self.call("exact_quotient", top, bottom, inverse)
