"""What a recipe names: its device, data and networks. What a builder refuses is a ConfigError."""

from pathlib import Path

import torch
from torch import nn

from snnfast import data as datasets
from snnfast.data.base import Data
from snnfast.models import create_model, is_ann
from snnfast.train import checkpoint
from snnfast.train.checkpoint import STUDENT, TEACHER
from snnfast.train.config import Config, ConfigError, DataConfig
from snnfast.train.evaluate import logits_of
from snnfast.train.loop import seed_of
from snnfast.train.objective import inference_steps, wants_teacher

HARMLESS = ("root", "workers", "on_error")


def configured(key: str, build, *args, **kwargs):
    """Build what the config describes; what its builder refuses is an error of that key."""
    try:
        return build(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error


def choose_device(name: str) -> torch.device:
    """The torch device of that name; "auto": cuda where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used: {reason}") from error
    return device


def load_data(config: Config, device: torch.device) -> Data:
    """The data set of a recipe; the options that it leaves alone are the data set's own."""
    given = config.data.model_dump()
    defaults = DataConfig().model_dump()
    options = {k: v for k, v in given.items() if k not in ("name", "frames") and v != defaults[k]}
    known = configured("data", datasets.data_options, given["name"])
    for harmless in HARMLESS:  # to a set that has no files to find or to decode
        if harmless not in known:
            options.pop(harmless, None)
    if "timesteps" in known:
        options["timesteps"] = given["frames"] or inference_steps(config)
    return configured("data", datasets.load_data, given["name"], device=device, **options)


def teacher(config: Config, data: Data, device: torch.device) -> nn.Module | None:
    """The ANN that the recipe's objective learns from, None where it has none."""
    if not wants_teacher(config):
        return None
    name = config.teacher.model
    model = configured("teacher.model", _model, config, data, device, name)
    if not is_ann(name):
        raise ConfigError(f"teacher.model: must be an ANN, got {name}")
    return model


def student(config: Config, data: Data, device: torch.device, **changes) -> nn.Module:
    """The network of a recipe; ``changes`` to its neurons' arguments."""
    neuron = {} if is_ann(config.model) else config.neuron.model_dump() | changes
    aux_head = config.aux_head
    return configured(
        "model", _model, config, data, device, config.model, aux_head=aux_head, **neuron
    )


def load_teacher(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with a teacher's weights: a file, or a run's directory, where a teacher comes
    before a network that is one. Raises ConfigError."""
    if path.is_dir():
        inside = [path / name for name in (TEACHER, STUDENT) if (path / name).is_file()]
        if not inside:
            raise ConfigError(f"teacher.checkpoint: {path} holds neither {TEACHER} nor {STUDENT}")
        path = inside[0]
    try:
        checkpoint.fill(model, checkpoint.load_weights(path), path)
    except checkpoint.CheckpointError as error:
        raise ConfigError(f"teacher.checkpoint: {error}") from error


def _model(config: Config, data: Data, device: torch.device, name: str, **arguments) -> nn.Module:
    """A network with first weights of its own seed; one image shows that it can run."""
    with torch.random.fork_rng(devices=[]):
        role = "teacher" if name == config.teacher.model else "student"
        torch.manual_seed(seed_of(config.seed, role, "weights"))
        model = create_model(
            name,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            image_size=data.image_size,
            timesteps=config.timesteps,
            **arguments,
        )
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    model = model.to(device, memory_format=layout)
    image = torch.zeros(1, data.in_channels, data.image_size, data.image_size, device=device)
    logits_of(model.eval(), image)
    return model.train()
