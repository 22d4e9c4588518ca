"""The machine and the software a benchmark ran on, and the one setting it runs under."""

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def pin_malloc() -> None:
    """Restart the process, once, with malloc told to keep and reuse large blocks.

    GNU malloc otherwise maps and faults every large tensor anew, which hides the kernels: an output
    that is written once costs more in page faults than in memory traffic. It reads its settings
    before main(), so they must stand in the environment of a new process.
    """
    if platform.libc_ver()[0] != "glibc" or MALLOC.items() <= os.environ.items():
        return
    settings = " ".join(f"{name}={value}" for name, value in MALLOC.items())
    print(f"restarting with {settings} for all contenders", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC})


def _commit() -> str:
    """The commit of the checkout, marked where files differ from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: torch.device, packages: tuple[str, ...]) -> dict:
    """Commit, versions and hardware: what a number needs beside it to mean anything."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    env = {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(device),
        "cpu": _cpu_model(),
        "cores_available": affinity or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "malloc": {name: os.environ.get(name) for name in MALLOC},
        "versions": {name: _version(name) for name in ("snnfast", "torch", "triton", *packages)},
    }
    if device.type == "cuda":
        props = torch.cuda.get_device_properties(device)
        env["gpu"] = {
            "name": props.name,
            "capability": f"{props.major}.{props.minor}",
            "memory_bytes": props.total_memory,
            "l2_bytes": props.L2_cache_size,
            "multiprocessors": props.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return env


def heading(title: str, env: dict) -> str:
    """The three lines above all tables: machine, versions, commit and malloc settings."""
    gpu = env.get("gpu")
    where = f"{gpu['name']}, CUDA {gpu['cuda']}; host " if gpu else ""
    versions = ", ".join(f"{name} {v or 'absent'}" for name, v in env["versions"].items())
    settings = [f"{name}={value}" for name, value in env["malloc"].items() if value]
    return (
        f"{title} on {where}{env['cpu']}, {env['threads']} threads of "
        f"{env['cores_available']} cores, load {env['load_average']:.1f} at the start\n"
        f"{versions}\ncommit {env['commit']}, {' '.join(settings) or 'malloc as it is'}"
    )


def backends(device: torch.device, asked: list[str] | None, program: str) -> list[str]:
    """The backends to measure. One that was asked for by name and cannot be used is an error."""
    names = asked or (["triton", "cuda"] if device.type == "cuda" else ["cpu"])
    found = []
    for name in names:
        try:
            why = importlib.import_module(f"snnfast.backends.{name}").available()
        except ImportError as error:
            why = str(error)
        if why is None:
            found.append(name)
        elif asked:
            sys.exit(f"{program}: backend {name} cannot be used: {why}")
        else:
            print(f"left out: snnfast {name}: {why}")
    return found


def device_slug(device: torch.device) -> str:
    """The folder under benchmarks/results: nvidia-h200, or cpu-amd-epyc-2t (2 threads)."""
    if device.type == "cuda":
        return _slug(torch.cuda.get_device_name(device))
    model = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", _cpu_model())
    return f"cpu-{_slug(model)}-{torch.get_num_threads()}t"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def foreign_seconds() -> float:
    """CPU seconds since boot that others used of the cores that this process may run on; NaN where
    that is unknown. Its growth over a measurement is what disturbed it: a loop that waits for all
    its threads can take a hundred times as long when one of them has to share its core.
    """
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return float("nan")
    ticks = [line.split() for line in lines]
    # user nice system idle iowait irq softirq steal
    busy = sum(sum(map(int, t[1:4] + t[6:9])) for t in ticks if t and t[0] in cores)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
