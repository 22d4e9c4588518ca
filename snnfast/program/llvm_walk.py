"""The walk over time of a step's programs, as LLVM IR: a function forward and one backward.

A function takes a tile of neurons through all steps, a segment at a time, and within it some
vectors' lanes of neurons at a time: their states stay in registers from step to step, and lie in
rows of a tile between segments. Backward recomputes the states of a segment from those at its
border, holds them on the stack, then walks it in reverse.

    forward(args, rows, begin, count)         backward(args, rows, sums, begin, count)

``args``: numbers and addresses, 8 bytes each, in the order of ``forward_arguments``, behind them in
the states' dtype where states start and the constants. ``rows``: parameters of channels, spread over the tile's neurons;
``sums``: the gradients of parameters, summed over time.
"""

from typing import NamedTuple

from snnfast.program.ir import Node, Program
from snnfast.program.llvm import Code, Lanes, Table, values

_SIZES = {"float": 4, "double": 8, "half": 2, "bfloat": 2}
AHEAD = 2
"""How many vectors ahead memory is asked for."""
_PARAMETERS = (
    "ptr noalias readonly %args, ptr noalias readonly %rows, ptr noalias readonly %sums, i64 %begin, "
    "i64 %count"
)


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


class Wanted(NamedTuple):
    """Which gradients backward is given and asked for."""

    douts: tuple[bool, ...]
    dinputs: tuple[str, ...]
    """Per input: steps, sum (over time) or none."""
    dparams: tuple[bool, ...]


def forward_arguments(step) -> list[str]:
    """What the numbers in ``args`` are."""
    kinds = ("input/stride", "state", "output", "last state", "every state", "border state")
    return ["steps", "neurons", *_names(step, *kinds, "param")]


def backward_arguments(step) -> list[str]:
    kinds = ("input/stride", "state", "border state", "dout output/stride", "last state",
             "every state", "dinput input", "dstate state", "param")  # fmt: skip
    return ["steps", "neurons", *_names(step, *kinds)]


def _names(step, *kinds: str) -> list[str]:
    """One name for each thing of a kind and, behind a slash, one more for each."""
    counts = {"input": step.inputs, "state": step.states, "output": step.outputs,
              "param": step.params}  # fmt: skip
    names = []
    for kind in kinds:
        what, _, more = kind.partition("/")
        for k in range(counts[what.split()[-1]]):
            names += [f"{what} {k}", *([f"{what} {k} {more}"] if more else [])]
    return names


class _Walk:
    """What both directions share: where everything lies, and how it comes into registers."""

    def __init__(self, shape: Shape, step, arguments: list[str]):
        self.shape, self.step, self.code = shape, step, Code()
        self.places = {name: k for k, name in enumerate(arguments)}
        self.table = Table()
        self.lanes = Lanes(self.code, shape.real, 1)
        self.steps, self.neurons = self.number("steps"), self.number("neurons")
        self.row_of_io = self.times(self.neurons, shape.size)
        self.row_of_real = self.times(self.neurons, shape.real_size)

    # ---- arguments and addresses -----------------------------------------------------------------

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

    def given(self, address: str):
        """What is written inside runs where there is a tensor."""
        return self.code.when(self.code.let(f"icmp ne ptr {address}, null"))

    def of_tile(self, rows: str, which: int, j: str) -> str:
        """Where neuron j of the tile stands in a row."""
        at = self.plus(j, which * self.shape.tile)
        return self.offset(rows, self.times(at, self.shape.real_size))

    def in_row(self, rows: str, which: int, j: str) -> str:
        """The same in a row that ``rows`` has the address of."""
        row = self.code.let(f"load ptr, ptr {self.offset(rows, 8 * which)}, !invariant.load !0")
        return self.offset(row, self.times(j, self.shape.real_size))

    # ---- memory and registers --------------------------------------------------------------------

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

    # ---- what a step reads -----------------------------------------------------------------------

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

    def start(self, real_i: str) -> list[str]:
        """Variables with the states before all steps: given ones, or the rest."""
        found = self.variables([self.behind(k) for k in range(self.step.states)])
        for k, variable in enumerate(found):
            base = self.address(f"state {k}")
            with self.given(base):
                self.set(variable, self.read(self.offset(base, real_i)))
        return found

    def rows_of(self, name: str, count: int) -> list[tuple[str, str]]:
        """Bases and strides of tensors [T, ...]."""
        return [(self.address(f"{name} {k}"), self.number(f"{name} {k} stride"))
                for k in range(count)]  # fmt: skip

    def run(self, program: Program, leaves: dict[str, list[str]]) -> list[str | None]:
        def leaf(node: Node) -> str:
            return leaves[node.op][int(node.number)]

        return values(self.lanes, program, leaf, self.constant)

    # ---- loops -----------------------------------------------------------------------------------

    def each_vector(self, body) -> None:
        """body(j, i) for the neurons of the tile: vectors of them, then the last ones singly; j is
        a neuron's place in the tile, i in a timestep."""
        wide = self.shape.lanes
        whole = self.minus("%count", self.code.let(f"urem i64 %count, {wide}"))
        for lanes, start, stop in ((wide, "0", whole), (1, whole, "%count")):
            self.lanes = Lanes(self.code, self.shape.real, lanes)
            with self.code.loop(start, stop, lanes) as j:
                body(j, self.plus("%begin", j))

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


