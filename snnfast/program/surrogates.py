"""The table's surrogate gradients as programs of one input, from their formulas in PyTorch."""

import functools
from dataclasses import fields

from snnfast.program.adjoint import without_detach
from snnfast.program.ir import Program
from snnfast.program.trace import trace
from snnfast.surrogate import TABLE


@functools.lru_cache(256)
def gradient_program(surrogate: int, a: float, b: float) -> Program:
    """g(u) of the surrogate with this ID, with its parameters in the order of ``params()``."""
    kind = next(cls for cls in TABLE.values() if cls.ID == surrogate)
    names = [field.name for field in fields(kind) if field.name != "spiking"]
    chosen = kind(**dict(zip(names, (a, b), strict=False)))
    program, _ = trace(kind.NAME, chosen.gradient, 1, 0, (), {})
    return without_detach(program)
