"""Models by name."""

import difflib
import fnmatch
from collections.abc import Callable

from torch import Tensor, nn

AUX_HEAD = "aux_head"
"""The name of the module that is there for training only."""

_MODELS: dict[str, Callable[..., nn.Module]] = {}
_ANNS: set[str] = set()


def register(*names: str, ann: bool = False):
    """Decorator: make a class, or a function that returns a model, what ``create_model`` builds for
    each of the names. It is called with ``num_classes``, ``in_channels``, ``image_size``, and
    unless ``ann`` with ``timesteps``, ``aux_head`` and the arguments of its neurons."""

    def add(build):
        for name in names:
            _MODELS[name] = build
            if ann:
                _ANNS.add(name)
        return build

    return add


def is_ann(name: str) -> bool:
    """Whether the model of that name is an ANN: no neurons, no timesteps."""
    return name in _ANNS


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
    aux_head: str | None = None,
    **neuron,
) -> nn.Module:
    """A new model with random weights (from torch's global generator), and unless told otherwise
    with the papers' neuron, whose input is not divided by tau: ``decay_input`` is False, where
    :class:`snnfast.nn.LIF` has SpikingJelly's True.

    Spiking models are called as ``model(image [B, C, H, W], timesteps=None)`` or
    ``model(sequence [T, B, C, H, W])`` and return logits [T, B, num_classes], one per timestep;
    predictions are the argmax of their mean over time. For an image, what comes before the first
    neurons runs once. ANN models take images and return [B, num_classes].

    Args:
        name: one of :func:`list_models`. ``ann_*`` are the teachers: the same shapes with ReLU, and
            the same state_dict keys wherever the layers are the same.
        image_size: height and width of the images, in pixels. From 96 up the first convolution of a
            ResNet is 7x7 of stride 2 with a max-pool behind it; the VGG-9's classifier and those of
            the digits' networks fit this size alone.
        timesteps: T for images, where the call names none.
        aux_head: the stage (``"layer1"``, ``"layer2"``, ...) whose output a second, weak classifier
            reads, global average pooling and a linear layer; the model then returns (logits,
            aux_logits), both [T, B, num_classes], in training mode, and logits alone in evaluation
            mode. :func:`exported_weights` leaves it out.
        neuron: arguments of :class:`snnfast.nn.LIF` (``tau``, ``surrogate``, ``backend``, ...) with
            its defaults but for ``decay_input``, and ``neuron="plif"`` or ``"if"`` for those of
            ``snnfast.nn.ParametricLIF`` and ``IF``. ANN models have none.

    Raises ValueError or TypeError that names the argument.
    """
    if not isinstance(name, str) or name not in _MODELS:
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
    if not isinstance(aux_head, str | None):
        kind = type(aux_head).__name__
        raise TypeError(f"create_model: aux_head must be a stage's name or None, got {kind}")
    if name in _ANNS:
        if neuron:
            raise TypeError(f"create_model: {name} has no neurons, got {', '.join(neuron)}")
        if aux_head is not None:
            raise ValueError(f"create_model: aux_head must be None for {name}, got {aux_head!r}")
        del sizes["timesteps"]
        return _MODELS[name](**sizes)
    return _MODELS[name](**sizes, aux_head=aux_head, **neuron)


def exported_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state_dict without the auxiliary head, which no inference needs: it loads into the
    same model made with ``aux_head=None``."""
    return {key: value for key, value in state.items() if not key.startswith(f"{AUX_HEAD}.")}
