"""Random neurons held to their loop, and each of ``snnfast.neurons`` on any number of inputs.

A random program becomes a neuron by definition: outputs and states on the CPU equal those of the
loop over it in PyTorch, and every gradient is autograd's, in float64 to its last digits. Of the
family every step is computed again in PyTorch from the state before it: the same bits, so that the
loop gives them, too, by induction; where a function that is not exact takes part, 2 units in the
last place, and a spike that differs is one on its threshold.

    python tests/fuzz_neurons.py --programs 300 --neuron-steps 1e8
    python tests/fuzz_neurons.py --case 1234
"""

import argparse
import inspect
import itertools
import operator
import sys
import time

import family_cases
import programs
import torch

import snnfast
from snnfast import neurons
from snnfast.backends.cpu import neuron as cpu
from snnfast.program.evaluate import evaluate
from snnfast.program.ir import Program
from snnfast.program.step import Step


def _least(x, y):
    return torch.minimum(*_tensors(x, y))


def _greatest(x, y):
    return torch.maximum(*_tensors(x, y))


def _tensors(x, y):
    """A number beside a tensor as one."""
    like = x if isinstance(x, torch.Tensor) else y
    return (t if isinstance(t, torch.Tensor) else torch.full_like(like, t) for t in (x, y))


INEXACT = frozenset({"exp", "log", "tanh", "sigmoid", "pow", "sqrt"})
"""The square root because torch's, where it comes from MKL, is not rounded correctly."""
SURROGATES = ("sigmoid", "atan", "rect", "super_spike", "straight_through")
WRITTEN = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "neg": operator.neg, "ge": operator.ge, "gt": operator.gt, "le": operator.le,
    "lt": operator.lt, "eq": operator.eq, "ne": operator.ne, "and": operator.and_,
    "or": operator.or_, "not": operator.invert, "pow": operator.pow, "min": _least,
    "max": _greatest, "where": torch.where, "abs": abs, "exp": torch.exp, "log": torch.log,
    "sqrt": torch.sqrt, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "spike": snnfast.spike,
    "detach": torch.detach,
}  # fmt: skip
"""The operations of a program as one writes them."""

STEPS, NEURONS = 16, 16384
"""Of one round of the family."""


def is_exact(step: Step) -> bool:
    """Whether torch computes the same bits as every backend."""
    return INEXACT.isdisjoint(node.op for node in step.forward.nodes)


def _traced(step: Step) -> Program:
    _, line, _ = step.text.split(";")
    return Program.unpack(line)


def definition_of(step: Step):
    """The neuron that a traced step is of: inputs x0.., states v0.., parameters p0.. ."""
    program = _traced(step)

    def run(*tensors, **parameters):
        leaves = {"input": tensors[: step.inputs], "state": tensors[step.inputs :]}
        leaves["param"] = list(parameters.values())
        values = []
        for op, args, number in program.nodes:
            if op == "const":
                values.append(number)
            elif op in leaves:
                values.append(leaves[op][int(number)])
            else:
                values.append(WRITTEN[op](*(values[a] for a in args)))
        return tuple(values[r] for r in program.results)

    names = [f"x{k}" for k in range(step.inputs)] + [f"v{k}" for k in range(step.states)]
    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    kinds += [
        inspect.Parameter(f"p{k}", inspect.Parameter.KEYWORD_ONLY) for k in range(step.params)
    ]
    run.__signature__ = inspect.Signature(kinds)
    return snnfast.neuron(inputs=step.inputs)(run)


def drawn(case: int) -> Step:
    """A random step that one may write: none that hands a state on as another, or computes with
    numbers alone, which PyTorch does in its default dtype."""
    for attempt in itertools.count():
        step = programs.random_step(case + 10**9 * attempt, exact=case % 3 > 0)
        nodes = _traced(step).nodes
        after = [nodes[r] for r in _traced(step).results[step.outputs :]]
        swapped = any(v.op == "state" and v.number != k for k, v in enumerate(after))
        values = [node.args[1:] if node.op == "where" else node.args for node in nodes]
        if not swapped and all(
            any(nodes[a].op != "const" for a in read) for read in values if read
        ):
            return step


def _flat(results) -> list[torch.Tensor]:
    parts = results if isinstance(results, tuple) else (results,)
    return [t for part in parts for t in (_flat(part) if isinstance(part, tuple) else (part,))]


