"""What bench_train.py prints and draws: tables, the project's targets, the losses, the plot."""

from pathlib import Path

import report
from harness import number, table
from report import best_ours, pick, target, title
from train_measure import SPIKINGJELLY

SPEEDUP, MEMORY, LOSS = 1.25, 0.35, 1e-5
"""Images per second and peak memory relative to SpikingJelly's, and the difference of the losses,
float32, T = 4, 32 images of 32x32, on a CPU."""

GPU_SPEEDUP, GPU_MEMORY = 2.0, 0.5
"""Under autocast to bfloat16, over SpikingJelly's fastest."""

_CASE = ("side", "batch", "dtype", "steps")


def _where(row: dict) -> str:
    return (
        f"{row['dtype']} T = {row['steps']}, {row['batch']} images of {row['side']}x{row['side']}"
    )


def case_table(rows: list[dict]) -> str:
    """The table of one case's rows."""
    header = [_where(rows[0]), "images/s", "ms", "p20", "p80", "ours is", "kept MB", "peak MB"]
    header += ["of SJ's", "loss", "change", "loss err", "grad err", "n", "note"]
    best, peer = best_ours(rows), _peak(rows, SPIKINGJELLY)
    body = []
    for row in rows:
        ratio = row["ms"] / best if best and "ms" in row and row["kind"] == "peer" else None
        share = row["peak_bytes"] / peer if peer and row.get("peak_bytes") else None
        loss = row.get("loss")
        body.append(
            [
                row["contender"],
                *(number(row.get(key)) for key in ("images_per_s", "ms", "p20_ms", "p80_ms")),
                f"{number(ratio)}x" if ratio else "-",
                *(number(_mega(row.get(key))) for key in ("kept_bytes", "peak_bytes")),
                number(share, 2),
                "-" if loss is None else f"{loss:.6f}",
                *(_error(row.get(key)) for key in ("loss_change", "loss_error", "gradient_error")),
                str(row.get("samples", "-")),
                f"REFUSED: {row['refused']}" if row.get("refused") else _host(row),
            ]
        )
    return table(header, body)


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _host(row: dict) -> str:
    return f"host {number(row['host_ms'])} ms" if row.get("host_ms") is not None else ""


def _fastest(rows: list[dict], name: str) -> dict | None:
    """The fastest row whose contender's name begins so; the first measured one without timings."""
    found = [r for r in rows if r["contender"].startswith(name) and not r.get("refused")]
    return min(found, key=lambda row: row.get("ms", 0.0), default=None)


def _peak(rows: list[dict], name: str) -> float | None:
    row = _fastest(rows, name)
    return None if row is None else row["peak_bytes"]


def losses(rows: list[dict]) -> list[str]:
    """Every case in which a peer is faster than our fastest."""
    return report.losses(rows, _CASE, _where)


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
    if device == "cpu":
        found.append(
            target(text.format("loss of the first step off the threshold,"), "at most", LOSS, error)
        )
    return found


def summary(document: dict) -> str:
    return report.summary(document, _where)


# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#882255"]


def plot(rows: list[dict], env: dict, path: Path, disturbed: bool = False) -> str | None:
    """Per dtype the images per second and the peak memory against T; returns why there is no plot,
    or None."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed; run: pip install 'snnfast[bench]'"
    rows = [row for row in rows if not row.get("refused")]
    if not rows:
        return "no plot: nothing was measured"
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure = Figure((10.5, 3.4 * len(dtypes) + 0.9), layout="constrained")
    axes = figure.subplots(len(dtypes), 2, squeeze=False)
    handles = {}
    for dtype, line in zip(dtypes, axes):
        some = pick(rows, dtype=dtype)
        batches = "/".join(dict.fromkeys(str(row["batch"]) for row in some))
        for axis, key, what, scale in (
            (line[0], "images_per_s", "images per second", 1.0),
            (line[1], "peak_bytes", "peak memory, MB", 1e-6),
        ):
            steps = sorted({row["steps"] for row in some})
            width = 0.84 / len(names)
            for i, name in enumerate(names):
                values = {
                    r["steps"]: scale * r[key] for r in pick(some, contender=name) if key in r
                }
                at = [k + (i - (len(names) - 1) / 2) * width for k in range(len(steps))]
                heights = [values.get(t, float("nan")) for t in steps]
                colour = _COLOURS[i % len(_COLOURS)]
                drawn = axis.bar(at, heights, width, color=colour, label=name)
                labels = [number(values[t], 2) if t in values else "" for t in steps]
                axis.bar_label(drawn, labels, fontsize=6, padding=1)
                handles.setdefault(name, drawn)
            axis.set_xticks(range(len(steps)), [f"T = {t}" for t in steps])
            axis.set_title(f"{what}, {dtype}, {batches} images", fontsize=9)
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            if not any(key in row for row in some):
                axis.text(0.5, 0.5, "not timed", transform=axis.transAxes, ha="center")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4,
                  fontsize=9, frameon=False)  # fmt: skip
    figure.suptitle(title("A training step of ResNet-18", env, disturbed), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return None
