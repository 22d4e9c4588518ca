"""A program run with PyTorch, one operation after the other: what all executors are held to."""

import torch
from torch import Tensor

from snnfast.program.ir import LEAVES, Program


def _sqrt(x: Tensor) -> Tensor:
    """As IEEE rounds it; PyTorch's own in float32 on a CPU is an ulp off for one number in six."""
    return x.double().sqrt().to(x.dtype)


_FUNCTIONS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "min": torch.minimum, "max": torch.maximum, "neg": torch.neg, "abs": torch.abs,
    "exp": torch.exp, "log": torch.log, "sqrt": _sqrt, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "ge": torch.ge, "gt": torch.gt, "le": torch.le, "lt": torch.lt,
    "eq": torch.eq, "ne": torch.ne, "and": torch.logical_and, "or": torch.logical_or,
    "not": torch.logical_not, "where": torch.where, "detach": torch.detach,
}  # fmt: skip


def evaluate(program: Program, leaves: dict[str, list[Tensor]], surrogate=None, spike=None):
    """The results of ``program``, None for one that is 0 everywhere; differentiable where the
    leaves are. ``leaves``: per kind the tensors, all of one dtype and device.

    ``spike(u)`` stands for that operation, and ``surrogate.gradient`` for ``surrogate``.
    """
    like = next(t for tensors in leaves.values() for t in tensors)
    functions = dict(_FUNCTIONS)
    functions["spike"] = spike or (lambda u: (u >= 0).to(u.dtype))
    if surrogate is not None:
        functions["surrogate"] = surrogate.gradient
    values: list[Tensor] = []
    for op, args, number in program.nodes:
        if op in LEAVES:
            values.append(leaves[op][int(number)])
        elif op == "const":
            # A tensor: divided by a Python number, torch multiplies by its reciprocal on a GPU.
            values.append(torch.full((), number, dtype=like.dtype, device=like.device))
        elif op == "pow":
            values.append(torch.pow(values[args[0]], program.nodes[args[1]].number))
        else:
            values.append(functions[op](*(values[a] for a in args)))
    return tuple(None if r is None else values[r] for r in program.results)
