"""What several neurons share."""

from torch import Tensor

from snnfast.reference.neuron import spike


def strict_spike(u: Tensor) -> Tensor:
    """1 where u > 0, not where u = 0; the gradient is g(u) of the surrogate everywhere."""
    return spike(u) - (u == 0).to(u.dtype)


def at_reset(*, v_reset, **parameters):
    """The rest of a neuron with one state: where a reset leaves it."""
    return (0.0 if v_reset is None else v_reset,)
