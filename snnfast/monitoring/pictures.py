"""Records as text and as pictures; matplotlib is imported where one is drawn."""

import math

import torch
from torch import Tensor

from snnfast.monitoring.record import LayerRecord, Moments
from snnfast.packages import require


def table(layers: dict[str, LayerRecord]) -> str:
    rows = [("layer", "neurons", "calls", "rate", "dead", "saturated", "V", "gradient")]
    for name, record in layers.items():
        numbers = ["-"] * 5
        if record.calls:
            shares = (f"{100 * value:.1f} %" for value in (record.dead, record.saturated))
            moments = (_number(moments) for moments in (record.v, record.gradient))
            numbers = [f"{record.mean_rate:.4f}", *shares, *moments]
        rows.append((name or "(model)", record.kind, str(record.calls), *numbers))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
        lines.append("  ".join([*left, *right]).rstrip())
    return "\n".join(lines)


def _number(moments: Moments) -> str:
    mean, std = moments.overall
    which = " (last step)" if moments.last_alone else ""
    return "-" if math.isnan(mean) else f"{mean:.2e} ± {std:.1e}{which}"


def _axes(ax, width: float, height: float):
    if ax is not None:
        return ax
    return require("matplotlib.pyplot").subplots(figsize=(width, height), layout="constrained")[1]


def rates(layers: dict[str, LayerRecord], ax=None):
    seen = {name: record.rate.cpu() for name, record in layers.items() if record.calls}
    if not seen:
        raise ValueError("rates: a layer must have been called, got no call")
    steps = max(map(len, seen.values()))
    image = torch.full((len(seen), steps), math.nan, dtype=torch.float64)
    for row, rate in zip(image, seen.values()):
        row[: len(rate)] = rate
    ax = _axes(ax, 4 + 0.4 * min(steps, 30), 1.2 + 0.25 * len(seen))
    shown = ax.imshow(image.numpy(), aspect="auto", cmap="viridis", vmin=0)
    ax.figure.colorbar(shown, ax=ax, label="spikes per neuron")
    ax.set_yticks(range(len(seen)), [name or "(model)" for name in seen])
    if steps <= 30:
        ax.set_xticks(range(steps), range(1, steps + 1))
    ax.set_xlabel("timestep")
    return ax


def raster(record: LayerRecord, spikes: Tensor, neurons: int, ax=None):
    spikes = spikes[:, :neurons]
    ax = _axes(ax, 6, 4)
    t, n = spikes.nonzero().T
    ax.scatter(t + 1, n, s=12, marker="|", color="black", linewidths=1)
    ax.set_xlim(0.5, len(spikes) + 0.5)
    ax.set_ylim(-0.5, spikes.shape[1] - 0.5)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="timestep", ylabel="neuron", title=record.name)
    return ax


def potential(record: LayerRecord, trace: Tensor, neuron: int, ax=None):
    ax = _axes(ax, 6, 3)
    ax.plot(range(1, len(trace) + 1), trace.float().numpy(), marker=".", label="V behind the step")
    if record.threshold is not None and math.isfinite(record.threshold):
        ax.axhline(record.threshold, color="black", linestyle=":", label="threshold")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="timestep", ylabel="membrane potential", title=f"{record.name}, neuron {neuron}")
    ax.legend()
    return ax
