"""What bench_distill.py prints and draws: tables, the project's targets, the plot."""

import report
from distill_case import COMPILED, EAGER
from report import COLOURS, distinct, pick, table, target

SUBJECT = "Distillation losses"

SPEEDUPS = {"4x128x10": 8.0, "6x128x100": 8.0, "10x32x10": 8.0, "4x512x1000": 3.0}
"""Forward and backward in float32 over the eager composition, on a CPU with two threads."""

MOST_OPS = 2
SCALARS = 1024
"""Bytes of scalars that may be kept beside the gradient; a GPU hands out 512 at least for each."""


def case_table(rows: list[dict]) -> str:
    """The table of one case."""
    first = rows[0]
    title = f"{first['objective']} {first['shape']} {first['dtype']}"
    columns = "ms,p20,p80,GB/s,of copy_,ours is,kept B,ops,value err,grad err,n,note"
    return table(title, columns, rows, "{measurement}: {contender}")


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []
    training = pick(rows, measurement="training")
    ours = pick(training, kind="ours")
    if device == "cpu":
        for objective in distinct(rows, "objective"):
            for shape, need in SPEEDUPS.items():
                chosen = pick(ours, objective=objective, shape=shape, dtype="float32")
                ratios = [row.get("speedup_over", {}).get(EAGER, 0.0) for row in chosen]
                text = f"training, {objective} {shape} float32: speed relative to {EAGER}"
                found.append(target(text, "at least", need, max(ratios, default=0.0) or None))
    for name in distinct(ours, "contender"):
        chosen = [row for row in pick(ours, contender=name) if "ms" in row]
        unit = "launches" if device == "cuda" else "op calls"
        ops = max((n for row in chosen if (n := row["ops_forward"]) is not None), default=None)
        text = f"{name}: {unit} forward, most of all cases"
        found.append(target(text, "at most", MOST_OPS, ops))
        for dtype, need in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
            some = pick(chosen, dtype=dtype)
            kept = [row["kept_bytes"] - SCALARS / row["logits"] for row in some]
            if some or dtype == "float32":
                text = f"{name}: bytes kept per {dtype} logit beyond 1 KB, most of all cases"
                found.append(target(text, "at most", need, max(0.0, *kept) if kept else None))
    return found


def draw(rows: list[dict], device: str):
    """Bars of the speed-up, forward and backward, one panel per shape and dtype; hatched: over the
    compiled composition."""
    ours = [r for r in pick(rows, measurement="training", kind="ours") if r.get("speedup_over")]
    if not ours:
        return None
    shapes, dtypes, objectives = (distinct(rows, key) for key in ("shape", "dtype", "objective"))
    names = distinct(ours, "contender")
    pairs = [(name, peer) for peer in (EAGER, COMPILED) for name in names
             if any(peer in row["speedup_over"] for row in pick(ours, contender=name))]  # fmt: skip
    looks = {
        f"{name} over {peer}": {
            "color": COLOURS[names.index(name) % len(COLOURS)],
            "edgecolor": "white",
        }
        | ({} if peer == EAGER else {"alpha": 0.55, "hatch": "///"})
        for name, peer in pairs
    }
    values = [value for row in ours for value in row["speedup_over"].values()]
    bottom, top = min(0.7, min(values) / 1.5), 1.6 * max(SPEEDUPS["4x128x10"], *values)
    figure, axes = report.grid_of_axes(len(dtypes), len(shapes), 4.2, 3.6, sharey=True)
    for dtype, line in zip(dtypes, axes):
        for shape, axis in zip(shapes, line):
            found = {
                (row["contender"], row["objective"]): row["speedup_over"]
                for row in pick(ours, shape=shape, dtype=dtype)
            }
            heights = {
                f"{name} over {peer}": [found.get((name, o), {}).get(peer) for o in objectives]
                for name, peer in pairs
            }
            report.bars(axis, objectives, heights, looks, base=1.0)
            report.speed_axis(axis, bottom, top)
            if device == "cpu" and dtype == "float32" and shape in SPEEDUPS:
                report.target_line(axis, SPEEDUPS[shape], "target over eager")
            axis.set_title(f"T x B x C = {shape.replace('x', ' x ')}, {dtype}", fontsize=10)
        line[0].set_ylabel("speed-up, forward + backward")
    report.legend(figure)
    return figure
