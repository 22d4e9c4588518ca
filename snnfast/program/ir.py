"""A neuron's step as a program: elementwise operations in order, each value written once.

A value is known by its place in ``nodes``. Values are real numbers in the state's dtype or, of
comparisons and their kin, truth values; constants are rounded to the state's dtype where they are
used. What a program reads are its leaves, what it gives its results.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

LEAVES = ("input", "state", "param", "dout", "dstate")
"""``number`` says which. dout and dstate are the gradients of a step's outputs and new states."""
ARITIES = {
    "const": 0, "add": 2, "sub": 2, "mul": 2, "div": 2, "min": 2, "max": 2, "pow": 2,
    "neg": 1, "abs": 1, "exp": 1, "log": 1, "sqrt": 1, "tanh": 1, "sigmoid": 1,
    "ge": 2, "gt": 2, "le": 2, "lt": 2, "eq": 2, "ne": 2, "and": 2, "or": 2, "not": 1,
    "where": 3, "detach": 1, "spike": 1, "surrogate": 1,
} | dict.fromkeys(LEAVES, 0)  # fmt: skip
"""Every operation and how many values it takes.

``min`` and ``max`` give NaN where either is; ``pow`` takes a constant exponent; ``where`` takes a
truth value and two real ones; ``spike`` is 1 where u >= 0, else 0, and ``surrogate`` the call's
surrogate gradient at u.
"""
TRUTH = frozenset({"ge", "gt", "le", "lt", "eq", "ne", "and", "or", "not"})
"""The operations whose value is a truth value; and, or and not take such."""
_COMMUTATIVE = frozenset({"add", "mul", "eq", "ne", "and", "or"})


class Node(NamedTuple):
    """One value: an operation on earlier ones."""

    op: str
    args: tuple[int, ...] = ()
    number: float = 0.0
    """The value of a constant; which one, of a leaf."""


class Program(NamedTuple):
    """``nodes`` in order; ``results``: which of them are asked for, None for one that is 0
    everywhere."""

    nodes: tuple[Node, ...]
    results: tuple[int | None, ...]

    def leaves(self, kind: str) -> dict[int, int]:
        """{which: its place} of the leaves of a kind."""
        return {int(n.number): i for i, n in enumerate(self.nodes) if n.op == kind}

    def fires(self, place: int) -> bool:
        """Whether a value is 0 or 1 by construction: a spike, or one that is none at u = 0."""
        op, args, _ = self.nodes[place]
        if op != "sub":
            return op == "spike"
        s, tie = (self.nodes[a] for a in args)
        if s.op != "spike" or tie.op != "where":
            return False
        at_zero, one, zero = (self.nodes[a] for a in tie.args)
        return (
            at_zero.op == "eq"
            and set(at_zero.args) == {*s.args, tie.args[2]}
            and (one.op, one.number, zero.op, zero.number) == ("const", 1.0, "const", 0.0)
        )

    def operations(self) -> int:
        """How many operations a step is, leaves and constants apart."""
        return sum(node.op not in (*LEAVES, "const", "detach") for node in self.nodes)

    def pack(self) -> str:
        """The program as one line, exactly."""
        words = []
        for op, args, number in self.nodes:
            word = op
            if op in LEAVES:
                word += f":{int(number)}"
            elif op == "const":
                word += f":{float(number).hex()}"
            words.append(",".join((word, *map(str, args))))
        results = ("-" if i is None else str(i) for i in self.results)
        return " ".join(words) + " > " + ",".join(results)

    @staticmethod
    def unpack(line: str) -> "Program":
        """The program of ``pack``'s line; ValueError where it is none."""
        return _unpacked(line)


@functools.lru_cache(1024)
def _unpacked(line: str) -> Program:
    body, _, results = line.rpartition(" > ")
    nodes: list[Node] = []
    try:
        for word in body.split():
            word, *args = word.split(",")
            op, _, number = word.partition(":")
            value = float.fromhex(number) if op == "const" else float(number or 0)
            nodes.append(Node(op, tuple(map(int, args)), value))
        wanted = [None if r == "-" else int(r) for r in results.split(",") if r]
        program = Program(tuple(nodes), tuple(wanted))
        check(program)
    except (KeyError, ValueError) as error:
        raise ValueError(f"program: a line must be one that pack wrote, got {line!r}") from error
    return program


def check(program: Program) -> None:
    """ValueError where a value is read before it is written, or is of the wrong kind."""
    truth: list[bool] = []
    for place, (op, args, number) in enumerate(program.nodes):
        if len(args) != ARITIES[op] or not all(0 <= a < place for a in args):
            raise ValueError(f"program: {op} must take {ARITIES[op]} earlier values, got {args}")
        if op in LEAVES and not (number >= 0 and number == int(number)):
            raise ValueError(f"program: {op} must have a number from 0 on, got {number}")
        wanted = [op in ("and", "or", "not")] * len(args)
        if op == "where":
            wanted[0] = True
        if [truth[a] for a in args] != wanted:
            raise ValueError(f"program: {op} must not mix truth values and numbers")
        truth.append(op in TRUTH)
    for result in program.results:
        if result is not None and (not 0 <= result < len(truth) or truth[result]):
            raise ValueError(f"program: results must be numbers of the program, got {result}")


