"""Compiles kernels in a process of its own that imports neither torch nor anything of a GPU. What
it compiles lies in Triton's folder, where a launch finds it.

A job is one launch without its memory: (kernel, arguments, constants, target), tensors as ``Like``
and functions of Triton by name, those of a generated module with its text. Behind each that is done
stands a line of output.
"""

import importlib
import io
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass

from . import generated


@dataclass(frozen=True)
class Like:
    """What a tensor is to Triton when it compiles."""

    dtype: str
    address: int  # modulo 16

    def data_ptr(self) -> int:
        return self.address


class _Driver:
    """What Triton asks of a driver when it compiles: a target is a device."""

    target = None

    def get_current_target(self):
        return self.target

    get_current_device = get_current_target

    def get_current_stream(self, device) -> int:
        return 0


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if type(obj).__name__ == "JITFunction":
            return obj.__module__, obj.__name__, generated.text(obj.__module__)
        return None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid):
        name, function, text = pid
        module = importlib.import_module(name) if text is None else generated.module(text)
        return getattr(module, function)


def packed(kernel, arguments: tuple, constants: dict, target) -> bytes:
    """One job."""
    file = io.BytesIO()
    _Pickler(file).dump((kernel, arguments, constants, target))
    return file.getvalue()


def serve() -> None:
    """Jobs from the standard input until it ends."""
    from triton.runtime import driver

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who hands out the jobs stops
    done = os.dup(1)
    os.dup2(2, 1)  # whatever is printed
    driver.set_active(_Driver())
    while True:
        try:
            kernel, arguments, constants, driver.active.target = _Unpickler(sys.stdin.buffer).load()
        except EOFError:
            return
        try:
            kernel.warmup(*arguments, grid=(1,), **constants)
        except Exception:  # the launch will compile it again, and say so where it belongs
            traceback.print_exc()
        os.write(done, b"\n")
