"""A GPU's driver for Triton that launches nothing: kernels are compiled for it as on a GPU, on a
machine without one, and every launch is noted instead. No result means anything.
"""

import contextlib

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from snnfast.backends.triton import launch
from snnfast.ops import select


class Driver:
    """What Triton asks of a driver. ``launches``: (kernel, grid) in order, a kernel being its name
    and which it is of ``loaded``."""

    def __init__(self, arch: int = 90):
        self.target, self.utils = GPUTarget("cuda", arch, 32), self
        self.launches, self.loaded = [], []

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536}

    def load_binary(self, name, kernel, shared, device):
        self.loaded.append((name, len(self.loaded)))
        return (
            object(),
            self.loaded[-1],
            32,
            0,
            1024,
        )  # module, function, registers, spills, threads

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        def run(x, y, z, stream, function, *rest):
            self.launches.append((function, (x, y, z)))

        return run


DRIVER = Driver()
"""One for the process: Triton keeps what it compiled, and for whom."""


@contextlib.contextmanager
def installed():
    """backend="triton" takes CPU tensors, and its launches go nowhere."""
    found, refuse = DRIVER, select._refuse
    found.launches.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_refuse", lambda n, *a: None if n == "triton" else refuse(n, *a))
        patch.setattr(launch, "available", lambda: None)
        driver.set_active(found)
        forget()
        try:
            yield found
        finally:
            driver._active = None
            forget()


def forget() -> None:
    """What was ever launched."""
    launch._compiled.clear()
    select.implementation("triton").forget()
