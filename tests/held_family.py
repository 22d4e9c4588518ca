"""Each of ``snnfast.neurons`` through its GPU kernels, over as many steps as one likes: under
Triton's interpreter, on a GPU, or as the PTX that they are compiled to, which a simulator executes
instruction by instruction.

    TRITON_INTERPRET=1 python tests/held_family.py --neuron-steps 1e6
    python tests/held_family.py --device cuda --backend cuda
    python tests/held_family.py --ptx FOLDER --arch 80              # FOLDER: the simulator's

Outputs and states are those of the loop, bit for bit. Where exp, log, tanh, sigmoid or a power
takes part, each step is computed again from the states before it: 2 units in the last place of its
largest term, or a spike that lies within that of its threshold. Gradients are held to float64,
along the very states that the kernel went through: at most twice PyTorch's own error in float32.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import family_cases
import torch
from fuzz_neurons import is_exact
from neuron_cases import flat

from snnfast import neurons, surrogate
from snnfast.backends.triton import neuron as backend
from snnfast.ops.neuron import prepared
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.reference.neuron import neuron as reference

LENGTHS = (1, 8, 9, 17, 100)
KINDS = ("numbers", "scalars", "channels")
STATES = ("all", True, False)
SURROGATES = ("atan", "sigmoid", "super_spike")  # smooth: near an edge float64 is on its other side
EPS = torch.finfo(torch.float32).eps
FLOOR = 4 * EPS
"""What PyTorch's largest error is taken for at least: of few neurons it is a matter of luck."""


