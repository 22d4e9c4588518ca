"""What bench_neuron.py prints and draws: tables, the project's targets, the plot."""

import math

import lif_report
import report
from neuron_measure import LONG, LONG_STEPS, TARGETS
from report import COLOURS, best_ours, distinct, pick, target

SUBJECT = "Neurons by definition"

SHAPE = "32x64x32x32"
"""Of which the targets on a CPU speak."""
LOOP, COMPILED = "torch loop", "torch.compile'd loop"
TUNED = {"compiled": 0.8, "interpreted": 0.45}
"""Of the tuned LIF's speed, forward and backward kernel, by what runs the program."""
OVER_LOOP = {"compiled": 8.0, "interpreted": 5.0}
OVER_COMPILED_LOOP = 1.5
FLAT = 1.3

MARKERS = "os^Dv<>P"

_CASE = ("neuron", "shape", "dtype", "steps")


def case_table(rows: list[dict]) -> str:
    """The tables of one case."""
    return f"{rows[0]['neuron']}, {lif_report.case_table(rows)}"


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    kept = [
        row["kept_bytes"] - _floor(row)
        for row in pick(rows, measurement="training", kind="ours")
        if row.get("kept_bytes") is not None
    ]
    text = "bytes kept per neuron and step beyond the floor, most of all cases"
    found = [target(text, "at most", 0.01, max(kept, default=None))]
    if device != "cpu":
        return found
    for neuron, shape, dtype, steps in distinct(rows, *_CASE):
        if neuron not in TARGETS or (shape, dtype) != (SHAPE, "float32"):
            continue
        some = pick(rows, neuron=neuron, shape=shape, dtype=dtype, steps=steps)
        found += _tuned(some) if neuron == "lif" else _speedups(some)
    return [*found, *_flat(rows)]


def _where(row: dict) -> str:
    return f"{row['neuron']} {row['shape']} {row['dtype']} T = {row['steps']}"


def _floor(row: dict) -> float:
    """The input, and each state at the borders between segments of 8 steps."""
    size = 4 if row["dtype"] == "float32" else 2
    return size + row["states"] * 4 * ((row["steps"] + 7) // 8 - 1) / row["steps"]


def _ms(rows: list[dict], **equal) -> float | None:
    return next((row["ms"] for row in pick(rows, **equal) if "ms" in row), None)


def _tuned(rows: list[dict]) -> list[dict]:
    """The program's kernels against the tuned ones."""
    found = []
    for executor, need in TUNED.items():
        for way in ("forward", "backward"):
            some = pick(rows, measurement=f"kernel_{way}")
            tuned, ours = _ms(some, contender="snnfast.lif cpu"), _ours(some, executor)
            share = tuned / ours if tuned and ours else None
            text = f"{_where(rows[0])}, {way} kernel, {executor}: share of the tuned one's speed"
            found.append(target(text, "at least", need, share))
    return found


def _ours(rows: list[dict], executor: str) -> float | None:
    return _ms(rows, contender=f"snnfast cpu {executor}")


def _speedups(rows: list[dict]) -> list[dict]:
    """Forward and backward through autograd against the loops."""
    some, found = pick(rows, measurement="training"), []
    needs = {executor: [(LOOP, need)] for executor, need in OVER_LOOP.items()}
    needs["compiled"].append((COMPILED, OVER_COMPILED_LOOP))
    for executor, over in needs.items():
        for peer, need in over:
            ms, ours = _ms(some, contender=peer), _ours(some, executor)
            text = f"{_where(rows[0])}, forward + backward, {executor}: speed relative to {peer}"
            found.append(target(text, "at least", need, ms / ours if ms and ours else None))
    return found


def _flat(rows: list[dict]) -> list[dict]:
    """The time per neuron-step at T = 1000 against that at T = 16, as much data each."""
    found = []
    some = pick(rows, measurement="training", neuron=LONG, kind="ours")
    for name in distinct(some, "contender"):
        per_step = {
            row["steps"]: row["ms"] / row["steps"] / row["neurons"]
            for row in pick(some, contender=name)
            if "ms" in row
        }
        if {16, LONG_STEPS} <= per_step.keys():
            ratio = per_step[LONG_STEPS] / per_step[16]
            text = f"{LONG}, {name}: time per neuron and step at T = {LONG_STEPS} over T = 16"
            found.append(target(text, "at most", FLAT, ratio))
    return found


def draw(rows: list[dict], device: str):
    """Per shape, dtype and T the speed-up of ours over the others, forward and backward, and below
    it the bytes kept; nothing of a case that has no others."""
    some = pick(rows, measurement="training")
    timed = [row for row in some if row["kind"] != "ours" and "ms" in row]
    cases = [
        case
        for case in distinct(timed, "shape", "dtype", "steps")
        if any("ms" in row for row in _of(some, case, kind="ours"))
    ]
    if not cases:
        return None
    others = distinct(timed, "contender")
    kept = distinct([row for row in some if row.get("kept_bytes") is not None], "contender")
    names = [*others, *(name for name in kept if name not in others)]
    figure, axes = report.grid_of_axes(2 * len(cases), 1, 11.0, 3.4)
    for case, upper, lower in zip(cases, axes[::2, 0], axes[1::2, 0]):
        chosen = _of(some, case)
        neurons = distinct(chosen, "neuron")
        title = f"{case[0]}, {case[1]}, T = {case[2]}"
        speeds = _points(upper, chosen, neurons, others, names, _ratio)
        report.speed_axis(upper, min([0.5, *speeds]) / 1.2, 1.5 * max([2.0, *speeds]))
        upper.set_title(f"our speed-up, forward + backward, {title}")
        most = max(_points(lower, chosen, neurons, kept, names, _kept), default=1.0)
        lower.set_ylim(0, 1.1 * most)
        lower.set_title(f"bytes kept per neuron and step, {title}")
    report.legend(figure, names)
    return figure


def _points(axis, rows: list[dict], neurons: list, shown: list, names: list, value) -> list[float]:
    """A column of points for each neuron, one of each name; what they show."""
    found = []
    for i, name in enumerate(names):
        if name in shown:
            heights = [value(rows, neuron, name) for neuron in neurons]
            found += [height for height in heights if height is not None]
            at = [k + 0.5 * (i / max(1, len(names) - 1) - 0.5) for k in range(len(neurons))]
            points = [math.nan if height is None else height for height in heights]
            axis.plot(at, points, MARKERS[i % len(MARKERS)], label=name, markersize=7,
                      color=COLOURS[i % len(COLOURS)])  # fmt: skip
    axis.set_xticks(range(len(neurons)), neurons, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(neurons) - 0.4)
    axis.grid(alpha=0.3)
    return found


def _of(rows: list[dict], case, **equal) -> list[dict]:
    return pick(rows, **dict(zip(("shape", "dtype", "steps"), case)), **equal)


def _ratio(rows: list[dict], neuron: str, other: str) -> float | None:
    mine = pick(rows, neuron=neuron)
    best, ms = best_ours(mine), _ms(mine, contender=other)
    return ms / best if best and ms else None


def _kept(rows: list[dict], neuron: str, name: str) -> float | None:
    some = pick(rows, neuron=neuron, contender=name)
    return next((row["kept_bytes"] for row in some if row.get("kept_bytes") is not None), None)
