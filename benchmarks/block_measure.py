"""The measurements of bench_block.py at one (shape, dtype, T)."""

import math
from collections.abc import Callable
from functools import partial

import harness
import measure
import peers
import run
import torch
from block_case import (
    Block,
    Case,
    Contender,
    Recorder,
    Unfused,
    Verdict,
    compiled,
    ours,
    ours_packed,
    unfused,
)
from lif_case import SURROGATE
from measure import Trial
from torch import Tensor, nn

import snnfast
from snnfast.backends import spec as specs
from snnfast.ops.layer import lif_layer
from snnfast.ops.select import implementation

COMPILED, SPIKINGJELLY, UNFUSED = "torch.compile", "SpikingJelly", "BatchNorm2d + snnfast.lif"

SHAPES = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]

PARTS = {"part": False, "part + residual": True}
BLOCKS = {"block": 1, "residual block": 2}
"""Measurements, with whether there is a residual, and with the number of layers."""

BYTES = {"part": 8, "part + residual": 11, "block": 14, "residual block": 31}
"""Tensors' worth of bytes: statistics 1, apply 2 [3], backward 5 [7]; a convolution 6 (forward, and
the gradients of its input and of its weight, 2 each)."""

PASSES = {"statistics": (1, 1), "apply": (2, 3), "backward 1": (3, 4), "backward 2": (3, 3)}
"""What each pass of ours moves without and with a residual: 9b and 11b (backward 1 writes dx, which
backward 2 reads in place of ds; the model above counts 8b for the first)."""


