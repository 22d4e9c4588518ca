"""The measurements of bench_block.py at one (shape, dtype, T)."""

import math
import re
import shutil
import time
from collections.abc import Callable
from functools import partial

import harness
import measure
import peers
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
    packed,
    unfused,
)
from lif_case import SURROGATE
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import snnfast
from snnfast.backends import spec as specs
from snnfast.ops.layer import lif_layer
from snnfast.ops.select import implementation

COMPILED, SPIKINGJELLY, UNFUSED = "torch.compile", "SpikingJelly", "BatchNorm2d + snnfast.lif"

PARTS = {"part": False, "part + residual": True}
BLOCKS = {"block": 1, "residual block": 2}
"""Measurements, with whether there is a residual, and with the number of layers."""

BYTES = {"part": 8, "part + residual": 11, "block": 14, "residual block": 31}
"""Tensors' worth of bytes: statistics 1, apply 2 [3], backward 5 [7]; a convolution 6 (forward, and
the gradients of its input and of its weight, 2 each)."""

PASSES = {
    "statistics": (1, 1),
    "apply": (2, 3),
    "backward 1": (3, 4),
    "backward 2": (3, 3),
}
"""What each pass of ours moves without and with a residual: 9b and 11b (backward 1 writes dx, which
backward 2 reads in place of ds; the model above counts 8b for the first)."""


