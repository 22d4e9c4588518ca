"""The measurements of bench_dropin.py at one network."""

import dropin_case
import harness
import measure
import peers
import run
import torch
from dropin_case import Case, Seen, Training, Verdict
from measure import Trial
from torch import Tensor

NEURONS, STEP = "neurons", "step"


class Bench(measure.Bench):
    """Before and after in the same rounds; no network is begun once the ``minutes`` are over."""

    title, packages, verdict = "Drop-in", peers.PACKAGES[:2], Verdict

    @staticmethod
    def options(p) -> None:
        name = run.one_of("a network", {name: name for name in dropin_case.NETWORKS})
        p.add_argument("--networks", type=run.list_of(name), help=",".join(dropin_case.NETWORKS))
        p.add_argument("--minutes", type=float, help="after this, no network is begun")
        p.add_argument("--seconds", type=float, help="of timing for each contender")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "networks": list(dropin_case.NETWORKS),
            "seconds": 0.3 if quick else 12.0,
            "minutes": 1.0 if quick else 4.0,
            "compile_seconds": 0.0,
        }

    def cases(self, args):
        for name in args.networks:
            if self.over:
                self.skip(
                    {"network": name}, "all", f"the time is over (--minutes {args.minutes:g})"
                )
                continue
            sizes = dropin_case.SIZES[name] | (dropin_case.QUICK[name] if args.quick else {})
            yield self.run(Case(name, sizes, self.device))

    def run(self, case: Case) -> list[dict]:
        """Both at one network; returns its rows."""
        first = len(self.rows)
        before: list = []

        def attempt(trial: Trial) -> None:
            training, fused = Training(case, trial.contender), trial.contender.fused
            with self.first_run(trial):
                seen, gradients = Seen(training, behind=fused), training.gradients()
            if not before:
                ds = [torch.randn_like(s) for s in seen.s]
                before.extend((seen, Seen(training, behind=True), gradients, ds))
            flips = dropin_case.FLIPS if fused else 0.0
            trial.verdict.judge(seen, before[fused], gradients, before[2], flips)
            if trial.verdict.refused:
                return
            trial.costs |= self._memory(training)
            if not fused:
                trial.runs[NEURONS] = self._neurons(training, before[0].x, before[3])
            trial.runs[STEP] = training.step

        chosen = self.choose(case.where, dropin_case.contenders(case.name))
        trials = [self.trial(contender, attempt) for contender in chosen]
        for measurement in (NEURONS, STEP):
            self.measure(case, measurement, trials)
        return self.rows[first:]

    @staticmethod
    def _neurons(training: Training, inputs: list[Tensor], ds: list[Tensor]):
        """All neurons forward and backward, each on what reached it before our line."""
        some = list(zip(training.run.neurons(), [x.requires_grad_() for x in inputs], ds))

        def call(i):
            for neuron, x, gradient in some:
                torch.autograd.grad(training.run.feed(neuron, x), x, gradient)

        call(0)
        return call

    @staticmethod
    def _memory(training: Training) -> dict:
        training.optimizer.zero_grad(set_to_none=False)
        kept, peak = harness.memory(
            lambda _: training.forward(), training.case.images, torch.Tensor.backward
        )
        return {"kept_bytes": kept, "peak_bytes": peak}

    def timed(self, case: Case, runs: dict, width: float = 0) -> dict[str, dict]:
        """Without a copy: the two are each other's measure."""
        return {name: timing.asdict() for name, timing in (self.time(runs) if runs else {}).items()}
