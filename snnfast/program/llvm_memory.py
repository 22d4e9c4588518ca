"""Where a walk over time finds its numbers, as LLVM IR: what both of its directions share."""

from typing import NamedTuple

from snnfast.program.ir import Node, Program
from snnfast.program.llvm import Code, Lanes, Table, values

_SIZES = {"float": 4, "double": 8, "half": 2, "bfloat": 2}
AHEAD = 2
"""How many vectors ahead memory is asked for."""
_PARAMETERS = ", ".join(
    [*(f"ptr noalias readonly %{name}" for name in ("args", "rows", "sums")),
     "i64 %begin", "i64 %count"]
)  # fmt: skip


class Shape(NamedTuple):
    """What the code of a walk depends on besides the step."""

    storage: str
    """How inputs and outputs lie in memory: float, double, half or bfloat."""
    lanes: int
    tile: int
    segment: int
    stream: bool
    """Writes go past the caches; rows begin on 64 bytes."""
    channels: tuple[bool, ...]
    """Per parameter: one for each channel, or one for all."""

    @property
    def real(self) -> str:
        return "double" if self.storage == "double" else "float"

    @property
    def size(self) -> int:
        return _SIZES[self.storage]

    @property
    def real_size(self) -> int:
        return _SIZES[self.real]


class Segment(NamedTuple):
    which: str
    first: str
    """Its first step of all."""
    count: str
    is_last: str
    not_last: str
    is_first: str
    not_first: str


class Neurons(NamedTuple):
    """Those that a vector holds."""

    j: str
    """The first one's place in the tile."""
    io: str
    """And in a timestep of the inputs' dtype, in bytes."""
    real: str
    """And in one of the states'."""


