"""A step in words: what ``print(neuron.program)`` shows."""

from collections.abc import Sequence

from snnfast.program.ir import LEAVES, Program
from snnfast.program.step import Step

_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "ge": ">=", "gt": ">", "le": "<=", "lt": "<",
    "eq": "==", "ne": "!=", "and": "and", "or": "or",
}  # fmt: skip


class Listing:
    """A neuron's program, to be printed: forward, adjoint, operations and bytes."""

    def __init__(
        self, name: str, step: Step, prelude: Program, inputs: Sequence[str],
        states: Sequence[str], params: Sequence[str],
    ):  # fmt: skip
        self.name, self.step, self.prelude = name, step, prelude
        self._inputs, self._states, self._params = inputs, states, list(params)

    def __str__(self) -> str:
        step = self.step
        hoisted = [f"p{k}" for k in range(step.params)]
        once = _lines(self.prelude, {"param": self._params}, hoisted)
        outputs = [f"out{k}" for k in range(step.outputs)]
        names = {"input": self._inputs, "state": self._states, "param": hoisted}
        after = [f"{v}'" for v in self._states]
        gradients = {"dout": [f"d{k}" for k in outputs], "dstate": [f"d{v}" for v in after]}
        wanted = [f"d{k}" for k in (*self._inputs, *self._states, *hoisted)]
        parts = [f"{self.name}({', '.join((*self._inputs, *self._states))})"]
        if once:
            parts += ["once a call", *once]
        parts += [f"forward, {step.forward.operations()} operations a step"]
        parts += _lines(step.forward, names, [*outputs, *after])
        parts += [f"adjoint, {step.adjoint.operations()} operations a step"]
        parts += _lines(step.adjoint, names | gradients, wanted)
        moved = f"{step.inputs + step.outputs}b forward, {2 * step.inputs + step.outputs}b backward"
        parts += [
            f"moved per neuron and step: {moved} (b: bytes of the dtype)",
            f"kept for backward: {step.inputs}b per neuron and step, and "
            f"{4 * step.states} bytes per neuron for every 8 steps beyond the first 8",
        ]
        return "\n".join(parts)

    __repr__ = __str__


def _lines(program: Program, leaves: dict[str, Sequence[str]], results: list[str]) -> list[str]:
    names, lines = [], []
    for op, args, number in program.nodes:
        if op in LEAVES:
            names.append(leaves[op][int(number)])
            continue
        if op == "const":
            names.append(f"{number:g}")
            continue
        names.append(f"t{len(lines)}")
        lines.append(f"    {names[-1]} = {_term(op, [names[a] for a in args])}")
    for name, place in zip(results, program.results, strict=True):
        lines.append(f"    {name} = {'0' if place is None else names[place]}")
    return lines


def _term(op: str, args: list[str]) -> str:
    if op in _SIGNS:
        return f" {_SIGNS[op]} ".join(args)
    if op == "neg":
        return f"-{args[0]}"
    return f"{op}({', '.join(args)})"
