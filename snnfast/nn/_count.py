"""What a model keeps for backward: counted in one forward, in which nothing is kept."""

import time
from collections.abc import Callable, Set
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from snnfast.nn._blocks import Block, give
from snnfast.nn.stateful import Stateful
from snnfast.ops.attributes import Attributes
from snnfast.ops.packed import bits_of, want_marks
from snnfast.ops.warm_up import left_alone


class Save(NamedTuple):
    """A tensor that autograd saves, or that a block which is computed again would (``border``)."""

    inside: tuple[Block, ...]
    """The blocks that are running, the outermost first."""
    border: Block | None
    storage: int
    nbytes: int
    bits: int | None
    """Names its bits, which several may share; None where it is not spikes."""
    bit_bytes: int


class Count:
    """The saves of a forward, and how long the blocks took in it."""

    def __init__(self, device: torch.device):
        self.saves: list[Save] = []
        self.seconds: dict[Block, float] = {}
        self.calls: dict[Block, int] = {}
        self.fixed: set[Block] = set()
        """Blocks that leave something behind for their next call: they cannot run again."""
        self.bit_seconds: dict[int, float] = {}
        self.device, self._inside, self._hooks = device, [], 0.0
        self._held: dict[int, tuple] = {}

    def cost(self, packed: Set[Block], again: Set[Block], everywhere: bool) -> tuple[dict, dict]:
        """Bytes kept and seconds that a step takes longer, by block (None: between them), where
        these blocks pack or run again; ``everywhere``: where all that does not run again is packed.
        What several save is the first one's."""
        kept: dict[Block | None, int] = {}
        seconds: dict[Block | None, float] = {}
        known = set()
        for save in self.saves:
            if not again.isdisjoint(save.inside) or (save.border and save.border not in again):
                continue
            packs = everywhere or save.border or not packed.isdisjoint(save.inside)
            owner = save.border or (save.inside[-1] if save.inside else None)
            if packs and save.bits is not None:
                name, size = ("bits", save.bits), save.bit_bytes
                # Made once, and unpacked by each that reads it.
                times = 1 if name in known else 2
                seconds[owner] = seconds.get(owner, 0.0) + times * self.bit_seconds[save.bits]
            else:
                name, size = ("storage", save.storage), save.nbytes
            if name not in known:
                known.add(name)
                kept[owner] = kept.get(owner, 0) + size
        for block in again:
            kept[block] = kept.get(block, 0) + self.calls[block] * _random_state()
            seconds[block] = seconds.get(block, 0.0) + self.seconds[block]
        return kept, seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def note(self, t: Tensor, border: Block | None = None) -> None:
        """The hook: what autograd saves."""
        if t.layout != torch.strided or not t.untyped_storage().nbytes():
            return
        begin = self._now()
        storage, found = t.untyped_storage(), bits_of(t)
        # Held, so that no other gets its address: of what is gone, bits alone take memory.
        held = self._held.setdefault(storage._cdata, (StorageWeakRef(storage), set()))
        bits = None
        if found is not None:
            held[1].add(found.bits)
            bits = id(found.bits)
        now = self._now()
        if bits is not None:
            self.bit_seconds.setdefault(bits, now - begin)
        size = 0 if bits is None else found.bits.tensor.untyped_storage().nbytes()
        inside = tuple(self._inside)
        self.saves.append(Save(inside, border, storage._cdata, storage.nbytes(), bits, size))
        self._hooks += now - begin

    def watching(self, block: Block) -> Callable:
        """How ``block`` runs while it is counted."""

        def how(forward, modules, args, kwargs):
            for t in tree_leaves((args, kwargs)):
                if isinstance(t, Tensor):
                    self.note(t, border=block)
            own = [m for m in block.modules() if not isinstance(m, Stateful)]
            before, hooks, begin = Attributes(own), self._hooks, self._now()
            self._inside.append(block)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside.pop()
                spent = self._now() - begin - (self._hooks - hooks)
                self.seconds[block] = self.seconds.get(block, 0.0) + spent
                self.calls[block] = self.calls.get(block, 0) + 1
                if before.changed():
                    self.fixed.add(block)

        return how


def _random_state() -> int:
    """Bytes that a checkpoint keeps of torch's generators."""
    return torch.get_rng_state().nbytes


def count(model: nn.Module, blocks: list[Block], inputs: tuple) -> Count:
    """One forward of ``model``, which is left as it was. Not counted are parameters, buffers, the
    inputs and the outputs, which are there anyway."""
    want_marks()
    device = next(t.device for t in inputs if isinstance(t, Tensor))
    found = Count(device)
    changed = give({block: found.watching(block) for block in blocks}, lasting=False)
    try:
        with left_alone(model, device), torch.enable_grad():
            hooks = torch.autograd.graph.saved_tensors_hooks(found.note, _none)
            with hooks:
                outputs = model(*inputs)
            there = [*model.parameters(), *model.buffers(), *inputs, *tree_leaves(outputs)]
    finally:
        for module, before, _ in changed:
            module.__class__ = before
    theirs = {t.untyped_storage()._cdata for t in there if isinstance(t, Tensor)}
    found.saves = [
        save._replace(nbytes=0) if save.storage in theirs else save for save in found.saves
    ]
    return found


def _none(kept):
    raise RuntimeError("plan: backward must not run within the forward of the model")
