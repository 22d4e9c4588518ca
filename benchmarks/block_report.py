"""What bench_block.py prints and draws: tables, the project's targets, the losses, the plot."""

from pathlib import Path

import report
from block_measure import BLOCKS, COMPILED, PARTS, SPIKINGJELLY
from harness import number, table
from report import best_ours, pick, target, times, title

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
    header = [
        f"{first['shape']} B = {first['batch']} T = {first['steps']} {first['dtype']}",
        *("ms", "p20", "p80", "GB/s", "of copy_", "ours is", "kept B", "peak B", "ops"),
        *("flips", "grad err", "n", "note"),
    ]
    body = []
    for measurement in dict.fromkeys(row["measurement"] for row in rows):
        chosen = pick(rows, measurement=measurement)
        best = best_ours(chosen)
        for row in chosen:
            ratio = row["ms"] / best if best and "ms" in row and row["kind"] == "peer" else None
            ops = [str(row[k]) for k in ("ops_forward", "ops_backward") if row.get(k) is not None]
            error = row.get("gradient_error")
            flips = row.get("spike_flips")
            body.append(
                [
                    f"{measurement}: {row['contender']}",
                    *times(row),
                    f"{number(ratio)}x" if ratio else "-",
                    *(number(row.get(key)) for key in ("kept_bytes", "peak_bytes")),
                    "+".join(ops) or "-",
                    "-" if flips is None else str(flips),
                    "-" if error is None else f"{error:.0e}",
                    str(row.get("samples", "-")),
                    _note(row),
                ]
            )
    return table(header, body)


def _note(row) -> str:
    if row.get("refused"):
        return f"REFUSED: {row['refused']}"
    return f"host {number(row['host_ms'])} ms" if row.get("host_ms") is not None else ""


def _where(row) -> str:
    return f"{row['measurement']}, {row['shape']} {row['dtype']} T = {row['steps']}"


def _cases(rows) -> list[tuple]:
    return list(dict.fromkeys(tuple(row[key] for key in _CASE) for row in rows))


def _of(rows, case) -> list[dict]:
    return pick(rows, **dict(zip(_CASE, case)))


def losses(rows: list[dict]) -> list[str]:
    """Every case in which a peer is faster than our fastest."""
    return report.losses(rows, _CASE, _where)


def _ratio(rows: list[dict], peer: str) -> float | None:
    """Speed of our fastest relative to the fastest peer whose name has ``peer`` in it."""
    best = best_ours(rows)
    found = [r["ms"] for r in pick(rows, kind="peer") if peer in r["contender"] and "ms" in r]
    return min(found) / best if best and found else None


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []
    cases = _cases(rows)
    if device == "cpu":
        for measurement, peers in SPEEDUPS.items():
            for shape in dict.fromkeys(row["shape"] for row in rows):
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
            text = f"{_where(row)}, {row['contender']}: share of copy_"
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


def summary(document: dict) -> str:
    return report.summary(document, _where)


# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#882255"]


def plot(rows: list[dict], env: dict, path: Path, disturbed: bool = False) -> str | None:
    """Per dtype and T the speed-up of our fastest over each peer, and the bytes kept; returns why
    there is no plot, or None."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    except ImportError:
        return "no plot: matplotlib is not installed; run: pip install 'snnfast[bench]'"
    measured = [m for m in (*PARTS, *BLOCKS) if pick(rows, measurement=m, kind="ours")]
    settings = list(dict.fromkeys((row["dtype"], row["steps"]) for row in rows))
    if not any("ms" in row for row in pick(rows, kind="ours")):
        return "no plot: nothing was measured"
    peers = list(dict.fromkeys(row["contender"] for row in pick(rows, kind="peer")))
    names = list(dict.fromkeys(r["contender"] for r in rows if r["kind"] in ("ours", "peer")
                               and r["measurement"] in measured))  # fmt: skip
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    columns = len(measured) + 1
    figure = Figure((3.7 * columns + 0.6, 2.9 * len(settings) + 1.2), layout="constrained")
    axes = figure.subplots(len(settings), columns, squeeze=False)
    for (dtype, steps), line in zip(settings, axes):
        some = pick(rows, dtype=dtype, steps=steps)
        for measurement, axis in zip(measured, line):
            chosen = pick(some, measurement=measurement)
            shapes = list(dict.fromkeys(row["shape"] for row in some))
            bars = {
                peer: [_ratio_to(pick(chosen, shape=shape), peer) for shape in shapes]
                for peer in peers
            }
            _bars(axis, bars, shapes, colours, base=1.0)
            axis.set_yscale("log")
            values = [v for b in bars.values() for v in b if v is not None]
            needs = SPEEDUPS.get(measurement, {}) if (dtype, steps) == ("float32", 4) else {}
            needs = needs if env["device"] == "cpu" else {}
            for peer, need in needs.items():
                axis.axhline(need, color="black", linewidth=1, linestyle="--")
                axis.annotate(f"target over {peer}", (0.99, need), fontsize=6, ha="right",
                              xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                              textcoords="offset points")  # fmt: skip
            axis.set_ylim(min([0.7, *values]) / 1.2, 2 * max([2.0, *values, *needs.values()]))
            axis.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.axhline(1, color="black", linewidth=1)
            axis.set_title(f"{measurement}, {dtype}, T = {steps}", fontsize=9)
            if not values:
                axis.text(0.5, 0.5, "not timed", transform=axis.transAxes, ha="center")
        kept = {name: [_most_kept(pick(some, measurement=m, contender=name)) for m in measured]
                for name in names}  # fmt: skip
        _bars(line[-1], kept, [m.replace(" ", "\n") for m in measured], colours, base=0.0)
        line[-1].set_title(f"bytes kept per element, {dtype}, T = {steps}", fontsize=9)
        line[0].set_ylabel("our speed-up, forward + backward")
    handles = {}
    for axis in axes.flat:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels())}
    figure.legend([handles[n] for n in names if n in handles], [n for n in names if n in handles],
                  loc="outside lower center", ncols=4, fontsize=9, frameon=False)  # fmt: skip
    figure.suptitle(title("BatchNorm + LIF", env, disturbed))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return None


def _ratio_to(rows, peer: str) -> float | None:
    best = best_ours(rows)
    found = [row["ms"] for row in pick(rows, contender=peer) if "ms" in row]
    return found[0] / best if best and found else None


def _most_kept(rows) -> float | None:
    return max((r["kept_bytes"] for r in rows if r.get("kept_bytes") is not None), default=None)


def _bars(axis, bars: dict, groups: list[str], colours: dict, base: float) -> None:
    """Groups of bars that start at ``base``; None is no bar."""
    width = 0.84 / max(1, len(bars))
    for i, (name, values) in enumerate(bars.items()):
        at = [k + (i - (len(bars) - 1) / 2) * width for k in range(len(groups))]
        heights = [float("nan") if v is None else v - base for v in values]
        drawn = axis.bar(at, heights, width, bottom=base, color=colours[name], label=name)
        labels = ["" if v is None else number(v, 2) for v in values]
        axis.bar_label(drawn, labels, fontsize=6, padding=1)
    axis.set_xticks(range(len(groups)), groups, fontsize=7)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
