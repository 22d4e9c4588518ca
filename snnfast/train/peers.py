"""What ranks tell one another besides gradients: what each is about to train, that it is alive, and
why it ended.

It goes over the store at MASTER_ADDR, which answers while a process group waits for a dead rank.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore
from torch.distributed.rendezvous import rendezvous

from snnfast.train.config import ConfigError

COME = timedelta(minutes=5)  # until all ranks have to be there
BEAT = 1.0  # seconds between two signs of life
SILENCE = 14  # beats without one, after which a rank is taken for dead
MISSED = 3  # the same where a collective has failed already
GRACE = 5.0  # seconds in which a rank may end by itself once another is lost


class RankError(RuntimeError):
    """Another rank ended; the message says which, and why where it could say."""


class Peers:
    """This rank's line to the others.

    Threads give signs of life and watch the next rank in the ring. Where any rank is lost, they
    print why, with ``remedy``, and end this process, unless that ends by itself in time.
    """

    def __init__(self, remedy: str):
        try:
            store, self.rank, self.size = next(rendezvous("env://", timeout=COME))
        except RuntimeError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RankError(f"the ranks did not meet at {where} within {COME}") from error
        self._store = PrefixStore("peers", store)
        self._remedy, self._rounds = remedy, 0
        self._left, self._beats, self._reason = threading.Event(), 0, None
        self._say(f"alive{self.rank}", 0)
        self._alive = threading.Thread(target=self._live, daemon=True)
        self._alive.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def agree(self, notes: Mapping[str, object]) -> None:
        """Wait for all ranks' notes, which must be the same. Raises ConfigError on all of them
        where they are not, RankError where one ends before."""
        self._rounds += 1
        where = f"notes{self._rounds}"
        self._say(f"{where}/{self.rank}", {name: str(value) for name, value in notes.items()})
        if self.rank == 0:
            others = (self._wait_for(f"{where}/{rank}") for rank in range(self.size))
            self._say(where, _difference(list(others)))
        if difference := self._wait_for(where):
            raise ConfigError(f"ranks must train the same: {difference}")

    def lost(self) -> str | None:
        """Which rank is lost and why, None where all are alive; takes some seconds to tell."""
        if self._reason:
            return self._reason
        with contextlib.suppress(RuntimeError):
            others = [rank for rank in range(self.size) if rank != self.rank]
            before = [self._hear(f"alive{rank}") for rank in others]
            for _ in range(MISSED):
                if reason := self._hear("lost"):
                    return reason
                time.sleep(BEAT)
            for rank, beat in zip(others, before, strict=True):
                if self._hear(f"alive{rank}") == beat:
                    self.give_up(f"rank {rank} no longer answers")
            return self._hear("lost")
        return self._reason or _GONE

    def give_up(self, reason: str) -> None:
        """Tell the others why they cannot go on; the first reason counts."""
        with contextlib.suppress(RuntimeError):
            self._store.compare_set("lost", "", json.dumps(reason))

    def leave(self) -> None:
        """No longer be watched. Rank 0, whose the store may be, is the last, within reason."""
        self._left.set()
        with contextlib.suppress(RuntimeError):
            self._say(f"left{self.rank}", True)
            end = time.monotonic() + GRACE + 3 * BEAT  # they have GRACE from when they hear of it
            while self.rank == 0 and time.monotonic() < end:
                if self._store.check([f"left{rank}" for rank in range(self.size)]):
                    break
                time.sleep(0.02)
        # At the interpreter's end a thread that is inside the store would abort the process.
        self._alive.join(GRACE)

    def _live(self) -> None:
        """Give signs of life, watch the next rank, until all leave or one is lost."""
        next_one = f"alive{(self.rank + 1) % self.size}"
        last, silent = None, 0
        try:
            while not self._left.wait(BEAT) and not self._hear("lost"):
                self._beats += 1
                self._say(f"alive{self.rank}", self._beats)
                before, last = last, self._hear(next_one)
                silent = silent + 1 if last is not None and last == before else 0
                if silent == SILENCE:
                    self.give_up(f"rank {(self.rank + 1) % self.size} no longer answers")
            self._reason = self._hear("lost")
        except RuntimeError:
            self._reason = _GONE

    def _watch(self) -> None:
        """End this process where a rank is lost; where the store hangs, that is who is lost."""
        last, silent = 0, 0
        while self._reason is None and silent <= SILENCE:
            if self._left.wait(BEAT):
                return
            silent = silent + 1 if self._beats == last else 0
            last = self._beats
        if not self._left.wait(GRACE):
            reason = self._reason or _GONE
            print(f"snnfast: error: train: {reason}; {self._remedy}", file=sys.stderr, flush=True)
            os._exit(1)

    def _say(self, key: str, value) -> None:
        self._store.set(key, json.dumps(value))

    def _hear(self, key: str):
        """What was said, None where nothing was."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _wait_for(self, key: str):
        while True:
            reason = self._hear("lost")  # first: whoever is lost may have said it before
            if self._store.check([key]):
                return self._hear(key)
            if reason:
                raise RankError(reason)
            time.sleep(0.02)


_GONE = "the ranks' store at MASTER_ADDR no longer answers"


def _difference(notes: list[dict[str, str]]) -> str | None:
    """The first difference from rank 0's notes, in words."""
    for rank, theirs in enumerate(notes):
        for name, mine in notes[0].items():
            if (other := theirs.get(name, "nothing")) != mine:
                return f"{name} is {mine} on rank 0 and {other} on rank {rank}"
    return None
