"""What the benchmarks' measurements share: the rows, what was left out, timings beside a copy."""

import math
import time
from collections.abc import Callable

import environment
import harness
import torch
from harness import Timing
from torch import Tensor


class Bench:
    """Collects ``rows`` and ``left_out``. A measurement of one contender takes at most ``seconds``,
    unless two samples take longer; ``end`` is when the ``minutes`` are over."""

    def __init__(
        self, device: torch.device, backends: list[str], rounds: int, seconds: float, minutes: float
    ):
        self.device, self.backends, self.rounds = device, backends, rounds
        self.seconds, self.minutes = seconds, minutes
        self.end = time.monotonic() + 60 * minutes
        self.rows: list[dict] = []
        self.left_out: list[dict] = []
        self._timing = self._foreign = 0.0

    @property
    def other_work(self) -> float | None:
        """How many cores others kept busy, on average, while timings ran; None where unknown."""
        share = self._foreign / self._timing if self._timing else math.nan
        return round(max(0.0, share), 3) if math.isfinite(share) else None

    def sets(self, size: int) -> int:
        """On CUDA enough inputs of ``size`` bytes that none is in the L2 when its turn comes; the
        CPU keeps one."""
        if self.device.type != "cuda":
            return 1
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(16, 2 + 4 * l2 // size)

    def skip(self, where: dict, name: str, why: str) -> None:
        """Leave a contender out of the case that the columns ``where`` name, and say why."""
        self.left_out.append({"contender": name, **where, "why": why})
        print(f"  left out: {name}: {why}", flush=True)

    def time_beside_copy(
        self, runs: dict[str, Callable[[int], object]], sources: list[tuple[Tensor, ...]]
    ) -> tuple[dict[str, Timing], float]:
        """Timings of ``runs`` and of "copy_", which copies one of the ``sources``, in the same
        rounds; and the bandwidth of that copy in bytes/s."""
        out = [tuple(torch.empty_like(source) for source in tensors) for tensors in sources]

        def copy(i):
            for target, source in zip(out[i % len(out)], sources[i % len(out)]):
                target.copy_(source)

        copy(0)
        begin, foreign = time.perf_counter(), environment.foreign_seconds()
        timings = harness.time_rounds(
            {"copy_": copy, **runs}, self.device, self.rounds, self.seconds
        )
        self._timing += time.perf_counter() - begin
        self._foreign += environment.foreign_seconds() - foreign
        moved = 2 * sum(source.numel() * source.element_size() for source in sources[0])
        return timings, moved / (timings["copy_"].ms * 1e-3)
