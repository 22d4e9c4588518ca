"""Gradients with a graph of their own: what no kernel gives, by the reference.

Under ``create_graph=True`` an op's backward computes its forward again in plain PyTorch and leaves
the derivative to autograd, which may be asked for it again.
"""

import torch
from torch import Tensor


def wants_graph() -> bool:
    """Called in backward: whether its gradients are to be differentiated."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable(function, tensors, wanted, gradients) -> list[Tensor | None]:
    """The gradients of ``function(*tensors)``, a tensor or a tuple, by those tensors that are
    ``wanted``; None for the others. ``gradients``: of its results, None for one without."""
    leaves = [t.view_as(t) if want else t for t, want in zip(tensors, wanted, strict=True)]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [
        (s, ds)
        for s, ds in zip(results, gradients, strict=False)
        if ds is not None and s.requires_grad
    ]
    if not pairs:
        return [None] * len(leaves)
    found = torch.autograd.grad(
        [s for s, _ in pairs],
        [t for t, want in zip(leaves, wanted, strict=True) if want],
        [ds for _, ds in pairs],
        create_graph=True,
        allow_unused=True,
    )
    remaining = iter(found)
    return [next(remaining) if want else None for want in wanted]
