"""A program as LLVM IR: text, for any number of neurons side by side, and nothing else.

The operations carry no flags, so that LLVM rounds each as it is written and contracts none.
"""

import ctypes
import math
import struct
from collections.abc import Callable
from contextlib import contextmanager

from snnfast.program import llvm_functions
from snnfast.program.ir import LEAVES, Builder, Node, Program

_COMPARE = {"ge": "oge", "gt": "ogt", "le": "ole", "lt": "olt", "eq": "oeq", "ne": "une"}
_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


class Code:
    """The body of one function, written line by line."""

    def __init__(self):
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def let(self, right: str) -> str:
        """A new value."""
        name = f"%{self._name()}"
        self._lines.append(f"  {name} = {right}")
        return name

    def do(self, line: str) -> None:
        self._lines.append(f"  {line}")

    def room(self, kind: str) -> str:
        """The address of a variable, which LLVM takes into registers where it can."""
        name = f"%{self._name()}"
        self._entry.append(f"  {name} = alloca {kind}, align 64")
        return name

    @contextmanager
    def loop(self, start: str | int, stop: str | int, step: int = 1):
        """Repeats what is written inside for i = start, start + step, ... below ``stop``."""
        head, body, done = self._name(), self._name(), self._name()
        at = self.room("i64")
        self.do(f"store i64 {start}, ptr {at}")
        self.do(f"br label %{head}")
        self._lines.append(f"{head}:")
        i = self.let(f"load i64, ptr {at}")
        more = self.let(f"icmp slt i64 {i}, {stop}")
        self.do(f"br i1 {more}, label %{body}, label %{done}")
        self._lines.append(f"{body}:")
        yield i
        following = self.let(f"add nsw i64 {i}, {step}")
        self.do(f"store i64 {following}, ptr {at}")
        self.do(f"br label %{head}")
        self._lines.append(f"{done}:")

    @contextmanager
    def when(self, condition: str):
        yes, done = self._name(), self._name()
        self.do(f"br i1 {condition}, label %{yes}, label %{done}")
        self._lines.append(f"{yes}:")
        yield
        self.do(f"br label %{done}")
        self._lines.append(f"{done}:")

    def text(self) -> str:
        return "\n".join((*self._entry, *self._lines))


class Table:
    """The numbers of a program that its machine code reads from memory, so that the same step with
    others needs no new code."""

    def __init__(self):
        self.numbers: list[float] = []

    def place(self, number: float) -> int | None:
        """Where it stands; None for one that is written into the code."""
        if number in (0.0, 1.0, -1.0) and str(number) != "-0.0":
            return None
        if number not in self.numbers or number == 0.0:
            self.numbers.append(number)
        return self.numbers.index(number) if number else len(self.numbers) - 1


