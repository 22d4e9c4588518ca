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
from snnfast.program.llvm_memory import Neurons, Segment, Shape, Walk


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
    kept = w.tile_rows(step.states)  # the states, between segments
    with w.code.loop(0, w.segments) as which:
        segment = w.segment(which)
        for at in w.vectors():
            states = w.start(at)
            with w.code.when(segment.not_first):
                for k, state in enumerate(states):
                    w.set(state, w.read(w.of_tile(kept, k, at.j)))
            _steps(w, segment, at, states)
            with w.code.when(segment.not_last):
                to = w.real_row(segment.which, at)
                for k, state in enumerate(states):
                    value, border = w.get(state), w.address(f"border state {k}")
                    w.write(value, w.of_tile(kept, k, at.j))
                    with w.given(border):
                        w.write(value, w.offset(border, to))
            with w.code.when(segment.is_last):
                for k, state in enumerate(states):
                    last = w.address(f"last state {k}")
                    with w.given(last):
                        w.write(w.get(state), w.offset(last, at.real))
    return w.text("forward"), w.table.numbers


def _steps(w: Walk, segment: Segment, at: Neurons, states: list[str]) -> None:
    """Forward through a segment, the states in variables."""
    step, params = w.step, w.params(at.j)
    inputs, outputs = w.sequences("input", step.inputs), w.addresses("output", step.outputs)
    every = w.addresses("every state", step.states)
    with w.code.loop(0, segment.count) as k:
        t = w.plus(segment.first, k)
        rows = w.rows(inputs, t, at)
        for row in rows:
            w.fetch(row)
        before = [*map(w.get, states)]
        leaves = {"input": [*map(w.load, rows)], "state": before, "param": params}
        results = w.run(step.forward, leaves)
        to = w.io_row(t, at)
        for value, output in zip(results[: step.outputs], outputs, strict=True):
            w.store(value, w.offset(output, to), w.shape.stream)
        to = w.real_row(t, at)
        for state, value, kept in zip(states, results[step.outputs :], every, strict=True):
            w.set(state, value)
            with w.given(kept):
                w.write(value, w.offset(kept, to))


def backward(step, shape: Shape, gradient: Program, wanted: Wanted) -> tuple[str, list[float]]:
    """(text, constants) of the walk back with ``step.advance`` and ``step.adjoint``; ``gradient``:
    the surrogate's formula."""
    w = Walk(shape, step, backward_arguments(step))
    summed = [k for k, how in enumerate(wanted.dinputs) if how == "sum"]
    asked = [k for k, yes in enumerate(wanted.dparams) if yes]
    kept = w.tile_rows(step.states + len(summed))  # dstates and dsums, between segments
    with w.code.loop(0, w.segments) as done:
        segment = w.segment(w.minus(w.minus(w.segments, 1), done))
        for at in w.vectors():
            params = w.params(at.j)
            held = _recompute(w, segment, at, params)
            zero = w.lanes.number(0.0)
            dstates = w.variables([zero] * step.states)
            dsums = w.variables([zero] * len(summed))
            dparams = w.variables([zero] * len(asked))
            with w.code.when(segment.is_last):
                for k, dstate in enumerate(dstates):
                    last = w.address(f"last state {k}")
                    with w.given(last):
                        w.set(dstate, w.read(w.offset(last, at.real)))
            with w.code.when(segment.not_last):
                for k, variable in enumerate((*dstates, *dsums)):
                    w.set(variable, w.read(w.of_tile(kept, k, at.j)))
                for k, dparam in enumerate(dparams):
                    w.set(dparam, w.read(w.in_row("%sums", k, at.j)))
            sums = dict(zip(summed, dsums, strict=True)), dict(zip(asked, dparams, strict=True))
            _steps_back(w, segment, at, params, held, gradient, wanted, dstates, *sums)
            for k, dparam in enumerate(dparams):
                w.write(w.get(dparam), w.in_row("%sums", k, at.j))
            with w.code.when(segment.not_first):
                for k, variable in enumerate((*dstates, *dsums)):
                    w.write(w.get(variable), w.of_tile(kept, k, at.j))
            with w.code.when(segment.is_first):
                for k, dstate in enumerate(dstates):
                    first = w.address(f"dstate state {k}")
                    with w.given(first):
                        w.write(w.get(dstate), w.offset(first, at.real))
                for k, dsum in zip(summed, dsums, strict=True):
                    w.store(w.get(dsum), w.offset(w.address(f"dinput input {k}"), at.io))
    return w.text("backward"), w.table.numbers


