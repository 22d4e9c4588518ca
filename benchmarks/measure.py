"""What the benchmarks' measurements share: cases, contenders, verdicts, timings and rows.

A row is what was measured of one contender at one case: where it stands (measurement, shape, dtype,
...), contender and kind, what the gate found, the timing with the bytes of the byte model, and the
costs. What the gate refuses has no timing and no costs.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import environment
import harness
import torch
from harness import Timing
from torch import Tensor


@dataclass
class Contender:
    """What competes: ``kind`` is ours, peer or probe."""

    name: str
    kind: str
    compiled: bool = field(default=False, kw_only=True)
    """By inductor, anew for every shape."""


@dataclass(kw_only=True)
class Verdict:
    """What a gate found, as columns of a row; each benchmark adds its own."""

    gradient_error: float | None = None
    refused: str | None = None
    """Why no speed is shown; None where the contender passed."""

    def holds(self, what: str, error: float, limit: float, of: str = "") -> bool:
        """Refuse an error beyond the limit, or one that is no number."""
        if not error <= limit:
            self.refused = f"{what} off by {error:.1e}{of} (limit {limit:.1e})"
        return error <= limit


@dataclass
class Trial:
    """A contender at a case: the verdict and, where it passed, its costs and what is to be timed,
    by measurement."""

    contender: Contender
    verdict: Verdict
    costs: dict = field(default_factory=dict)
    runs: dict[str | None, Callable[[int], object]] = field(default_factory=dict)
    seconds: float = 0.0
    """Of the first run, which is the gate's, the compile included."""

    @property
    def name(self) -> str:
        return self.contender.name


class Case:
    """One point of a benchmark. ``sources`` are the tensors to copy, one tuple for each of the sets
    that a run rotates among; ``where`` are the columns that name the case."""

    unit: str
    """What ``count`` counts, and the bytes of the byte model are per."""
    count: int
    sources: list[tuple[Tensor, ...]]
    where: dict

    def __init__(self, shape, dtype: torch.dtype, steps: int, device: torch.device):
        self.shape, self.dtype, self.steps, self.device = tuple(shape), dtype, steps, device
        self.size = dtype.itemsize
        """Bytes per element: b."""
        self.generator = torch.Generator(device).manual_seed(steps)
        self.normal = partial(torch.randn, device=device, generator=self.generator)


def label(shape) -> str:
    return "x".join(map(str, shape))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rotating(runs: dict[str, Callable], sets: int) -> dict[str, Callable]:
    """``runs`` with what each call returns held until its set comes again: else the allocator gives
    an output the place of the one before, which the L2 still has."""
    held: list = [None] * sets

    def holding(run):
        def call(i):
            held[i % sets] = run(i)

        return call

    return {name: holding(run) for name, run in runs.items()} if sets > 1 else runs


