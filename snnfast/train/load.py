"""A finished run as a model in your own code: ``snnfast.load(DIR)``."""

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from snnfast.models import create_model, is_ann
from snnfast.train import checkpoint, config, preprocess
from snnfast.train.checkpoint import EMA, STUDENT, CheckpointError
from snnfast.train.objective import inference_steps

CONFIG = "config.toml"
SHAPE = ("num_classes", "in_channels", "image_size")
WEIGHTS = {"model": STUDENT, "ema": EMA}


def load(
    directory: str | Path, *, weights: str = "model", device: str | torch.device = "cpu"
) -> nn.Module:
    """The trained network of a run, in evaluation mode.

    Args:
        directory: ``output`` of ``snnfast train``.
        weights: "model", the weights of the last epoch, or "ema", the averaged ones.
        device: where to.

    Returns the model without its auxiliary head; T for images is the recipe's (T_s after TSSD).
    ``model.preprocess`` (:class:`snnfast.train.preprocess.Preprocess`) makes of any images what the
    model was trained on, ``model.classes`` are the names of its classes by label. A run of 0.1.0
    over ``folder`` or ``imagenet`` has no names: ``classes`` is then None, with a warning.

    Raises ValueError for other ``weights``, CheckpointError where a file is missing or damaged or
    weights are not finite, of another dtype or negative variances, and ConfigError for a config
    that cannot be read.

        >>> model = snnfast.load("runs/digits_twkd")
        >>> logits = model(model.preprocess(images))  # [T, B, classes]
    """
    if weights not in WEIGHTS:
        raise ValueError(f"load: weights must be model or ema, got {weights!r}")
    directory = Path(directory)
    path = directory / WEIGHTS[weights]
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: not a run: it is no directory")
    if not (directory / CONFIG).is_file() or not path.is_file():
        raise CheckpointError(f"{directory}: not a run: it has no {CONFIG} or no {path.name}")
    recipe = config.load(str(directory / CONFIG))
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})["shape"])
            shape = {name: int(found[name]) for name in SHAPE}
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or not a run's: {error}") from error
    try:
        options = {} if is_ann(recipe.model) else recipe.neuron.model_dump()
        with torch.random.fork_rng(devices=[]):  # first weights, which are replaced
            model = create_model(
                recipe.model, **shape, timesteps=inference_steps(recipe), **options
            )
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: no such model as {CONFIG} names: {error}") from error
    checkpoint.fill(model, checkpoint.load_weights(path), path)
    if preprocess.KEY in found:
        model.preprocess = preprocess.of_weights(found[preprocess.KEY], shape, path)
    else:
        model.preprocess = preprocess.of_config(recipe.data, shape)
    model.classes = model.preprocess.classes
    if model.classes is None:
        warnings.warn(
            f"load: {directory} does not hold the names of its classes, the folders of "
            f"{recipe.data.name} in their order: model.classes is None",
            stacklevel=2,
        )
    return model.to(device).eval()
