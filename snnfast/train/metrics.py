"""What a run leaves to read: metrics.jsonl, accuracy.png and a printed summary."""

import importlib.util
import json
import os
from pathlib import Path

from snnfast.packages import require
from snnfast.train.checkpoint import CheckpointError, write_atomic
from snnfast.train.folder import BOARD, clear_board

# What every row of an epoch has, and the end of a run shows.
EPOCH = ("epoch", "step", "test_accuracy", "images", "loading_seconds", "step_seconds")


class Metrics:
    """Rows of numbers, one JSON object a line, appended as they come; kept in ``rows``, too."""

    def __init__(self, path: Path, rows: list[dict] | None = None, write: bool = True):
        """Go on after ``rows``, in place of what is in the file; ``write``: this rank does."""
        self.path, self.write = path, write
        self.rows: list[dict] = list(rows or ())
        self._board = None
        if write:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
            write_atomic(path, lambda part: part.write_text(text))

    def to_tensorboard(self) -> None:
        """Write every row's numbers for TensorBoard, too, where it is installed: those there are,
        in place of an earlier run's, and those to come."""
        if not self.write or importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        clear_board(self.path.parent)
        self._board = SummaryWriter(self.path.parent / BOARD)
        for row in self.rows:
            self._show(row)

    def add(self, row: dict) -> None:
        """Append a row; its "phase" is "teacher", "student" (one row an epoch) or "result"."""
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)
        if self._board is not None:
            self._show(row)

    def _show(self, row: dict) -> None:
        for name, value in row.items():
            if name in ("phase", "epoch", "step") or "step" not in row:
                continue
            if name.endswith("_accuracy") and isinstance(value, list):
                value = value[-1]
            self._board.add_scalar(f"{row['phase']}/{name}", value, row["step"])
        self._board.flush()

    def of(self, phase: str) -> list[dict]:
        """The rows of one phase."""
        return [row for row in self.rows if row["phase"] == phase]


def read(path: Path) -> list[dict]:
    """The rows of a metrics file; a last line that was cut off is left out. Raises CheckpointError
    for a file that holds something else."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "phase" not in row:
                raise ValueError("not a row of a run")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise CheckpointError(f"{path}: line {number} is damaged: {error}") from error
        rows.append(row)
    return rows


def checked(rows: list) -> list[dict]:
    """``rows``, if they are those of epochs. Raises ValueError that names the first that is not."""
    lengths: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        problem = "it is not an epoch's"
        if isinstance(row, dict) and row.get("phase") in ("teacher", "student"):
            lacks = [name for name in EPOCH if name not in row]
            wrong = [name for name in row if name != "phase" and not _plottable(name, row[name])]
            problem = f"{lacks[0]} is missing" if lacks else f"{wrong[0]} is none" if wrong else ""
        if not problem:
            tested = len(row["test_accuracy"])
            if lengths.setdefault(row["phase"], tested) != tested:
                problem = f"test_accuracy must have {lengths[row['phase']]} numbers, got {tested}"
        if problem:
            raise ValueError(f"row {number} of its metrics: {problem}")
    return rows


def _plottable(name, value) -> bool:
    """Whether ``value`` is a finite number, or where accuracies of T timesteps stand some."""
    if name in ("test_accuracy", "ema_accuracy"):
        return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))
    return isinstance(name, str) and _is_number(value)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63  # false for NaN


def plot_accuracy(metrics: Metrics, path: Path, title: str) -> None:
    """Test accuracy over the epochs (left) and over the timesteps of one pass (right)."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    student, teacher = metrics.of("student"), metrics.of("teacher")
    final = [100 * value for value in student[-1]["test_accuracy"]]
    steps = range(1, len(final) + 1)

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    curves = [(teacher, 0, "teacher", "0.4")]
    curves += [(student, t - 1, f"T = {t}", f"C{t - 1}") for t in sorted({1, len(final)})]
    for rows, t, label, color in curves:
        if not rows:
            continue
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

    shown = list(final)
    if teacher:
        reached = 100 * teacher[-1]["test_accuracy"][0]
        shown.append(reached)
        right.axhline(reached, color="0.4", linestyle="--", label=f"teacher {reached:.1f}")
    right.plot(steps, final, marker="o", label="student")
    for t, value in zip(steps, final, strict=True):
        right.annotate(
            f"{value:.1f}", (t, value), xytext=(0, 7), textcoords="offset points", ha="center"
        )
    low, high = min(shown), max(shown)
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
    result = metrics.of("result")[-1]
    student, teacher = metrics.of("student"), metrics.of("teacher")
    last, images = student[-1], result["test_samples"]
    final = last["test_accuracy"]
    best = max(student, key=lambda row: row["test_accuracy"][-1])
    lines = []
    if teacher:
        reached = 100 * teacher[-1]["test_accuracy"][0]
        lines.append(f"teacher  test accuracy {reached:.1f} % ({images} images)")
    lines += [
        "student  test accuracy at every T, out of one pass (last epoch; mean of logits):",
        "           " + "".join(f"T={t:<6}" for t in range(1, len(final) + 1)),
        "           " + "".join(f"{100 * value:<8.1f}" for value in final) + "%",
    ]
    if "ema_accuracy" in last:
        averaged = "".join(f"{100 * value:<8.1f}" for value in last["ema_accuracy"])
        lines.append(f"           {averaged}% with averaged weights")
    loading, stepping = last["loading_seconds"], last["step_seconds"]
    count = last["images"]
    lines += [
        f"         best epoch {best['epoch']} of {last['epoch']}: "
        f"{100 * best['test_accuracy'][-1]:.1f} % at T={len(final)}",
        f"         last epoch: {count / max(stepping, 1e-9):.0f} images/s in the step, "
        f"{count / max(loading, 1e-9):.0f} images/s from the loader",
    ]
    return "\n".join(lines + (_step_lines(result, len(final)) if "step_ms" in result else []))


def _step_lines(result: dict, steps: int) -> list[str]:
    """The time of one training step, fused and as a loop over time."""
    head = (
        f"one training step of the student (forward, loss, backward; batch {result['batch_size']}, "
        f"T={steps}, {result['hardware']}):"
    )
    if result["max_logit_difference"] != 0:
        return [
            head,
            "         not shown: the fused neurons and the torch time loop differ by "
            f"{result['max_logit_difference']:g} in the logits",
        ]
    fused, loop = result["step_ms"], result["loop_step_ms"]
    return [
        head,
        f"         fused neurons {fused:.1f} ms, torch time loop {loop:.1f} ms: "
        f"{loop / fused:.2f} times as fast, same weights, same logits to the bit",
    ]
