"""Kernels compiled before they are launched, by several processes side by side."""

import collections
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable

import torch

from snnfast.backends.triton.launch import Call, target
from snnfast.kernels import ahead


def _processes() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _work(jobs: collections.deque) -> None:
    """Hands jobs to a process until there are none, or it dies."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from snnfast.kernels.ahead import serve; serve()"
    )
    pipe = subprocess.PIPE
    with (
        contextlib.suppress(IndexError, OSError),
        subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process,
    ):
        while True:
            process.stdin.write(jobs.popleft())
            process.stdin.flush()
            if not process.stdout.readline():
                return


def compile_apart(jobs: Iterable[bytes], workers: int) -> None:
    """Compiles into Triton's folder. A job that fails there is left to the launch."""
    left = collections.deque(jobs)
    threads = [threading.Thread(target=_work, args=(left,)) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        left.clear()


def compile_and_load(
    noted: dict[tuple, tuple[torch.device, Call]], workers: int | None = None
) -> int:
    """Makes kernels that ``noting`` has noted ready to be launched; returns how many there are."""
    jobs = {}  # once where several keys are of one kernel
    for device, call in noted.values():
        form = (device, call.kernel, call.arguments, tuple(call.constants.items()))
        jobs[form] = device, call
    # Those with the most arguments take longest.
    calls = sorted(jobs.values(), key=lambda job: -len(job[1].arguments))
    targets = {device: target(device) for device, _ in calls}
    packed = dict.fromkeys(  # devices that are alike share what is compiled
        ahead.packed(call.kernel, call.arguments, call.constants, targets[device])
        for device, call in calls
    )
    workers = min(workers or _processes(), len(packed))
    if workers > 1:
        compile_apart(packed, workers)
    for key, (device, call) in noted.items():
        call.load(device, key)
    return len(jobs)
