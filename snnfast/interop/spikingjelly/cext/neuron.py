"""``spikingjelly.cext.neuron`` (0.0.0.0.4 and before): the nodes of ``clock_driven`` with a
surrogate that is named, ``alpha`` its number, and ``detach_input`` for an input that tau does not
divide."""

from snnfast.interop.spikingjelly import peer, surrogate
from snnfast.interop.spikingjelly.clock_driven import neuron
from snnfast.interop.spikingjelly.clock_driven.neuron import BaseNode

__all__ = [
    "BaseNode",
    "IFNode",
    "LIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
]

_SURROGATES = {"ATan": surrogate.ATan, "Sigmoid": surrogate.Sigmoid}


def _surrogate(node, name, alpha: float):
    if not isinstance(name, str):
        return name
    if name not in _SURROGATES:
        who, known = type(node).__name__, ", ".join(_SURROGATES)
        raise ValueError(f"{who}: surrogate_function must be one of {known}, got {name!r}")
    return _SURROGATES[name](alpha)


class IFNode(neuron.IFNode):
    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function="ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ):
        surrogate_function = _surrogate(self, surrogate_function, alpha)
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)


class LIFNode(neuron.LIFNode):
    def __init__(
        self,
        tau: float = 100.0,
        detach_input: bool = False,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function="ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ):
        function = _surrogate(self, surrogate_function, alpha)
        super().__init__(tau, not detach_input, v_threshold, v_reset, function, detach_reset)


class ParametricLIFNode(neuron.ParametricLIFNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        detach_input: bool = False,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function="ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ):
        function = _surrogate(self, surrogate_function, alpha)
        super().__init__(init_tau, not detach_input, v_threshold, v_reset, function, detach_reset)


class MultiStepIFNode(IFNode, neuron.MultiStepIFNode):
    pass


class MultiStepLIFNode(LIFNode, neuron.MultiStepLIFNode):
    pass


class MultiStepParametricLIFNode(ParametricLIFNode, neuron.MultiStepParametricLIFNode):
    pass


__getattr__ = peer.names(__name__)
