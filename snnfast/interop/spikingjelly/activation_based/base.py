"""``spikingjelly.activation_based.base``."""

import torch

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.backends import check_backend as check_backend_library
from snnfast.interop.spikingjelly.memory import HasMemories

__all__ = [
    "MemoryModule",
    "MultiStepModule",
    "SingleModule",
    "StepModule",
    "check_backend_library",
]


class StepModule:
    """``step_mode``: "s" for one timestep [N, ...] a call, "m" for all of them, [T, N, ...]."""

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("s", "m")

    @property
    def step_mode(self) -> str:
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        modes = self.supported_step_mode()
        if value not in modes:
            who = type(self).__name__
            raise ValueError(f"{who}: step_mode must be one of {', '.join(modes)}, got {value!r}")
        self._step_mode = value


class SingleModule(StepModule):
    def supported_step_mode(self):
        return ("s",)


class MultiStepModule(StepModule):
    def supported_step_mode(self):
        return ("m",)


class MemoryModule(HasMemories, StepModule):
    """Define ``single_step_forward``; in step mode "m" it is called once a timestep, unless
    ``multi_step_forward`` is defined as well."""

    def __init__(self):
        super().__init__()
        self._backend = "torch"
        self.step_mode = "s"

    @property
    def supported_backends(self) -> tuple[str, ...]:
        return ("torch",)

    @property
    def backend(self) -> str:
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in self.supported_backends:
            known = ", ".join(self.supported_backends)
            who = type(self).__name__
            raise ValueError(f"{who}: backend must be one of {known}, got {value!r}")
        check_backend_library(value)
        self._backend = value

    def single_step_forward(self, x: torch.Tensor, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} must define single_step_forward")

    def multi_step_forward(self, x_seq: torch.Tensor, *args, **kwargs):
        return torch.stack([self.single_step_forward(x, *args, **kwargs) for x in x_seq])

    def forward(self, *args, **kwargs):
        if self.step_mode == "s":
            return self.single_step_forward(*args, **kwargs)
        return self.multi_step_forward(*args, **kwargs)

    def extra_repr(self):
        return f"step_mode={self.step_mode}, backend={self.backend}"


__getattr__ = peer.names(__name__)
