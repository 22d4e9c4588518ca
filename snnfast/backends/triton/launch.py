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


_compiled: dict[tuple, tuple[Any, tuple]] = {}
"""Kernels that were launched before, and the constants that follow their arguments."""
_numbered: dict[tuple, int] = {}
_seen: dict[int, tuple[dict, int]] = {}


def _number(constants: dict) -> int:
    """The same for equal constants, whose hash takes as long as a launch: a plan's are always the
    same dict."""
    found = _seen.get(id(constants))
    if found is not None:
        return found[1]
    if len(_seen) >= 4096:
        _seen.clear()
    number = _numbered.setdefault(tuple(constants.items()), len(_numbered))
    _seen[id(constants)] = constants, number  # kept, so that no other gets its id
    return number


def _kind(argument) -> Any:
    """What Triton compiles a kernel apart for: dtypes, pointers and numbers that divide by 16,
    ones, numbers beyond 32 bits."""
    if argument is None or type(argument) is float:
        return argument is None
    if type(argument) is int:
        wide = not -(2**31) <= argument < 2**31
        return 2 if argument == 1 else (argument & 15 == 0) + 4 * wide
    return argument.dtype, argument.data_ptr() & 15


class Call(NamedTuple):
    """One launch: ``kernel[(programs,)](*arguments, **constants)``."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict

    def launch(self, device: torch.device) -> None:
        away = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if away else contextlib.nullcontext():
            self._launch(device)

    def _launch(self, device: torch.device) -> None:
        """A second time past Triton's own search for what is compiled, which takes four times as
        long. Its interpreter compiles nothing."""
        kinds = map(_kind, self.arguments)
        key = (id(self.kernel), device.index, _number(self.constants), *kinds)
        known = _compiled.get(key)
        if known is not None:
            compiled, constants = known
            compiled[self.programs, 1, 1](*self.arguments, *constants)
            return
        compiled = self.kernel[(self.programs,)](*self.arguments, **self.constants)
        if compiled is not None:
            names = self.kernel.arg_names[len(self.arguments) :]
            _compiled[key] = compiled, tuple(self.constants[name] for name in names)


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
