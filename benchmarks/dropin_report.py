"""What bench_dropin.py prints and draws: tables, the project's targets, the plot."""

import report
from dropin_measure import NEURONS, STEP
from report import COLOURS, distinct, pick, table, target

SUBJECT = "Networks of other packages"

SPEEDUP = {"spikformer": 8.0, "sew_resnet18": 8.0}
"""Of all neurons, forward and backward, on a CPU with two threads."""


def case_table(rows: list[dict]) -> str:
    """The table of one network's rows."""
    first = rows[0]
    title = f"{first['network']}, {first['batch']} images, T = {first['steps']}"
    columns = "ms,p20,p80,ours is,kept MB,peak MB,flips,grad err,n,note"
    return table(title, columns, rows, "{measurement}: {contender}")


PACKAGES = {
    "before": {"kind": "peer"},
    "after": {"kind": "ours", "fused": False},
    "fused": {"kind": "ours", "fused": True},
}


def _found(rows: list[dict], key: str, package: str) -> float | None:
    rows = [row | {"fused": "fuse" in row["contender"]} for row in rows if key in row]
    return next((row[key] for row in pick(rows, **PACKAGES[package])), None)


def _ratio(rows: list[dict], key: str, package: str = "after") -> float | None:
    """What a network needs before, over what it needs behind our line."""
    theirs, ours = (_found(rows, key, name) for name in ("before", package))
    return theirs / ours if theirs and ours else None


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []
    for network, need in SPEEDUP.items() if device == "cpu" else ():
        ratio = _ratio(pick(rows, network=network, measurement=NEURONS), "ms")
        text = f"{network}, neurons forward + backward: speed relative to SpikingJelly"
        found.append(target(text, "at least", need, ratio))
    return found


def draw(rows: list[dict], device: str):
    """Per network how many times as fast its neurons and its training step became, and the peak."""
    rows = [row for row in rows if "ms" in row]
    networks = distinct(rows, "network")
    if not networks:
        return None
    figure, axes = report.grid_of_axes(1, 2, 5.0, 3.4)
    left, right = axes[0]
    drawn = {NEURONS: (NEURONS, "after"), STEP: (STEP, "after"), "step, fused": (STEP, "fused")}
    looks = {name: {"color": COLOURS[i]} for i, name in enumerate(drawn)}
    heights = {
        name: [_ratio(pick(rows, network=n, measurement=what), "ms", package) for n in networks]
        for name, (what, package) in drawn.items()
    }
    report.bars(left, networks, heights, looks, base=1.0)
    values = [v for line in heights.values() for v in line if v is not None]
    report.speed_axis(left, min([0.7, *values]) / 1.2, 2 * max([8.0, *values]))
    if device == "cpu":
        report.target_line(left, min(SPEEDUP.values()), "target for neurons")
    left.set_title("times as fast, forward + backward", fontsize=9)
    left.legend(fontsize=8)
    looks = {name: {"color": COLOURS[i]} for i, name in enumerate(PACKAGES, 3)}
    peaks = {
        name: [_peak(pick(rows, network=n, measurement=STEP), name) for n in networks]
        for name in PACKAGES
    }
    report.bars(right, networks, peaks, looks)
    right.set_title("peak memory of a training step, MB", fontsize=9)
    right.legend(fontsize=8)
    return figure


def _peak(rows: list[dict], package: str) -> float | None:
    found = _found(rows, "peak_bytes", package)
    return found and found / 1e6