class Walk:
    """What both directions share: where everything lies, and how it comes into registers."""

    def __init__(self, shape: Shape, step, arguments: list[str]):
        self.shape, self.step, self.code = shape, step, Code()
        self.places = {name: k for k, name in enumerate(arguments)}
        self.table = Table()
        self.lanes = Lanes(self.code, shape.real, 1)
        self.steps, self.neurons = self.number("steps"), self.number("neurons")
        self.row_of_io = self.times(self.neurons, shape.size)
        self.row_of_real = self.times(self.neurons, shape.real_size)
        more = self.plus(self.steps, shape.segment - 1)
        self.segments = self.code.let(f"udiv i64 {more}, {shape.segment}")

    def address(self, name: str) -> str:
        at = self.offset("%args", 8 * self.places[name])
        return self.code.let(f"load ptr, ptr {at}, align 8, !invariant.load !0")

    def number(self, name: str) -> str:
        at = self.offset("%args", 8 * self.places[name])
        return self.code.let(f"load i64, ptr {at}, align 8, !invariant.load !0")

    def offset(self, base: str, offset: str | int) -> str:
        return self.code.let(f"getelementptr i8, ptr {base}, i64 {offset}")

    def times(self, a: str, b: str | int) -> str:
        return self.code.let(f"mul i64 {a}, {b}")

    def plus(self, a: str, b: str | int) -> str:
        return self.code.let(f"add i64 {a}, {b}")

    def minus(self, a: str, b: str | int) -> str:
        return self.code.let(f"sub i64 {a}, {b}")

    def is_(self, how: str, a: str, b: str | int) -> str:
        return self.code.let(f"icmp {how} i64 {a}, {b}")

    def negated(self, truth: str) -> str:
        return self.code.let(f"xor i1 {truth}, true")

    def given(self, address: str):
        """What is written inside runs where there is a tensor."""
        return self.code.when(self.code.let(f"icmp ne ptr {address}, null"))

    def tile_rows(self, count: int) -> str:
        """Rows that hold a number for each neuron of the tile."""
        return self.code.room(f"[{count * self.shape.tile} x {self.shape.real}]")

    def of_tile(self, rows: str, which: int, j: str) -> str:
        """Where neuron j of the tile stands in a row."""
        at = self.plus(j, which * self.shape.tile)
        return self.offset(rows, self.times(at, self.shape.real_size))

    def in_row(self, rows: str, which: int, j: str) -> str:
        """The same in a row that ``rows`` has the address of."""
        row = self.code.let(f"load ptr, ptr {self.offset(rows, 8 * which)}, !invariant.load !0")
        return self.offset(row, self.times(j, self.shape.real_size))

    def variables(self, values: list[str]) -> list[str]:
        found = []
        for value in values:
            found.append(self.code.room(self.lanes.kind))
            self.set(found[-1], value)
        return found

    def get(self, variable: str) -> str:
        return self.code.let(f"load {self.lanes.kind}, ptr {variable}")

    def set(self, variable: str, value: str) -> None:
        self.code.do(f"store {self.lanes.kind} {value}, ptr {variable}")

    def read(self, address: str) -> str:
        """A vector of the states' dtype."""
        size = self.shape.real_size
        return self.code.let(f"load {self.lanes.kind}, ptr {address}, align {size}")

    def write(self, value: str, address: str) -> None:
        size = self.shape.real_size
        self.code.do(f"store {self.lanes.kind} {value}, ptr {address}, align {size}")

    def fetch(self, address: str, write: bool = False) -> None:
        """Asks for what lies some vectors further on."""
        if self.lanes.lanes == 1:
            return
        length = self.lanes.lanes * self.shape.size
        for line in range(AHEAD * length, (AHEAD + 1) * length, 64):
            at = self.offset(address, line)
            self.code.do(f"call void @llvm.prefetch.p0(ptr {at}, i32 {int(write)}, i32 3, i32 1)")

    def load(self, address: str) -> str:
        """A vector of the inputs' dtype, widened."""
        let, n, kind = self.code.let, self.lanes.lanes, self.lanes.kind
        if self.shape.storage == "half":
            narrow = let(f"load <{n} x half>, ptr {address}, align 2")
            return let(f"fpext <{n} x half> {narrow} to {kind}")
        if self.shape.storage == "bfloat":
            narrow = let(f"load <{n} x i16>, ptr {address}, align 2")
            wide = let(f"zext <{n} x i16> {narrow} to <{n} x i32>")
            return self.lanes.from_bits(self.lanes.integers("shl", wide, self.lanes.whole(16)))
        return self.read(address)

    def store(self, value: str, address: str, stream: bool = False) -> None:
        """In the inputs' dtype, rounded to nearest even."""
        let, n, lanes, storage = self.code.let, self.lanes.lanes, self.lanes, self.shape.storage
        kind = lanes.kind
        if storage == "half":
            kind = f"<{n} x half>"
            value = let(f"fptrunc {lanes.kind} {value} to {kind}")
        if storage == "bfloat":
            kind, bits = f"<{n} x i16>", lanes.bits(value)
            odd = lanes.integers("lshr", bits, lanes.whole(16))
            odd = lanes.integers("and", odd, lanes.whole(1))
            bits = lanes.integers("add", bits, lanes.integers("add", odd, lanes.whole(0x7FFF)))
            # A NaN would round into Inf, or beyond.
            nan, integer = lanes.compare("uno", value, value), lanes.integer
            bits = let(f"select {lanes.truth} {nan}, {integer} {lanes.whole(0x7FC00000)}, "
                       f"{integer} {bits}")  # fmt: skip
            high = lanes.integers("lshr", bits, lanes.whole(16))
            value = let(f"trunc {integer} {high} to {kind}")
        how = f"align {self.shape.size}"
        if stream and n > 1:
            how = "align 64, !nontemporal !1"
        self.code.do(f"store {kind} {value}, ptr {address}, {how}")

    def constant(self, number: float) -> str:
        place = self.table.place(number)
        if place is None:
            return self.lanes.number(number)
        return self.behind(self.step.states + place)

    def behind(self, which: int) -> str:
        """One of the reals behind the arguments, everywhere."""
        size = self.shape.real_size
        return self.everywhere(self.offset("%args", 8 * len(self.places) + which * size))

    def everywhere(self, address: str) -> str:
        """One number from memory in all lanes."""
        how = f"align {self.shape.real_size}, !invariant.load !0"
        return self.lanes.splat(self.code.let(f"load {self.shape.real}, ptr {address}, {how}"))

    def params(self, j: str) -> list[str]:
        """The parameters of the neurons from j of the tile on."""
        found, row = [], 0
        for k, of_channels in enumerate(self.shape.channels):
            if of_channels:
                found.append(self.read(self.in_row("%rows", row, j)))
                row += 1
            else:
                found.append(self.everywhere(self.address(f"param {k}")))
        return found

    def start(self, at: Neurons) -> list[str]:
        """Variables with the states before all steps: given ones, or the rest."""
        found = self.variables([self.behind(k) for k in range(self.step.states)])
        for k, variable in enumerate(found):
            base = self.address(f"state {k}")
            with self.given(base):
                self.set(variable, self.read(self.offset(base, at.real)))
        return found

    def addresses(self, name: str, count: int) -> list[str]:
        return [self.address(f"{name} {k}") for k in range(count)]

    def sequences(self, name: str, count: int) -> list[tuple[str, str]]:
        """Addresses of tensors [T, ...], and the bytes from step to step."""
        strides = [self.number(f"{name} {k} stride") for k in range(count)]
        return list(zip(self.addresses(name, count), strides, strict=True))

    def rows(self, sequences: list[tuple[str, str]], t: str, at: Neurons) -> list[str]:
        """Addresses of neurons in step t."""
        return [
            self.offset(base, self.plus(self.times(t, stride), at.io)) for base, stride in sequences
        ]

    def io_row(self, t: str, at: Neurons) -> str:
        """The offset of neurons in step t, where steps lie side by side."""
        return self.plus(self.times(t, self.row_of_io), at.io)

    def real_row(self, t: str, at: Neurons) -> str:
        return self.plus(self.times(t, self.row_of_real), at.real)

    def run(self, program: Program, leaves: dict[str, list[str]], gradient: Program | None = None):
        def leaf(node: Node) -> str:
            return leaves[node.op][int(node.number)]

        return values(self.lanes, program, leaf, self.constant, gradient)

    def segment(self, which: str) -> Segment:
        first = self.times(which, self.shape.segment)
        left = self.minus(self.steps, first)
        last = self.is_("sle", left, self.shape.segment)
        count = self.code.let(f"select i1 {last}, i64 {left}, i64 {self.shape.segment}")
        return Segment(
            which, first, count, last, self.negated(last),
            *(self.is_(how, which, 0) for how in ("eq", "ne")),
        )  # fmt: skip

    def vectors(self):
        """Once for vectors of the tile's neurons and once for the last ones singly: what is written
        meanwhile is repeated for all."""
        wide = self.shape.lanes
        whole = self.minus("%count", self.code.let(f"urem i64 %count, {wide}"))
        for lanes, start, stop in ((wide, "0", whole), (1, whole, "%count")):
            self.lanes = Lanes(self.code, self.shape.real, lanes)
            with self.code.loop(start, stop, lanes) as j:
                i = self.plus("%begin", j)
                yield Neurons(
                    j, self.times(i, self.shape.size), self.times(i, self.shape.real_size)
                )

    def text(self, name: str) -> str:
        arguments = {"fma": 3, "copysign": 2, "pow": 2, "fabs": 1, "sqrt": 1, "exp": 1, "log": 1,
                     "tanh": 1}  # fmt: skip
        declared = [
            f"declare <{n} x {real}> @llvm.{f}.v{n}f{bits}"
            f"({', '.join([f'<{n} x {real}>'] * count)})"
            for n in sorted({self.shape.lanes, 1})
            for real, bits in (("float", 32), ("double", 64))
            for f, count in arguments.items()
        ]
        return "\n".join(
            (
                f"define void @{name}({_PARAMETERS}) nounwind {{",
                self.code.text(),
                "  ret void",
                "}",
                *declared,
                "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
                "!0 = !{}",
                "!1 = !{i32 1}",
                "",
            )
        )
