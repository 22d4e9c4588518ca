"""What the networks share: time folded into the batch, neurons by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snnfast.nn import IF, LIF, BatchNormLIF, ParametricLIF
from snnfast.nn.arguments import arguments_of, hint
from snnfast.nn.batch_norm import BatchNorm2d

NEURONS = {"lif": LIF, "if": IF, "plif": ParametricLIF}
LARGE = 96
"""Pixels from which the stem of a ResNet is that for ImageNet, a fourth of the side behind it."""


def timesteps_of(x: Tensor, timesteps: int | None, default: int) -> tuple[bool, int]:
    """(static, T) of a spiking model's input: an image [B, C, H, W] or a sequence [T, B, C, H, W].

    Raises ValueError for other shapes and for a ``timesteps`` that contradicts the sequence,
    TypeError where it is no int.
    """
    if x.dim() == 4:
        steps = default if timesteps is None else timesteps
        if isinstance(steps, bool) or not isinstance(steps, (int, torch.SymInt)):
            raise TypeError(f"model: timesteps must be an int, got {type(steps).__name__}")
        if steps < 1:
            raise ValueError(f"model: timesteps must be >= 1, got {steps}")
        return True, steps
    if x.dim() != 5:
        raise ValueError(f"model: x must be [B, C, H, W] or [T, B, C, H, W], got {list(x.shape)}")
    if timesteps not in (None, x.shape[0]):
        raise ValueError(
            f"model: timesteps must be None or the sequence's {x.shape[0]}, got {timesteps}"
        )
    return False, x.shape[0]


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """3x3 with padding 1; without a bias, which the batch norm behind it would take out again."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


def stem_conv(inputs: int, outputs: int, image_size: int, bias: bool = False) -> nn.Conv2d:
    """A ResNet's first convolution: 3x3 of stride 1, from ``LARGE`` pixels up 7x7 of stride 2."""
    if image_size < LARGE:
        return conv3x3(inputs, outputs, bias=bias)
    return nn.Conv2d(inputs, outputs, 7, 2, 3, bias=bias)


def stem_pool(image_size: int) -> Callable[[Tensor], Tensor] | None:
    """What follows that convolution from ``LARGE`` pixels up: the 3x3 max-pool of stride 2, which
    of spikes makes spikes. On folded input [N, C, H, W]."""
    return None if image_size < LARGE else nn.MaxPool2d(3, 2, 1)


def pooled(x: Tensor) -> Tensor:
    """The mean over space: [..., C, H, W] -> [..., C]. Its gradient lies as ``x`` does."""
    if x.is_contiguous():
        return x.mean((-2, -1))
    # Channels-last, where the gradient of a mean over the last axes would be channels-first.
    return x.movedim(-3, -1).mean((-3, -2))


def flat(x: Tensor, features: int) -> Tensor:
    """[N, C, H, W] as [N, features]."""
    x = x.flatten(1)
    if x.shape[1] != features:
        raise ValueError(
            f"model: x must have the image_size that the model was made for ({features} features "
            f"behind the last pool), got one that leaves {x.shape[1]}"
        )
    return x


def kaiming_fan_out(model: nn.Module) -> None:
    """He et al.'s (2015, arXiv 1502.01852) initial weights of convolutions, by their fan-out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Neurons:
    """Makes the neurons of one network: ``neuron`` is lif, if or plif (learnable tau, for which
    ``tau`` is the first), the rest are arguments of that module in ``snnfast.nn``, with
    ``decay_input`` False unless it is given.

    Raises TypeError or ValueError, ``create_model: ...``, that names the argument.
    """

    def __init__(self, neuron: str = "lif", **arguments):
        if not isinstance(neuron, str) or neuron not in NEURONS:
            raise ValueError(
                f"create_model: neuron must be one of {', '.join(NEURONS)}, got {neuron!r}"
            )
        self._make, self._arguments = NEURONS[neuron], arguments
        if neuron == "plif" and "tau" in arguments:
            arguments["init_tau"] = arguments.pop("tau")
        # A network needs spikes, and one tau for each channel needs to know how many there are.
        known = set(arguments_of(self._make)) - {"return_state", "channels", "time_axis"}
        for name in arguments:
            if name not in known:
                raise TypeError(
                    f"create_model: {neuron} neurons take {', '.join(sorted(known))}, "
                    f"got {name}{hint(name, known)}"
                )
        if "decay_input" in known and arguments.get("beta") is None:
            arguments.setdefault("decay_input", False)
        self.neuron()  # what it refuses is refused before weights are drawn

    def neuron(self) -> nn.Module:
        """Neurons alone: x [T, ...] -> spikes."""
        return self._make(**self._arguments)

    def norm(self, channels: int) -> BatchNormLIF:
        """Batch norm, a residual if one is given, and neurons."""
        return BatchNormLIF(channels, neuron=self.neuron())


def set_process_group(model: nn.Module, group) -> None:
    """Let the ranks of ``group`` share the statistics of every batch norm of ``model`` in training;
    None gives each rank its own. ``group`` is not part of the state_dict, nor can it be copied:
    copy a model before.

    Raises TypeError where the model has a batch norm that cannot: neither ``BatchNormLIF`` nor
    ``snnfast.nn.batch_norm.BatchNorm2d``. Nothing is set then.
    """
    norms = []
    for name, module in model.named_modules():
        if isinstance(module, (BatchNormLIF, BatchNorm2d)):
            norms.append(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TypeError(
                "set_process_group: batch norms must be BatchNormLIF or "
                f"snnfast.nn.batch_norm.BatchNorm2d, got {type(module).__name__} {name!r}"
            )
    for module in norms:
        module.process_group = group
