"""A traced step with what follows from it, made once and known by its text."""

import functools

from snnfast.program.adjoint import adjoint, advance, with_surrogate, without_detach
from snnfast.program.ir import LEAVES, Program


class Step:
    """One timestep of a neuron: its programs and how many values they read and give.

    ``line``: the packed program of the step as it was traced. ``outputs``: how many of its results
    are outputs; the others are its new states. ``gradient``: a packed program of one input in place
    of the surrogate of the call, or "".
    """

    def __init__(self, line: str, outputs: int, inputs: int, params: int, gradient: str = ""):
        self.line, self.gradient = line, gradient
        self.text = f"{inputs},{params},{outputs};{line};{gradient}"
        """The step as text, exactly."""
        self.inputs, self.outputs, self.params = inputs, outputs, params
        traced = Program.unpack(line)
        counts = {"input": inputs, "state": len(traced.results) - outputs, "param": params}
        _check_leaves(traced, counts)
        if not 1 <= outputs <= len(traced.results) or inputs < 1 or None in traced.results:
            raise ValueError(f"program: a step must read and give something, got {line!r}")
        self.states = len(traced.results) - outputs
        self.forward = without_detach(traced)
        """Reads input, state and param leaves; gives the outputs, then the new states."""
        self.advance = advance(traced, outputs)
        """The same for the new states alone: what backward recomputes."""
        self.adjoint = adjoint(traced, outputs, inputs, params)
        """Reads these leaves, dout and dstate; gives the gradients of the inputs, of the states and
        of the parameters, None for one that is 0."""
        if gradient:
            own = Program.unpack(gradient)
            _check_leaves(own, {"input": 1})
            if len(own.results) != 1 or None in own.results:
                raise ValueError(f"program: a gradient must be one number, got {gradient!r}")
            self.adjoint = with_surrogate(self.adjoint, own)

    @staticmethod
    def unpack(text: str) -> "Step":
        """The step of that text; ValueError where it is none."""
        try:
            counts, line, gradient = text.split(";")
            inputs, params, outputs = map(int, counts.split(","))
        except ValueError:
            raise ValueError(
                f"program: a step's text must be one of its own, got {text!r}"
            ) from None
        return Step.of(line, outputs, inputs, params, gradient)

    def with_gradient(self, gradient: str) -> "Step":
        """The same step with that program in place of the surrogate."""
        return Step.of(self.line, self.outputs, self.inputs, self.params, gradient)

    @staticmethod
    def of(line: str, outputs: int, inputs: int, params: int, gradient: str = "") -> "Step":
        """The one object of these arguments, by which backends may keep what they made of it."""
        return _step(line, outputs, inputs, params, gradient)


def _check_leaves(program: Program, counts: dict[str, int]) -> None:
    """ValueError where a program reads what there is not."""
    for op, _, number in program.nodes:
        if op in LEAVES and not number < counts.get(op, 0):
            raise ValueError(f"program: {op} must be below {counts.get(op, 0)}, got {number:g}")


_step = functools.lru_cache(1024)(Step)
