"""Runs a script that asks for a CUDA device where there is none: tensors lie on the CPU, both GPU
backends are the CPU's kernels, and torch.cuda answers.

    python tests/stubbed_device.py benchmarks/bench_lif.py --device cuda ...

So every line that such a script takes on a GPU without the peers is run; what it measures means
nothing.
"""

import importlib
import runpy
import sys
import time
import types
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
PROPERTIES = types.SimpleNamespace(
    name="A stub", major=9, minor=0, total_memory=1 << 36, L2_cache_size=1 << 16,
    multi_processor_count=132,
)  # fmt: skip


class Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def moved(value):
    """``value``, or the CPU where it is a CUDA device."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


def elsewhere(make):
    def call(*args, **kwargs):
        return make(*map(moved, args), **{name: moved(value) for name, value in kwargs.items()})

    return call


class OnCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        return elsewhere(function)(*args, **(kwargs or {}))


def install() -> None:
    cuda = {
        "is_available": lambda: True,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: PROPERTIES,
        "synchronize": lambda device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: dict.fromkeys(
            ("requested_bytes.all.current", "requested_bytes.all.peak"), 0
        ),
        "Event": Event,
        "_sleep": lambda cycles: None,
    }
    importlib.import_module("torch._inductor.utils")  # while torch is as it was
    profile, on_cpu = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    torch.profiler.profile = lambda **settings: profile(**settings | {"activities": on_cpu})
    sys.modules |= dict.fromkeys(("spikingjelly", "snntorch", "norse"))  # None: does not import
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    torch.Generator, torch.autocast = elsewhere(torch.Generator), elsewhere(torch.autocast)
    from snnfast.backends import cpu
    from snnfast.ops import select

    for name in ("triton", "cuda"):
        sys.modules[f"snnfast.backends.{name}"] = cpu
        setattr(importlib.import_module("snnfast.backends"), name, cpu)
    select._refuse = lambda *_: None
    OnCpu().__enter__()


if __name__ == "__main__":
    sys.argv.pop(0)
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    install()
    runpy.run_path(sys.argv[0], run_name="__main__")
