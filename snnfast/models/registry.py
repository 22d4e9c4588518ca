"""Models by name."""

import difflib
import fnmatch
from collections.abc import Callable

from torch import nn

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str):
    """Class decorator: make the class what ``create_model(name)`` builds."""

    def add(cls):
        _MODELS[name] = cls
        return cls

    return add


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted. ``list_models("ann_*")``"""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    timesteps: int = 4,
    **neuron,
) -> nn.Module:
    """A new model with random weights (from torch's global generator).

    Spiking models are called as ``model(image [B, C, H, W], timesteps=None)`` or
    ``model(sequence [T, B, C, H, W])`` and return logits [T, B, num_classes], one per timestep;
    predictions are the argmax of their mean over time. ANN models take images and return
    [B, num_classes].

    Args:
        name: one of :func:`list_models`.
        image_size: height and width of the images, in pixels.
        timesteps: T for images, where the call names none.
        neuron: arguments of :class:`snnfast.nn.LIF` (``tau``, ``surrogate``, ``backend``, ...);
            ANN models have none.

    Raises ValueError or TypeError that names the argument.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(str(name), _MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"create_model: name must be one of {', '.join(list_models())}, got {name!r}{hint}"
        )
    sizes = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "timesteps": timesteps,
    }
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"create_model: {key} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"create_model: {key} must be >= 1, got {value}")
    return _MODELS[name](**sizes, **neuron)
