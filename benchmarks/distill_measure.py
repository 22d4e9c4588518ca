"""The measurements of bench_distill.py at one (objective, shape, dtype)."""

import math
import re
import shutil
import time
from collections.abc import Callable
from functools import partial

import harness
import measure
import torch
from distill_case import COMPILED, EAGER, LOOP, Case, Contender, Objective, Verdict
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from snnfast.ops.select import implementation

BYTES = {"kernel": 2, "training": 4, "forward": 1}
"""Logits' worth of bytes that each measurement moves."""


class Bench(measure.Bench):
    """Runs the cases and collects ``rows`` and ``left_out``.

    A measurement of one contender takes at most ``seconds``, unless two samples take longer.
    Nothing more is compiled once a compile took more than ``compile_s``, or the ``minutes`` are
    over.
    """

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        compile_s: float,
        seconds: float = 0.5,
        minutes: float = 3.0,
    ):
        super().__init__(device, backends, rounds, seconds, minutes)
        self.compile_limit = compile_s
        self._compile_took = 0.0

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
            Contender(f"snnfast {name}", "ours", objective.ours(steps, name))
            for name in self.backends
        ]
        eager = objective.eager(steps)
        found.append(Contender(EAGER, "peer", eager))
        found.append(Contender(LOOP, "peer", objective.loop(steps)))
        if why := self._no_compile():
            self.skip(_where(case), COMPILED, why)
        else:
            torch._dynamo.reset()
            compiled = torch.compile(eager, fullgraph=True, dynamic=False)
            found.append(Contender(COMPILED, "peer", compiled, compiled=True))
        return found

    def _no_compile(self) -> str | None:
        if self.compile_limit <= 0:
            return "compiling is turned off (--compile-seconds)"
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "inductor needs a C++ compiler: apt-get install g++"
        if self._compile_took > self.compile_limit:
            return (
                f"a compile took {self._compile_took:.0f} s, more than --compile-seconds "
                f"{self.compile_limit:g}"
            )
        if time.monotonic() > self.end:
            return f"the time for compiling is over (--minutes {self.minutes:g})"
        return None

    def _timed(self, case: Case, measurement: str, runs: dict) -> dict[str, dict]:
        """Times ``runs`` beside a copy_ of the logits; name -> the columns of its row."""
        timings, copied = self.time_beside_copy(runs, case.inputs)
        columns = {}
        for name, timing in timings.items():
            width = 2 if name == "copy_" else BYTES[measurement]
            rate = width * case.size * case.logits / (timing.ms * 1e-3)
            columns[name] = {
                **timing.asdict(),
                "bytes_per_logit": width * case.size,
                "gb_per_s": rate / 1e9,
                "share_of_copy": rate / copied,
            }
        return columns

    def _row(self, case: Case, measurement: str, name: str, kind: str, **more) -> None:
        row = {"measurement": measurement, "contender": name, "kind": kind, **_where(case), **more}
        self.rows.append(row)

    def kernels(self, case: Case) -> None:
        """One launch on preallocated outputs, beside copy_."""
        verdicts, runs, launches = {}, {}, {}
        for name in self.backends:
            try:
                run, value, gradients = launcher(case, name)
                run(0)
                verdicts[name] = case.judge(value(), gradients())
                if verdicts[name].refused is None:
                    launches[name] = harness.count_ops(partial(run, 0), self.device)
                    runs[name] = run
            except Exception as error:
                verdicts[name] = Verdict(refused=f"{type(error).__name__}: {error}"[:300])
        columns = self._timed(case, "kernel", runs)
        self._row(case, "kernel", "copy_", "probe", **columns["copy_"])
        for name, verdict in verdicts.items():
            more = columns.get(name, {})
            if self.device.type == "cuda" and name in launches:
                more = more | {"ops_forward": launches[name]}
            self._row(case, "kernel", name, "ours", **vars(verdict), **more)

    def losses(self, case: Case, contenders: list[Contender]) -> None:
        """Training, forward, kept bytes and ops of every contender that passes the gate."""
        leaves = [tuple(z.detach().requires_grad_() for z in inputs) for inputs in case.inputs]
        training, forward, verdicts, costs = {}, {}, {}, {}
        for contender in contenders:
            name = contender.name
            try:
                begin = time.perf_counter()
                verdicts[name], generated = self._gate(case, contender, leaves[0])
                seconds = time.perf_counter() - begin
                if contender.compiled:
                    self._compile_took = seconds
                if verdicts[name].refused:
                    continue
                costs[name] = self._costs(case, contender, generated)
                training[name] = partial(_train, contender.loss, case, leaves)
                training[name](0)
                # Without gradients it is compiled anew, so only where that is cheap.
                if contender.compiled and seconds > self.compile_limit / 2:
                    self.skip(
                        _where(case), f"{name} without gradients", f"compiling took {seconds:.0f} s"
                    )
                else:
                    forward[name] = partial(_forward, contender.loss, case)
                    forward[name](0)
            except Exception as error:
                training.pop(name, None)
                forward.pop(name, None)
                verdicts[name] = Verdict(refused=f"{type(error).__name__}: {error}"[:300])
        for measurement, runs in (("training", training), ("forward", forward)):
            columns = self._timed(case, measurement, runs)
            for contender in contenders:
                name, more = contender.name, {}
                if name in runs:
                    more = columns[name] | costs[name]
                    if measurement == "forward":
                        more |= {"kept_bytes": None, "ops_backward": None}
                elif not verdicts[name].refused:
                    continue
                if contender.kind == "ours" and name in runs:
                    more["speedup_over"] = {
                        peer: columns[peer]["ms"] / columns[name]["ms"]
                        for peer in (EAGER, LOOP, COMPILED)
                        if peer in runs
                    }
                self._row(case, measurement, name, contender.kind, **vars(verdicts[name]), **more)
        for tensors in leaves:
            _clear(tensors)

    def _gate(self, case: Case, contender: Contender, leaves) -> tuple[Verdict, list[int] | None]:
        """One run, which is the warm-up too: the verdict, and the functions that inductor generated
        for forward and backward, which no profiler sees on the CPU."""
        _clear(leaves)

        def run():
            value = case.evaluate(contender.loss, leaves)
            value.backward()
            return value

        generated = None
        if contender.compiled and self.device.type == "cpu":
            value, codes = run_and_get_code(run)
            generated = [len(re.findall(r"^ +cpp_fused_\w+\(", code, re.M)) for code in codes]
        else:
            value = run()
        return case.judge(value.detach(), tuple(z.grad for z in leaves)), generated

    def _costs(self, case: Case, contender: Contender, generated: list[int] | None) -> dict:
        """Kept bytes per logit, and ops (launches on CUDA) forward and backward."""
        inputs, one = torch.stack(case.inputs[0]), torch.ones((), device=self.device)

        def layer(x):
            # Clones, so that the inputs live on only if the loss itself holds them.
            return case.evaluate(contender.loss, tuple(z.clone() for z in x.unbind()))

        layer(inputs.requires_grad_())
        kept = harness.kept_bytes(layer, inputs) / case.logits
        leaves = tuple(z.detach().requires_grad_() for z in case.inputs[0])
        out: list[Tensor] = []
        ops = [
            harness.count_ops(step, self.device)
            for step in (
                lambda: out.append(case.evaluate(contender.loss, leaves)),
                lambda: out[0].backward(one),
            )
        ]
        for i, count in enumerate(generated or []):
            ops[i] += count
        return {"kept_bytes": round(kept, 4), "ops_forward": ops[0], "ops_backward": ops[1]}


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


def _where(case: Case) -> dict:
    steps, batch, classes = case.shape
    return {
        "objective": case.objective.name,
        "shape": case.label,
        "steps": steps,
        "batch": batch,
        "classes": classes,
        "logits": case.logits,
        "dtype": str(case.dtype).removeprefix("torch."),
    }


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
