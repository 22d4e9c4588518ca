"""``spikingjelly.activation_based.neuron`` (0.0.0.0.14): ``step_mode`` "s" takes one timestep
[N, ...] a call, "m" all of them, [T, N, ...]."""

import torch

from snnfast.interop.spikingjelly import backends, node, peer
from snnfast.interop.spikingjelly.activation_based import base

__all__ = ["BaseNode", "IFNode", "LIFNode", "ParametricLIFNode"]


class BaseNode(node.Node, base.MemoryModule):
    __doc__ = node.Node.__doc__
    VERSION = node.V14

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        numbers = self._begin(v_threshold, v_reset, surrogate_function, detach_reset)
        self.v_threshold, self.v_reset = numbers
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq

    @property
    def supported_backends(self):
        return backends.BACKENDS

    @property
    def store_v_seq(self) -> bool:
        """Whether ``v_seq`` keeps V after each step of a call in step mode "m"."""
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        self._store_v_seq = value
        if value and "v_seq" not in self._memories:
            self.register_memory("v_seq", None)

    def _takes(self):
        return self.step_mode == "m", self.step_mode == "m" and self.store_v_seq

    def single_step_forward(self, x: torch.Tensor):
        done = self._by_engine(x.unsqueeze(0), (*node.STEP, "v_float_to_tensor"), False)
        if done is not None:
            return done[0].squeeze(0)
        self.v_float_to_tensor(x)
        return self._by_hooks(x)

    def multi_step_forward(self, x_seq: torch.Tensor):
        done = self._by_engine(x_seq, node.STEPS, self.store_v_seq)
        if done is not None:
            spikes, v_seq = done
        else:
            spikes, v_seq = [], [] if self.store_v_seq else None
            for x in x_seq:
                spikes.append(self.single_step_forward(x))
                if v_seq is not None:
                    v_seq.append(self.v)
            spikes = torch.stack(spikes)
            v_seq = v_seq if v_seq is None else torch.stack(v_seq)
        if v_seq is not None:
            self.v_seq = v_seq
        return spikes

    def extra_repr(self):
        return f"{super().extra_repr()}, step_mode={self.step_mode}, backend={self.backend}"


class IFNode(node.Integrates, BaseNode):
    pass


class LIFNode(node.Leaks, BaseNode):
    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq
        )
        self._set_tau(tau, decay_input)


class ParametricLIFNode(node.Learns, BaseNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ):
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq
        )
        self._set_tau(init_tau, decay_input)


__getattr__ = peer.names(__name__)
