"""Layers that know no time, over sequences: time folded into the batch."""

from collections.abc import Callable

from torch import Tensor, nn

from snnfast.nn.batch_norm import BatchNormNeuron
from snnfast.nn.stateful import Stateful


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer without a time axis to x [T, B, ...]: one call on [T * B, ...], T-major."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class OverTime(nn.Sequential):
    """Layers without a time axis, one after the other, on a sequence.

    x [T, B, ...] is seen by them as [T * B, ...]; what they return is split again, [T, B, ...].
    Batch norms so take their statistics over time and batch, as the field does. Keys of the
    state_dict are those of an ``nn.Sequential``. ``snnfast.nn.fuse`` and ``plan`` see through it.

    Raises ValueError for neurons among the layers: they need the time axis.

        >>> block = nn.Sequential(
        ...     snnfast.nn.OverTime(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)),
        ...     snnfast.nn.LIF(),
        ... )
        >>> spikes = block(images)  # [T, B, 3, 32, 32] -> [T, B, 64, 32, 32]
    """

    def __init__(self, *layers):
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, (Stateful, BatchNormNeuron)):
                kind = type(layer).__name__
                raise ValueError(f"OverTime: neurons must stand behind it, got {kind} in it")

    def forward(self, x: Tensor) -> Tensor:
        return over_time(super().forward, x)