class Case(NamedTuple):
    """One call, of the neuron ``name``: its parameters as ``kind`` says, its states asked for."""

    name: str
    options: dict
    steps: int
    size: int
    kind: str = "numbers"
    state: "bool | str" = "all"
    surrogate: str = "atan"
    seed: int = 0

    @property
    def definition(self):
        return family_cases.neuron(self.name)

    def drawn(self):
        """(x, the states before it, parameters)."""
        torch.manual_seed(self.seed)
        shape = (self.steps, 2, -(-self.size // 2))
        x = family_cases.inputs(self.name, shape)
        parameters = self.definition.defaults | self.options
        if self.kind != "numbers":
            channels = shape[2] if self.kind == "channels" else None
            parameters = family_cases.as_tensors(self.name, self.options, channels=channels)
        rest = self.bound(x, parameters, None).rest
        rest = [number + torch.rand(shape[1:]) / 4 for number in rest]
        return x, rest, parameters

    def bound(self, x, parameters, states):
        return self.definition.bind(
            (x,), parameters, states=states, surrogate=self.surrogate, timesteps=None,
            return_state=self.state, backend="reference",
        )  # fmt: skip


class Found(NamedTuple):
    """What came of a case."""

    neuron_steps: int
    wrong: int
    """Values that are not what they must be."""
    units: float
    """The largest difference, in units in the last place of the largest term."""
    on_threshold: int
    """Spikes that differ, on their threshold."""
    error: float
    """The largest or average error of gradients over PyTorch's."""
    relative: float
    """The largest, relative to the neuron's largest gradient."""

    @property
    def fails(self) -> bool:
        return self.wrong > 0 or not self.error <= 2 or not self.relative <= 1e-3

    def merged(self, other: "Found") -> "Found":
        sums = self.neuron_steps + other.neuron_steps, self.wrong + other.wrong
        spikes = self.on_threshold + other.on_threshold
        units, error = max(self.units, other.units), max(self.error, other.error)
        return Found(*sums, units, spikes, error, max(self.relative, other.relative))


def held(case: Case, backend: str, device="cpu", running=contextlib.nullcontext) -> Found:
    """Runs a case on a backend, within ``running``."""
    x, start, parameters = case.drawn()
    tensors = {k: p for k, p in parameters.items() if isinstance(p, torch.Tensor)}
    leaves = [t.detach().to(device).requires_grad_() for t in (x, *start, *tensors.values())]
    given = parameters | dict(zip(tensors, leaves[1 + len(start) :], strict=True))
    bound = case.bound(x, parameters, tuple(start))
    step, exact = bound.plan.step, is_exact(bound.plan.step)
    if not exact:
        case = case._replace(state="all")
    with running():
        results = case.definition(
            leaves[0], states=tuple(leaves[1 : 1 + len(start)]), surrogate=case.surrogate,
            return_state=case.state, backend=backend, **given,
        )  # fmt: skip
        found = flat(results, case.state)
        along = [torch.randn(r.shape) for r in found]
        there = [a.to(device) for a in along]
        ours = torch.autograd.grad(found, leaves, there, materialize_grads=True)
    found, ours = ([t.detach().cpu() for t in tensors] for tensors in (found, ours))
    loop = _Loop(case, x, start, parameters)
    with torch.no_grad():
        if exact:
            s, states = loop.run()
            wanted = [s, *({True: [v[-1] for v in states], "all": states}.get(case.state, []))]
            wrong = sum(int((a != b).sum()) for a, b in zip(found, wanted, strict=True))
            units, on_threshold = 0.0, 0
        else:
            s, *states = found
            wrong, units, on_threshold = loop.near(s, states, step, prepared(bound)[1])
    return Found(x.numel(), wrong, units, on_threshold, *loop.errors(ours, along, s, states))


class _Loop:
    """The neuron's function in a loop, in any dtype, from any states."""

    def __init__(self, case: Case, x, start, parameters):
        self.case, self.x, self.start, self.parameters = case, x, start, parameters
        self.surrogate = surrogate.resolve(case.surrogate)

    def _steps(self, x, states, parameters):
        """(s [T, ...], the states before and after each step)."""
        (s,), passed = reference(
            self.case.definition.step, [x], states, parameters, outputs=1, surrogate=self.surrogate
        )
        return s, passed

    def run(self):
        s, passed = self._steps(self.x, self.start, self.parameters)
        return s, [v[1:] for v in passed]

    def before(self, states):
        """The states before every step, of those after it."""
        return [torch.cat([v[None], now[:-1]]) for v, now in zip(self.start, states, strict=True)]

    def near(self, s, states, step, params):
        """(values that are wrong, units, spikes on their threshold) of steps that are not exact."""
        x, before = self.x, self.before(states)
        alone, passed = self._steps(x[None], before, self._spread(torch.float32))
        spikes = tuple(node.args[0] for node in step.forward.nodes if node.op == "spike")
        unit = 1 + x.abs()
        for v in before:
            unit = unit + v.abs()
        on_threshold = torch.zeros_like(x, dtype=torch.bool)
        leaves = {"input": [x], "state": before, "param": params}
        for u in evaluate(Program(step.forward.nodes, spikes), leaves):
            on_threshold |= u.abs() <= 2 * EPS * unit
        wrong, units, flips = 0, 0.0, torch.zeros_like(on_threshold)
        for a, b in zip([s, *states], [alone[0], *(v[1] for v in passed)], strict=True):
            far = (a - b).abs() / (EPS * torch.maximum(unit, b.abs()))
            flips |= (far > 2) & on_threshold
            wrong += int((~(far <= 2) & ~on_threshold).sum())
            units = max(units, far[~flips].max().item())
        return wrong, units, int(flips.sum())

    def _spread(self, dtype) -> dict:
        """The parameters with one of each neuron."""
        shape = self.x.shape[1:]
        return {
            k: p.detach().to(dtype).expand(shape).clone() if isinstance(p, torch.Tensor) else p
            for k, p in self.parameters.items()
        }

    def gradients(self, dtype, along, s, states):
        """(those of x, of the states and of each neuron's parameters, the sums of what the latter
        are sums of, where the steps are others in ``dtype``), the states being given."""
        parameters = self._spread(dtype)
        own = [p.requires_grad_() for p in parameters.values() if isinstance(p, torch.Tensor)]
        ds, dstates = along[0].to(dtype), [d.to(dtype) for d in along[1:]]
        every = self.case.state == "all"
        dv = [torch.zeros_like(v, dtype=dtype) for v in self.start]
        if self.case.state is True:
            dv = dstates
        before = self.before(states)
        dx, differs = [], torch.zeros(self.x.shape[1:], dtype=torch.bool)
        sums, sizes = [torch.zeros_like(p) for p in own], [torch.zeros_like(p) for p in own]
        for t in reversed(range(self.case.steps)):
            leaves = [v[t].to(dtype).requires_grad_() for v in (self.x, *before)]
            spikes, passed = self._steps(leaves[0][None], leaves[1:], parameters)
            results = [spikes[0], *(v[1] for v in passed)]
            for a, b in zip(results, [s[t], *(v[t] for v in states)], strict=True):
                differs |= ~torch.isclose(a.to(b.dtype), b, rtol=1e-4, atol=1e-4)
            if every:
                dv = [d + more[t] for d, more in zip(dv, dstates, strict=True)]
            found = torch.autograd.grad(
                results, leaves + own, [ds[t], *dv], allow_unused=True, materialize_grads=True
            )
            dx.append(found[0])
            dv = found[1 : len(leaves)]
            for k, d in enumerate(found[len(leaves) :]):
                sums[k] += d
                sizes[k] += d.abs()
        return [torch.stack(dx[::-1]), *dv], sums, sizes, differs

    def errors(self, ours, along, s, states) -> tuple[float, float]:
        """Of ``ours``: (the largest error, or the average one relative to a neuron's largest
        gradient, over that of PyTorch in float32; the largest relative one)."""
        exact, sums, sizes, differs = self.gradients(torch.float64, along, s, states)
        plain, own, _, _ = self.gradients(torch.float32, along, s, states)
        assert differs.float().mean() < 0.02
        count, ratio, relative = len(exact), 0.0, 0.0
        ours = [a.double() for a in ours]
        largest = torch.stack([c.abs().amax(0) if k == 0 else c.abs() for k, c in enumerate(exact)])
        largest = largest.amax(0)
        # Where the terms of all of a neuron's gradients cancel, or those of a parameter's, it is in
        # relation to those of others.
        largest = largest.clamp_min(max(largest.median().item() / 10, 1e-30))
        for a, b, c in zip(ours, plain, exact, strict=False):
            far, theirs = (
                (t - c).abs().masked_fill(differs, 0).nan_to_num(torch.inf) for t in (a, b.double())
            )
            most = c.abs().masked_fill(differs, 0).max().item()
            ratio = max(ratio, far.max().item() / max(theirs.max().item(), FLOOR * most, 1e-30))
            far, theirs = far / largest, theirs / largest
            ratio = max(ratio, far.mean().item() / max(theirs.mean().item(), EPS))
            relative = max(relative, far.max().item())
        if differs.any():  # of sums over neurons nothing is known then
            return ratio, relative
        ours = ours[count:]
        sizes = [
            size.sum_to_size(a.shape).max().item() for a, size in zip(ours, sizes, strict=True)
        ]
        for a, b, c in zip(ours, own, sums, strict=True):
            b, c = (t.sum_to_size(a.shape) for t in (b.double(), c))
            far, theirs = ((t - c).abs().max().item() for t in (a, b))
            ratio = max(ratio, far / max(theirs, FLOOR * max(sizes), 1e-30))
        return ratio, relative


def cases(name: str, neuron_steps: float, seed: int = 0):
    """Of so many steps in all: lengths, parameters and what else one may choose in turns."""
    choices = [options for other, options in family_cases.CASES if other == name]
    for turn, steps in enumerate(LENGTHS):
        size = max(2, round(neuron_steps / len(LENGTHS) / steps))
        yield Case(
            name, choices[turn % len(choices)], steps, size, KINDS[turn % 3],
            STATES[turn % 3], SURROGATES[turn % 3], seed + turn,
        )  # fmt: skip


def simulated(folder: str, arch: int):
    """What a case runs within: a block whose launches the simulator executes, and which fails where
    it finds fault with one."""
    os.environ["PTX_ARCH"] = str(arch)
    sys.path.insert(0, str(Path(folder).resolve()))
    import ptx_drive

    ptx_drive.install()
    ptx_drive.use_nvrtc(True)

    @contextlib.contextmanager
    def running():
        with ptx_drive.case(orders=1) as log:
            yield
        assert log.kernels, "nothing was launched"
        assert not log.faults, log.faults[:5]
        assert not log.contractible, log.contractible

    return running


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("neurons", nargs="*", help="all of the family")
    parser.add_argument("--neuron-steps", type=float, default=1e6, help="of each")
    parser.add_argument("--backend", default="triton", choices=("triton", "cuda"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ptx", help="the folder of the simulator")
    parser.add_argument("--arch", type=int, default=90, help="what PTX is compiled for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    running = contextlib.nullcontext
    if options.ptx:
        running = simulated(options.ptx, options.arch)
    elif options.device == "cpu":
        backend.WARPS = 64  # few and large programs: what the interpreter takes is by operation
    failures = 0
    for name in options.neurons or neurons.__all__:
        total, started = Found(0, 0, 0.0, 0, 0.0, 0.0), time.monotonic()
        for case in cases(name, options.neuron_steps, options.seed):
            try:
                found = held(case, options.backend, options.device, running)
            except Exception as error:
                failures += 1
                print(f"  {case}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                continue
            if found.fails:
                failures += 1
                print(f"  {case}: {found}", flush=True)
            total = total.merged(found)
        print(
            f"{name}: {total.neuron_steps} steps, {total.wrong} values wrong, {total.units:.2g} "
            f"units, {total.on_threshold} spikes on their threshold; gradients {total.error:.2f} "
            f"of PyTorch's error, {total.relative:.1g} of a neuron's largest; "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
