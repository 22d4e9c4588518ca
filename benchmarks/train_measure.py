"""The measurements of bench_train.py at one (T, dtype)."""

from dataclasses import replace

import harness
import measure
import peers
import run
import torch
from measure import Trial
from report import number
from train_case import Case, Contender, Training, compiled_loop, loop, ours, spikingjelly
from train_frontier import LITTLE, MEMOPT, PLAN, SHARE, memopt, planned, within
from train_gate import Gate, Verdict

from snnfast.models import create_model

PROBE = 2
"""Images that show how long a step would take."""

COMPILED, SPIKINGJELLY, LOOP = "torch.compile'd loop", "SpikingJelly", "torch loop"


def few(side: int) -> int:
    """Images where more would take too long; one of 8x8 has no variance behind the last stage."""
    return 1 if side > 8 else 2


class Bench(measure.Bench):
    """A step that would take more than ``step_seconds`` is not timed: of the first such case of a
    dtype loss and memory are measured on few images. Nothing more is compiled once all compiles
    took ``compile_s``, and no case is begun once the ``minutes`` are over."""

    title, packages, verdict = "Training", peers.PACKAGES[:1], Verdict
    limits = ("step_seconds",)

    def __init__(self, *args, step_seconds: float = 60.0, **limits):
        super().__init__(*args, **limits)
        self.step_seconds = step_seconds
        self._image_seconds: dict[torch.dtype, float] = {}
        self._untimed: set[torch.dtype] = set()

    @staticmethod
    def options(p) -> None:
        add = p.add_argument
        add("--timesteps", type=run.list_of(run.positive), help="T: 2,4,6")
        add("--batch", type=run.positive, help="images a step; default 32, on CUDA 128")
        add("--image-size", type=run.positive, help="side of the images; default 32")
        add("--compile-seconds", type=float, help="seconds of all compiles together")
        add("--minutes", type=float, help="after this, no case is begun")
        add("--step-seconds", type=float, help="longest step that is timed")
        add("--seconds", type=float, help="seconds of timing for each contender and case")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "timesteps": [2] if quick else [4, 2, 6],
            "batch": 2 if quick else 128 if cuda else 32,
            "image_size": 8 if quick else 32,
            "dtypes": [torch.float32, torch.bfloat16][: 1 if quick else 2],
            "seconds": 1.0 if quick else 4.0 if cuda else 20.0,
            "minutes": 1.0 if quick else 15.0,
            "compile_seconds": 0.0 if quick else 300.0,
            "step_seconds": 60.0,
        }

    def cases(self, args):
        # What targets are stated for comes first.
        for dtype in args.dtypes:
            for steps in args.timesteps:
                yield self.run(args.image_size, args.batch, steps, dtype)

    def settings(self, args) -> dict:
        return {
            "model": "resnet18",
            "parameters": parameters(),
            "batch": args.batch,
            "image_size": args.image_size,
        }

    def run(self, side: int, batch: int, steps: int, dtype: torch.dtype) -> list[dict]:
        """All contenders at one case; returns its rows."""
        first = len(self.rows)
        where = {"dtype": measure.dtype_name(dtype), "steps": steps}
        if self.over:
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
        gate, timed = Gate(case), why is None

        def attempt(trial: Trial) -> None:
            training = Training(case, trial.contender)
            with self.first_run(trial):
                trial.verdict = gate.judge(training)
            if trial.contender.compiled:
                trial.costs["first_step_s"] = trial.seconds
            if not trial.verdict.refused:
                trial.costs |= self._memory(training)
                trial.runs[None] = training.step

        trials = [self.trial(contender, attempt) for contender in self._contenders(where, timed)]
        ends = [trial for trial in trials if trial.name.startswith(MEMOPT)]
        trials += [self._within_peak(case, trial, attempt) for trial in ends]
        self.measure(case, None, trials, timed=timed)
        return self.rows[first:]

    def _within_peak(self, case: Case, memopt: Trial, attempt) -> Trial:
        """The trial of a plan that needs no more memory than memopt."""
        layout = memopt.contender.channels_last
        backend, limit = self.backends[0], memopt.costs.get("peak_bytes")
        contender = planned(backend, memopt.name.replace(MEMOPT, PLAN), 1.0)

        def found(trial: Trial) -> None:
            if limit is None:
                raise RuntimeError(f"{memopt.name} has no peak")
            trial.contender = within(limit, case, trial.contender, self._memory)
            attempt(trial)

        return self.trial(replace(contender, channels_last=layout), found)

    def _too_slow(self, case: Case) -> str | None:
        """Why steps are not timed: found on few images, so that finding it costs little."""
        if self.device.type != "cpu":  # a GPU is not filled by them
            return None
        if case.dtype not in self._image_seconds:
            training = Training(Case(case.side, PROBE, 1, case.dtype, self.device), loop())
            seconds = harness.shortest(training.step, self.device)
            self._image_seconds[case.dtype] = seconds / PROBE
        seconds = self._image_seconds[case.dtype] * case.steps * case.batch
        if seconds <= self.step_seconds:
            return None
        return (
            f"by {PROBE} images a step would take {number(seconds)} s here, more than "
            f"--step-seconds {self.step_seconds:g}; loss and memory are shown once, on few images"
        )

    def _contenders(self, where: dict, timed: bool) -> list[Contender]:
        """Those that cannot be measured here are left out; on CUDA each in both layouts."""
        why = self.no_compiler() or (None if timed else "nothing is timed here") or self.used_up()
        found = [(name, ours(name)) for name in self.backends]
        found += [(SPIKINGJELLY, item) for item in spikingjelly(self.device)]
        found += [(MEMOPT, item) for item in memopt(self.device)]
        found += [(LOOP, loop()), (COMPILED, why or compiled_loop())]
        found += [(LITTLE, planned(self.backends[0], LITTLE, SHARE))]
        contenders = self.choose(where, found)
        if self.device.type != "cuda":
            return contenders
        return [
            form
            for c in contenders
            for form in (c, replace(c, name=f"{c.name}, channels-last", channels_last=True))
        ]

    def _memory(self, training: Training) -> dict:
        """Bytes kept between forward and backward, and at the peak, above parameters, gradients and
        the optimiser's state."""
        training.optimizer.zero_grad(set_to_none=False)
        with training.contender.around():
            kept, peak = harness.memory(
                lambda _: training.forward(), training.images, training.backward
            )
        return {"kept_bytes": kept, "peak_bytes": peak}

    def timed(self, case: Case, runs: dict, width: float = 0) -> dict[str, dict]:
        """Images per second in place of a copy's."""
        return {
            name: timing.asdict() | {"images_per_s": 1e3 * case.batch / timing.ms}
            for name, timing in (self.time(runs) if runs else {}).items()
        }


def parameters() -> int:
    """Of the network that all train."""
    with torch.device("meta"):
        model = create_model("resnet18", num_classes=100)
    return sum(p.numel() for p in model.parameters())
