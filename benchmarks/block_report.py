"""What bench_block.py prints and draws: tables, the project's targets, the plot."""

import report
from block_measure import BLOCKS, COMPILED, PARTS, SPIKINGJELLY
from report import COLOURS, best_ours, distinct, pick, table, target, where

SUBJECT = "BatchNorm + LIF"

SPEEDUPS = {"part": {SPIKINGJELLY: 5.0, COMPILED: 1.5},
            "part + residual": {SPIKINGJELLY: 3.5, COMPILED: 1.5}}  # fmt: skip
"""Forward and backward, float32, T = 4, on a CPU with two threads."""

KEPT = {
    "block": {"float32": 4.2, "bfloat16": 2.2},
    "part + residual": {"float32": 4.4, "bfloat16": 2.4},
    "residual block": {"float32": 4.4, "bfloat16": 2.4},
}
"""Bytes kept per element of what is normalised, beside those per channel."""

PER_CHANNEL = 64
"""Bytes per channel that may be kept beside: five float32 vectors, and rounding of allocations."""

GPU_SPEEDUP, GPU_SHARE = 2.0, 0.85

_CASE = ("measurement", "shape", "dtype", "steps")


def case_table(rows: list[dict]) -> str:
    """The table of one case's rows."""
    first = rows[0]
    title = f"{first['shape']} B = {first['batch']} T = {first['steps']} {first['dtype']}"
    columns = "ms,p20,p80,GB/s,of copy_,ours is,kept B,peak B,ops,flips,grad err,n,note"
    return table(title, columns, rows, "{measurement}: {contender}")


def _of(rows, case) -> list[dict]:
    return pick(rows, **dict(zip(_CASE, case)))


def _ratio(rows: list[dict], peer: str) -> float | None:
    """Speed of our fastest relative to the fastest peer whose name has ``peer`` in it."""
    best = best_ours(rows)
    found = [r["ms"] for r in pick(rows, kind="peer") if peer in r["contender"] and "ms" in r]
    return min(found) / best if best and found else None


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []
    cases = distinct(rows, *_CASE)
    if device == "cpu":
        for measurement, peers in SPEEDUPS.items():
            for shape in distinct(rows, "shape"):
                chosen = _of(rows, (measurement, shape, "float32", 4))
                for peer, need in peers.items():
                    text = f"{measurement}, {shape} float32 T = 4: speed relative to {peer}"
                    found.append(target(text, "at least", need, _ratio(chosen, peer)))
    else:
        for case in cases:
            if case[0] in PARTS and case[2] == "bfloat16":
                text = f"{case[0]}, {case[1]} bfloat16 T = {case[3]}: speed relative to "
                ratio = _ratio(_of(rows, case), SPIKINGJELLY)
                found.append(target(f"{text}{SPIKINGJELLY}", "at least", GPU_SPEEDUP, ratio))
        passes = [row for row in rows if row["measurement"].startswith("passes")]
        largest = max((row["elements"] for row in passes), default=0)
        for row in pick(passes, elements=largest):
            text = f"{where(row)}, {row['contender']}: share of copy_"
            found.append(target(text, "at least", GPU_SHARE, row["share_of_copy"]))
    for measurement, needs in KEPT.items():
        for dtype, need in needs.items():
            kept = [
                min(_kept(row) for row in some)
                for case in cases
                if (case[0], case[2]) == (measurement, dtype)
                if (some := [r for r in _of(rows, case) if _kept(r) is not None])
            ]
            text = f"{measurement}, {dtype}: bytes kept per element, most of all cases"
            found.append(target(text, "at most", need, max(kept, default=None)))
    return found


def _kept(row) -> float | None:
    if row["kind"] != "ours" or row.get("kept_bytes") is None:
        return None
    channels = int(row["shape"].split("x")[0])
    return max(0.0, row["kept_bytes"] - PER_CHANNEL * channels / row["elements"])


def draw(rows: list[dict], device: str):
    """Per dtype and T the speed-up of our fastest over each peer, and the bytes kept."""
    measured = [m for m in (*PARTS, *BLOCKS) if pick(rows, measurement=m, kind="ours")]
    settings = distinct(rows, "dtype", "steps")
    if not any("ms" in row for row in pick(rows, kind="ours")):
        return None
    shown = [row for row in rows if row["kind"] != "probe" and row["measurement"] in measured]
    names = distinct(shown, "contender")
    peers = distinct(pick(shown, kind="peer"), "contender")
    looks = {name: {"color": COLOURS[i % len(COLOURS)]} for i, name in enumerate(names)}
    figure, axes = report.grid_of_axes(len(settings), len(measured) + 1, 3.7, 2.9)
    for (dtype, steps), line in zip(settings, axes):
        some = pick(rows, dtype=dtype, steps=steps)
        shapes = distinct(some, "shape")
        for measurement, axis in zip(measured, line):
            chosen = pick(some, measurement=measurement)
            heights = {
                peer: [_ratio_to(pick(chosen, shape=shape), peer) for shape in shapes]
                for peer in peers
            }
            report.bars(axis, shapes, heights, looks, base=1.0)
            values = [v for b in heights.values() for v in b if v is not None]
            needs = SPEEDUPS.get(measurement, {}) if (dtype, steps) == ("float32", 4) else {}
            needs = needs if device == "cpu" else {}
            for peer, need in needs.items():
                report.target_line(axis, need, f"target over {peer}")
            low = min([0.7, *values]) / 1.2
            report.speed_axis(axis, low, 2 * max([2.0, *values, *needs.values()]))
            axis.set_title(f"{measurement}, {dtype}, T = {steps}", fontsize=9)
        kept = {name: [_most_kept(pick(some, measurement=m, contender=name)) for m in measured]
                for name in names}  # fmt: skip
        report.bars(line[-1], [m.replace(" ", "\n") for m in measured], kept, looks)
        line[-1].set_title(f"bytes kept per element, {dtype}, T = {steps}", fontsize=9)
        line[0].set_ylabel("our speed-up, forward + backward")
    report.legend(figure, names)
    return figure


def _ratio_to(rows, peer: str) -> float | None:
    best = best_ours(rows)
    found = [row["ms"] for row in pick(rows, contender=peer) if "ms" in row]
    return found[0] / best if best and found else None


def _most_kept(rows) -> float | None:
    return max((r["kept_bytes"] for r in rows if r.get("kept_bytes") is not None), default=None)
