"""Processes that decode ahead of the training, and that neither disturb nor outlast its end.

SIGTERM and Ctrl-C reach all processes of a group: a worker that died of them would take along the
run that is about to save. So a worker hears its parent alone.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader

from snnfast.data.base import DataError

# Where nobody can tell who sent a signal (macOS), workers are the loader's alone.
_STOPS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()


def load(dataset, workers: int, name_of: Callable[[int], str], **options) -> Iterator:
    """What a DataLoader with these options gives; 0 ``workers``: this process decodes. They end
    with the iterator, whatever they are at. Where one ends before its time (for want of memory, by
    a crash in a decoder), DataError names what was waited for, ``name_of(its number)``."""
    loader = DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=_hear_the_parent,
        # Its own: the loader would draw from the global one.
        generator=torch.Generator(),
        **options,
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    ended = signal.getsignal(signal.SIGCHLD)
    try:
        loaded = iter(loader)  # workers begin with the signals blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _on_an_end(ended)  # torch would raise wherever the run is, in a save say
    started, number = getattr(loaded, "_workers", ()), -1
    try:
        for number, item in enumerate(loaded):  # noqa: B007
            yield item
    except (EOFError, OSError, RuntimeError) as error:  # a worker ended, or it raised this
        for worker in started:
            worker.join(0.1)
            if worker.exitcode is not None:
                raise DataError(
                    f"{name_of(number + 1)} or one of the next ended a worker "
                    f"({_how(worker.exitcode)}); data.workers=0 shows which, and fewer workers "
                    "need less memory"
                ) from error
        raise
    finally:
        _end([worker for worker in started if worker.is_alive()])


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"status {status}"


def _hear_the_parent(worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    if _STOPS:
        threading.Thread(target=_obey, daemon=True).start()


def _obey() -> None:
    """End where the parent says so or ends itself; a fork server is not the parent."""
    parent = multiprocessing.parent_process()
    while parent.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, 1)
        if told and told.si_pid == parent.pid:
            break
    os._exit(0)


def _end(workers: list) -> None:
    """Kill them: what they decode is wanted by nobody, and one that was stopped hears nothing else.
    Outside of the main thread the loader asks them to end, and waits."""
    if not workers or threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGCHLD)  # of another loader, to which this is an error
    _on_an_end(signal.SIG_DFL)
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(5)  # one that hangs in the kernel hears not even this
    finally:
        _on_an_end(before)


def _on_an_end(handler) -> None:
    """What happens when a child ends; None: as the system has it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