def _recompute(w: Walk, segment: Segment, at: Neurons, params: list[str]):
    """Runs ``advance`` through a segment; what it returns gives the address of a state before its
    k-th step."""
    step, kind = w.step, w.lanes.kind
    states = w.start(at)
    with w.code.when(segment.not_first):
        border = w.real_row(w.minus(segment.which, 1), at)
        for k, state in enumerate(states):
            w.set(state, w.read(w.offset(w.address(f"border state {k}"), border)))
    inputs = w.sequences("input", step.inputs)
    room = w.code.room(f"[{w.shape.segment * step.states} x {kind}]")

    def held(k: str, state: int) -> str:
        place = w.plus(w.times(k, step.states), state)
        return w.code.let(f"getelementptr {kind}, ptr {room}, i64 {place}")

    with w.code.loop(0, segment.count) as k:
        before = [*map(w.get, states)]
        for n, value in enumerate(before):
            w.set(held(k, n), value)
        with w.code.when(w.is_("slt", k, w.minus(segment.count, 1))):
            rows = w.rows(inputs, w.plus(segment.first, k), at)
            leaves = {"input": [*map(w.load, rows)], "state": before, "param": params}
            for state, value in zip(states, w.run(step.advance, leaves), strict=True):
                w.set(state, value)
    return held


def _steps_back(
    w: Walk, segment: Segment, at: Neurons, params: list[str], held, gradient: Program,
    wanted: Wanted, dstates: list[str], dsums: dict[int, str], dparams: dict[int, str],
) -> None:  # fmt: skip
    """Backward through a segment, the gradients of states in variables and, by their numbers, those
    that are summed up."""
    step, zero = w.step, w.lanes.number(0.0)
    inputs, douts = w.sequences("input", step.inputs), w.sequences("dout output", step.outputs)
    every = w.addresses("every state", step.states)
    dinputs = w.addresses("dinput input", step.inputs)
    with w.code.loop(0, segment.count) as done:
        k = w.minus(w.minus(segment.count, 1), done)
        t = w.plus(segment.first, k)
        to = w.real_row(t, at)
        for dstate, given in zip(dstates, every, strict=True):
            with w.given(given):
                w.set(dstate, w.lanes.add(w.get(dstate), w.read(w.offset(given, to))))
        rows = w.rows(inputs, t, at)
        given = [
            row if yes else None
            for row, yes in zip(w.rows(douts, t, at), wanted.douts, strict=True)
        ]
        for row in (*rows, *filter(None, given)):
            w.fetch(row)
        leaves = {
            "input": [*map(w.load, rows)],
            "state": [w.get(held(k, n)) for n in range(step.states)],
            "param": params,
            "dout": [w.load(row) if row else zero for row in given],
            "dstate": [*map(w.get, dstates)],
        }
        results = [r or zero for r in w.run(step.adjoint, leaves, gradient)]
        to = w.io_row(t, at)
        for value, base, how in zip(results, dinputs, wanted.dinputs, strict=False):
            if how == "steps":
                row = w.offset(base, to)
                if not w.shape.stream:
                    w.fetch(row, write=True)
                w.store(value, row, w.shape.stream)
        of_params = step.inputs + step.states
        for dstate, value in zip(dstates, results[step.inputs : of_params], strict=True):
            w.set(dstate, value)
        for sums, first in ((dsums, 0), (dparams, of_params)):
            for n, total in sums.items():
                w.set(total, w.lanes.add(w.get(total), results[first + n]))
