"""The walk over time of a step's programs, as LLVM IR: a function forward and one backward.

A function takes a tile of neurons through all steps, a segment at a time, and within it some
vectors' lanes of neurons at a time: their states stay in registers from step to step, and lie in
rows of a tile between segments. Backward recomputes the states of a segment from those at its
border, holds them on the stack, then walks it in reverse.

    forward(args, rows, sums, begin, count)        and backward, of the neurons from begin on

``args``: numbers and addresses, 8 bytes each, in the order of ``forward_arguments``; behind them in
the states' dtype where states start, and the constants. ``rows``: addresses of parameters of
channels, spread over the neurons; ``sums``: of what gets the gradients of parameters, summed over
time.
"""

from typing import NamedTuple

from snnfast.program.ir import Program
from snnfast.program.llvm_memory import Shape, Walk


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


def forward(step, shape: Shape) -> tuple[str, list[float]]:
    """(text, constants) of ``step.forward`` over all steps."""
    w = Walk(shape, step, forward_arguments(step))
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


def backward(step, shape: Shape, gradient: Program, wanted: Wanted) -> tuple[str, list[float]]:
    """(text, constants) of the walk back with ``step.advance`` and ``step.adjoint``; ``gradient``:
    the surrogate's formula."""
    w = Walk(shape, step, backward_arguments(step))
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
                results = [zero if r is None else r for r in w.run(step.adjoint, leaves, gradient)]
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
