"""What the benchmarks' reports share: rows, tables, targets, losses, JSON and the parts of a plot.

The report of a benchmark has a ``SUBJECT``, ``case_table(rows)``, ``targets(rows, device)`` and
``draw(rows, device)``, which returns a figure, or None where nothing was measured.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

BUSY, DISTURBED = 0.5, 0.1
"""Load average at the start, and cores that others kept busy during the timings, from which these
are not to be trusted."""

CASE = ("network", "measurement", "objective", "neuron", "shape", "side", "batch", "dtype", "steps")
"""The columns that name a case, in as far as a benchmark has them."""

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#882255"]


def busy(load: float, other_work: float | None = None) -> bool:
    """Whether other work disturbed the timings."""
    return load > BUSY or (other_work or 0.0) > DISTURBED


def pick(rows: list[dict], **equal) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in equal.items())]


def best_ours(rows: list[dict]) -> float | None:
    """ms of our fastest among the rows; None where none was measured."""
    return min((row["ms"] for row in rows if row["kind"] == "ours" and "ms" in row), default=None)


def where(row: dict) -> str:
    """The case of a row, in words."""
    words = [*map(row.get, ("objective", "network", "neuron", "shape")), row["dtype"]]
    if "objective" not in row:
        words.append(f"T = {row['steps']}")
    case = " ".join(word for word in words if word)
    if "side" in row:
        case = f"{case}, {row['batch']} images of {row['side']}x{row['side']}"
    return f"{row['measurement']}, {case}" if "measurement" in row else case


def distinct(rows: list[dict], *keys: str) -> list:
    """The values of one column, or of several as tuples, in order, each once."""
    found = (tuple(row.get(key) for key in keys) for row in rows)
    return list(dict.fromkeys(values[0] if len(keys) == 1 else values for values in found))


def losses(rows: list[dict]) -> list[str]:
    """Every row in which a peer is faster than our fastest at the same case."""
    found = []
    for row in rows:
        if row["kind"] != "peer" or "ms" not in row:
            continue
        best = best_ours(pick(rows, **{key: row[key] for key in CASE if key in row}))
        if best is None or row["ms"] < best:
            ours = "refused or not measured" if best is None else f"{number(best)} ms"
            found.append(f"{where(row)}: {row['contender']} {number(row['ms'])} ms, ours {ours}")
    return found


def target(text: str, bound: str, need: float, value: float | None) -> dict:
    """A target and what this run measured; ``bound`` is "at least" or "at most", met is None where
    nothing was measured."""
    met = None
    if value is not None:
        met = value >= need if bound == "at least" else value <= need
    return {"target": text, "bound": bound, "need": need, "measured": value, "met": met}


def grid(header: list[str], rows: list[list[str]]) -> str:
    """Plain text: the first column to the left, numbers to the right, the last as it comes."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    last = len(header) - 1

    def line(row):
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def number(value: float | None, digits: int = 3) -> str:
    """A value to ``digits`` significant digits without an exponent; "-" where there is none."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _ops(row: dict) -> str:
    ops = [str(row[key]) for key in ("ops_forward", "ops_backward") if row.get(key) is not None]
    return "+".join(ops) or "-"


def _note(row: dict) -> str:
    if row.get("refused"):
        return f"REFUSED: {row['refused']}"
    notes = []
    if row.get("base"):
        notes.append(f"base {row['base']}")
    if row.get("host_ms") is not None:
        notes.append(f"host {number(row['host_ms'])} ms")
    if row.get("spikes_compared") and "spike_mismatches" in row:
        wrong, compared = row["spike_mismatches"], row["spikes_compared"]
        share = f" ({100 * wrong / compared:.2g} %)" if wrong else ""
        notes.append(f"{wrong}{share} spikes differ")
    return ", ".join(notes)


def _of(key: str, show: Callable = number, scale: float = 1.0) -> Callable[[dict], str]:
    """A cell: what the row has under ``key``, "-" where it has nothing."""

    def cell(row):
        value = row.get(key)
        return "-" if value is None else show(value * scale)

    return cell


_CELLS: dict[str, Callable[[dict], str]] = {
    "images/s": _of("images_per_s"),
    "ms": _of("ms"),
    "p20": _of("p20_ms"),
    "p80": _of("p80_ms"),
    "GB/s": _of("gb_per_s"),
    "of copy_": _of("share_of_copy", percent),
    "of base": _of("share_of_base", percent),
    "ours is": _of("ratio", lambda ratio: f"{number(ratio)}x"),
    "kept B": _of("kept_bytes"),
    "peak B": _of("peak_bytes"),
    "kept MB": _of("kept_bytes", scale=1e-6),
    "peak MB": _of("peak_bytes", scale=1e-6),
    "of SJ's": _of("share_of_peer", lambda share: number(share, 2)),
    "ops": _ops,
    "flips": _of("spike_flips", str, 1),
    "loss": _of("loss", lambda loss: f"{loss:.6f}"),
    "change": _of("loss_change", _error),
    "value err": _of("value_error", _error),
    "loss err": _of("loss_error", _error),
    "grad err": _of("gradient_error", _error),
    "n": _of("samples", str, 1),
    "note": _note,
}


def table(title: str, columns: str, rows: list[dict], name: str = "{contender}") -> str:
    """A table of ``rows``; ``columns``: headers of _CELLS, separated by commas. "ours is" how many
    times as fast as the row's contender, by our fastest with the same measurement."""
    headers, body = columns.split(","), []
    for row in rows:
        best = best_ours([r for r in rows if r.get("measurement") == row.get("measurement")])
        if best and "ms" in row and row["kind"] != "ours" and row["contender"] != "copy_":
            row = row | {"ratio": row["ms"] / best}
        body.append([name.format(**row), *(_CELLS[header](row) for header in headers)])
    return grid([title, *headers], body)