class Builder:
    """Writes a program: a term that is there already is not written again."""

    def __init__(self):
        self.nodes: list[Node] = []
        self._places: dict[tuple, int] = {}

    def add(self, op: str, *args: int, number: float = 0.0) -> int:
        """The place of ``op`` of values."""
        simpler = self._simpler(op, args)
        if simpler is not None:
            return simpler
        op, args = self._cheaper(op, args)
        if op in _COMMUTATIVE:
            args = tuple(sorted(args))
        # -0.0 and 0.0 are two numbers, and NaN is one.
        key = (op, args, math.copysign(1.0, number), str(number))
        if key not in self._places:
            self._places[key] = len(self.nodes)
            self.nodes.append(Node(op, tuple(args), number))
        return self._places[key]

    def constant(self, number: float) -> int:
        return self.add("const", number=float(number))

    def is_constant(self, place: int, number: float) -> bool:
        op, _, value = self.nodes[place]
        return op == "const" and value == number

    def is_truth(self, place: int) -> bool:
        return self.nodes[place].op in TRUTH

    def _cheaper(self, op: str, args: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """What is bit-equal to ``op`` of ``args`` and costs less."""
        if op == "div":
            kind, _, number = self.nodes[args[1]]
            mantissa, exponent = math.frexp(number)
            if kind == "const" and abs(mantissa) == 0.5 and abs(exponent) < 100:
                return "mul", (args[0], self.constant(1.0 / number))
        return op, args

    def _simpler(self, op: str, args: tuple[int, ...]) -> int | None:
        """What is bit-equal to ``op`` of ``args`` for all numbers, and simpler."""
        if op == "mul" and self.is_constant(args[1], 1.0):
            return args[0]
        if op == "mul" and self.is_constant(args[0], 1.0):
            return args[1]
        if op == "div" and self.is_constant(args[1], 1.0):
            return args[0]
        if op == "sub" and self.is_constant(args[1], 0.0):
            # x - -0.0 makes 0.0 of -0.0.
            return args[0] if math.copysign(1.0, self.nodes[args[1]].number) > 0 else None
        if op == "where" and (args[1] == args[2] or self._is_nan_kept(*args)):
            return args[2]
        fires = op in ("gt", "ne") and self.nodes[args[0]].op == "spike"
        if fires and self.is_constant(args[1], 0.0):
            return self.add("ge", self.nodes[args[0]].args[0], args[1])
        if op in ("neg", "not") and self.nodes[args[0]].op == op:
            return self.nodes[args[0]].args[0]
        return self._without_sign(op, args)

    def _is_nan_kept(self, test: int, x: int, y: int) -> bool:
        """Whether ``test`` asks for x being NaN, and y, a bounded x, is x then."""
        while self.nodes[y].op == "where" and y != x:
            condition, _, inside = self.nodes[y].args
            how, compared, _ = self.nodes[condition]
            if how not in ("lt", "le", "gt", "ge") or compared[0] != inside:
                return False
            y = inside
        return y == x and self.nodes[test] == Node("ne", (x, x))

    def _without_sign(self, op: str, args: tuple[int, ...]) -> int | None:
        """A negative term is taken away; a negative factor makes a negative product."""
        if op not in ("add", "sub", "mul", "div"):
            return None
        a, b = (self.nodes[i] for i in args)
        if op == "add" and b.op == "neg":
            return self.add("sub", args[0], b.args[0])
        if op == "add" and a.op == "neg":
            return self.add("sub", args[1], a.args[0])
        if op == "sub" and b.op == "neg":
            return self.add("add", args[0], b.args[0])
        if op in ("mul", "div") and a.op == "neg":
            return self.add("neg", self.add(op, a.args[0], args[1]))
        if op in ("mul", "div") and b.op == "neg":
            return self.add("neg", self.add(op, args[0], b.args[0]))
        return None

    def copy(self, program: Program, leaf=None) -> list[int]:
        """Writes the values of another program behind these; ``leaf(node)`` may give the place that
        stands for a node of it, or None. Returns the places of all of its values."""
        places: list[int] = []
        for node in program.nodes:
            place = leaf(node, places) if leaf else None
            if place is None:
                place = self.add(node.op, *(places[a] for a in node.args), number=node.number)
            places.append(place)
        return places

    def program(self, results: Iterable[int | None]) -> Program:
        """What the results need, and nothing else."""
        results = tuple(results)
        wanted = {r for r in results if r is not None}
        for place in range(len(self.nodes) - 1, -1, -1):
            if place in wanted:
                wanted.update(self.nodes[place].args)
        order = {old: new for new, old in enumerate(sorted(wanted))}
        nodes = tuple(
            self.nodes[old]._replace(args=tuple(order[a] for a in self.nodes[old].args))
            for old in order
        )
        return Program(nodes, tuple(None if r is None else order[r] for r in results))