class Bench(measure.Bench):
    """Runs the cases and collects ``rows`` and ``left_out``.

    Nothing more is compiled once all compiles took ``compile_s``. A block is not timed where one
    pass of its convolutions would take more than ``block_seconds``. Once the ``minutes`` are over,
    only our own parts are measured.
    """

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        compile_s: float,
        seconds: float = 0.5,
        minutes: float = 5.0,
        block_seconds: float = 4.0,
    ):
        super().__init__(device, backends, rounds, seconds, minutes)
        self.block_seconds = block_seconds
        self.compile_left = self.compile_limit = compile_s
        self._parts: dict[tuple, nn.Module] = {}
        self._untimed: set[tuple] = set()
        torch._dynamo.config.recompile_limit = 256

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
            if time.monotonic() > self.end:
                why = f"the time is over (--minutes {self.minutes:g})"
                self.skip({"measurement": measurement, **_where(case)}, "all", why)
                continue
            why = self._too_slow(case, measurement)
            contenders = self._contenders(case, measurement)
            if why is None:
                self.layers(case, measurement, contenders)
                continue
            self.skip({"measurement": measurement, **_where(case)}, "all timings", why)
            key = (measurement, case.label, case.dtype)
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
        seconds = math.inf
        for _ in range(2):  # the first also builds the convolution
            begin = time.perf_counter()
            conv(x).sum().backward()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = min(seconds, time.perf_counter() - begin)
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
            for name in self.backends:
                if packed() is None:
                    why = "this snnfast has no packed_spikes"
                    found.append((f"snnfast {name}, packed", why))
                else:
                    found.append((name, ours_packed(name)))
        found += [(f"{UNFUSED} {n}", unfused(n)) for n in self.backends]
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
        contenders = []
        for name, item in found:
            if not isinstance(item, str) and item.kind == "peer" and time.monotonic() > self.end:
                item = f"the time for peers is over (--minutes {self.minutes:g})"
            if isinstance(item, str):
                self.skip({"measurement": measurement, **_where(case)}, name, item)
            else:
                contenders.append(item)
        return contenders

    def _no_compile(self, case: Case, measurement: str) -> str | None:
        if self.compile_limit <= 0:
            return "compiling is turned off (--compile-seconds)"
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "inductor needs a C++ compiler: apt-get install g++"
        wanted = [PARTS[measurement]] if measurement in PARTS else [False, True]
        wanted = wanted[: BLOCKS.get(measurement, 1)]
        if all((_key(case), residual) in self._parts for residual in wanted):
            return None
        if self.compile_left <= 0:
            return f"{self.compile_limit:g} s of compiling are used up (--compile-seconds)"
        return None

    def _part(self, case: Case, contender: Contender, residual: bool) -> nn.Module:
        """A part; of a compiled one the same that was compiled before."""
        if not contender.compiled:
            return case.part(contender)
        key = (_key(case), residual)
        if key not in self._parts:
            self._parts[key] = case.part(contender)
        return self._parts[key]

    def layers(
        self, case: Case, measurement: str, contenders: list[Contender], timed: bool = True
    ) -> None:
        """Time, kept bytes and peak of every contender that passes the gate."""
        runs, verdicts, costs = {}, {}, {}
        convs = [case.conv() for _ in range(BLOCKS.get(measurement, 0))]
        for contender in contenders:
            name = contender.name
            try:
                layer = _Layer(self, case, measurement, contender, convs)
                begin = time.perf_counter()
                verdicts[name], generated = layer.gate()
                if contender.compiled:
                    self.compile_left -= time.perf_counter() - begin
                if verdicts[name].refused:
                    continue
                costs[name] = layer.costs(generated)
                runs[name] = layer.train
            except Exception as error:
                verdicts[name] = Verdict(refused=f"{type(error).__name__}: {error}"[:300])
        columns: dict[str, dict] = {name: {} for name in runs}
        if timed:
            columns = self._timed(case, BYTES[measurement], runs)
            self._row(case, measurement, "copy_", "probe", **columns["copy_"])
        for contender in contenders:
            name, more = contender.name, {}
            if name in runs:
                more = columns[name] | costs[name]
                if timed and contender.kind == "ours":
                    more["speedup_over"] = {
                        other.name: columns[other.name]["ms"] / columns[name]["ms"]
                        for other in contenders
                        if other.kind == "peer" and other.name in runs
                    }
            self._row(case, measurement, name, contender.kind, **vars(verdicts[name]), **more)

    def _timed(self, case: Case, width: int | dict[str, int], runs: dict) -> dict[str, dict]:
        """Times ``runs`` beside a copy_ of y; name -> the columns of its row. ``width``: tensors'
        worth of bytes, of all or by name."""
        timings, copied = self.time_beside_copy(runs, [(y,) for y in case.y])
        columns = {}
        for name, timing in timings.items():
            count = 2 if name == "copy_" else width if isinstance(width, int) else width[name]
            rate = count * case.size * case.elements / (timing.ms * 1e-3)
            columns[name] = {
                **timing.asdict(),
                "bytes_per_element": count * case.size,
                "gb_per_s": rate / 1e9,
                "share_of_copy": rate / copied,
            }
        return columns

    def _row(self, case: Case, measurement: str, name: str, kind: str, **more) -> None:
        row = {"measurement": measurement, "contender": name, "kind": kind, **_where(case), **more}
        self.rows.append(row)

    def passes(self, case: Case, residual: bool) -> None:
        """Each pass of ours on preallocated outputs, against copy_."""
        runs, widths = {}, {}
        for name in self.backends:
            try:
                for what, run in launches(case, name, residual).items():
                    run(0)
                    runs[f"{name}: {what}"] = run
                    widths[f"{name}: {what}"] = PASSES[what][residual]
            except Exception as error:
                self.skip(
                    {"measurement": "passes", **_where(case)},
                    name,
                    f"{type(error).__name__}: {error}"[:300],
                )
        columns = self._timed(case, widths, runs)
        measurement = "passes + residual" if residual else "passes"
        for name in runs:
            self._row(case, measurement, name, "ours", **columns[name])


