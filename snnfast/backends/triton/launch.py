"""One launch of a Triton kernel, as data, so that it can also be compiled ahead of time."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from snnfast.kernels.ahead import Like

# Elements of a thread: 16 bytes of x, so that every access is as wide as the hardware has it.
THREAD = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
WARPS = 4


_compiled: dict[tuple, tuple[Any, tuple]] = {}
"""Kernels that were launched before, and the constants that follow their arguments."""
_noted: dict[tuple, tuple[torch.device, "Call"]] | None = None
"""In a block of ``noting``, those that are new in it."""
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


def _wide(number: int) -> bool:
    return not -(2**31) <= number < 2**31


def _kind(argument) -> Any:
    """What Triton compiles a kernel apart for: dtypes, pointers and numbers that 16 divides,
    numbers beyond 32 bits. Not for 1: a number that it may build in has a type in our kernels,
    which keeps it from doing so."""
    if argument is None or type(argument) is float:
        return argument is None
    if type(argument) is int:
        return (argument & 15 == 0) + 2 * _wide(argument)
    return argument.dtype, argument.data_ptr() & 15 == 0


def _like(argument, specialized: bool) -> Any:
    """An argument that the kernel is compiled the same for, without the memory that it holds."""
    if argument is None:
        return None
    if type(argument) is float:
        return 0.0
    if type(argument) is int:
        return (16 if specialized and argument & 15 == 0 else 3) + (_wide(argument) << 40)
    return Like(str(argument.dtype), argument.data_ptr() & 15 and 1)


def _on(device: torch.device):
    away = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if away else contextlib.nullcontext()


class Call(NamedTuple):
    """One launch: ``kernel[(programs,)](*arguments, **constants)``."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict

    def launch(self, device: torch.device) -> tuple[Any, tuple] | None:
        """Returns what is compiled of it, and the constants that follow its arguments."""
        with _on(device):
            return self._launch(device)

    def _launch(self, device: torch.device) -> tuple[Any, tuple] | None:
        """A second time past Triton's own search for what is compiled, which takes four times as
        long. Its interpreter compiles nothing."""
        kinds = map(_kind, self.arguments)
        key = (id(self.kernel), device.index, _number(self.constants), *kinds)
        known = _compiled.get(key)
        if known is not None:
            compiled, constants = known
            compiled[self.programs, 1, 1](*self.arguments, *constants)
        elif _noted is not None:
            _noted[key] = device, self._form()
        else:
            self._keep(key, self.kernel[(self.programs,)](*self.arguments, **self.constants))
        return _compiled.get(key)

    def _form(self) -> "Call":
        """The same for all launches of one kernel, and without memory."""
        fixed = self.kernel.do_not_specialize
        named = zip(self.kernel.arg_names, self.arguments)
        arguments = tuple(_like(argument, name not in fixed) for name, argument in named)
        return self._replace(programs=1, arguments=arguments)

    def _keep(self, key: tuple, compiled) -> None:
        if compiled is not None:
            names = self.kernel.arg_names[len(self.arguments) :]
            _compiled[key] = compiled, tuple(self.constants[name] for name in names)

    def load(self, device: torch.device, key: tuple) -> None:
        """Makes the kernel ready to be launched, under the key that it was noted by."""
        with _on(device):
            compiled = self.kernel.warmup(*self.arguments, grid=(1,), **self.constants)
            if compiled is not None:
                compiled[1, 1, 1]  # which loads it
            self._keep(key, compiled)


class Plan:
    """The launches of one call with other tensors of the same kinds, in its place. ``call`` has its
    tensors first; none is kept."""

    __slots__ = ("_constants", "_kernel", "_known", "_numbers", "_programs")

    def __init__(self, call: Call):
        kinds = [type(argument) in (int, float) for argument in call.arguments]
        self._kernel, self._programs, self._constants = call.kernel, call.programs, call.constants
        self._numbers = call.arguments[kinds.index(True) :]
        self._known: dict[Any, tuple[Any, tuple]] = {}

    def launch(self, device: torch.device, *tensors: torch.Tensor | None) -> None:
        """On ``device``, which is the current one."""
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        every = 0
        for at in addresses:
            every |= at
        # Triton compiles for addresses that 16 divides, and for others.
        key = tuple(at & 15 == 0 for at in addresses) if every & 15 else None
        known = self._known.get(key)
        if known is not None:
            known(*addresses)
            return
        arguments = (*tensors, *self._numbers)
        found = Call(self._kernel, self._programs, arguments, self._constants).launch(device)
        if found is not None:
            self._known[key] = self._runner(device, *found)

    def _runner(self, device: torch.device, compiled, constants: tuple) -> Callable:
        """What ``compiled[grid]`` does, without a look at each argument for hooks that are not
        there: those of Triton's profiler."""
        from triton import knobs
        from triton.runtime import driver

        hooks, grid = knobs.runtime, (self._programs, 1, 1)
        run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
        rest, index = (*self._numbers, *constants), device.index or 0

        def launch(*addresses):
            if _calls(hooks.launch_enter_hook) or _calls(hooks.launch_exit_hook):
                compiled[grid](*addresses, *rest)
                return
            stream = driver.active.get_current_stream(index)
            run(*grid, stream, function, packed, None, None, None, *addresses, *rest)

        return launch


def _calls(hook) -> Any:
    """Whether a hook does anything; a chain of none does not."""
    return getattr(hook, "calls", hook)


def on(device: torch.device, launch: Callable) -> Callable:
    """``launch`` where ``device`` is the current one."""
    if device.type != "cuda":
        return launch

    def guarded(*tensors):
        if torch._C._cuda_getDevice() == device.index:
            launch(*tensors)
            return
        with torch.cuda.device(device):
            launch(*tensors)

    return guarded


@contextlib.contextmanager
def noting() -> Iterator[dict[tuple, tuple[torch.device, Call]]]:
    """In the block kernels that were never launched are noted instead, whatever the thread:
    autograd has its own."""
    global _noted
    before, _noted = _noted, {}
    try:
        yield _noted
    finally:
        _noted = before


def target(device: torch.device) -> Any:
    """What Triton compiles for on it."""
    from triton.runtime import driver

    with _on(device):
        return driver.active.get_current_target()


@functools.cache
def available() -> str | None:
    """None when the backend can be used, else one sentence that says how to enable it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    try:
        from snnfast.kernels import lif_step
    except (ImportError, AttributeError) as error:
        return f"the kernels need Triton 3.6 or newer: {error}; run: pip install -U triton"
    if lif_step.INTERPRET.value or torch.cuda.is_available():
        return None
    return (
        "no CUDA device (torch.cuda.is_available() is False); to run the kernels on the CPU under "
        "Triton's interpreter, slowly, set TRITON_INTERPRET=1 before Python starts"
    )


def compiles_nothing() -> str | None:
    """Why there is nothing to compile here, or None."""
    reason = available()
    if reason is None:
        from snnfast.kernels import lif_step

        if lif_step.INTERPRET.value:
            return "Triton's interpreter (TRITON_INTERPRET=1) runs the kernels as they are"
    return reason


def details() -> str:
    try:
        return f"Triton {version('triton')}"
    except PackageNotFoundError:
        return "Triton is not installed"
