"""The measurements of bench_lif.py at one (shape, dtype, T), and what a case may cost.

bench_neuron.py makes the same of any neuron.
"""

import math
from collections.abc import Callable
from functools import partial

import environment
import harness
import measure
import peers
import run
import torch
from lif_case import Case, Verdict, ours
from measure import Trial
from peers import Contender
from torch import Tensor

from snnfast.ops.select import implementation

COMPILED = "torch.compile'd loop"


Launch = Callable[[list[Tensor], list[Tensor]], tuple[Callable[[int], None], Callable[[int], None]]]
"""(s, dx of each set of inputs) -> the forward and the backward of the i-th set."""


def launch_lif(case: Case, backend: str, s: list[Tensor], dx: list[Tensor]):
    """The LIF kernels of a backend."""
    functions = implementation(backend)
    layer, borders = case.layer(), [case.borders() for _ in s]

    def forward(i):
        i %= len(s)
        functions.lif_forward(layer, case.x[i], None, None, s[i], None, borders[i])

    def backward(i):
        i %= len(s)
        given = (case.x[i], None, None, borders[i], case.ds[i], None)
        functions.lif_backward(layer, *given, dx[i], None, None)

    return forward, backward


class Bench(measure.Bench):
    """Remembers what a case may not cost: a peer of which one pass would take six times ``seconds``
    is left out, and so are all once the ``minutes`` are over. ``compile_s`` bounds one compile."""

    title, packages, verdict = "LIF", peers.PACKAGES, Verdict
    compile_steps = 32
    """The compile of an unrolled loop grows faster than T: at 32 it takes minutes."""

    def __init__(self, *args, **limits):
        super().__init__(*args, **limits)
        self._kept: dict[tuple, float] = {}
        self._pace: dict[tuple, float] = {}
        self._compiled: dict[tuple, tuple[int, float]] = {}

    @staticmethod
    def options(p) -> None:
        shapes = run.list_of(run.sizes("32x64x32x32"))
        p.add_argument("--shapes", type=shapes, help="one timestep each: 32x512x4x4,...")
        p.add_argument("--steps", type=run.list_of(run.positive), help="T: 2,4,8,16,32,100")
        p.add_argument("--compile-seconds", type=float, help="longest compile of the peers' loop")
        p.add_argument("--minutes", type=float, help="after this, only our own are measured")

    @staticmethod
    def defaults(quick: bool, cuda: bool) -> dict:
        return {
            "shapes": [(8, 64, 16, 16)] if quick else [(32, 512, 4, 4), (32, 64, 32, 32)],
            "steps": [2, 4, 16] if quick else [2, 4, 8, 16, 32, 100],
            "dtypes": [torch.float32, torch.bfloat16],
            "seconds": 0.2 if quick else 1.0,
            "minutes": 0.6 if quick else 9.0,
            "compile_seconds": 0.0 if quick else 30.0,
        }

    def cases(self, args):
        for shape in args.shapes:
            for dtype in args.dtypes:
                for steps in sorted(args.steps):
                    yield self.run(shape, dtype, steps)

    def run(self, shape, dtype: torch.dtype, steps: int) -> list[dict]:
        """All measurements of one case; returns its rows."""
        first = len(self.rows)
        sets = self.sets(math.prod((steps, *shape)) * dtype.itemsize)
        case = self._case(shape, dtype, steps, self.device, sets)
        self.kernels(case)
        self.layers(case, self._contenders(case))
        return self.rows[first:]

    def _case(self, *args) -> Case:
        return Case(*args)

    def _launches(self, case: Case) -> dict[str, Launch]:
        """Of each kernel what runs it on preallocated outputs, by its contender's name."""
        return {name: partial(launch_lif, case, name) for name in self.backends}

    def kernels(self, case: Case) -> None:
        """Kernels on preallocated outputs, beside copy_ and add(out=)."""
        s = [torch.empty_like(x) for x in case.x]
        dx = [torch.empty_like(x) for x in case.x]
        sets, launches = len(s), self._launches(case)

        def add(i):
            torch.add(case.x[i % sets], case.ds[i % sets], out=dx[i % sets])

        def attempt(trial):
            forward, backward = launches[trial.name](s, dx)
            s[0].fill_(float("nan"))
            dx[0].fill_(float("nan"))
            forward(0)
            backward(0)
            trial.verdict = case.judge(s[0], dx[0], trial.contender)
            if not trial.verdict.refused:
                trial.runs = {"forward": forward, "backward": backward}

        tolerance = case.subject.tolerance
        trials = [
            self.trial(Contender(name, "ours", None, tolerance=tolerance), attempt)
            for name in launches
        ]
        add(0)
        runs, widths = {"add(out=)": add}, {"add(out=)": 3}
        for way, width in (("forward", 2), ("backward", 3)):
            for trial in trials:
                if not trial.verdict.refused:
                    runs[f"{trial.name} {way}"] = trial.runs[way]
                    widths[f"{trial.name} {way}"] = width
        columns = self.timed(case, runs, widths)
        for way, base in (("forward", "copy_"), ("backward", "add(out=)")):
            self.row(case, f"kernel_{way}", base, "probe", columns[base])
            for trial in trials:
                found = columns.get(f"{trial.name} {way}", {})
                share = columns[base]["ms"] / found["ms"] if found else None
                found = vars(trial.verdict) | found | {"share_of_base": share, "base": base}
                self.row(case, f"kernel_{way}", trial.name, "ours", found)

    def _contenders(self, case: Case) -> list[Contender]:
        found: list[tuple[str, Contender | str]] = [("probe", peers.floor())]
        found += [(name, ours(name)) for name in self.backends]
        found += [("SpikingJelly", item) for item in peers.spikingjelly(case.device, case.dtype)]
        found.append(("snnTorch", peers.snntorch(case.device)))
        found.append(("Norse", peers.norse(case.device)))
        found.append(("torch loop", peers.torch_loop()))
        found.append((COMPILED, self._no_compile(case) or peers.compiled_loop()))
        return self.choose(case.where, found, partial(self._too_big, case))

    def _no_compile(self, case: Case) -> str | None:
        """Why the loop is not compiled here; the time is extrapolated from the last smaller T."""
        if case.steps > self.compile_steps:
            return f"not compiled beyond T = {self.compile_steps}: an unrolled loop takes too long"
        steps, seconds = self._compiled.get(case.key, (0, 0.0))
        expected = seconds * (case.steps / steps) ** 1.3 if steps else 0.0
        if expected > self.compile_limit > 0:
            return (
                f"its compile would take about {expected:.0f} s, more than --compile-seconds "
                f"{self.compile_limit:g} (it took {seconds:.0f} s at T = {steps})"
            )
        return self.no_compiler()

    def _too_big(self, case: Case, contender: Contender) -> str | None:
        """Why a contender is left out here, judged by what it took at the last smaller T."""
        key = (contender.name, case.subject.name, case.dtype)
        need = (1.3 * self._kept.get(key, 0.0) + (4 * len(case.x) + 2) * case.size) * case.count
        if need > 0.6 * environment.total_memory(self.device):
            return f"would need about {need / 1e9:.0f} GB of memory"
        seconds = self._pace.get(key, 0.0) * case.count
        if contender.kind == "peer" and not self.over and seconds > 6 * self.seconds:
            return f"one forward and backward would take about {seconds:.1f} s"
        return self.too_late(contender)

    def layers(self, case: Case, contenders: list[Contender]) -> None:
        """Training, inference, kept bytes and ops of every contender that passes the gate."""
        leaves = [x.detach().requires_grad_() for x in case.x]
        trials = [self.trial(c, partial(self._layer, case, leaves)) for c in contenders]
        for name, columns in self.measure(case, "training", trials, 5).items():
            self._pace[name, case.subject.name, case.dtype] = columns["ms"] * 1e-3 / case.count
        for leaf in leaves:
            leaf.grad = None
        self.measure(case, "inference", trials, 2)

    def _layer(self, case: Case, leaves: list[Tensor], trial: Trial) -> None:
        layer, compiled = trial.contender.layer, trial.contender.compiled
        leaves[0].grad = None

        def step():
            s = layer(leaves[0])
            s.backward(case.ds[0].to(s.dtype))
            return s.detach()

        with self.first_run(trial):
            s, generated = harness.with_generated(step, compiled and self.device.type == "cpu")
        if compiled:
            self._compiled[case.key] = (case.steps, trial.seconds)
        trial.verdict = case.judge(s, leaves[0].grad, trial.contender)
        leaves[0].grad = None
        if trial.verdict.refused:
            return
        ds = [g.to(s.dtype) for g in case.ds]
        trial.costs = self._costs(case, trial.contender, ds[0], generated)
        trial.runs["training"] = partial(_train, layer, leaves, ds)
        # Without gradients the loop is compiled anew, so only where that is cheap.
        if not compiled or trial.seconds < self.compile_limit / 3:
            trial.runs["inference"] = partial(_infer, layer, case.x)
            trial.runs["inference"](0)

    def _costs(self, case: Case, contender: Contender, ds: Tensor, generated: list[int]) -> dict:
        """Kept bytes per neuron-step and ops. Neither depends on N, so few rows do, unless the
        contender would have to be compiled anew for them."""
        layer, x = contender.layer, case.x[0]
        if not contender.compiled:
            x, ds = x[:, case.rows].contiguous(), ds[:, case.rows].contiguous()
        layer(x)
        kept = harness.kept_bytes(layer, x) / x.numel()
        self._kept[contender.name, case.subject.name, case.dtype] = kept
        leaf = x.detach().requires_grad_()
        ops = harness.ops(lambda: layer(leaf), lambda s: s.backward(ds), self.device, generated)
        return {"kept_bytes": round(kept, 4), **ops}


def _train(layer, leaves, ds, i: int) -> Tensor:
    leaf = leaves[i % len(leaves)]
    leaf.grad = None
    s = layer(leaf)
    s.backward(ds[i % len(ds)])
    return s.detach()


def _infer(layer, x, i: int) -> Tensor:
    with torch.no_grad():
        return layer(x[i % len(x)])
