"""The measurements of bench_lif.py at one (shape, dtype, T), and what a case may cost."""

import math
import time
from collections.abc import Callable
from functools import partial

import environment
import harness
import measure
import peers
import torch
import torch._inductor.metrics
from lif_case import SURROGATE, Case, Verdict
from peers import Contender
from torch import Tensor

from snnfast.ops.select import implementation

COMPILE_STEPS = 32
"""The compile of an unrolled loop grows faster than T: at 32 it takes minutes, at 100 far more."""


class Bench(measure.Bench):
    """Runs the cases and collects ``rows`` and ``left_out``; remembers what a case may not cost.

    A measurement of one contender takes at most ``seconds``, unless two samples take longer; a peer
    of which one pass would take six times that is left out, and so are all once the ``minutes``
    are over. ``compile_s`` bounds the compile of the peers' loop, in seconds.
    """

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        compile_s: float,
        seconds: float = 1.0,
        minutes: float = 9.0,
    ):
        super().__init__(device, backends, rounds, seconds, minutes)
        self.compile_limit = compile_s
        self._kept: dict[tuple, float] = {}
        self._pace: dict[tuple, float] = {}
        self._compiled: dict[tuple, tuple[int, float]] = {}
        self._generated: dict[str, int] = {}

    def run(self, shape, dtype: torch.dtype, steps: int) -> list[dict]:
        """All measurements of one case; returns its rows."""
        first = len(self.rows)
        sets = self.sets(math.prod((steps, *shape)) * dtype.itemsize)
        case = Case(shape, dtype, steps, self.device, sets)
        self._kernels(case)
        self.layers(case, self._contenders(case))
        return self.rows[first:]

    def _row(self, case: Case, measurement: str, name: str, kind: str, **more) -> dict:
        row = {"measurement": measurement, "contender": name, "kind": kind, **_where(case), **more}
        self.rows.append(row)
        return row

    def _timed(self, case, measurement, name, kind, timing, width, copy_bandwidth, **more) -> dict:
        """``width``: bytes per neuron and timestep by the byte model."""
        rate = width * case.neuron_steps / (timing.ms * 1e-3)
        return self._row(
            case,
            measurement,
            name,
            kind,
            **timing.asdict(),
            bytes_per_neuron_step=width,
            gb_per_s=rate / 1e9,
            share_of_copy=rate / copy_bandwidth,
            **more,
        )

    def _rounds(self, case: Case, runs: dict) -> tuple[dict, float]:
        return self.time_beside_copy(runs, [(x,) for x in case.x])

    def _kernels(self, case: Case) -> None:
        """Kernels on preallocated outputs, beside copy_ and add(out=)."""
        s = [torch.empty_like(x) for x in case.x]
        dx = [torch.empty_like(x) for x in case.x]
        sets, layer, borders = len(s), case.layer(), case.borders()
        runs: dict[str, Callable[[int], object]] = {
            "add(out=)": lambda i: torch.add(case.x[i % sets], case.ds[i % sets], out=dx[i % sets]),
        }
        verdicts = {}
        for name in self.backends:
            functions = implementation(name)

            def forward(i, functions=functions):
                i %= sets
                functions.lif_forward(layer, case.x[i], None, None, s[i], None, borders)

            def backward(i, functions=functions):
                i %= sets
                functions.lif_backward(
                    layer, case.x[i], None, None, borders, case.ds[i], None, dx[i], None, None
                )

            verdict = self._gate_kernels(case, name, forward, backward, s[0], dx[0])
            if verdict.refused is None:
                runs[f"{name} forward"], runs[f"{name} backward"] = forward, backward
            verdicts[name] = verdict
        for run in runs.values():
            run(0)
        timings, copy_bandwidth = self._rounds(case, runs)
        timed = partial(self._timed, case, copy_bandwidth=copy_bandwidth)
        for way, base, width in (("forward", "copy_", 2), ("backward", "add(out=)", 3)):
            width *= case.size
            timed(f"kernel_{way}", base, "probe", timing=timings[base], width=width)
            for name, verdict in verdicts.items():
                found = {**_found(verdict), "share_of_base": None, "base": base}
                if verdict.refused:
                    self._row(case, f"kernel_{way}", name, "ours", **found)
                    continue
                timing = timings[f"{name} {way}"]
                found["share_of_base"] = timings[base].ms / timing.ms
                timed(f"kernel_{way}", name, "ours", timing=timing, width=width, **found)

    def _gate_kernels(self, case, name, forward, backward, s, dx) -> Verdict:
        s.fill_(float("nan"))
        dx.fill_(float("nan"))
        try:
            forward(0)
            backward(0)
            return case.judge(s, dx, Contender(name, "ours", forward))
        except Exception as error:
            return Verdict(refused=f"{type(error).__name__}: {error}")

    def _contenders(self, case: Case) -> list[Contender]:
        found: list[tuple[str, Contender | str]] = [("probe", peers.floor())]
        found += [(name, ours(name)) for name in self.backends]
        for item in peers.spikingjelly(case.device, case.dtype):
            found.append(("SpikingJelly", item))
        found.append(("snnTorch", peers.snntorch(case.device)))
        found.append(("Norse", peers.norse(case.device)))
        found.append(("torch loop", peers.torch_loop()))
        why = self._no_compile(case)
        found.append(("torch.compile'd loop", why or peers.compiled_loop(case.device)))
        contenders = []
        for name, item in found:
            if isinstance(item, str):
                self.skip(_where(case), name, item)
            elif why := self._too_big(case, item):
                self.skip(_where(case), item.name, why)
            else:
                contenders.append(item)
        return contenders

    def _no_compile(self, case: Case) -> str | None:
        """Why the loop is not compiled here; the time is extrapolated from the last smaller T."""
        if case.steps > COMPILE_STEPS:
            return f"not compiled beyond T = {COMPILE_STEPS}: an unrolled loop takes too long"
        steps, seconds = self._compiled.get((case.shape, case.dtype), (0, 0.0))
        if self.compile_limit <= 0:
            return "compiling is turned off (--compile-seconds)"
        expected = seconds * (case.steps / steps) ** 1.3 if steps else 0.0
        if expected > self.compile_limit:
            return (
                f"its compile would take about {expected:.0f} s, more than --compile-seconds "
                f"{self.compile_limit:g} (it took {seconds:.0f} s at T = {steps})"
            )
        return None

    def _too_big(self, case: Case, contender: Contender) -> str | None:
        """Why a contender is left out here, judged by what it took at the last smaller T."""
        key = (contender.name, case.dtype)
        need = (
            1.3 * self._kept.get(key, 0.0) + (2 * len(case.x) + 4) * case.size
        ) * case.neuron_steps
        if need > 0.6 * environment.total_memory(self.device):
            return f"would need about {need / 1e9:.0f} GB of memory"
        if contender.kind != "peer":
            return None
        if time.monotonic() > self.end:
            return "the time for peers is over (--minutes)"
        seconds = self._pace.get(key, 0.0) * case.neuron_steps
        if seconds > 6 * self.seconds:
            return f"one forward and backward would take about {seconds:.1f} s"
        return None

    def layers(self, case: Case, contenders: list[Contender]) -> None:
        """Training, inference, kept bytes and ops of every contender that passes the gate."""
        leaves = [x.detach().requires_grad_() for x in case.x]
        training, inference, verdicts, costs, names = {}, {}, {}, {}, {}
        for contender in contenders:
            name = contender.name
            names[name] = contender
            try:
                begin = time.perf_counter()
                verdict, dtype = self._gate_layer(case, contender, leaves[0])
                seconds = time.perf_counter() - begin
                if contender.compiled:
                    self._compiled[case.shape, case.dtype] = (case.steps, seconds)
                verdicts[name] = verdict
                if verdict.refused:
                    continue
                costs[name] = self._costs(case, contender)
                ds = [g.to(dtype) for g in case.ds]
                training[name] = partial(_train, contender.layer, leaves, ds)
                # Without gradients the loop is compiled anew, so only where that is cheap.
                if not contender.compiled or seconds < self.compile_limit / 3:
                    inference[name] = partial(_infer, contender.layer, case.x)
                    inference[name](0)
            except Exception as error:
                training.pop(name, None)
                inference.pop(name, None)
                verdicts[name] = Verdict(refused=f"{type(error).__name__}: {error}"[:300])
            finally:
                leaves[0].grad = None
        for measurement, runs, width in (("training", training, 5), ("inference", inference, 2)):
            timings, copy_bandwidth = self._rounds(case, runs)
            for name, verdict in verdicts.items():
                kind = names[name].kind
                if verdict.refused:
                    self._row(case, measurement, name, kind, **_found(verdict))
                elif name in timings:
                    more = {**_found(verdict), **costs[name]}
                    if measurement == "training":
                        seconds = timings[name].ms * 1e-3
                        self._pace[name, case.dtype] = seconds / case.neuron_steps
                    self._timed(
                        case,
                        measurement,
                        name,
                        kind,
                        timings[name],
                        width * case.size,
                        copy_bandwidth,
                        **more,
                    )
            for leaf in leaves:
                leaf.grad = None

    def _gate_layer(self, case: Case, contender: Contender, leaf: Tensor):
        """One run, which is the warm-up too: the verdict, and the dtype of the spikes."""
        torch._inductor.metrics.reset()
        s = contender.layer(leaf)
        forward = torch._inductor.metrics.generated_kernel_count
        s.backward(case.ds[0].to(s.dtype))
        backward = torch._inductor.metrics.generated_kernel_count - forward
        # No profiler sees inductor's CPU kernels, so they are counted as they are generated.
        self._generated = {"ops_forward": forward, "ops_backward": backward}
        return case.judge(s.detach(), leaf.grad, contender), s.dtype

    def _costs(self, case: Case, contender: Contender) -> dict:
        """Kept bytes per neuron-step and ops. Neither depends on N, so few rows do, unless the
        contender would have to be compiled anew for them."""
        x, ds = case.x[0], case.ds[0]
        if not contender.compiled:
            x, ds = x[:, case.rows].contiguous(), ds[:, case.rows].contiguous()
        contender.layer(x)
        kept = harness.kept_bytes(contender.layer, x) / x.numel()
        self._kept[contender.name, case.dtype] = kept
        leaf, out = x.detach().requires_grad_(), []
        forward = harness.count_ops(lambda: out.append(contender.layer(leaf)), self.device)
        ds = ds.to(out[0].dtype)
        backward = harness.count_ops(lambda: out[0].backward(ds), self.device)
        ops = {"ops_forward": forward, "ops_backward": backward}
        if contender.compiled and self.device.type == "cpu":
            ops = self._generated
        return {"kept_bytes": round(kept, 4), **ops}


def _where(case: Case) -> dict:
    return {
        "shape": case.label,
        "neurons": case.neurons,
        "dtype": str(case.dtype).removeprefix("torch."),
        "steps": case.steps,
    }


def _found(verdict: Verdict) -> dict:
    return vars(verdict).copy()


def _train(layer, leaves, ds, i: int) -> None:
    leaf = leaves[i % len(leaves)]
    leaf.grad = None
    layer(leaf).backward(ds[i % len(ds)])


def _infer(layer, x, i: int) -> None:
    with torch.no_grad():
        layer(x[i % len(x)])


def ours(backend: str) -> Contender:
    """snnfast.lif on one backend."""
    import snnfast

    layer = partial(snnfast.lif, tau=2.0, surrogate=SURROGATE, backend=backend)
    return Contender(f"snnfast {backend}", "ours", layer)
