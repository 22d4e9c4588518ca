"""What bench_lif.py prints and draws: tables, the project's targets, the plot."""

import report
from report import best_ours, distinct, pick, table

SUBJECT = "LIF"

LARGE_BYTES = 33e6
"""Tensors of this size and more do not fit a cache: there bandwidth is what counts."""

FLAT = 1.3

_CASE = ("shape", "dtype", "steps")


def case_table(rows: list[dict]) -> str:
    """The three tables of one case."""
    first = rows[0]
    parts = [
        f"{first['shape']} ({first['neurons'] / 1e6:.3g} M neurons), {first['dtype']}, "
        f"T = {first['steps']}"
    ]
    kernels = [
        row | {"way": row["measurement"].removeprefix("kernel_")}
        for row in rows
        if row["measurement"].startswith("kernel_")
    ]
    if kernels:
        columns = "ms,p20,p80,GB/s,of copy_,of base,n,note"
        parts.append(table("kernel", columns, kernels, "{way}: {contender}"))
    columns = "ms,p20,p80,GB/s,of copy_,ours is,kept B,ops,n,note"
    if training := pick(rows, measurement="training"):
        parts.append(table("forward + backward", columns, training))
    # There nothing is kept, and there is no backward.
    none = {"kept_bytes": None, "ops_backward": None}
    if inference := [row | none for row in pick(rows, measurement="inference")]:
        parts.append(table("inference", columns, inference))
    return "\n\n".join(parts)


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
        for shape, dtype, steps in distinct(pick(large, measurement=f"kernel_{way}"), *_CASE):
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
        for shape, dtype, steps in distinct(pick(rows, measurement="training"), *_CASE):
            ratios = _ratios(rows, "SpikingJelly triton", shape, dtype, steps)
            add(f"training, {shape} {dtype} T = {steps}: ahead of SpikingJelly triton", 1, ratios)
    for shape, dtype in distinct(rows, "shape", "dtype"):
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


def _ratios(rows, peer, shape, dtype, steps) -> list[float]:
    rows = pick(rows, measurement="training", shape=shape, dtype=dtype, steps=steps)
    best = best_ours(rows)
    return [row["ms"] / best for row in pick(rows, contender=peer) if best and "ms" in row]


def _per_step(rows, shape, dtype) -> dict[int, float]:
    """ms per timestep of our fastest backend, by T."""
    times = {}
    rows = pick(rows, measurement="training", shape=shape, dtype=dtype)
    for steps in distinct(rows, "steps"):
        best = best_ours(pick(rows, steps=steps))
        if best is not None:
            times[steps] = best / steps
    return times


def draw(rows: list[dict], device: str):
    """Two panels per shape and dtype."""
    rows = [row for row in rows if "ms" in row]
    panels = distinct(rows, "shape", "dtype")
    if not panels:
        return None
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, axes = report.grid_of_axes(len(panels), 2, 7.2, 4.6)
    styles: dict[str, tuple[str, int]] = {}
    for (shape, dtype), (left, right) in zip(panels, axes):
        chosen = pick(rows, shape=shape, dtype=dtype)
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
    return figure


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
        name = row["contender"]
        if row["kind"] == "ours":
            name = f"snnfast {name.removeprefix('snnfast ')}, {label}"
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