def forward(step, shape: Shape) -> tuple[str, list[float]]:
    """(text, constants) of ``step.forward`` over all steps."""
    w = _Walk(shape, step, forward_arguments(step))
    code, numbers = w.code, range(step.states)
    rows = code.room(f"[{step.states * shape.tile} x {shape.real}]")

    def segment(first):
        left = w.minus(w.steps, first)
        last = w.is_("sle", left, shape.segment)
        many = code.let(f"select i1 {last}, i64 {left}, i64 {shape.segment}")
        later = w.is_("sgt", first, 0)

        def vector(j, i):
            io_i, real_i = w.times(i, shape.size), w.times(i, shape.real_size)
            states = w.start(real_i)
            with code.when(later):
                for k in numbers:
                    w.set(states[k], w.read(w.of_tile(rows, k, j)))
            params = w.params(j)
            inputs = w.rows_of("input", step.inputs)
            outputs = [w.address(f"output {k}") for k in range(step.outputs)]
            every = [w.address(f"every state {k}") for k in numbers]
            with code.loop(0, many) as k:
                t = w.plus(first, k)
                places = [w.offset(b, w.plus(w.times(t, by), io_i)) for b, by in inputs]
                for place in places:
                    w.fetch(place)
                leaves = {"input": [w.load(p) for p in places], "state": [*map(w.get, states)],
                          "param": params}  # fmt: skip
                results = w.run(step.forward, leaves)
                to = w.plus(w.times(t, w.row_of_io), io_i)
                for value, base in zip(results[: step.outputs], outputs, strict=True):
                    w.store(value, w.offset(base, to), shape.stream)
                to = w.plus(w.times(t, w.row_of_real), real_i)
                for k, value in enumerate(results[step.outputs :]):
                    w.set(states[k], value)
                    with w.given(every[k]):
                        w.write(value, w.offset(every[k], to))
            with code.when(last):
                for k in numbers:
                    base = w.address(f"last state {k}")
                    with w.given(base):
                        w.write(w.get(states[k]), w.offset(base, real_i))
            with code.when(code.let(f"xor i1 {last}, true")):
                which = code.let(f"udiv i64 {first}, {shape.segment}")
                to = w.plus(w.times(which, w.row_of_real), real_i)
                for k in numbers:
                    value, base = w.get(states[k]), w.address(f"border state {k}")
                    w.write(value, w.of_tile(rows, k, j))
                    with w.given(base):
                        w.write(value, w.offset(base, to))

        w.each_vector(vector)

    with code.loop(0, w.steps, shape.segment) as first:
        segment(first)
    return w.text("forward"), w.table.numbers


