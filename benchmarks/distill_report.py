"""What bench_distill.py prints and draws: tables, the project's targets, the losses, the plot."""

from pathlib import Path

import report
from distill_case import COMPILED, EAGER
from harness import number, table
from report import best_ours, pick, times, title

SPEEDUPS = {"4x128x10": 8.0, "6x128x100": 8.0, "10x32x10": 8.0, "4x512x1000": 3.0}
"""Forward and backward in float32 over the eager composition, on a CPU with two threads."""

MOST_OPS = 2
SCALARS = 1024
"""Bytes of scalars that may be kept beside the gradient; a GPU hands out 512 at least for each."""


def case_table(rows: list[dict]) -> str:
    """The table of one case."""
    first = rows[0]
    header = [
        f"{first['objective']} {first['shape']} {first['dtype']}",
        *("ms", "p20", "p80", "GB/s", "of copy_", "ours is", "kept B", "ops"),
        *("value err", "grad err", "n", "note"),
    ]
    body = []
    for measurement in dict.fromkeys(row["measurement"] for row in rows):
        chosen = pick(rows, measurement=measurement)
        best = best_ours(chosen)
        for row in chosen:
            ratio = row["ms"] / best if best and "ms" in row and row["kind"] == "peer" else None
            ops = [str(row[k]) for k in ("ops_forward", "ops_backward") if row.get(k) is not None]
            body.append(
                [
                    f"{measurement}: {row['contender']}",
                    *times(row),
                    f"{number(ratio, 3)}x" if ratio else "-",
                    number(row.get("kept_bytes")),
                    "+".join(ops) or "-",
                    *(_error(row.get(key)) for key in ("value_error", "gradient_error")),
                    str(row.get("samples", "-")),
                    _note(row),
                ]
            )
    return table(header, body)


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _note(row) -> str:
    if row.get("refused"):
        return f"REFUSED: {row['refused']}"
    return f"host {number(row['host_ms'])} ms" if row.get("host_ms") is not None else ""


def _where(row) -> str:
    return f"{row['measurement']}, {row['objective']} {row['shape']} {row['dtype']}"


def losses(rows: list[dict]) -> list[str]:
    """Every case in which a peer is faster than our fastest backend."""
    return report.losses(rows, ("measurement", "objective", "shape", "dtype"), _where)


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []

    def add(text, bound, need, value):
        found.append(report.target(text, bound, need, value))

    training = pick(rows, measurement="training")
    ours = pick(training, kind="ours")
    if device == "cpu":
        for objective in dict.fromkeys(row["objective"] for row in rows):
            for shape, need in SPEEDUPS.items():
                chosen = pick(ours, objective=objective, shape=shape, dtype="float32")
                ratios = [row["speedup_over"].get(EAGER) for row in chosen if "ms" in row]
                ratios = [ratio for ratio in ratios if ratio is not None]
                text = f"training, {objective} {shape} float32: speed relative to {EAGER}"
                add(text, "at least", need, max(ratios, default=None))
    for name in dict.fromkeys(row["contender"] for row in ours):
        chosen = [row for row in pick(ours, contender=name) if "ms" in row]
        unit = "launches" if device == "cuda" else "op calls"
        ops = max((row["ops_forward"] for row in chosen), default=None)
        add(f"{name}: {unit} forward, most of all cases", "at most", MOST_OPS, ops)
        for dtype, need in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
            some = pick(chosen, dtype=dtype)
            kept = [row["kept_bytes"] - SCALARS / row["logits"] for row in some]
            if some or dtype == "float32":
                text = f"{name}: bytes kept per {dtype} logit beyond 1 KB, most of all cases"
                add(text, "at most", need, max(0.0, *kept) if kept else None)
    return found


def summary(document: dict) -> str:
    return report.summary(document, _where)


# Okabe and Ito's colours, which the colour-blind can tell apart; hatched: over the compiled one.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]


def plot(rows: list[dict], env: dict, path: Path, disturbed: bool = False) -> str | None:
    """Bars of the speed-up, forward and backward, one panel per shape and dtype; returns why there
    is no plot, or None."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    except ImportError:
        return "no plot: matplotlib is not installed; run: pip install 'snnfast[bench]'"
    ours = [r for r in pick(rows, measurement="training", kind="ours") if r.get("speedup_over")]
    if not ours:
        return "no plot: nothing was measured"
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    bars = dict.fromkeys((r["contender"], peer) for r in ours for peer in r["speedup_over"])
    bars = [bar for peer in (EAGER, COMPILED) for bar in bars if bar[1] == peer]
    names = list(dict.fromkeys(name for name, _ in bars))
    values = [value for row in ours for value in row["speedup_over"].values()]
    bottom, top = min(0.7, min(values) / 1.5), 1.6 * max(SPEEDUPS["4x128x10"], *values)
    figure = Figure((4.2 * len(shapes) + 0.8, 3.6 * len(dtypes) + 1.2), layout="constrained")
    axes = figure.subplots(len(dtypes), len(shapes), squeeze=False, sharey=True)
    width = 0.84 / len(bars)
    for dtype, line in zip(dtypes, axes):
        for shape, axis in zip(shapes, line):
            chosen = pick(ours, shape=shape, dtype=dtype)
            for i, (name, peer) in enumerate(bars):
                found = {
                    row["objective"]: row["speedup_over"][peer]
                    for row in pick(chosen, contender=name)
                    if peer in row["speedup_over"]
                }
                at = [k + (i - (len(bars) - 1) / 2) * width for k in range(len(objectives))]
                drawn = axis.bar(
                    at,
                    [found.get(objective, float("nan")) - 1 for objective in objectives],
                    width,
                    bottom=1,  # up from 1 is a gain, down a loss
                    color=_COLOURS[names.index(name) % len(_COLOURS)],
                    alpha=1.0 if peer == EAGER else 0.55,
                    hatch=None if peer == EAGER else "///",
                    edgecolor="white",
                    label=f"{name} over {peer}",
                )
                labels = [number(found.get(o), 2) if o in found else "" for o in objectives]
                axis.bar_label(drawn, labels, fontsize=7, padding=1)
            axis.set_yscale("log")
            axis.set_ylim(bottom, top)
            axis.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.axhline(1, color="black", linewidth=1)
            if env["device"] == "cpu" and dtype == "float32" and shape in SPEEDUPS:
                need = SPEEDUPS[shape]
                axis.axhline(need, color="#D55E00", linewidth=1.2, linestyle="--",
                             label="target over eager")  # fmt: skip
            axis.set_xticks(range(len(objectives)), objectives, fontsize=8)
            axis.set_title(f"T x B x C = {shape.replace('x', ' x ')}, {dtype}", fontsize=10)
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
    for line in axes:
        line[0].set_ylabel("speed-up, forward + backward")
    handles = {}
    for axis in axes.flat:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles),
                  fontsize=9, frameon=False)  # fmt: skip
    figure.suptitle(title("Distillation losses", env, disturbed))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return None
