"""Ctrl-C and SIGTERM: a run ends where it can be saved."""

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from snnfast.data.base import Data, Split

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 1.0  # seconds within which another signal is the same wish: `timeout` sends two
PATIENCE = 10.0  # seconds that a batch may take once a stop was asked for


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and that saved where it stood."""


class Stuck(KeyboardInterrupt):
    """A stop was asked for, and the data does not come."""


class Stop:
    """Whether Ctrl-C or SIGTERM asked for a stop: ``with Stop() as stop``, in the main thread (in
    others signals do not arrive, and it is never asked for).

    Up to :meth:`begin` a signal raises KeyboardInterrupt, and so does a second one at any time.
    """

    def __init__(self):
        self._asked: float | None = None
        self._waits: float | None = None  # for data, since then
        self._begun = False
        self._before: dict = {}

    def __call__(self) -> bool:
        return self._asked is not None

    def begin(self) -> None:
        """From now on there is something to save: the first signal is only noted."""
        self._begun = True

    def watch(self, data: Data) -> Data:
        """The data set, raising Stuck where a batch keeps a stop waiting."""
        return replace(data, train=_Watched(data.train, self), test=_Watched(data.test, self))

    def wait_for(self, batches: Iterator):
        """The next of ``batches``, None after the last."""
        self._waits = time.monotonic()
        try:
            return next(batches, None)
        finally:
            self._waits = None

    def _ask(self, number, frame) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            signal.setitimer(signal.ITIMER_REAL, 1, 1)  # calls _look every second
            if self._begun:
                return
        elif now - self._asked < AGAIN:
            return
        raise KeyboardInterrupt

    def _look(self, number, frame) -> None:
        if self._waits and time.monotonic() - max(self._waits, self._asked) > PATIENCE:
            raise Stuck

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look)
        return self

    def __exit__(self, *error):
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Watched:
    """A split whose batches are waited for under the eyes of a Stop."""

    def __init__(self, split: Split, stop: Stop):
        self.split, self.stop = split, stop

    def __len__(self) -> int:
        return len(self.split)

    @property
    def skipped(self) -> list[str]:
        return self.split.skipped

    def batches(self, indices: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        loaded = iter(self.split.batches(indices, seed))
        while (batch := self.stop.wait_for(loaded)) is not None:
            yield batch