class Lanes:
    """Values of ``lanes`` neurons at once in ``real``, float or double. ``loose``: parts of
    gradients, which some ulp do not hurt."""

    def __init__(self, code: Code, real: str, lanes: int, loose: bool = False):
        self.code, self.real, self.lanes, self.loose = code, real, lanes, loose
        self.kind = f"<{lanes} x {real}>"
        self.truth = f"<{lanes} x i1>"
        self.whole_kind = "i32" if real == "float" else "i64"
        self.integer = f"<{lanes} x {self.whole_kind}>"
        self.suffix = f"v{lanes}{'f32' if real == 'float' else 'f64'}"

    def of(self, real: str) -> "Lanes":
        """As many neurons in another type."""
        return Lanes(self.code, real, self.lanes)

    def rounded(self, value: float) -> float:
        """A number as the type has it."""
        return ctypes.c_float(value).value if self.real == "float" else value

    def number(self, value: float) -> str:
        """The same number in all lanes, rounded to the type."""
        (bits,) = struct.unpack("<Q", struct.pack("<d", self.rounded(value)))
        return f"splat ({self.real} 0x{bits:016X})"

    def whole(self, value: int) -> str:
        return f"splat ({self.whole_kind} {value})"

    def splat(self, scalar: str) -> str:
        first = self.code.let(f"insertelement {self.kind} poison, {self.real} {scalar}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.code.let(f"shufflevector {self.kind} {first}, {self.kind} poison, {zeros}")

    def binary(self, op: str, a: str, b: str) -> str:
        return self.code.let(f"{op} {self.kind} {a}, {b}")

    def add(self, a: str, b: str) -> str:
        return self.binary("fadd", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.binary("fsub", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.binary("fmul", a, b)

    def div(self, a: str, b: str) -> str:
        return self.binary("fdiv", a, b)

    def integers(self, op: str, a: str, b: str) -> str:
        return self.code.let(f"{op} {self.integer} {a}, {b}")

    def compare(self, how: str, a: str, b: str) -> str:
        return self.code.let(f"fcmp {how} {self.kind} {a}, {b}")

    def select(self, truth: str, a: str, b: str) -> str:
        return self.code.let(f"select {self.truth} {truth}, {self.kind} {a}, {self.kind} {b}")

    def call(self, name: str, *args: str) -> str:
        """An intrinsic function; ``llvm.fma`` is the one that rounds once."""
        typed = ", ".join(f"{self.kind} {a}" for a in args)
        return self.code.let(f"call {self.kind} @llvm.{name}.{self.suffix}({typed})")

    def negated(self, x: str) -> str:
        return self.code.let(f"fneg {self.kind} {x}")

    def converted(self, how: str, x: str, to: "Lanes") -> str:
        return self.code.let(f"{how} {self.kind} {x} to {to.kind}")

    def bits(self, x: str) -> str:
        return self.code.let(f"bitcast {self.kind} {x} to {self.integer}")

    def from_bits(self, x: str) -> str:
        return self.code.let(f"bitcast {self.integer} {x} to {self.kind}")


def values(
    lanes: Lanes, program: Program, leaf: Callable[[Node], str], constant: Callable[[float], str],
    gradient: Program | None = None,
) -> list[str | None]:  # fmt: skip
    """Writes the operations of ``program`` and returns the names of its results, None for one that
    is 0 everywhere. ``leaf`` and ``constant`` name the values of leaves and of numbers;
    ``gradient``: the surrogate's, of one input."""
    program = with_exact_products(program)
    found: list[str] = []

    def value(place: int) -> str:
        # A constant is written where it is first used: not as the exponent of a power.
        if not found[place]:
            found[place] = constant(program.nodes[place].number)
        return found[place]

    for node in program.nodes:
        if node.op in LEAVES:
            found.append(leaf(node))
        elif node.op == "const":
            found.append("")
        elif node.op == "pow":
            exponent = program.nodes[node.args[1]].number
            found.append(llvm_functions.power(lanes, value(node.args[0]), exponent))
        elif node.op == "surrogate":
            u, loose = value(node.args[0]), Lanes(lanes.code, lanes.real, lanes.lanes, True)
            found += values(loose, gradient, lambda _, u=u: u, constant)
        else:
            found.append(operation(lanes, node.op, *map(value, node.args)))
    return [None if r is None else value(r) for r in program.results]


def with_exact_products(program: Program) -> Program:
    """The same values; a quotient by a power of two is a product, which is rounded alike."""
    builder = Builder()

    def replaced(node: Node, places: list[int]) -> int | None:
        if node.op != "div" or builder.nodes[places[node.args[1]]].op != "const":
            return None
        divisor = builder.nodes[places[node.args[1]]].number
        mantissa, exponent = math.frexp(divisor)
        if abs(mantissa) != 0.5 or abs(exponent) > 120:
            return None
        return builder.add("mul", places[node.args[0]], builder.constant(1.0 / divisor))

    places = builder.copy(program, replaced)
    return builder.program(None if r is None else places[r] for r in program.results)


def operation(lanes: Lanes, op: str, *x: str) -> str:
    let, truth = lanes.code.let, lanes.truth
    if op in _BINARY:
        return lanes.binary(_BINARY[op], *x)
    if op in _COMPARE:
        return lanes.compare(_COMPARE[op], *x)
    if op in ("and", "or"):
        return let(f"{op} {truth} {x[0]}, {x[1]}")
    if op == "not":
        return let(f"xor {truth} {x[0]}, splat (i1 true)")
    if op == "neg":
        return lanes.negated(x[0])
    if op == "where":
        return lanes.select(*x)
    if op in ("min", "max"):
        taken = lanes.select(lanes.compare("olt" if op == "min" else "ogt", *x), *x)
        return lanes.select(lanes.compare("uno", x[0], x[0]), x[0], taken)
    if op == "spike":
        fires = lanes.compare("oge", x[0], lanes.number(0.0))
        return lanes.select(fires, lanes.number(1.0), lanes.number(0.0))
    if op == "abs":
        return lanes.call("fabs", x[0])
    if op == "sqrt":
        return lanes.call("sqrt", x[0])
    if op in ("exp", "log", "tanh", "sigmoid"):
        return getattr(llvm_functions, op)(lanes, x[0])
    raise ValueError(f"program: {op} has no machine code")
