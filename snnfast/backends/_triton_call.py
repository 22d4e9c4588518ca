"""One launch of a Triton kernel, as data, so that it can also be compiled ahead of time."""

import contextlib
from typing import Any, NamedTuple

import torch

# Elements of a thread: 16 bytes of x, so that every access is as wide as the hardware has it.
THREAD = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
WARPS = 4


class Call(NamedTuple):
    """One launch: ``kernel[(programs,)](*arguments, **constants)``."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict

    def launch(self, device: torch.device) -> None:
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard:
            self.kernel[(self.programs,)](*self.arguments, **self.constants)
