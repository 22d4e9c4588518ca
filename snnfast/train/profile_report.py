"""A profile of a model by name, as a table and as a plot."""

from pathlib import Path

import torch

from snnfast.models import create_model
from snnfast.packages import require
from snnfast.train.build import choose_device, configured
from snnfast.train.checkpoint import write_atomic
from snnfast.train.config import ConfigError
from snnfast.train.profile import Profile, profile

PLOT = "profile.png"


def run(
    name: str,
    *,
    timesteps: int,
    batch: int,
    image_size: int,
    channels: int,
    classes: int,
    device: str,
    dtype: str,
    output: Path | None,
) -> tuple[Profile, str]:
    """Profile ``create_model(name)`` on random images; the profile, and what it is of. Raises
    ConfigError before any work, also where ``output`` cannot be made, ImportError without
    matplotlib."""
    place = choose_device(device)
    model = configured(
        "profile", create_model, name, num_classes=classes, in_channels=channels,
        image_size=image_size, timesteps=timesteps,
    ).to(place)  # fmt: skip
    if output is not None:
        require("matplotlib")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output: {error}") from error
    images = torch.rand(batch, channels, image_size, image_size, device=place)
    found = profile(model, images, getattr(torch, dtype))
    title = (
        f"{name}, T = {timesteps}, batch {batch} x {channels} x {image_size} x {image_size}, "
        f"{dtype}, {place}"
    )
    return found, title


def write(found: Profile, output: Path, title: str) -> Path:
    """The plot in ``output``. Raises ConfigError."""
    try:
        plot(found, output / PLOT, title)
    except OSError as error:
        raise ConfigError(f"{PLOT} is not written: {error}") from error
    return output / PLOT


def table(found: Profile) -> str:
    """One line a layer, and one for the whole step."""
    head = ("layer", "kind", "output", "forward ms", "backward ms", "moves MB", "floor MB",
            "x floor", "keeps MB", "floor MB")  # fmt: skip
    rows = []
    for layer in found.layers:
        at_best = found.floor_ms(layer)
        rows.append(
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)) or "-",
                f"{layer.forward_ms:.3f}",
                f"{layer.backward_ms:.3f}",
                _mb(layer.moved),
                _mb(layer.floor),
                f"{layer.ms / at_best:.1f}" if at_best else "-",
                _mb(layer.kept),
                _mb(layer.kept_floor),
            )
        )
    total = [_mb(sum(getattr(layer, key) or 0 for layer in found.layers))
             for key in ("moved", "floor", "kept", "kept_floor")]  # fmt: skip
    rows.append(("whole step", "", "", f"{found.forward_ms:.3f}", f"{found.backward_ms:.3f}",
                 *total[:2], "", *total[2:]))  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row):
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    note = (
        f"a copy moves {found.copy_bandwidth / 1e9:.1f} GB/s here; x floor is a layer's time over "
        "that of its floor at this speed.\nFloors: batch norm and the neurons behind it in one op, "
        "spikes kept as bits."
    )
    return "\n".join([line(head), rule, *map(line, rows[:-1]), rule, line(rows[-1]), note])


def _mb(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f}"


def plot(found: Profile, path: Path, title: str) -> None:
    """Time (left) and bytes kept (right) of every layer, with the floors as ticks."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = found.layers
    at = range(len(layers))
    figure = Figure(figsize=(11, 1.6 + 0.34 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    forward = [layer.forward_ms for layer in layers]
    left.barh(at, forward, color="#0072B2", label="forward")
    backward = [layer.backward_ms for layer in layers]
    left.barh(at, backward, left=forward, color="#56B4E9", label="backward")
    right.barh(at, [layer.kept / 1e6 for layer in layers], color="#009E73", label="kept")
    ticks = {"color": "black", "marker": "|", "linestyle": "none", "markersize": 11,
             "markeredgewidth": 2, "label": "floor"}  # fmt: skip
    best = [(i, found.floor_ms(layer)) for i, layer in enumerate(layers) if layer.floor]
    left.plot([ms for _, ms in best], [i for i, _ in best], **ticks)
    kept = [(i, layer.kept_floor) for i, layer in enumerate(layers) if layer.kept_floor is not None]
    right.plot([count / 1e6 for _, count in kept], [i for i, _ in kept], **ticks)
    left.set_yticks(at, [f"{layer.name}  {layer.kind}".rstrip() for layer in layers], fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="ms in a training step (floor: at the speed of a copy)")
    right.set(xlabel="MB kept for backward")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    write_atomic(path, lambda part: figure.savefig(part, dpi=120))