class Bench(measure.Bench):
    """Nothing more is compiled once all compiles took ``compile_s``. A block is not timed where one
    pass of its convolutions would take more than ``block_seconds``. Once the ``minutes`` are over,
    only our own parts are measured."""

    title, packages, verdict = "Block", peers.PACKAGES[:1], Verdict
    limits = ("block_seconds",)

    def __init__(self, *args, block_seconds: float = 4.0, **limits):
        super().__init__(*args, **limits)
        self.block_seconds = block_seconds
        self._parts: dict[tuple, nn.Module] = {}
        self._untimed: set[tuple] = set()

    @staticmethod
    def options(p) -> None:
        shapes = run.list_of(run.sizes("64x32x32", "C, H and W are", axes=3))
        p.add_argument("--shapes", type=shapes, help="C x H x W: 64x32x32,...")
        p.add_argument("--steps", type=run.list_of(run.positive), help="T: 4,8")
        p.add_argument("--batch", type=run.positive, help="B; default 32, with --quick 2")
        p.add_argument("--compile-seconds", type=float, help="seconds of all compiles together")
        p.add_argument("--minutes", type=float, help="after this, only our own parts are measured")
        p.add_argument("--block-seconds", type=float, help="longest pass of a block's convolutions")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "shapes": [(64, 16, 16), (512, 4, 4)] if quick else SHAPES,
            "steps": [4] if quick else [4, 8],
            "batch": 2 if quick else 32,
            "dtypes": [torch.float32, torch.bfloat16],
            "seconds": 0.2 if quick else 0.5,
            "minutes": 0.6 if quick else 4.5,
            "compile_seconds": 0.0 if quick else 100.0,
            "block_seconds": 4.0,
        }

    def cases(self, args):
        # What targets are stated for comes first: small T, float32, the parts before the blocks.
        for steps in sorted(args.steps):
            for dtype in args.dtypes:
                for each in (self.run_parts, self.run_blocks):
                    for shape in args.shapes:
                        yield each(self.case(shape, args.batch, dtype, steps))

    def settings(self, args) -> dict:
        return {"batch": args.batch}

    def case(self, shape, batch: int, dtype: torch.dtype, steps: int) -> Case:
        bytes_ = math.prod((steps, batch, *shape)) * dtype.itemsize
        return Case(shape, batch, steps, dtype, self.device, self.sets(bytes_))

    def run_parts(self, case: Case) -> list[dict]:
        """The element-wise part, pass by pass and as a layer; returns the rows."""
        first = len(self.rows)
        for measurement, residual in PARTS.items():
            self.passes(case, residual)
            self.layers(case, measurement, self._contenders(case, measurement))
        return self.rows[first:]

    def run_blocks(self, case: Case) -> list[dict]:
        """The blocks. Of one that is too slow here only the memory, once per shape and dtype."""
        first = len(self.rows)
        for measurement in BLOCKS:
            where = {"measurement": measurement, **case.where}
            if self.over:
                self.skip(where, "all", f"the time is over (--minutes {self.minutes:g})")
                continue
            why = self._too_slow(case, measurement)
            contenders = self._contenders(case, measurement)
            if why is None:
                self.layers(case, measurement, contenders)
                continue
            self.skip(where, "all timings", why)
            key = (measurement, case.shape[2:], case.dtype)
            if key not in self._untimed:
                self._untimed.add(key)
                small = self.case(case.shape[2:], 1, case.dtype, case.steps)
                contenders = [c for c in contenders if not c.compiled]
                self.layers(small, measurement, contenders, timed=False)
        return self.rows[first:]

    def _too_slow(self, case: Case, measurement: str) -> str | None:
        """Why a block is left out: found on one image, so that finding it costs little."""
        conv = case.conv()
        x = case.spikes[0].detach()[0, :1].requires_grad_()
        seconds = harness.shortest(lambda: conv(x).sum().backward(), self.device)
        seconds *= case.steps * case.batch * BLOCKS[measurement]
        # A GPU is not filled by one image, so there this says nothing.
        if self.device.type == "cpu" and seconds > self.block_seconds:
            return (
                f"its convolutions alone would take about {seconds:.0f} s a pass here, more than "
                f"--block-seconds {self.block_seconds:g}"
            )
        return None

    def _contenders(self, case: Case, measurement: str) -> list[Contender]:
        """Ours and the peers; those that cannot be measured here are left out with the reason."""
        found: list[tuple[str, Contender | str]] = [(n, ours(n)) for n in self.backends]
        if measurement != "part":  # which holds no spikes for its backward
            found += [(n, ours_packed(n)) for n in self.backends]
        found += [(n, unfused(n)) for n in self.backends]
        theirs = peers.spikingjelly(case.device, case.dtype)
        if self.device.type == "cpu":
            theirs = theirs[:1]
        for item in theirs:
            if not isinstance(item, str):
                build = partial(Unfused, neuron=item.layer)
                item = Contender(f"BatchNorm2d + {item.name}", "peer", build)
            found.append((SPIKINGJELLY, item))
        why = self._no_compile(case, measurement)
        found.append((COMPILED, why or Contender(COMPILED, "peer", compiled, compiled=True)))
        return self.choose({"measurement": measurement, **case.where}, found, self.too_late)

    def _no_compile(self, case: Case, measurement: str) -> str | None:
        if why := self.no_compiler():
            return why
        wanted = [PARTS[measurement]] if measurement in PARTS else [False, True]
        wanted = wanted[: BLOCKS.get(measurement, 1)]
        if all((case.shape, case.dtype, residual) in self._parts for residual in wanted):
            return None
        return self.used_up()

    def part(self, case: Case, contender: Contender, residual: bool) -> nn.Module:
        """A part; of a compiled one the same that was compiled before."""
        if not contender.compiled:
            return case.part(contender)
        key = (case.shape, case.dtype, residual)
        if key not in self._parts:
            self._parts[key] = case.part(contender)
        return self._parts[key]

    def layers(
        self, case: Case, measurement: str, contenders: list[Contender], timed: bool = True
    ) -> None:
        """Time, kept bytes and peak of every contender that passes the gate."""
        convs = [case.conv() for _ in range(BLOCKS.get(measurement, 0))]

        def attempt(trial: Trial) -> None:
            layer = _Layer(self, case, measurement, trial.contender, convs)
            with self.first_run(trial):
                trial.verdict, generated = layer.gate()
            if not trial.verdict.refused:
                trial.costs = layer.costs(generated)
                trial.runs[measurement] = layer.train

        trials = [self.trial(contender, attempt) for contender in contenders]
        self.measure(case, measurement, trials, BYTES[measurement], copy=True, timed=timed)

    def passes(self, case: Case, residual: bool) -> None:
        """Each pass of ours on preallocated outputs, against copy_."""
        runs, widths = {}, {}
        for name in self.backends:
            try:
                for what, launch in launches(case, name, residual).items():
                    launch(0)
                    runs[f"{name}: {what}"] = launch
                    widths[f"{name}: {what}"] = PASSES[what][residual]
            except Exception as error:
                where = {"measurement": "passes", **case.where}
                self.skip(where, name, f"{type(error).__name__}: {error}"[:300])
        columns = self.timed(case, runs, widths)
        measurement = "passes + residual" if residual else "passes"
        for name in runs:
            self.row(case, measurement, name, "ours", columns[name])