def program_case(case: int, backend: str = "cpu") -> str | None:
    """None, or what was wrong with a random program."""
    step = drawn(case)
    neuron = definition_of(step)
    steps = (1, 3, 8, 9, 17)[case % 5]
    surrogate, channels = SURROGATES[case % 5], (0, 7)[case % 2]
    for dtype in (torch.float64, torch.float32):
        inputs, states, params = programs.tensors(step, case, steps, 2 * 7 * 13, dtype, channels)
        tensors = [x.view(steps, 2, 7, 13) for x in inputs]
        tensors += [v.view(2, 7, 13) for v in states]
        tensors += params

        def run(where, tensors=tensors):
            leaves = [t.clone().requires_grad_() for t in tensors]
            x, v = leaves[: step.inputs], leaves[step.inputs : step.inputs + step.states]
            named = {f"p{k}": p for k, p in enumerate(leaves[step.inputs + step.states :])}
            results = neuron(*x, states=tuple(v), surrogate=surrogate, return_state="all",
                             backend=where, **named)  # fmt: skip
            return leaves, _flat(results)

        (ours, found), (theirs, expected) = run(backend), run("reference")
        wrong = _compared(step, ours, found, theirs, expected)
        wrong = wrong or _compared_by_steps(step, neuron, tensors, found)
        if wrong:
            return f"{dtype}, {wrong}"
    return None


def _compared(step: Step, ours, found, theirs, expected) -> str | None:
    """What differs between two runs, in values or in gradients along a random direction."""
    apart = 1e-7 if found[0].dtype == torch.float64 else 1e-3
    differs = torch.zeros(found[0].shape[1:], dtype=torch.bool)
    for a, b in zip(found, expected, strict=True):
        if is_exact(step) and not torch.equal(a, b):
            return f"{(a != b).sum()} of {a.numel()} values differ"
        differs |= ~_are_near(a, b).all(0)
    along = [torch.randn_like(t) * ~differs for t in expected]
    pairs = [(a, b, c) for a, b, c in zip(found, expected, along) if b.requires_grad]
    if not pairs:
        return None
    given = list(zip(*pairs))
    mine = torch.autograd.grad(given[0], ours, given[2], allow_unused=True)
    right = torch.autograd.grad(given[1], theirs, given[2], allow_unused=True)
    largest = max((g.abs().max().item() for g in right if g is not None), default=0.0)
    for k, (a, b) in enumerate(zip(mine, right, strict=True)):
        a = torch.zeros_like(ours[k]) if a is None else a
        b = torch.zeros_like(ours[k]) if b is None else b
        if not torch.allclose(a, b, rtol=apart, atol=apart * (1 + largest), equal_nan=True):
            return f"gradient {k} of at most {largest:g}: off by {(a - b).abs().max():g}"
    return None


def _are_near(a, b) -> torch.Tensor:
    near = 1e-10 if a.dtype == torch.float64 else 1e-4
    return torch.isclose(a, b, rtol=near, atol=near)


def _compared_by_steps(step: Step, neuron, tensors, found) -> str | None:
    """What differs from the loop in a step from the states before it: over many, a program can
    make a last digit as large as it likes."""
    x, v = tensors[: step.inputs], tensors[step.inputs : step.inputs + step.states]
    params = {f"p{k}": p for k, p in enumerate(tensors[step.inputs + step.states :])}
    found = [t.detach() for t in found]
    after = found[step.outputs :]
    before = [torch.cat([a[None], b[:-1]]).flatten(0, 1) for a, b in zip(v, after, strict=True)]
    results = neuron(*(t.flatten(0, 1)[None] for t in x), states=tuple(before), return_state=True,
                     backend="reference", **params)  # fmt: skip
    differs = torch.zeros(found[0].flatten(0, 1).shape, dtype=torch.bool)
    for a, b in zip(found, _flat(results), strict=True):
        differs |= ~_are_near(a.flatten(0, 1), b.view_as(differs))
    if differs.float().mean() > (0 if found[0].dtype == torch.float64 else 0.02):
        return f"{differs.sum()} of {differs.numel()} steps differ"
    return None


