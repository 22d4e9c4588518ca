"""The measurements of bench_train.py at one (T, dtype)."""

import math
import shutil
import time

import environment
import harness
import measure
import torch
from harness import number
from train_case import Case, Contender, Training, compiled_loop, loop, ours, spikingjelly
from train_gate import Gate, Verdict

from snnfast.models import create_model

PROBE = 2
"""Images that show how long a step would take."""

COMPILED, SPIKINGJELLY, LOOP = "torch.compile'd loop", "SpikingJelly", "torch loop"


def few(side: int) -> int:
    """Images where more would take too long; one of 8x8 has no variance behind the last stage."""
    return 1 if side > 8 else 2


class Bench(measure.Bench):
    """Runs the cases and collects ``rows`` and ``left_out``.

    A step that would take more than ``step_seconds`` is not timed: of the first such case of a
    dtype loss and memory are measured on few images. Nothing more is compiled once all compiles
    took ``compile_s``, and no case is begun once the ``minutes`` are over.
    """

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        compile_s: float,
        seconds: float = 20.0,
        minutes: float = 15.0,
        step_seconds: float = 60.0,
    ):
        super().__init__(device, backends, rounds, seconds, minutes)
        self.step_seconds = step_seconds
        self.compile_left = self.compile_limit = compile_s
        self._image_seconds: dict[torch.dtype, float] = {}
        self._untimed: set[torch.dtype] = set()
        torch._dynamo.config.recompile_limit = 256

    def run(self, side: int, batch: int, steps: int, dtype: torch.dtype) -> list[dict]:
        """All contenders at one case; returns its rows."""
        first = len(self.rows)
        where = {"dtype": str(dtype).removeprefix("torch."), "steps": steps}
        if time.monotonic() > self.end:
            self.skip(where, "all", f"the time is over (--minutes {self.minutes:g})")
            return []
        case = Case(side, batch, steps, dtype, self.device)
        why = self._too_slow(case)
        if why is not None:
            once = dtype in self._untimed
            self.skip(where, "all" if once else "all timings", why)
            if once:
                return []
            self._untimed.add(dtype)
            case = Case(side, few(side), steps, dtype, self.device)
        self._run(case, where, timed=why is None)
        return self.rows[first:]

    def _too_slow(self, case: Case) -> str | None:
        """Why steps are not timed: found on few images, so that finding it costs little."""
        if self.device.type != "cpu":  # a GPU is not filled by them
            return None
        if case.dtype not in self._image_seconds:
            training = Training(Case(case.side, PROBE, 1, case.dtype, self.device), loop())
            seconds = math.inf
            for _ in range(2):  # the first also builds the convolutions
                begin = time.perf_counter()
                training.step()
                seconds = min(seconds, time.perf_counter() - begin)
            self._image_seconds[case.dtype] = seconds / PROBE
        seconds = self._image_seconds[case.dtype] * case.steps * case.batch
        if seconds <= self.step_seconds:
            return None
        return (
            f"by {PROBE} images a step would take {number(seconds)} s here, more than "
            f"--step-seconds {self.step_seconds:g}; loss and memory are shown once, on few images"
        )

    def _contenders(self, where: dict, timed: bool) -> list[tuple[Contender, bool]]:
        """(contender, channels-last); those that cannot be measured here are left out."""
        found = [(name, ours(name)) for name in self.backends]
        found += [(SPIKINGJELLY, item) for item in spikingjelly(self.device)]
        found.append((LOOP, loop()))
        found.append((COMPILED, self._no_compile(timed) or compiled_loop()))
        layouts = [False, True] if self.device.type == "cuda" else [False]
        contenders = []
        for name, item in found:
            if isinstance(item, str):
                self.skip(where, name, item)
            else:
                contenders += [(item, channels_last) for channels_last in layouts]
        return contenders

    def _no_compile(self, timed: bool) -> str | None:
        if self.compile_limit <= 0:
            return "compiling is turned off (--compile-seconds)"
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "inductor needs a C++ compiler: apt-get install g++"
        if not timed:
            return "nothing is timed here"
        if self.compile_left <= 0:
            return f"{self.compile_limit:g} s of compiling are used up (--compile-seconds)"
        return None

    def _run(self, case: Case, where: dict, timed: bool) -> None:
        gate = Gate(case)
        found: dict[str, tuple[str, Verdict, dict]] = {}
        runs = {}
        for contender, channels_last in self._contenders(where, timed):
            name = contender.name + (", channels-last" if channels_last else "")
            costs: dict = {}
            try:
                training = Training(case, contender, channels_last)
                begin = time.perf_counter()
                verdict = gate.judge(training)
                if contender.compiled:
                    self.compile_left -= time.perf_counter() - begin
                    costs["first_step_s"] = time.perf_counter() - begin
                if not verdict.refused:
                    costs |= self._memory(training)
                    if timed:
                        runs[name] = training.step
            except Exception as error:
                verdict = Verdict(refused=f"{type(error).__name__}: {error}"[:300])
            found[name] = (contender.kind, verdict, costs)
        timings = self._timed(runs)
        for name, (kind, verdict, costs) in found.items():
            row = {"contender": name, "kind": kind, "side": case.side, "batch": case.batch}
            row |= where | vars(verdict) | costs
            if name in timings:
                ms = timings[name].ms
                row |= timings[name].asdict() | {"images_per_s": 1e3 * case.batch / ms}
                if kind == "ours":
                    row["speedup_over"] = {
                        other: timings[other].ms / ms
                        for other in timings
                        if found[other][0] == "peer"
                    }
            self.rows.append(row)

    def _memory(self, training: Training) -> dict:
        """Bytes kept between forward and backward, and at the peak, above parameters, gradients and
        the optimiser's state."""
        training.optimizer.zero_grad(set_to_none=False)
        with training.contender.around():
            kept, peak = harness.memory(
                lambda _: training.forward(), training.images, training.backward
            )
        return {"kept_bytes": kept, "peak_bytes": peak}

    def _timed(self, runs: dict) -> dict[str, harness.Timing]:
        if not runs:
            return {}
        begin, foreign = time.perf_counter(), environment.foreign_seconds()
        timings = harness.time_rounds(runs, self.device, self.rounds, self.seconds)
        self._timing += time.perf_counter() - begin
        self._foreign += environment.foreign_seconds() - foreign
        return timings


def parameters() -> int:
    """Of the network that all train."""
    with torch.device("meta"):
        model = create_model("resnet18", num_classes=100)
    return sum(p.numel() for p in model.parameters())
