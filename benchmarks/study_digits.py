"""The training objectives compared on real digits, over seeds, at every number of timesteps.

    python benchmarks/study_digits.py                     # about 45 minutes on one core
    python benchmarks/study_digits.py --seeds 0 1         # some of the seeds; can be gone on with

Every seed has one teacher and one set of first weights, batches and augmentations, which all
objectives share; so differences between objectives are paired by seed. Accuracy is that of the
last epoch, never of the best. The set-up (network, teacher, schedule) was fixed on mean-logit
cross-entropy alone.
"""

import argparse
import math
import statistics
from pathlib import Path

import environment
import torch
from report import write_json
from scipy import stats

import snnfast
from snnfast.train import build
from snnfast.train.config import load
from snnfast.train.evaluate import accuracy
from snnfast.train.run import train

RECIPE = "digits_study"
BASELINE = "mean-logit CE"
METHODS = {
    BASELINE: {"objective": "mean_ce"},
    "per-step CE": {"objective": "step_ce"},
    "TWKD, self mean": {"objective": "twkd", "twkd.self_target": "mean"},
    "TWKD, self correct": {"objective": "twkd", "twkd.self_target": "correct"},
    "TSER": {"objective": "tser"},
    "TSSD": {"objective": "tssd", "aux_head": "layer2"},
}
PACKAGES = ("snnfast", "torch")
SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="the runs' outputs")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/<device>")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all runs")
    arguments = parser.parse_args()
    extra = dict(item.split("=", 1) for item in arguments.set)
    device = torch.device("cpu")
    about = environment.environment(device, PACKAGES)
    slug = environment.device_slug(device)  # the runs themselves use one thread
    output = arguments.output or Path(__file__).parent / "results" / slug

    found = {"teacher": {}, **{name: {} for name in METHODS}}
    for seed in arguments.seeds:
        teacher = arguments.runs / f"teacher-{seed}"
        kept = _train(teacher, seed, extra | _teacher(extra))
        found["teacher"][seed] = kept
        for name, options in METHODS.items():
            folder = arguments.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            given = extra | options | {"teacher.checkpoint": str(teacher)}
            found[name][seed] = _train(folder, seed, given)
            print(f"seed {seed} {name:20}", " ".join(f"{100 * v:.1f}" for v in found[name][seed]))
    report = summary(found) | {"environment": about}
    # Of one seed there is no deviation: not a number.
    write_json(output / "study_digits.json", report, allow_nan=True)
    print(table(report))
    plot(report, output / "study_digits.png")


def _teacher(extra: dict) -> dict:
    """The keys that train the recipe's teacher as a network of its own."""
    own = load(RECIPE, extra).teacher
    return {"model": own.model, "objective": "mean_ce", "timesteps": "1",
            "epochs": str(own.epochs), "lr": str(own.lr)}  # fmt: skip


def _train(folder: Path, seed: int, options: dict) -> list[float]:
    """Train, or go on, or find finished; accuracy at 1 .. T of the last epoch's weights."""
    shared = {"output": str(folder), "seed": str(seed), "resume": "auto", "threads": "1"}
    config = load(RECIPE, shared | options)
    train(config)
    device = torch.device("cpu")
    data = build.load_data(config, device)
    return accuracy(snnfast.load(folder), data.test, data.prepare, config.timesteps)


def summary(found: dict[str, dict[int, list[float]]]) -> dict:
    """Mean and standard deviation over the seeds, and paired differences to the baseline with 95 %
    intervals (Student's t), in percent; ``found`` has accuracies [T] by objective and seed."""
    teacher = [100 * values[0] for values in found["teacher"].values()]
    rows = {}
    for name in METHODS:
        steps = range(len(next(iter(found[name].values()))))
        own = [[100 * v[t] for v in found[name].values()] for t in steps]
        base = [[100 * v[t] for v in found[BASELINE].values()] for t in steps]
        differences = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, base)]
        rows[name] = {
            "accuracy": own,
            "mean": [statistics.mean(v) for v in own],
            "sd": [_sd(v) for v in own],
            "difference": [statistics.mean(v) for v in differences],
            "half_interval": [_half(v) for v in differences],
        }
    return {
        "recipe": RECIPE,
        "seeds": list(found["teacher"]),
        "teacher": {"accuracy": teacher, "mean": statistics.mean(teacher), "sd": _sd(teacher)},
        "methods": rows,
    }


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _half(values: list[float]) -> float:
    """Half of the 95 % interval of the mean."""
    if len(values) < 2:
        return math.nan
    return stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def table(report: dict) -> str:
    """Markdown: accuracies, then differences to the baseline."""
    methods, teacher = report["methods"], report["teacher"]
    steps = range(1, len(methods[BASELINE]["mean"]) + 1)
    head = "| " + " | ".join(["objective", *(f"T={t}" for t in steps)]) + " |"
    rule = "|" + "---|" * (len(steps) + 1)
    lines = [f"teacher {teacher['mean']:.2f} ± {teacher['sd']:.2f} %", "", head, rule]
    for name, row in methods.items():
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(row["mean"], row["sd"])]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", f"paired difference to {BASELINE}, 95 % interval", "", head, rule]
    for name, row in methods.items():
        if name != BASELINE:
            cells = [f"{d:+.2f} ± {h:.2f}" for d, h in zip(row["difference"], row["half_interval"])]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Accuracy and paired differences against T."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    methods = report["methods"]
    for i, (name, row) in enumerate(methods.items()):
        # Side by side, or the bars of close curves would hide one another.
        places = [t + 0.06 * (i - len(methods) / 2) for t in range(1, len(row["mean"]) + 1)]
        style = {"fmt": "o-", "ms": 4, "lw": 1, "capsize": 2, "color": f"C{i}", "label": name}
        left.errorbar(places, row["mean"], row["sd"], **style)
        if name != BASELINE:
            right.errorbar(places, row["difference"], row["half_interval"], **style)
    left.axhline(report["teacher"]["mean"], color="0.4", ls="--", label="teacher (ANN)")
    right.axhline(0, color="C0", lw=1)
    seeds = len(report["seeds"])
    left.set(ylabel="test accuracy (%)", title=f"mean and standard deviation, {seeds} seeds")
    right.set(ylabel="points", title=f"paired difference to {BASELINE}, 95 % interval")
    for axes in (left, right):
        axes.set_xlabel("timesteps (one pass, mean of logits)")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
