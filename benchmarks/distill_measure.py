"""The measurements of bench_distill.py at one (objective, shape, dtype)."""

import math
from collections.abc import Callable
from functools import partial

import harness
import measure
import run
import torch
from distill_case import COMPILED, EAGER, LOOP, OBJECTIVES, Case, Contender, Objective, Verdict
from measure import Trial
from torch import Tensor

from snnfast.ops.select import implementation

SHAPES = [(4, 128, 10), (6, 128, 100), (4, 512, 1000), (10, 32, 10)]


class Bench(measure.Bench):
    """Nothing more is compiled once a compile took more than ``compile_s``, or the ``minutes`` are
    over."""

    title, verdict = "Distillation", Verdict
    compile_took = 0.0

    @staticmethod
    def options(p) -> None:
        named = {objective.name.replace(" ", "-").lower(): objective for objective in OBJECTIVES}
        p.add_argument("--objectives", help=",".join(named),
                       type=run.list_of(run.one_of("objective", named)))  # fmt: skip
        shapes = run.list_of(run.sizes("4x128x10", "T, B and C are", axes=3))
        p.add_argument("--shapes", type=shapes, help="T x B x C: 4x128x10,...")
        p.add_argument("--compile-seconds", type=float, help="longest compile of a composition")
        p.add_argument("--minutes", type=float, help="after this, nothing more is compiled")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "objectives": OBJECTIVES,
            "shapes": [SHAPES[0], SHAPES[2]] if quick else SHAPES,
            "dtypes": [torch.float32],
            "seconds": 0.2 if quick else 0.5,
            "minutes": 3.0,
            "compile_seconds": 0.0 if quick else 30.0,
        }

    def cases(self, args):
        for dtype in args.dtypes:
            for shape in args.shapes:
                for objective in args.objectives:
                    yield self.run(objective, shape, dtype)

    def run(self, objective: Objective, shape, dtype: torch.dtype) -> list[dict]:
        """All measurements of one case; returns its rows."""
        first = len(self.rows)
        size = math.prod(shape) * dtype.itemsize * (2 if objective.auxiliary else 1)
        case = Case(objective, shape, dtype, self.device, self.sets(size))
        self.kernels(case)
        self.losses(case, self._contenders(case))
        return self.rows[first:]

    def _contenders(self, case: Case) -> list[Contender]:
        objective, steps = case.objective, case.steps
        found = [
            (name, Contender(f"snnfast {name}", "ours", objective.ours(steps, name)))
            for name in self.backends
        ]
        eager = objective.eager(steps)
        found.append((EAGER, Contender(EAGER, "peer", eager)))
        found.append((LOOP, Contender(LOOP, "peer", objective.loop(steps))))
        item = self._no_compile()
        if item is None:
            torch._dynamo.reset()
            compiled = torch.compile(eager, fullgraph=True, dynamic=False)
            item = Contender(COMPILED, "peer", compiled, compiled=True)
        found.append((COMPILED, item))
        return self.choose(case.where, found)

    def _no_compile(self) -> str | None:
        if why := self.no_compiler():
            return why
        if self.compile_took > self.compile_limit:
            return (
                f"a compile took {self.compile_took:.0f} s, more than --compile-seconds "
                f"{self.compile_limit:g}"
            )
        if self.over:
            return f"the time for compiling is over (--minutes {self.minutes:g})"
        return None

    def kernels(self, case: Case) -> None:
        """One launch on preallocated outputs, beside copy_."""

        def attempt(trial):
            launch, value, gradients = launcher(case, trial.name)
            launch(0)
            trial.verdict = case.judge(value(), gradients())
            if not trial.verdict.refused:
                trial.runs["kernel"] = launch
                if self.device.type == "cuda":
                    ops = harness.count_ops(partial(launch, 0), self.device)
                    trial.costs["ops_forward"] = ops

        trials = [self.trial(Contender(name, "ours", None), attempt) for name in self.backends]
        self.measure(case, "kernel", trials, 2, copy=True)

    def losses(self, case: Case, contenders: list[Contender]) -> None:
        """Training, forward, kept bytes and ops of every contender that passes the gate."""
        leaves = [tuple(z.detach().requires_grad_() for z in inputs) for inputs in case.inputs]
        trials = [self.trial(c, partial(self._loss, case, leaves)) for c in contenders]
        self.measure(case, "training", trials, 4)
        for trial in trials:
            if trial.costs:
                trial.costs |= {"kept_bytes": None, "ops_backward": None}
        self.measure(case, "forward", trials, 1)

    def _loss(self, case: Case, leaves: list[tuple[Tensor, ...]], trial: Trial) -> None:
        loss, compiled = trial.contender.loss, trial.contender.compiled
        _clear(leaves[0])

        def step():
            value = case.evaluate(loss, leaves[0])
            value.backward()
            return value.detach()

        with self.first_run(trial):
            value, generated = harness.with_generated(step, compiled and self.device.type == "cpu")
        if compiled:
            self.compile_took = trial.seconds
        trial.verdict = case.judge(value, tuple(z.grad for z in leaves[0]))
        if trial.verdict.refused:
            return
        trial.costs = self._costs(case, loss, generated)
        trial.runs["training"] = partial(_train, loss, case, leaves)
        trial.runs["training"](0)
        # Without gradients it is compiled anew, so only where that is cheap.
        if compiled and trial.seconds > self.compile_limit / 2:
            why = f"compiling took {trial.seconds:.0f} s"
            self.skip(case.where, f"{trial.name} without gradients", why)
        else:
            trial.runs["forward"] = partial(_forward, loss, case)
            trial.runs["forward"](0)

    def _costs(self, case: Case, loss: Callable, generated: list[int]) -> dict:
        """Kept bytes per logit, and ops (launches on CUDA) forward and backward."""
        inputs, one = torch.stack(case.inputs[0]), torch.ones((), device=self.device)

        def layer(x):
            # Clones, so that the inputs live on only if the loss itself holds them.
            return case.evaluate(loss, tuple(z.clone() for z in x.unbind()))

        layer(inputs.requires_grad_())
        kept = harness.kept_bytes(layer, inputs) / case.count
        leaves = tuple(z.detach().requires_grad_() for z in case.inputs[0])
        ops = harness.ops(
            lambda: case.evaluate(loss, leaves), lambda s: s.backward(one), self.device, generated
        )
        return {"kept_bytes": round(kept, 4), **ops}