class Bench:
    """Runs the cases and collects ``rows`` and ``left_out``.

    A measurement of one contender takes at most ``seconds``, unless two samples take longer;
    ``end`` is when the ``minutes`` are over. ``compile_limit`` bounds the compiles of the peers, in
    seconds: each, or all together.
    """

    title: str
    packages: tuple[str, ...] = ()
    """Versions to note beside torch's."""
    limits: tuple[str, ...] = ()
    """Options that go to the constructor under their own name, too."""
    verdict: type[Verdict]

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        compile_s: float,
        seconds: float = 0.5,
        minutes: float = 9.0,
    ):
        self.device, self.backends, self.rounds = device, backends, rounds
        self.seconds, self.minutes = seconds, minutes
        self.end = time.monotonic() + 60 * minutes
        self.compile_left = self.compile_limit = compile_s
        self.rows: list[dict] = []
        self.left_out: list[dict] = []
        self._timing = self._foreign = 0.0
        torch._dynamo.config.recompile_limit = 256

    @staticmethod
    def options(p: argparse.ArgumentParser) -> None:
        """Add the options that no other benchmark has."""
        raise NotImplementedError

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        """Values of the options that are not given."""
        raise NotImplementedError

    def cases(self, args: argparse.Namespace) -> Iterator[list[dict]]:
        """Run all cases; the rows of each."""
        raise NotImplementedError

    def settings(self, args: argparse.Namespace) -> dict:
        """What to note of the run beside what all note."""
        return {}

    @property
    def other_work(self) -> float | None:
        """How many cores others kept busy, on average, while timings ran; None where unknown."""
        share = self._foreign / self._timing if self._timing else math.nan
        return round(max(0.0, share), 3) if math.isfinite(share) else None

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    def sets(self, size: int) -> int:
        """On CUDA enough inputs of ``size`` bytes that none is in the L2 when its turn comes, which
        are four times as large together; the CPU keeps one."""
        if self.device.type != "cuda":
            return 1
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        return 2 + 4 * l2 // size

    def skip(self, where: dict, name: str, why: str) -> None:
        """Leave a contender out of the case that the columns ``where`` name, and say why."""
        self.left_out.append({"contender": name, **where, "why": why})
        print(f"  left out: {name}: {why}", flush=True)

    def choose(self, where: dict, found: list, too_much=lambda contender: None) -> list:
        """Of pairs (name, contender or why there is none) the contenders, without those that
        ``too_much`` gives a reason against."""
        chosen = []
        for name, item in found:
            if isinstance(item, str):
                self.skip(where, name, item)
            elif why := too_much(item):
                self.skip(where, item.name, why)
            else:
                chosen.append(item)
        return chosen

    def too_late(self, contender: Contender) -> str | None:
        """Why a peer is left out once the time is over."""
        if contender.kind == "peer" and self.over:
            return f"the time for peers is over (--minutes {self.minutes:g})"
        return None

    def no_compiler(self) -> str | None:
        """Why nothing can be compiled here."""
        if self.compile_limit <= 0:
            return "compiling is turned off (--compile-seconds)"
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "inductor needs a C++ compiler: apt-get install g++"
        return None

    def used_up(self) -> str | None:
        """Why nothing more is compiled, where the limit is that of all compiles together."""
        if self.compile_left <= 0:
            return f"{self.compile_limit:g} s of compiling are used up (--compile-seconds)"
        return None

    def trial(self, contender: Contender, attempt: Callable[[Trial], None]) -> Trial:
        """``attempt`` judges and, if nothing is wrong, fills in costs and runs; what it raises is a
        refusal."""
        trial = Trial(contender, self.verdict())
        try:
            attempt(trial)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
            trial = Trial(contender, self.verdict(refused=why))
        return trial

    @contextmanager
    def first_run(self, trial: Trial):
        """Around the run that compiles what is compiled."""
        begin = time.perf_counter()
        yield
        trial.seconds = time.perf_counter() - begin
        if trial.contender.compiled:
            self.compile_left -= trial.seconds

    def time(self, runs: dict[str, Callable[[int], object]]) -> dict[str, Timing]:
        """Timings in the same rounds, and what others did meanwhile."""
        begin, foreign = time.perf_counter(), environment.foreign_seconds()
        timings = harness.time_rounds(runs, self.device, self.rounds, self.seconds)
        self._timing += time.perf_counter() - begin
        self._foreign += environment.foreign_seconds() - foreign
        return timings

    def timed(self, case: Case, runs: dict, width: float | dict[str, float]) -> dict[str, dict]:
        """Times ``runs`` beside "copy_", which copies the case's sources; name -> the columns of
        its row. ``width``: elements that the byte model moves per unit, of all runs or by name."""
        sources = case.sources
        out = [tuple(torch.empty_like(source) for source in tensors) for tensors in sources]

        def copy(i):
            for target, source in zip(out[i % len(out)], sources[i % len(out)]):
                target.copy_(source)

        copy(0)
        timings = self.time({"copy_": copy, **rotating(runs, len(sources))})
        moved = 2 * sum(source.numel() * source.element_size() for source in sources[0])
        copied = moved / timings["copy_"].ms
        widths = {**(width if isinstance(width, dict) else dict.fromkeys(runs, width)), "copy_": 2}
        columns = {}
        for name, timing in timings.items():
            rate = widths[name] * case.size * case.count / timing.ms
            columns[name] = {
                **timing.asdict(),
                f"bytes_per_{case.unit}": widths[name] * case.size,
                "gb_per_s": rate / 1e6,
                "share_of_copy": rate / copied,
            }
        return columns

    def row(self, case: Case, measurement: str | None, name: str, kind: str, *more: dict) -> None:
        row = {"measurement": measurement} if measurement else {}
        row |= {"contender": name, "kind": kind, **case.where}
        for columns in more:
            row |= columns
        self.rows.append(row)

    def measure(
        self,
        case: Case,
        measurement: str | None,
        trials: list[Trial],
        width: float | dict[str, float] = 0,
        *,
        copy: bool = False,
        timed: bool = True,
    ) -> dict[str, dict]:
        """Time what ``trials`` have to run and add a row for each, and for each that was refused;
        ``copy``: for the copy, too. Returns the columns of the timings by name."""
        runs = {t.name: t.runs[measurement] for t in trials if measurement in t.runs}
        columns = self.timed(case, runs, width) if timed else {}
        if copy and timed:
            self.row(case, measurement, "copy_", "probe", columns["copy_"])
        for trial in trials:
            name, kind, mine = trial.name, trial.contender.kind, {}
            if not trial.verdict.refused and name not in runs:
                continue
            if name in columns:
                mine = columns[name]
                peers = [t.name for t in trials if t.contender.kind == "peer" and t.name in columns]
                if kind == "ours" and peers:
                    ratios = {peer: columns[peer]["ms"] / mine["ms"] for peer in peers}
                    mine = mine | {"speedup_over": ratios}
            self.row(case, measurement, name, kind, vars(trial.verdict), mine, trial.costs)
        return columns