def family_case(name: str, options: dict, seed: int, size=NEURONS, backend="cpu") -> str | None:
    """None, or what was wrong with ``STEPS`` steps of one of ``snnfast.neurons``."""
    neuron = family_cases.neuron(name)
    torch.manual_seed(seed)
    x = family_cases.inputs(name, (STEPS, size))
    named = {"surrogate": "sigmoid", "timesteps": None, "return_state": False}
    rest = neuron.bind((x,), options, states=None, backend="reference", **named).rest
    start = [torch.full((size,), number) + torch.rand(size) / 4 for number in rest]
    with torch.no_grad():
        s = neuron(x, states=tuple(start), backend=backend, **options)
        again, after = neuron(
            x, states=tuple(start), return_state="all", backend=backend, **options
        )
        after = _flat(after)
        before = [torch.cat([v[None], now[:-1]]) for v, now in zip(start, after, strict=True)]
        expected, stepped = neuron(
            x[None], states=tuple(before), return_state=True, backend="reference", **options
        )
    if not torch.equal(s, again):
        return f"{name} {options}: other spikes with return_state"
    step = neuron.listing(**options).step
    pairs = list(zip([s, *after], [expected[0], *_flat(stepped)], strict=True))
    if is_exact(step):
        wrong = sum(int((a != b).sum()) for a, b in pairs)
        return f"{name} {options}: {wrong} values differ" if wrong else None
    return _near(f"{name} {options}", step, x, before, pairs)


def _near(what: str, step: Step, x, before, pairs) -> str | None:
    """Within 2 units in the last place of the largest term, or behind a spike on its threshold."""
    nodes = step.forward.nodes
    spikes = [node.args[0] for node in nodes if node.op == "spike"]
    program = Program(nodes, tuple(spikes))
    eps, scale = torch.finfo(x.dtype).eps, 1 + x.abs()
    for v in before:
        scale = scale + v.abs()
    on_threshold = torch.zeros_like(x, dtype=torch.bool)
    for u in evaluate(program, {"input": [x], "state": before}):
        on_threshold |= u.abs() <= 2 * eps * scale
    for a, b in pairs:
        wrong = ((a - b).abs() > 2 * eps * torch.maximum(scale, b.abs())) & ~on_threshold
        if wrong.any():
            off = (a - b).abs()[wrong].max()
            return f"{what}: {int(wrong.sum())} values are off by up to {off:g}"
    return None


class Rounds:
    """Programs, and rounds of the family, one after the other."""

    def __init__(self, seed: int):
        self.seed, self.failures = seed, []
        self.programs = self.rounds = 0

    def _noted(self, what: str, wrong) -> None:
        if wrong:
            self.failures.append(f"fuzz_neurons: {what}: {wrong}")

    def program(self) -> None:
        """The next program, on every executor of the CPU."""
        case = self.seed * 100_000 + self.programs
        self.programs += 1
        for name in cpu.executors():
            self._noted(f"case {case}, {name}", _caught(name, program_case, case))

    def family(self) -> None:
        """One round of the next neuron, with the next of its options."""
        names = neurons.__all__
        turn, name = self.rounds // len(names), names[self.rounds % len(names)]
        self.rounds += 1
        choices = [options for other, options in family_cases.CASES if other == name]
        executors = list(cpu.executors())
        where = executors[turn % len(executors)]
        options = choices[turn // len(executors) % len(choices)]
        wrong = _caught(where, family_case, name, options, self.seed + turn)
        self._noted(f"round {turn} of seed {self.seed}, {where}", wrong)

    @property
    def neuron_steps(self) -> int:
        """How many every neuron of the family has had."""
        return self.rounds // len(neurons.__all__) * STEPS * NEURONS

    def report(self) -> list[str]:
        print(
            f"fuzz_neurons: {self.programs} programs, {self.neuron_steps / 1e6:g} million steps "
            f"of each of the family, {len(self.failures)} failures"
        )
        return self.failures


def _caught(executor: str, run, *arguments) -> str | None:
    try:
        with cpu.executed_by(executor):
            return run(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def run(seconds: float, seed: int) -> list[str]:
    """Programs and the family in turns for so long; what was wrong."""
    torch.set_num_threads(1)
    end, rounds = time.monotonic() + seconds, Rounds(seed)
    while time.monotonic() < end:
        rounds.program()
        rounds.family()
    return rounds.report()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--neuron-steps", type=float, default=1e8, help="of each of the family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="one program again")
    options = parser.parse_args()
    if options.case is not None:
        print(program_case(options.case) or "as the loop")
        return 0
    torch.set_num_threads(1)
    rounds = Rounds(options.seed)
    for _ in range(options.programs):
        rounds.program()
    while rounds.neuron_steps < options.neuron_steps:
        rounds.family()
    failures = rounds.report()
    print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