def summary(document: dict) -> str:
    """Targets, losses and what the gate refused."""
    lines = ["Targets, by the medians of this run"]
    env = document["environment"]
    if env["device"] == "cpu" and env["threads"] != 2:
        lines.append(f"  (they are stated for two threads; this run used {env['threads']})")
    if document["busy"]:
        during = document.get("other_work")
        seen = "" if during is None else f", {number(during)} cores during the timings"
        lines.append(
            f"  WARNING: other work ran here (load {env['load_average']:.1f} at the start{seen}): "
            "do not trust these"
        )
    for row in document["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[row["met"]]
        value = f", measured {number(row['measured'])}" if row["met"] is not None else ""
        lines.append(f"  {verdict:12s} {row['target']}: {row['bound']} {row['need']:g}{value}")
    lost = document["losses"]
    lines += ["", f"Slower than a peer in {len(lost)} cases" + (":" if lost else "")]
    lines += [f"  LOST {line}" for line in lost]
    refused = [row for row in document["rows"] if row.get("refused")]
    lines.append(f"Refused by the gate: {len(refused)} rows" + (":" if refused else ""))
    lines += [f"  {row['contender']}, {where(row)}: {row['refused']}" for row in refused]
    return "\n".join(lines)


def write_json(path: Path, document: dict, allow_nan: bool = False) -> None:
    """A row a line, and a line for each entry of the dictionaries that the document has."""
    dumps = partial(json.dumps, allow_nan=allow_nan)

    def text(value):
        if isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value):
            return "[\n  " + ",\n  ".join(map(dumps, value)) + "\n ]"
        if isinstance(value, dict):
            lines = (f"{dumps(key)}: {dumps(item)}" for key, item in value.items())
            return "{\n  " + ",\n  ".join(lines) + "\n }"
        return dumps(value)

    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{dumps(key)}: {text(value)}" for key, value in document.items()]
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")


def title(what: str, env: dict, disturbed: bool = False) -> str:
    """The title of a plot: what, versions, hardware and commit."""
    gpu = env.get("gpu")
    where = gpu["name"] if gpu else f"{env['cpu']}, {env['threads']} threads"
    versions = env["versions"]
    text = (
        f"{what}: snnfast {versions['snnfast'] or ''} on {where}, torch {versions['torch']}, "
        f"commit {env['commit'][:12]}"
    )
    return text + ("\nOTHER WORK RAN ON THE MACHINE: DO NOT TRUST THESE" if disturbed else "")


def plot(draw: Callable, what: str, document: dict, path: Path) -> str | None:
    """Write the figure of ``draw(rows, device)``; returns why there is none, or None."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no plot: matplotlib is not installed; run: pip install 'snnfast[bench]'"
    env = document["environment"]
    figure = draw(document["rows"], env["device"])
    if figure is None:
        return "no plot: nothing was measured"
    figure.suptitle(title(what, env, document["busy"]), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return None


def grid_of_axes(rows: int, columns: int, width: float, height: float, **shared):
    """A figure, and its axes by row and column."""
    from matplotlib.figure import Figure

    figure = Figure((width * columns + 0.7, height * rows + 1.2), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def bars(axis, groups: list[str], heights: dict[str, list], looks: dict, base: float = 0.0) -> None:
    """Groups of bars that start at ``base``: of each name one in every group, None for no bar."""
    width = 0.84 / max(1, len(heights))
    for i, (name, values) in enumerate(heights.items()):
        at = [k + (i - (len(heights) - 1) / 2) * width for k in range(len(groups))]
        above = [math.nan if value is None else value - base for value in values]
        drawn = axis.bar(at, above, width, bottom=base, label=name, **looks[name])
        labels = ["" if value is None else number(value, 2) for value in values]
        axis.bar_label(drawn, labels, fontsize=6, padding=1)
    axis.set_xticks(range(len(groups)), groups, fontsize=7)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    if all(value is None for values in heights.values() for value in values):
        axis.text(0.5, 0.5, "not timed", transform=axis.transAxes, ha="center")


def speed_axis(axis, low: float, high: float) -> None:
    """Speed-ups on a logarithmic scale, and a line at 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.axhline(1, color="black", linewidth=1)


def target_line(axis, need: float, text: str) -> None:
    axis.axhline(need, color="black", linewidth=1, linestyle="--")
    axis.annotate(text, (0.99, need), fontsize=6, ha="right", xytext=(0, 1.5),
                  xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip


def legend(figure, names: list[str] | None = None) -> None:
    """One for all axes, below; ``names`` gives the order."""
    handles = {}
    for axis in figure.axes:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels())}
    names = [name for name in names or handles if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center",
                  ncols=4, fontsize=9, frameon=False)  # fmt: skip
