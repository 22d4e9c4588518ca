"""``snnfast report RUN...``: runs side by side, seeds of one recipe as one row."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from snnfast.packages import require
from snnfast.train import metrics
from snnfast.train.checkpoint import CheckpointError, resumable, write_atomic
from snnfast.train.config import Config, ConfigError, flat, load
from snnfast.train.folder import METRICS, go_on

MARKDOWN, PLOT = "report.md", "curves.png"
# What does not make two runs different experiments.
SAME = {"seed", "output", "device", "resume", "threads", "checkpoint_every", "time_step",
        "tensorboard", "monitor", "data.root", "data.workers", "teacher.checkpoint"}  # fmt: skip


@dataclass
class Run:
    """One run: its config, and test accuracy [T] in the last epoch and at the best last T."""

    path: Path
    config: Config
    last: list[float]
    best: float
    teacher: float | None


@dataclass
class Group:
    """The runs of one recipe over its seeds."""

    name: str
    runs: list[Run]

    def at(self, t: int) -> list[float]:
        """Accuracy of every seed at t timesteps, in percent."""
        return [100 * run.last[t - 1] for run in self.runs if len(run.last) >= t]


def run(paths: list[Path]) -> list[Group]:
    """Read runs, for :func:`markdown` to show and :func:`write` to keep.

    Raises ConfigError for a path that is no finished run, ImportError without matplotlib.
    """
    require("matplotlib")
    return grouped([read(path) for path in paths])


def write(groups: list[Group], output: Path) -> None:
    """Write ``report.md`` and ``curves.png`` into ``output``. Raises ConfigError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(output / MARKDOWN, lambda part: part.write_text(markdown(groups)))
        write_atomic(output / PLOT, lambda part: _plot(groups, part))
    except OSError as error:
        raise ConfigError(f"{MARKDOWN} and {PLOT} are not written: {error}") from error


def read(path: Path) -> Run:
    """A run from its directory."""
    for name in ("config.toml", METRICS):
        if not (path / name).is_file():
            inside = sorted(str(file.parent) for file in path.glob(f"*/{name}"))
            hint = f"; there are runs in it: {', '.join(inside)}" if inside else ""
            place = (path / name).absolute()
            raise ConfigError(f"{path} is not a run: there is no {place}{hint}")
    config = load(str(path / "config.toml"))
    # Going on writes the metrics anew, too.
    remedy = f"to go on: {go_on(path)}" if resumable(path) else "there is no checkpoint to go on"
    try:
        rows = metrics.read(path / METRICS)
        student = [row["test_accuracy"] for row in rows if row["phase"] == "student"]
        teacher = [row["test_accuracy"] for row in rows if row["phase"] == "teacher"]
        numbers = all(isinstance(v, float) for row in student + teacher for v in row)
        if not numbers or not all(student + teacher):
            raise CheckpointError(f"{path / METRICS}: damaged: an accuracy is none")
    except CheckpointError as error:
        raise ConfigError(f"{error}; {remedy}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path / METRICS}: damaged: {error!r}; {remedy}") from error
    if len(student) < config.epochs:
        raise ConfigError(
            f"{path} is not finished: {len(student)} of {config.epochs} epochs in "
            f"{METRICS}; {remedy}"
        )
    return Run(
        path,
        config,
        student[-1],
        max(row[-1] for row in student),
        teacher[-1][0] if teacher else None,
    )


def grouped(runs: list[Run]) -> list[Group]:
    """Runs by recipe; a group is named by the keys in which it differs from the others."""
    tables = [flat(run.config) for run in runs]
    differing = [
        name for name in tables[0] if len({repr(t[name]) for t in tables}) > 1 and name not in SAME
    ]
    groups: dict[tuple, Group] = {}
    for run, table in zip(runs, tables, strict=True):
        key = tuple(repr(table[name]) for name in differing)
        name = ", ".join(f"{name} {table[name]}" for name in differing) or run.config.objective
        groups.setdefault(key, Group(name, [])).runs.append(run)
    for group in groups.values():
        seeds = [run.config.seed for run in group.runs]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"two runs of {group.name!r} have the same seed")
    return list(groups.values())


def markdown(groups: list[Group]) -> str:
    """Mean ± standard deviation over the seeds of the last epoch's accuracy, per timestep."""
    most = max(len(run.last) for group in groups for run in group.runs)
    steps = range(1, most + 1)
    lines = [
        "Test accuracy in % at every number of timesteps, out of one pass, after the last epoch: "
        "mean ± standard deviation over the seeds. Best: the best epoch at the last T, which is "
        "chosen on the test data.",
        "",
        "| " + " | ".join(["run", "seeds", *(f"T={t}" for t in steps), "best", "teacher"]) + " |",
        "|" + "---|" * (most + 4),
    ]
    for group in groups:
        cells = [group.name, str(len(group.runs))]
        cells += [_spread(group.at(t)) for t in steps]
        cells.append(_spread([100 * run.best for run in group.runs]))
        teachers = [100 * run.teacher for run in group.runs if run.teacher is not None]
        cells.append(_spread(teachers))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _plot(groups: list[Group], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, group in enumerate(groups):
        steps = range(1, max(len(run.last) for run in group.runs) + 1)
        means = [statistics.mean(group.at(t)) for t in steps]
        spread = [statistics.stdev(v) if len(v := group.at(t)) > 1 else 0.0 for t in steps]
        # Side by side, or the bars of close curves would hide one another.
        places = [t + 0.04 * (i - (len(groups) - 1) / 2) for t in steps]
        axes.errorbar(places, means, spread, marker="o", ms=4, capsize=2, lw=1, label=group.name)
    axes.set(xlabel="timesteps (one pass, mean of logits)", ylabel="test accuracy (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
