"""The measurements of bench_neuron.py: those of bench_lif.py, of one neuron after the other."""

from contextlib import nullcontext
from functools import partial

import lif_measure
import neuron_case
import neuron_peers
import run
import torch
from measure import Trial
from neuron_case import Case
from peers import Contender
from torch import Tensor

from snnfast import neurons
from snnfast.backends.cpu import neuron as cpu
from snnfast.backends.spec import segments
from snnfast.ops.neuron import prepared
from snnfast.ops.select import implementation

TARGETS = ("lif", "synaptic", "adaptive_lif", "izhikevich", "glif")
"""The neurons that are measured at every T; the others at the shortest."""
LONG, LONG_SHAPE = "adaptive_lif", (32, 64, 4, 4)
"""Measured at T = 1000, on few neurons."""
LONG_STEPS = 1000


def executors(backend: str) -> dict:
    """{name of the contender: what its calls are made in}; a CPU has more than one, a backend that
    runs no programs has none."""
    if not hasattr(implementation(backend).functions, "neuron_forward"):
        return {}
    if backend != "cpu":
        return {f"snnfast {backend}": nullcontext}
    return {f"snnfast cpu {name}": partial(cpu.executed_by, name) for name in cpu.executors()}


def launch(case: Case, backend: str, entered, s: list[Tensor], dx: list[Tensor]):
    """A backend's kernels of a program, as ``lif_measure.Launch`` has them."""
    functions = implementation(backend)
    (layer, *_), params = prepared(neuron_case.bound(case.subject.name, case.x[0], backend))
    count, kept = layer.step.states, segments(case.steps) - 1
    none, sizes = [None] * count, (count, kept, *case.shape)
    borders = [torch.empty(sizes, device=case.device) if kept else None for _ in s]

    def forward(i):
        i %= len(s)
        with entered():
            functions.neuron_forward(layer, [case.x[i]], none, params, [s[i]], [], borders[i])

    def backward(i):
        i %= len(s)
        given = ([case.x[i]], none, params, borders[i], [case.ds[i]], none)
        with entered():
            functions.neuron_backward(layer, *given, [dx[i]], none, [None] * len(params))

    return forward, backward


def within(entered, run, *args):
    with entered():
        return run(*args)


class Bench(lif_measure.Bench):
    """``compile_s`` bounds all compiles together."""

    title, compile_steps = "neuron", 4

    @staticmethod
    def options(p) -> None:
        lif_measure.Bench.options(p)
        name = run.one_of("a neuron", {name: name for name in neurons.__all__})
        p.add_argument("--neurons", type=run.list_of(name), help="lif,synaptic; all of them")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "neurons": [*TARGETS, *(n for n in neurons.__all__ if n not in TARGETS)],
            "shapes": [(8, 64, 16, 16)] if quick else [(32, 64, 32, 32)],
            "steps": [4] if quick else [4, 16],
            "dtypes": [torch.bfloat16 if cuda else torch.float32],
            "seconds": 0.1 if quick else 0.5,
            "minutes": 0.5 if quick else 7.0,
            "compile_seconds": 0.0 if quick else 100.0,
        }

    def cases(self, args):
        for name in args.neurons:
            self.neuron = name
            some = sorted(args.steps) if name in TARGETS else [min(args.steps)]
            for shape in args.shapes:
                for dtype in args.dtypes:
                    for steps in some:
                        yield self.run(shape, dtype, steps)
        if LONG in args.neurons and not args.quick:
            self.neuron = LONG
            yield self.run(LONG_SHAPE, args.dtypes[0], LONG_STEPS)

    def _case(self, *args) -> Case:
        return Case(self.neuron, *args)

    def _launches(self, case: Case) -> dict:
        launches = {}
        for backend in self.backends:
            for name, entered in executors(backend).items():
                launches[name] = partial(launch, case, backend, entered)
            if self.neuron == "lif":
                launches[neuron_case.tuned(backend).name] = partial(
                    lif_measure.launch_lif, case, backend
                )
        return launches

    def _contenders(self, case: Case) -> list[Contender]:
        name = self.neuron
        found: list[tuple[str, Contender | str]] = []
        for backend in self.backends:
            layer, tolerance = neuron_case.layer(name, backend), case.subject.tolerance
            for label in executors(backend):
                found.append((label, Contender(label, "ours", layer, tolerance=tolerance)))
            if name == "lif":
                found.append((backend, neuron_case.tuned(backend)))
        found.append(("torch loop", neuron_case.torch_loop(name)))
        package = neuron_peers.MODULES.get(name, ["peer"])[0]
        found.append((package, neuron_peers.peer(name, case.steps)))
        if case.device.type == "cuda":
            found.append(("FlexSN", neuron_peers.flexsn(name)))
        loop = self._no_compile(case) or neuron_case.compiled_loop(name)
        found.append((lif_measure.COMPILED, loop))
        return self.choose(case.where, found, partial(self._too_big, case))

    def _too_big(self, case: Case, contender: Contender) -> str | None:
        if contender.kind == "peer" and case.steps == LONG_STEPS:
            return f"at T = {LONG_STEPS} autograd through a loop takes half a minute"
        return super()._too_big(case, contender)

    def _no_compile(self, case: Case) -> str | None:
        return super()._no_compile(case) or self.used_up()

    def _layer(self, case: Case, leaves: list[Tensor], trial: Trial) -> None:
        entered = {name: e for b in self.backends for name, e in executors(b).items()}
        mine = entered.get(trial.name, nullcontext)
        with mine():
            super()._layer(case, leaves, trial)
        trial.runs = {key: partial(within, mine, run) for key, run in trial.runs.items()}
