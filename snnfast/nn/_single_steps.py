"""A warning where calls look like a loop over single steps, as other libraries write it.

``for t in range(T): y += net(x[t])`` runs here, too, and takes the batch for time. One call does
not show that. Four in a row do, of one neuron with x of one shape [B, C] or [B, C, H, H]: either
all of them wait in a graph for their backward and none is behind another (a neuron at several
places of a network gets what comes of its earlier calls), or x is x[t], x[t + 1], ... of one
tensor. Nothing is read from a tensor's memory. Not seen are loops with other shapes, which may as
well be sequences, and loops without gradients behind another layer.
"""

import warnings
import weakref
from typing import NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

CALLS = 4  # as many as most spiking networks have steps; query, key and value are fewer
_warned = False


class _Call(NamedTuple):
    """One that may be a step: where it is in the graph, or of which tensor x is a part."""

    of: weakref.ref
    index: int | None
    shape: tuple


def _is_step(x: Tensor) -> bool:
    return x.dim() == 2 or (x.dim() == 4 and x.shape[2] == x.shape[3])


def _call(x: Tensor, s: Tensor) -> _Call | None:
    if s.grad_fn is not None:
        # Nodes of C++ are wrapped anew at each look at them.
        ours = isinstance(s.grad_fn, BackwardCFunction)
        return _Call(weakref.ref(s.grad_fn), None, x.shape) if ours else None
    base = x._base
    if base is None or base.shape[1:] != x.shape:
        return None
    index = (x.storage_offset() - base.storage_offset()) // max(base.stride(0), 1)
    return _Call(weakref.ref(base), index, x.shape)


def _follows(call: _Call, last: _Call) -> bool:
    if call.shape != last.shape or last.of() is None:
        return False
    if call.index is None or last.index is None:
        return call.index is last.index and not _is_spent(last.of())
    return call.of() is last.of() and call.index == last.index + 1


def _is_spent(node) -> bool:
    """Whether backward has been here."""
    try:
        return node._raw_saved_tensors is None
    except RuntimeError:
        return True


def _reaches(node, targets) -> bool:
    """Whether one of ``targets`` is before ``node`` in the graph."""
    seen, open_nodes = set(), [node]
    while open_nodes:
        before = [n for n, _ in open_nodes.pop().next_functions if n is not None and n not in seen]
        if any(n is target for n in before for target in targets):
            return True
        seen.update(before)
        open_nodes += before
    return False


def watch(neuron, x: Tensor, s: Tensor) -> None:
    """Note a call of ``neuron`` with x that gave s, and warn, once, where it ends such a row."""
    global _warned
    if _warned or not _is_step(x) or neuron._loop is None:
        return
    call, row = _call(x, s), neuron._loop
    if call is None or not row or not _follows(call, row[-1]):
        neuron._loop = () if call is None else (call,)
        return
    neuron._loop = row = (*(c for c in row if c.of() is not None), call)
    if len(row) < CALLS:
        return
    if call.index is None and _reaches(call.of(), [c.of() for c in row[:-1]]):
        neuron._loop = None  # at several places of a network
        return
    _warned = True
    warnings.warn(
        f"{type(neuron).__name__}: {CALLS} calls in a row with x {list(x.shape)}, which looks like "
        f"a loop over single steps. The first axis of x is time, here T={x.shape[0]}, and every "
        "call starts from rest: pass the whole sequence [T, B, ...] in one call, or x[t:t+1] "
        "inside of snnfast.streaming. If that axis is time, all is well.",
        stacklevel=2,
    )
