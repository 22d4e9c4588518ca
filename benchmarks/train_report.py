"""What bench_train.py prints and draws: tables, the project's targets, the plot."""

import report
from report import COLOURS, distinct, pick, table, target, where
from train_frontier import MEMOPT, PLAN
from train_measure import SPIKINGJELLY

SUBJECT = "A training step of ResNet-18"

SPEEDUP, MEMORY, LOSS = 1.25, 0.35, 1e-5
"""Images per second and peak memory relative to SpikingJelly's, and the difference of the losses,
float32, T = 4, 32 images of 32x32, on a CPU."""

GPU_SPEEDUP, GPU_MEMORY = 2.0, 0.5
"""Under autocast to bfloat16, over SpikingJelly's fastest."""


FRONTIER = 1.3
"""Images per second relative to memopt's first level, at its peak memory or below."""


def case_table(rows: list[dict]) -> str:
    """The table of one case's rows."""
    peer = _peak(rows, SPIKINGJELLY)
    rows = [
        row | ({"share_of_peer": row["peak_bytes"] / peer} if peer and "peak_bytes" in row else {})
        for row in rows
    ]
    columns = "images/s,ms,p20,p80,ours is,kept MB,peak MB,of SJ's,loss,change,loss err,grad err,n"
    return table(where(rows[0]), f"{columns},note", rows)


def _fastest(rows: list[dict], name: str) -> dict | None:
    """The fastest row whose contender's name begins so; the first measured one without timings."""
    found = [r for r in rows if r["contender"].startswith(name) and not r.get("refused")]
    return min(found, key=lambda row: row.get("ms", 0.0), default=None)


def _peak(rows: list[dict], name: str) -> float | None:
    row = _fastest(rows, name)
    return None if row is None else row["peak_bytes"]


def targets(rows: list[dict], device: str) -> list[dict]:
    """The project's targets, each with what this run measured; met is None where it did not."""
    found = []
    dtype, sizes = ("float32", {"batch": 32, "side": 32}) if device == "cpu" else ("bfloat16", {})
    speed, memory = (SPEEDUP, MEMORY) if device == "cpu" else (GPU_SPEEDUP, GPU_MEMORY)
    chosen = pick(rows, dtype=dtype, steps=4, **sizes)
    mine, peer = _fastest(chosen, "snnfast"), _fastest(chosen, SPIKINGJELLY)
    ratio = share = error = None
    if mine is not None and peer is not None:
        share = mine["peak_bytes"] / peer["peak_bytes"]
        # Both against the loop.
        error = mine["loss_error"] + peer["loss_error"]
        if "ms" in mine and "ms" in peer:
            ratio = peer["ms"] / mine["ms"]
    text = f"{dtype}, T = 4: {{}} relative to {SPIKINGJELLY}"
    found.append(target(text.format("images per second"), "at least", speed, ratio))
    found.append(target(text.format("peak memory"), "at most", memory, share))
    mine, peer = _fastest(chosen, PLAN), _fastest(chosen, MEMOPT)
    ratio = None
    if mine is not None and peer is not None and "ms" in mine and "ms" in peer:
        # A plan beyond that peak has no speed at it.
        ratio = peer["ms"] / mine["ms"] if mine["peak_bytes"] <= peer["peak_bytes"] else 0.0
    plan = f"{dtype}, T = 4: images per second of a plan within its peak, relative to {MEMOPT}"
    found.append(target(plan, "at least", FRONTIER, ratio))
    if device == "cpu":
        found.append(
            target(text.format("loss of the first step off the threshold,"), "at most", LOSS, error)
        )
    return found


def draw(rows: list[dict], device: str):
    """Per dtype the images per second and the peak memory against T, and one against the other."""
    rows = [row for row in rows if not row.get("refused")]
    if not rows:
        return None
    dtypes, names = distinct(rows, "dtype"), distinct(rows, "contender")
    looks = {name: {"color": COLOURS[i % len(COLOURS)]} for i, name in enumerate(names)}
    figure, axes = report.grid_of_axes(len(dtypes), 3, 5.0, 3.4)
    for dtype, line in zip(dtypes, axes):
        some = pick(rows, dtype=dtype)
        steps = sorted(distinct(some, "steps"))
        batches = "/".join(map(str, distinct(some, "batch")))
        for axis, key, what, scale in (
            (line[0], "images_per_s", "images per second", 1.0),
            (line[1], "peak_bytes", "peak memory, MB", 1e-6),
        ):
            found = {(r["contender"], r["steps"]): scale * r[key] for r in some if key in r}
            heights = {name: [found.get((name, t)) for t in steps] for name in names}
            report.bars(axis, [f"T = {t}" for t in steps], heights, looks)
            axis.set_title(f"{what}, {dtype}, {batches} images", fontsize=9)
        _frontier(line[2], some, looks)
    report.legend(figure)
    return figure


def _frontier(axis, rows: list[dict], looks: dict) -> None:
    """Images per second against the peak memory, a point for each contender: up and to the left is
    better."""
    steps = next((row["steps"] for row in rows if "images_per_s" in row), None)
    for row in pick(rows, steps=steps):
        if "images_per_s" in row:
            at, name = (1e-6 * row["peak_bytes"], row["images_per_s"]), row["contender"]
            axis.plot(*at, "o", **looks[name])
            axis.annotate(name, at, fontsize=6, xytext=(4, 3), textcoords="offset points")
    axis.set_xlabel("peak memory, MB", fontsize=8)
    axis.set_title("nothing was timed" if steps is None else f"images per second, T = {steps}",
                   fontsize=9)  # fmt: skip
    axis.grid(alpha=0.3)
    axis.margins(0.3, 0.15)
