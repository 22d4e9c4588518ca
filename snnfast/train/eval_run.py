"""``snnfast eval DIR``: one pass over the test data; accuracy at every T, early exit, energy."""

import json
from pathlib import Path

import torch

from snnfast.distill import anytime, full_range
from snnfast.monitoring import energy
from snnfast.packages import require
from snnfast.train import build
from snnfast.train.checkpoint import write_atomic
from snnfast.train.config import ConfigError
from snnfast.train.config import load as load_config
from snnfast.train.evaluate import batches
from snnfast.train.folder import EVAL, EVAL_PLOT
from snnfast.train.load import CONFIG, load
from snnfast.train.loop import show, spiking, still
from snnfast.train.objective import inference_steps

THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
SAMPLES = 250
"""Test samples whose activity is counted."""


def run(
    directory: Path,
    *,
    timesteps: int | None = None,
    weights: str = "model",
    root: str | None = None,
    device: str = "auto",
) -> dict:
    """Evaluate the run in ``directory``: what :func:`table` shows and :func:`write` keeps.

    ``timesteps``: the largest T, as trained where None; sequences with fewer frames are repeated.
    ``root``: where the data lies, if not where it did.

    Raises CheckpointError or ConfigError for what cannot be read, ImportError without matplotlib.
    """
    require("matplotlib")
    chosen = build.choose_device(device)
    model = load(directory, weights=weights, device=chosen)
    config = load_config(str(directory / CONFIG))
    if root is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    data = build.load_data(config, chosen)
    if model.classes is not None and data.classes != model.classes:
        odd = sorted(set(model.classes) ^ set(data.classes))[:3]
        raise build.ConfigError(
            f"data: the classes must be those of training, {len(model.classes)}, got "
            f"{len(data.classes)} (not in both: {', '.join(odd) or 'their order'})"
        )
    steps = timesteps or inference_steps(config)
    return {
        "run": str(directory),
        "weights": weights,
        "timesteps": steps,
        **_pass(model, data, steps),
        "activity": _activity(model, data, steps),
    }


def write(found: dict, directory: Path) -> None:
    """Write ``eval.json`` and ``eval.png`` into ``directory``. Raises ConfigError."""
    try:
        text = json.dumps(found, indent=1)
        write_atomic(directory / EVAL, lambda part: part.write_text(text))
        write_atomic(directory / EVAL_PLOT, lambda part: _plot(found, part))
    except OSError as error:
        raise ConfigError(f"{EVAL} and {EVAL_PLOT} are not written: {error}") from error


@torch.no_grad()
def _pass(model, data, steps: int) -> dict:
    """Accuracy at 1 .. T and early exit over the thresholds, out of one pass."""
    count, right = 0, torch.zeros(steps, dtype=torch.float64)
    exits = torch.zeros(len(THRESHOLDS), 2, dtype=torch.float64)  # right, steps
    for logits, targets in batches(model, data.test, data.prepare, steps):
        if len(targets) == 0:
            continue
        count += len(targets)
        right += (full_range(logits, targets) * len(targets)).round().cpu()
        for row, threshold in zip(exits, THRESHOLDS, strict=True):
            prediction, taken = anytime(logits, threshold)
            row += torch.stack([(prediction == targets).sum(), taken.sum()]).cpu()
    if count == 0:
        raise ConfigError("there are no samples to test on")
    return {
        "samples": count,
        "accuracy": (right / count).tolist(),
        "early_exit": [
            {"threshold": threshold, "accuracy": a / count, "mean_timesteps": t / count}
            for threshold, (a, t) in zip(THRESHOLDS, exits.tolist(), strict=True)
        ],
    }


def _activity(model, data, steps: int) -> dict:
    """Firing rates, synaptic operations and energy per layer, over some of the test samples."""
    some = torch.arange(0, len(data.test), max(1, len(data.test) // SAMPLES))[:SAMPLES]
    ready = (data.prepare(images, seed=0) for images, _ in data.test.batches(some.split(50)))
    if not spiking(model):
        return energy.measure(model, map(still, ready)).asdict()
    shown = (show(x, steps)[:steps] if x.dim() == 5 else x for x in ready)
    return energy.measure(model, shown, steps).asdict()


def table(found: dict) -> str:
    """What is printed."""
    steps, accuracy = found["timesteps"], found["accuracy"]
    lines = [
        f"{found['run']}: {found['samples']} test samples, {found['weights']} weights",
        "",
        "timesteps " + "".join(f"{t:>8}" for t in range(1, steps + 1)),
        "accuracy  " + "".join(f"{100 * value:8.2f}" for value in accuracy) + " %",
        "",
        "early exit: stop at the first step whose confidence reaches the threshold",
        "threshold   accuracy   mean timesteps",
    ]
    lines += [
        f"{row['threshold']:9g} {100 * row['accuracy']:8.2f} % {row['mean_timesteps']:13.3f}"
        for row in found["early_exit"]
    ]
    return "\n".join([*lines, "", *_layers(found["activity"])])


def _layers(found: dict) -> list[str]:
    """Firing rates, operations and energy, a line a layer."""
    width = max(len(layer["name"]) for layer in found["layers"])
    head = ("MMACs", "runs", "rate %", "MSOPs", "uJ", "memory uJ")
    lines = [
        f"activity over {found['samples']} samples at T = {found['timesteps']}; energy at 45 nm: "
        f"{energy.MAC_PJ} pJ a MAC, {energy.AC_PJ} pJ a synaptic operation, "
        f"{energy.BIT_PJ:.4g} pJ a bit of memory",
        f"{'layer':{width}}" + "".join(f"{name:>10}" for name in head),
    ]
    for layer in found["layers"]:
        values = (layer["macs"] / 1e6, layer["runs"], 100 * layer["rate"], layer["sops"] / 1e6,
                  layer["energy_pj"] / 1e6, layer["memory_pj"] / 1e6)  # fmt: skip
        why = f"  MAC: {layer['why_mac']}" if layer["why_mac"] else ""
        cells = "".join(f"{value:10.4g}" for value in values)
        lines.append(f"{layer['name']:{width}}{cells}{why}")
    lines.append("energy of a sample, uJ     operations      memory")
    whose = {"this network": ""}
    if found["spiking"]:
        whose |= {"the same layers as an ANN": "ann_"}
        whose |= {f"ANN of {found['bits']}-bit activations": "matched_"}
    for who, name in whose.items():
        operations, memory = (found[f"{name}{what}_pj"] / 1e6 for what in ("energy", "memory"))
        lines.append(f"{who:25}{operations:12.4g}{memory:12.4g}")
    return lines


def _plot(found: dict, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    accuracy = [100 * value for value in found["accuracy"]]
    left.plot(range(1, len(accuracy) + 1), accuracy, marker="o")
    left.set(xlabel="timesteps (one pass, mean of logits)", title="full range of timesteps")
    left.xaxis.get_major_locator().set_params(integer=True)
    exits = found["early_exit"]
    middle.plot(
        [row["mean_timesteps"] for row in exits],
        [100 * row["accuracy"] for row in exits],
        marker=".",
        label="early exit",
    )
    middle.plot(range(1, len(accuracy) + 1), accuracy, "o--", color="0.6", label="fixed T")
    middle.set(xlabel="mean timesteps", title="early exit")
    middle.legend()
    for axes in (left, middle):
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
    layers = found["activity"]["layers"]
    right.barh([layer["name"] for layer in layers], [100 * layer["rate"] for layer in layers])
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=min(8, max(3, 200 / len(layers))))
    right.set(xlabel="nonzero inputs (%)", title="firing rate of every layer's input")
    figure.savefig(path, dpi=120)
