"""The nodes by one path: ``LIFNode`` and its like are those of ``activation_based``, whose step
mode is an argument, ``MultiStepLIFNode`` and its like those of ``clock_driven``."""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.activation_based.neuron import (
    BaseNode,
    IFNode,
    LIFNode,
    ParametricLIFNode,
)
from snnfast.interop.spikingjelly.clock_driven.neuron import (
    MultiStepIFNode,
    MultiStepLIFNode,
    MultiStepParametricLIFNode,
)

__all__ = [
    "BaseNode",
    "IFNode",
    "LIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
]

__getattr__ = peer.names("snnfast.interop.spikingjelly.activation_based.neuron")
