"""What a run leaves to read: metrics.jsonl, accuracy.png and a printed summary."""

import json
from pathlib import Path

from snnfast.data.extras import require
from snnfast.train.checkpoint import write_atomic

METRICS, PLOT = "metrics.jsonl", "accuracy.png"


class Metrics:
    """Rows of numbers, one JSON object a line, appended as they come; kept in ``rows``, too."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        path.write_text("")

    def add(self, row: dict) -> None:
        """Append a row; its "phase" is "teacher", "student" (one row an epoch) or "result"."""
        with self.path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self.rows.append(row)

    def of(self, phase: str) -> list[dict]:
        """The rows of one phase."""
        return [row for row in self.rows if row["phase"] == phase]


def plot_accuracy(metrics: Metrics, path: Path, title: str) -> None:
    """Test accuracy over the epochs (left) and over the timesteps of one pass (right)."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    student, teacher = metrics.of("student"), metrics.of("teacher")
    final = [100 * value for value in student[-1]["test_accuracy"]]
    reached = 100 * teacher[-1]["test_accuracy"][0]
    steps = range(1, len(final) + 1)

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    curves = [(teacher, 0, "teacher", "0.4")]
    curves += [(student, t - 1, f"T = {t}", f"C{t - 1}") for t in sorted({1, len(final)})]
    for rows, t, label, color in curves:
        left.plot(
            [row["epoch"] for row in rows],
            [100 * row["test_accuracy"][t] for row in rows],
            color=color,
            label=label,
            marker=".",
            linestyle="--" if rows is teacher else "-",
        )
    left.set(xlabel="epoch", ylabel="test accuracy (%)", title=title)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="lower right")

    right.axhline(reached, color="0.4", linestyle="--", label=f"teacher {reached:.1f}")
    right.plot(steps, final, marker="o", label="student")
    for t, value in zip(steps, final, strict=True):
        right.annotate(
            f"{value:.1f}", (t, value), xytext=(0, 7), textcoords="offset points", ha="center"
        )
    low, high = min(*final, reached), max(*final, reached)
    margin = max(0.3 * (high - low), 0.3)
    right.set(
        xlabel="timesteps (one pass, mean of logits)",
        ylabel="test accuracy (%)",
        title="full range of timesteps",
        xticks=list(steps),
        xlim=(0.6, len(final) + 0.4),
        ylim=(low - margin, high + margin),
    )
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_atomic(path, lambda part: figure.savefig(part, dpi=120))


def summary(metrics: Metrics) -> str:
    """The printed end of a run, from its "result" row and its last epochs."""
    result = metrics.of("result")[0]
    student, teacher = metrics.of("student"), metrics.of("teacher")
    final = student[-1]["test_accuracy"]
    best = max(student, key=lambda row: row["test_accuracy"][-1])
    images = result["test_images"]
    lines = [
        f"teacher  test accuracy {100 * teacher[-1]['test_accuracy'][0]:.1f} % ({images} images)",
        "student  test accuracy at every T, out of one pass (last epoch; mean of logits):",
        "           " + "".join(f"T={t:<6}" for t in range(1, len(final) + 1)),
        "           " + "".join(f"{100 * value:<8.1f}" for value in final) + "%",
        f"         best epoch {best['epoch']} of {student[-1]['epoch']}: "
        f"{100 * best['test_accuracy'][-1]:.1f} % at T={len(final)}",
        f"one training step of the student (forward, loss, backward; batch {result['batch_size']}, "
        f"T={len(final)}, {result['hardware']}):",
    ]
    if result["max_logit_difference"] == 0:
        fused, loop = result["step_ms"], result["loop_step_ms"]
        lines.append(
            f"         fused neurons {fused:.1f} ms, torch time loop {loop:.1f} ms: "
            f"{loop / fused:.2f} times as fast, same weights, same logits to the bit"
        )
    else:
        lines.append(
            "         not shown: the fused neurons and the torch time loop differ by "
            f"{result['max_logit_difference']:g} in the logits"
        )
    return "\n".join(lines)
