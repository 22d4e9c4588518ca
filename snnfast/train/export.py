"""``snnfast export RUN``: a trained network as a file for other programs."""

from pathlib import Path

import torch
from torch import Tensor

from snnfast.packages import require
from snnfast.train.config import ConfigError
from snnfast.train.load import load


def run(
    directory: Path,
    form: str,
    *,
    output: Path | None = None,
    step: bool = False,
    batch: int = 1,
    weights: str = "model",
) -> str:
    """Writes the network of the run in ``directory`` as ``form`` (onnx, nir or pt2); what it
    reads and gives, to show.

    ``output``: the file; by default ``<the run's name>.<form>`` in the working directory. ``step``:
    one timestep, with the states as inputs and outputs. An image is what the network is shown, for
    all its timesteps; a timestep is one of a sequence, and NIR has no time.

    Raises CheckpointError or ConfigError for a run that cannot be read, ValueError for a network
    that the format cannot say, ImportError where its package is missing, OSError.
    """
    model = load(directory, weights=weights)
    output = output or Path(f"{Path(directory).resolve().name}.{form}")
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"output must be a file in a folder that is there, got {output}")
    seen = model.preprocess
    x = torch.zeros(batch, seen.channels, seen.size, seen.size)
    if hasattr(model, "timesteps") and (seen.frames or step or form == "nir"):
        x = x.expand(model.timesteps, *x.shape).clone()
    if form == "nir":
        from snnfast.interop.nir import to_nir

        graph = to_nir(model, x)
        require("nir", "nir").write(output, graph)
        return f"{output}\n{len(graph.nodes)} nodes"
    rest = _write(form)(model, x, output, step=step)
    with torch.no_grad():
        y = model(x)
    x, y = (x[0], y[0]) if step else (x, y)
    shown = {"x": x} | rest | {"->": None, "y": y} | {f"{name}.next": v for name, v in rest.items()}
    return "\n".join([str(output), *(_line(name, t) for name, t in shown.items())])


def _write(form: str):
    if form == "onnx":
        from snnfast.interop.onnx import export
    else:
        from snnfast.interop.pt2 import export
    return export


def _line(name: str, tensor: Tensor | None) -> str:
    return name if tensor is None else f"{name} {list(tensor.shape)}"