class _Layer:
    """One contender as a part or a block of one case: gate, costs, and the step to be timed."""

    def __init__(self, bench: Bench, case: Case, measurement: str, contender: Contender, convs):
        self.case, self.contender, self.device = case, contender, bench.device
        self.convs = convs
        self.residual = PARTS.get(measurement, False)
        wanted = [self.residual] if not convs else [False, True][: len(convs)]
        self.parts = [bench.part(case, contender, residual) for residual in wanted]
        self.block = Block(convs, self.parts) if convs else None
        self.parameters = [p for part in self.parts for p in (part.weight, part.bias)]
        self.weights = [conv.weight for conv in convs]
        self.leaves = [y.detach().requires_grad_() for y in case.y]

    def _inputs(self, i: int) -> list[Tensor]:
        if self.block:
            return [self.case.spikes[i]]
        return [self.leaves[i], *([self.case.spikes[i]] if self.residual else [])]

    def forward(self, inputs: list[Tensor]) -> Tensor:
        with self.contender.context():
            return (self.block or self.parts[0])(*inputs)

    def _step(self, inputs: list[Tensor], ds: Tensor, s: Tensor | None = None) -> tuple:
        # Not s.backward(): it copies a gradient that two leaves share, as no network does.
        s = self.forward(inputs) if s is None else s
        return s.detach(), *torch.autograd.grad(s, [*inputs, *self.parameters, *self.weights], ds)

    def train(self, i: int) -> tuple:
        i %= len(self.leaves)
        return self._step(self._inputs(i), self.case.ds[i])

    def gate(self) -> tuple[Verdict, list[int]]:
        """One step, which is the warm-up too: the verdict over all parts, and how many functions
        inductor generated for it."""
        recorders = [Recorder(part) for part in self.parts]
        inputs = self._inputs(0)

        def step():
            target = Block(self.convs, recorders) if self.block else recorders[0]
            with self.contender.context():
                s = target(*inputs)
            return torch.autograd.grad(s, [*inputs, *self.parameters], self.case.ds[0])

        compiled = self.contender.compiled and self.device.type == "cpu"
        grads, generated = harness.with_generated(step, compiled)
        sums = grads[len(inputs) :]
        verdict = Verdict()
        for i, recorder in enumerate(recorders):
            verdict.join(recorder.judge(self.case, self.contender, *sums[2 * i : 2 * i + 2]))
        return verdict, generated

    def costs(self, generated: list[int]) -> dict:
        """Bytes kept and at the peak per element of y and layer; of a part its ops (launches on
        CUDA, there of blocks, too) forward and backward."""
        case = self.case
        edges: list = []

        def layer(y):
            # Spikes are made here, by our op, from what lies outside: counted if the layer keeps
            # them, and only then. The gradient stops at the edges, which hold no tensor.
            inputs = [y]
            if self.block or self.residual:
                with self.contender.context():
                    spikes = snnfast.lif(self.leaves[0])
                inputs = [spikes] if self.block else [y, spikes]
            edges[:] = [torch.autograd.graph.get_gradient_edge(x) for x in inputs]
            return self.forward(inputs)

        def backward(s):
            return torch.autograd.grad(s, [*edges, *self.parameters, *self.weights], case.ds[0])

        kept, peak = harness.memory(layer, case.y[0], backward)
        count = case.count * len(self.parts)
        found = {"kept_bytes": round(kept / count, 4), "peak_bytes": round(peak / count, 4)}
        if self.block and self.device.type == "cpu":
            return found
        inputs = self._inputs(0)
        again = partial(self._step, inputs, case.ds[0])
        return found | harness.ops(lambda: self.forward(inputs), again, self.device, generated)


def launches(case: Case, backend: str, residual: bool) -> dict[str, Callable[[int], object]]:
    """The passes of norm_lif on preallocated outputs, by name; run them in order at first."""
    functions = implementation(backend)
    where = specs.Channels(case.channels, case.height * case.width)
    stats, totals = (torch.empty(rows, case.channels, device=case.device) for rows in (4, 5))
    count = case.count // case.channels
    given = (case.weight, torch.zeros_like(stats[0]), torch.ones_like(stats[0]))
    numbers = (0.1, count / max(1, count - 1), 1e-5)
    layer = lif_layer(case.steps, surrogate=SURROGATE)
    s, dx, dy = ([torch.empty_like(y) for y in case.y] for _ in range(3))
    kept = specs.segments(case.steps) - 1
    sets = len(case.y)
    borders = [stats.new_empty((kept, *case.shape[1:])) if kept else None for _ in range(sets)]

    def r(i):
        return case.spikes[i].detach() if residual else None

    def statistics(i):
        functions.norm_stats(where, *numbers, case.y[i % sets], stats, *given)

    def apply(i):
        i %= sets
        tensors = (case.y[i], None, None, s[i], None, borders[i], stats, case.bias, r(i))
        functions.lif_forward(layer, *tensors, where)

    def backward_1(i):
        i %= sets
        tensors = (case.y[i], None, None, borders[i], case.ds[i], None, dx[i], None, None)
        rows = (stats, case.bias, r(i), totals, None)
        functions.norm_lif_backward(layer, where, count, *tensors, *rows)

    def backward_2(i):
        i %= sets
        functions.norm_dy(where, case.y[i], dx[i], dy[i], stats, totals)

    return dict(zip(PASSES, (statistics, apply, backward_1, backward_2)))
