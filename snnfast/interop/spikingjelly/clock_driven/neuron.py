"""``spikingjelly.clock_driven.neuron``: ``LIFNode`` and its like take one timestep [N, ...] a call,
``MultiStepLIFNode`` and its like all of them, [T, N, ...]."""

import torch

from snnfast.interop.spikingjelly import node, peer
from snnfast.interop.spikingjelly.backends import check_backend
from snnfast.interop.spikingjelly.clock_driven import base

__all__ = [
    "BaseNode",
    "EIFNode",
    "IFNode",
    "LIAFNode",
    "LIFNode",
    "MultiStepEIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
    "QIFNode",
    "check_backend",
]


class BaseNode(node.Node, base.MemoryModule):
    __doc__ = node.Node.__doc__
    VERSION = node.V12

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
    ):
        numbers = self._begin(v_threshold, v_reset, surrogate_function, detach_reset)
        # Memories, too: reset() puts them back to what they were at the start.
        for name, value in zip(("v_threshold", "v_reset"), numbers):
            self.register_memory(name, value)

    def _takes(self):
        return False, False

    def forward(self, x: torch.Tensor):
        done = self._by_engine(x.unsqueeze(0), node.STEP, False)
        return self._by_hooks(x) if done is None else done[0].squeeze(0)


class IFNode(node.Integrates, BaseNode):
    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.cupy_fp32_inference = cupy_fp32_inference


class LIFNode(node.Leaks, BaseNode):
    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._set_tau(tau, decay_input)
        self.cupy_fp32_inference = cupy_fp32_inference


class ParametricLIFNode(node.Learns, BaseNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._set_tau(init_tau, decay_input)


class EIFNode(node.Grows, BaseNode):
    def __init__(
        self,
        tau: float = 2.0,
        delta_T: float = 1.0,
        theta_rh: float = 0.8,
        v_threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float | None = -0.1,
        surrogate_function=None,
        detach_reset: bool = False,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._set_growth(tau, delta_T, theta_rh, v_rest)


class QIFNode(node.Squares, BaseNode):
    def __init__(
        self,
        tau: float = 2.0,
        v_c: float = 0.8,
        a0: float = 1.0,
        v_threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float | None = -0.1,
        surrogate_function=None,
        detach_reset: bool = False,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._set_square(tau, v_c, a0, v_rest)


class LIAFNode(LIFNode):
    """Gives ``act(H - v_threshold)``, or ``act(H)`` where not ``threshold_related``; it resets as
    LIF does."""

    def __init__(self, act, threshold_related: bool, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.act = act
        self.threshold_related = threshold_related

    def forward(self, x: torch.Tensor):
        self.neuronal_charge(x)
        y = self.act(self.v - self.v_threshold if self.threshold_related else self.v)
        self.neuronal_reset(self.neuronal_fire())
        return y


class _MultiStep:
    """All timesteps a call; ``v_seq`` is V after each of them."""

    def _over_time(self, backend: str, lava_s_cale: int = 1 << 6) -> None:
        check_backend(backend)
        self.register_memory("v_seq", None)
        self.backend = backend
        self.lava_s_cale = lava_s_cale
        self.lava_neuron = None

    def _takes(self):
        return True, True

    def forward(self, x_seq: torch.Tensor):
        if x_seq.dim() < 2:
            who, got = type(self).__name__, list(x_seq.shape)
            raise ValueError(f"{who}: x must be [T, N, ...], got {got}")
        done = self._by_engine(x_seq, node.STEP, True)
        if done is not None:
            spikes, self.v_seq = done
            return spikes
        spikes, v_seq = [], []
        for x in x_seq:
            spikes.append(self._by_hooks(x))
            v_seq.append(self.v)
        self.v_seq = torch.stack(v_seq)
        return torch.stack(spikes)

    def extra_repr(self):
        return f"{super().extra_repr()}, backend={self.backend}"


class MultiStepIFNode(_MultiStep, IFNode):
    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._over_time(backend, lava_s_cale)


class MultiStepLIFNode(_MultiStep, LIFNode):
    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ):
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self._over_time(backend, lava_s_cale)


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        backend: str = "torch",
    ):
        super().__init__(
            init_tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset
        )
        self._over_time(backend)


class MultiStepEIFNode(_MultiStep, EIFNode):
    def __init__(
        self,
        tau: float = 2.0,
        delta_T: float = 1.0,
        theta_rh: float = 0.8,
        v_threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float | None = -0.1,
        surrogate_function=None,
        detach_reset: bool = False,
        backend: str = "torch",
    ):
        super().__init__(
            tau, delta_T, theta_rh, v_threshold, v_rest, v_reset, surrogate_function, detach_reset
        )
        self._over_time(backend)


__getattr__ = peer.names(__name__)