def backward(step, shape: Shape, adjoint: Program, wanted: Wanted) -> tuple[str, list[float]]:
    """(text, constants) of the walk back with ``step.advance`` and ``adjoint``, which is
    ``step.adjoint`` with the surrogate's formula in it."""
    w = _Walk(shape, step, backward_arguments(step))
    code, numbers = w.code, range(step.states)
    summed = [k for k, how in enumerate(wanted.dinputs) if how == "sum"]
    asked = [k for k, yes in enumerate(wanted.dparams) if yes]
    # Between segments: the gradients of the states, and the sums over time of those of inputs.
    rows = code.room(f"[{(step.states + len(summed)) * shape.tile} x {shape.real}]")
    segments = code.let(f"udiv i64 {w.plus(w.steps, shape.segment - 1)}, {shape.segment}")

    def segment(back):
        which = w.minus(w.minus(segments, 1), back)
        first = w.times(which, shape.segment)
        left = w.minus(w.steps, first)
        last = w.is_("eq", back, 0)
        many = code.let(f"select i1 {last}, i64 {left}, i64 {shape.segment}")
        later, earlier = w.is_("sgt", first, 0), w.is_("sgt", back, 0)

        def vector(j, i):
            lanes = w.lanes
            io_i, real_i = w.times(i, shape.size), w.times(i, shape.real_size)
            before = w.start(real_i)
            border = w.plus(w.times(w.minus(which, 1), w.row_of_real), real_i)
            with code.when(later):
                for k in numbers:
                    base = w.address(f"border state {k}")
                    w.set(before[k], w.read(w.offset(base, border)))
            params = w.params(j)
            inputs = w.rows_of("input", step.inputs)
            held = code.room(f"[{shape.segment * step.states} x {lanes.kind}]")

            def held_at(k, state):
                at = w.plus(w.times(k, step.states), state)
                return code.let(f"getelementptr {lanes.kind}, ptr {held}, i64 {at}")

            def read(t):
                return [w.offset(b, w.plus(w.times(t, by), io_i)) for b, by in inputs]

            with code.loop(0, many) as k:
                states = [*map(w.get, before)]
                for n in numbers:
                    w.set(held_at(k, n), states[n])
                with code.when(w.is_("slt", k, w.minus(many, 1))):
                    x = [w.load(place) for place in read(w.plus(first, k))]
                    leaves = {"input": x, "state": states, "param": params}
                    for n, value in enumerate(w.run(step.advance, leaves)):
                        w.set(before[n], value)

            zero = lanes.number(0.0)
            dstates = w.variables([zero] * step.states)
            sums = w.variables([zero] * len(summed))
            dparams = w.variables([zero] * len(asked))
            with code.when(last):
                for k in numbers:
                    base = w.address(f"last state {k}")
                    with w.given(base):
                        w.set(dstates[k], w.read(w.offset(base, real_i)))
            with code.when(earlier):
                for k, variable in enumerate((*dstates, *sums)):
                    w.set(variable, w.read(w.of_tile(rows, k, j)))
                for k, variable in enumerate(dparams):
                    w.set(variable, w.read(w.in_row("%sums", k, j)))
            douts = w.rows_of("dout output", step.outputs)
            every = [w.address(f"every state {k}") for k in numbers]
            dinputs = [w.address(f"dinput input {k}") for k in range(step.inputs)]
            with code.loop(0, many) as back_k:
                k = w.minus(w.minus(many, 1), back_k)
                t = w.plus(first, k)
                places = read(t)
                given = [w.offset(b, w.plus(w.times(t, by), io_i)) for b, by in douts]
                to = w.plus(w.times(t, w.row_of_real), real_i)
                for n in numbers:
                    with w.given(every[n]):
                        more = w.read(w.offset(every[n], to))
                        w.set(dstates[n], lanes.add(w.get(dstates[n]), more))
                for place in places:
                    w.fetch(place)
                ds = []
                for place, yes in zip(given, wanted.douts, strict=True):
                    if yes:
                        w.fetch(place)
                    ds.append(w.load(place) if yes else zero)
                leaves = {
                    "input": [*map(w.load, places)],
                    "state": [w.get(held_at(k, n)) for n in numbers],
                    "param": params,
                    "dout": ds,
                    "dstate": [*map(w.get, dstates)],
                }
                results = [zero if r is None else r for r in w.run(adjoint, leaves)]
                dx, dv = results[: step.inputs], results[step.inputs :]
                to = w.plus(w.times(t, w.row_of_io), io_i)
                for value, base, how in zip(dx, dinputs, wanted.dinputs, strict=True):
                    if how == "steps":
                        at = w.offset(base, to)
                        if not shape.stream:
                            w.fetch(at, write=True)
                        w.store(value, at, shape.stream)
                for variable, n in zip(sums, summed, strict=True):
                    w.set(variable, lanes.add(w.get(variable), dx[n]))
                for n in numbers:
                    w.set(dstates[n], dv[n])
                for variable, n in zip(dparams, asked, strict=True):
                    w.set(variable, lanes.add(w.get(variable), dv[step.states + n]))
            for k, variable in enumerate(dparams):
                w.write(w.get(variable), w.in_row("%sums", k, j))
            with code.when(later):
                for k, variable in enumerate((*dstates, *sums)):
                    w.write(w.get(variable), w.of_tile(rows, k, j))
            with code.when(code.let(f"xor i1 {later}, true")):
                for k in numbers:
                    base = w.address(f"dstate state {k}")
                    with w.given(base):
                        w.write(w.get(dstates[k]), w.offset(base, real_i))
                for variable, n in zip(sums, summed, strict=True):
                    w.store(w.get(variable), w.offset(dinputs[n], io_i))

        w.each_vector(vector)

    with code.loop(0, segments) as back:
        segment(back)
    return w.text("backward"), w.table.numbers