class _Layer:
    """One contender as a part or a block of one case: gate, costs, and the step to be timed."""

    def __init__(self, bench: Bench, case: Case, measurement: str, contender: Contender, convs):
        self.case, self.contender, self.device = case, contender, bench.device
        self.convs = convs
        self.residual = PARTS.get(measurement, False)
        wanted = [self.residual] if not convs else [False, True][: len(convs)]
        self.parts = [bench._part(case, contender, residual) for residual in wanted]
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
        return torch.autograd.grad(s, [*inputs, *self.parameters, *self.weights], ds)

    def train(self, i: int) -> None:
        i %= len(self.leaves)
        self._step(self._inputs(i), self.case.ds[i])

    def gate(self) -> tuple[Verdict, list[int] | None]:
        """One step, which is the warm-up too: the verdict over all parts, and how many functions
        inductor generated for it, which no profiler sees on the CPU."""
        recorders = [Recorder(part) for part in self.parts]
        inputs = self._inputs(0)

        def run():
            target = Block(self.convs, recorders) if self.block else recorders[0]
            with self.contender.context():
                s = target(*inputs)
            return torch.autograd.grad(s, [*inputs, *self.parameters], self.case.ds[0])

        generated = None
        if self.contender.compiled and self.device.type == "cpu":
            grads, codes = run_and_get_code(run)
            generated = [len(re.findall(r"^ +cpp_fused_\w+\(", code, re.M)) for code in codes]
        else:
            grads = run()
        sums = grads[len(inputs) :]
        verdict = Verdict()
        for i, recorder in enumerate(recorders):
            verdict.join(recorder.judge(self.case, self.contender, *sums[2 * i : 2 * i + 2]))
        return verdict, generated

    def costs(self, generated: list[int] | None) -> dict:
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
        count = case.elements * len(self.parts)
        found = {"kept_bytes": round(kept / count, 4), "peak_bytes": round(peak / count, 4)}
        if self.block and self.device.type == "cpu":
            return found
        out: list[Tensor] = []
        inputs = self._inputs(0)
        ops = [
            harness.count_ops(lambda: out.append(self.forward(inputs)), self.device),
            harness.count_ops(lambda: self._step(inputs, case.ds[0], out[0]), self.device),
        ]
        if generated is not None:
            ops = [a + b for a, b in zip(ops, generated or [0, 0])]
        return found | {"ops_forward": ops[0], "ops_backward": ops[1]}


def launches(case: Case, backend: str, residual: bool) -> dict[str, Callable[[int], object]]:
    """The passes of norm_lif on preallocated outputs, by name; run them in order at first."""
    functions = implementation(backend)
    inner = case.height * case.width
    mean, var, inv_std = (torch.empty(case.channels, device=case.device) for _ in range(3))
    a, b, c = (torch.full_like(mean, value) for value in (0.5, 0.1, 0.2))
    bias = torch.full_like(mean, 0.3)
    norm = specs.Norm(mean, inv_std, bias, case.channels, inner)
    layer = lif_layer(case.steps, surrogate=SURROGATE)
    s, dx, dy = (torch.empty_like(case.y[0]) for _ in range(3))
    sums = mean.new_empty((2, case.channels))
    kept = specs.segments(case.steps) - 1
    borders = torch.empty((kept, *case.shape[1:]), device=case.device) if kept else None
    sets = len(case.y)

    def r(i):
        return case.spikes[i].detach() if residual else None

    def stats(i):
        functions.norm_stats(case.y[i % sets], case.channels, inner, mean, var)
        if i == 0:
            torch.rsqrt(var + 1e-5, out=inv_std)

    def apply(i):
        i %= sets
        functions.lif_forward(layer, case.y[i], None, None, s, None, borders, norm, r(i))

    def backward_1(i):
        i %= sets
        tensors = (case.y[i], None, None, borders, case.ds[i], None, dx, None, None)
        functions.lif_backward(layer, *tensors, norm, r(i), sums)

    def backward_2(i):
        functions.norm_dy(case.y[i % sets], dx, norm, a, b, c, dy)

    return dict(zip(PASSES, (stats, apply, backward_1, backward_2)))


def _key(case: Case) -> tuple:
    return case.shape, case.dtype


def _where(case: Case) -> dict:
    return {
        "shape": case.label,
        "batch": case.batch,
        "elements": case.elements,
        "dtype": str(case.dtype).removeprefix("torch."),
        "steps": case.steps,
    }
