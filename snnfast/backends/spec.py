"""What an op hands to a backend besides tensors: plain numbers, validated, the same for all."""

from typing import NamedTuple

SEGMENT = 8
"""Steps between two kept states. Backward recomputes one segment at a time, in registers."""

INTEGRATE, DECAY_INPUT, DECAY_STATE = 0, 1, 2
"""How a step charges: H = V + X; H = V + (X - (V - r))/tau; H = V - (V - r)/tau + X."""


class LifSpec(NamedTuple):
    """One LIF layer. Sizes count elements; ``inner`` and ``channels`` place the axis of a [C] rate:
    neuron i (its offset in memory within one timestep) belongs to channel (i // inner) % channels.
    """

    steps: int
    charge: int
    rate: float
    """tau where ``divide``, else 1/tau; unused where the op was given a rate tensor."""
    divide: bool
    theta: float
    reset: float
    hard: bool
    detach_reset: bool
    surrogate: int
    a: float
    b: float
    spiking: bool
    channels: int = 1
    inner: int = 1


def segments(steps: int) -> int:
    """How many segments T steps fall into; one state fewer is kept."""
    return (steps + SEGMENT - 1) // SEGMENT
