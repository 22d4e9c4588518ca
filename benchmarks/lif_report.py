"""What bench_lif.py prints and draws: tables, the project's targets, the losses, the plot."""

from pathlib import Path

import report
from harness import number, table
from report import best_ours, percent, pick, times

LARGE_BYTES = 33e6
"""Tensors of this size and more do not fit a cache: there bandwidth is what counts."""

FLAT = 1.3


def case_table(rows: list[dict]) -> str:
    """The three tables of one case."""
    first = rows[0]
    parts = [
        f"{first['shape']} ({first['neurons'] / 1e6:.3g} M neurons), {first['dtype']}, "
        f"T = {first['steps']}"
    ]
    header = ["kernel", "ms", "p20", "p80", "GB/s", "of copy_", "of base", "n", "note"]
    body = []
    for way in ("forward", "backward"):
        for row in pick(rows, measurement=f"kernel_{way}"):
            note = _note(row)
            if row["kind"] == "ours" and not row["refused"]:
                note = f"base {row['base']}; {note}"
            name = f"{way}: {row['contender']}"
            share = row.get("share_of_base")
            body.append([name, *times(row), percent(share), str(row.get("samples", "-")), note])
    parts.append(table(header, body))
    for measurement, title in (("training", "forward + backward"), ("inference", "inference")):
        header = [title, "ms", "p20", "p80", "GB/s", "of copy_", "ours is", "kept B", "ops", "n"]
        body = []
        chosen = pick(rows, measurement=measurement)
        best = best_ours(chosen)
        for row in chosen:
            ratio = row["ms"] / best if best and "ms" in row and row["kind"] != "ours" else None
            ops = "-"
            if "ops_forward" in row:
                train = measurement == "training"
                ops = f"{row['ops_forward']}" + (f"+{row['ops_backward']}" if train else "")
            kept = number(row.get("kept_bytes")) if measurement == "training" else "-"
            speed = f"{number(ratio, 2)}x" if ratio else "-"
            samples = str(row.get("samples", "-"))
            body.append([row["contender"], *times(row), speed, kept, ops, samples, _note(row)])
        if body:
            parts.append(table([*header, "note"], body))
    return "\n\n".join(parts)


def _note(row) -> str:
    if row.get("refused"):
        return f"REFUSED: {row['refused']}"
    notes = []
    if row.get("host_ms") is not None:
        notes.append(f"host {number(row['host_ms'])} ms")
    if row.get("spikes_compared"):
        wrong, compared = row["spike_mismatches"], row["spikes_compared"]
        share = f" ({100 * wrong / compared:.2g} %)" if wrong else ""
        notes.append(f"{wrong}{share} spikes differ")
    return ", ".join(notes)


def losses(rows: list[dict]) -> list[str]:
    """Every case in which a peer is faster than our fastest backend."""
    return report.losses(rows, ("measurement", "shape", "dtype", "steps"), _where)


def _where(row) -> str:
    return f"{row['measurement']}, {row['shape']} {row['dtype']} T = {row['steps']}"


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []

    def add(text, need, values, best=max):
        bound = "at most" if best is min else "at least"
        found.append(report.target(text, bound, need, best(values, default=None)))

    if device == "cpu":
        large = [row for row in rows if row["dtype"] == "float32" and row["steps"] == 4]
        large = [row for row in large if 4 * row["neurons"] * 4 >= LARGE_BYTES]
        where = "kernel, float32, T = 4, tensors of 33 MB and more"
        needs = {"forward": ("copy_", 0.9), "backward": ("add(out=)", 0.85)}
    else:
        large = [row for row in rows if row["neurons"] * row["steps"] >= 64e6]
        where = "kernel, 64 M neuron-steps and more"
        needs = {"forward": ("copy_", 0.9), "backward": ("copy_", 0.85)}
    for way, (base, need) in needs.items():
        for shape, dtype, steps in _cases(pick(large, measurement=f"kernel_{way}")):
            chosen = pick(large, measurement=f"kernel_{way}", kind="ours", shape=shape)
            chosen = pick(chosen, dtype=dtype, steps=steps)
            key = "share_of_copy" if base == "copy_" else "share_of_base"
            shares = [row[key] for row in chosen if row.get(key) is not None]
            add(f"{way} {where}: share of {base} at {shape} {dtype} T = {steps}", need, shares)
        if not pick(large, measurement=f"kernel_{way}"):
            add(f"{way} {where}: share of {base}", need, [])
    if device == "cpu":
        _cpu_speedups(rows, add)
    else:
        for shape, dtype, steps in _cases(pick(rows, measurement="training")):
            ratios = _ratios(rows, "SpikingJelly triton", shape, dtype, steps)
            add(f"training, {shape} {dtype} T = {steps}: ahead of SpikingJelly triton", 1, ratios)
    for shape, dtype, _ in dict.fromkeys((a, b, 0) for a, b, _ in _cases(rows)):
        times = _per_step(rows, shape, dtype)
        if {2, 100} <= times.keys():
            spread = max(times.values()) / min(times.values())
            text = f"training, {shape} {dtype}: time per timestep from T = 2 to 100, max over min"
            add(text, FLAT, [spread], best=min)
    return found


