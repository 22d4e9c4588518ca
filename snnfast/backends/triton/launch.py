"""One launch of a Triton kernel, as data, so that it can also be compiled ahead of time."""

import contextlib
import functools
import importlib.util
from importlib.metadata import PackageNotFoundError, version
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


@functools.cache
def available() -> str | None:
    """None when the backend can be used, else one sentence that says how to enable it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    try:
        from snnfast.kernels import neuron
    except (ImportError, AttributeError) as error:
        return f"the kernels need Triton 3.6 or newer: {error}; run: pip install -U triton"
    if neuron.INTERPRET.value or torch.cuda.is_available():
        return None
    return (
        "no CUDA device (torch.cuda.is_available() is False); to run the kernels on the CPU under "
        "Triton's interpreter, slowly, set TRITON_INTERPRET=1 before Python starts"
    )


def details() -> str:
    try:
        return f"Triton {version('triton')}"
    except PackageNotFoundError:
        return "Triton is not installed"