def launcher(case: Case, backend: str) -> tuple[Callable, Callable, Callable]:
    """run(i) launches on preallocated outputs, NaN at first; then value() [] and gradients()."""
    functions = implementation(backend)
    objective = case.objective
    launch = functions.tssd_loss if objective.auxiliary else functions.stepwise_loss
    options = objective.loss(case.steps)

    def nan(*shape, dtype=torch.float32):
        return torch.full(shape, torch.nan, dtype=dtype, device=case.device)

    loss, terms, unit = nan(), nan(3 if objective.auxiliary else 4), nan()
    gradients = [tuple(nan(*case.shape, dtype=case.dtype) for _ in z) for z in case.inputs]
    sets = len(gradients)

    def run(i):
        i %= sets
        launch(
            options, case.inputs[i][0], case.target, case.third[i], loss, terms, unit, *gradients[i]
        )

    return run, lambda: loss, lambda: tuple(g.float() * unit for g in gradients[0])


def _clear(leaves: tuple[Tensor, ...]) -> None:
    for z in leaves:
        z.grad = None


def _train(loss, case: Case, leaves, i: int) -> None:
    i %= len(leaves)
    tensors = leaves[i]
    _clear(tensors)
    loss(tensors[0], case.target, tensors[1] if len(tensors) > 1 else case.third[i]).backward()


def _forward(loss, case: Case, i: int) -> None:
    i %= len(case.inputs)
    with torch.no_grad():
        loss(case.inputs[i][0], case.target, case.third[i])