def _cpu_speedups(rows, add) -> None:
    for shape, against_compiled in (("32x512x4x4", 1.8), ("32x64x32x32", 1.3)):
        for peer, need in (
            ("SpikingJelly", 7),
            ("torch.compile'd loop", against_compiled),
            ("clone/add probe", 0.7),
        ):
            text = f"training, {shape} float32 T = 4: speed relative to {peer}"
            add(text, need, _ratios(rows, peer, shape, "float32", 4))


def _cases(rows) -> list[tuple]:
    return list(dict.fromkeys((row["shape"], row["dtype"], row["steps"]) for row in rows))


def _ratios(rows, peer, shape, dtype, steps) -> list[float]:
    rows = pick(rows, measurement="training", shape=shape, dtype=dtype, steps=steps)
    best = best_ours(rows)
    return [row["ms"] / best for row in pick(rows, contender=peer) if best and "ms" in row]


def _per_step(rows, shape, dtype) -> dict[int, float]:
    """ms per timestep of our fastest backend, by T."""
    times = {}
    rows = pick(rows, measurement="training", shape=shape, dtype=dtype)
    for steps in {row["steps"] for row in rows}:
        best = best_ours(pick(rows, steps=steps))
        if best is not None:
            times[steps] = best / steps
    return times


def summary(document: dict) -> str:
    return report.summary(document, _where)


def plot(rows: list[dict], env: dict, path: Path) -> str | None:
    """Two panels per shape and dtype; returns why there is no plot, or None."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    except ImportError:
        return "no plot: matplotlib is not installed; run: pip install 'snnfast[bench]'"
    panels = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows if "ms" in row))
    if not panels:
        return "no plot: nothing was measured"
    figure = Figure(figsize=(15, 4.6 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    styles: dict[str, tuple[str, int]] = {}
    for (shape, dtype), (left, right) in zip(panels, axes):
        chosen = [r for r in pick(rows, shape=shape, dtype=dtype) if "ms" in r]
        neurons = f"{shape} ({chosen[0]['neurons'] / 1e6:.3g} M neurons), {dtype}"
        _panel(left, _shares(chosen), f"Share of copy bandwidth, {neurons}", styles)
        # Where the data fit a cache, shares can be wild; what counts is the way up to 1.
        left.set_ylim(0, min(2.0, left.get_ylim()[1]))
        left.axhline(1, color="black", linewidth=0.8, linestyle=":")
        left.set_ylabel("useful bytes per second / copy_")
        _panel(right, _costs(chosen), f"Forward + backward, {neurons}", styles)
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.yaxis.set_minor_locator(NullLocator())
        right.set_ylabel("ms per timestep per million neurons")
    figure.suptitle(report.title("LIF", env))
    figure.savefig(path, dpi=110)
    return None


def _shares(rows) -> dict:
    """label -> (kind, {T: share of copy bandwidth})."""
    lines = {}
    labels = {
        "training": "forward + backward",
        "kernel_forward": "forward kernel",
        "kernel_backward": "backward kernel",
    }
    order = {measurement: i for i, measurement in enumerate(labels)}
    for row in sorted(rows, key=lambda row: order.get(row["measurement"], 0)):
        label = labels.get(row["measurement"])
        if label is None or row["contender"] == "copy_":
            continue
        if row["kind"] == "ours":
            backend = row["contender"].removeprefix("snnfast ")
            name = f"snnfast {backend}, {label}"
        else:
            name = row["contender"]
        lines.setdefault(name, (row["kind"], {}))[1][row["steps"]] = row["share_of_copy"]
    return lines


def _costs(rows) -> dict:
    lines = {}
    for row in pick(rows, measurement="training"):
        per_step = row["ms"] / row["steps"] / (row["neurons"] / 1e6)
        lines.setdefault(row["contender"], (row["kind"], {}))[1][row["steps"]] = per_step
    return lines


# Okabe and Ito's colours, which the colour-blind can tell apart. Ours are solid and thick, peers
# thin and dashed, probes grey and dotted; markers differ in each group.
_COLOURS = {
    "ours": ["#0072B2", "#56B4E9", "#004466", "#0091D5", "#7FC8F8", "#003350"],
    "peer": ["#D55E00", "#E69F00", "#CC79A7", "#009E73", "#882255", "#999933", "#661100"],
    "probe": ["#555555", "#999999"],
}
_MARKERS = {"ours": "os^Dv*", "peer": "xP+1234", "probe": ".."}
_STYLES = {"ours": ("-", 2.6), "peer": ("--", 1.3), "probe": (":", 1.6)}


def _panel(axis, lines: dict, title: str, styles: dict) -> None:
    """One line per contender; ``styles`` is shared, so that a contender looks alike everywhere."""
    groups = list(_COLOURS)
    for name, (kind, points) in sorted(lines.items(), key=lambda line: groups.index(line[1][0])):
        key = name.removesuffix(", forward + backward")
        taken = sum(1 for other in styles.values() if other[0] == kind)
        _, index = styles.setdefault(key, (kind, taken))
        colour = _COLOURS[kind][index % len(_COLOURS[kind])]
        marker = _MARKERS[kind][index % len(_MARKERS[kind])]
        style, width = _STYLES[kind]
        steps = sorted(points)
        values = [points[t] for t in steps]
        axis.plot(steps, values, style, color=colour, marker=marker, linewidth=width, label=name)
    ticks = sorted({t for _, points in lines.values() for t in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("timesteps T")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
