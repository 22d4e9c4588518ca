"""Which blocks pack and which run again: the cheapest choice found for a budget of kept bytes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from snnfast.nn._blocks import Block
from snnfast.nn._count import Count

KEPT, PACKED, AGAIN = "as it is", "packed", "computed again"


class Choice(NamedTuple):
    """Which blocks pack, which run again, and whether all that do not are packed."""

    packed: frozenset[Block] = frozenset()
    again: frozenset[Block] = frozenset()
    everywhere: bool = False


class Chooser:
    """The fastest choice found for a budget, by what each saves for a second."""

    def __init__(self, blocks: list[Block], counted: Count):
        self.counted = counted
        self.blocks = [block for block in blocks if block in counted.seconds]
        within: dict[Block, set[Block]] = {block: set() for block in self.blocks}
        for save in counted.saves:
            for i, block in enumerate(save.inside):
                within[block].update(save.inside[i + 1 :])
        self.within = within
        self._costs: dict[Choice, tuple[int, float]] = {}

    def cost(self, choice: Choice) -> tuple[int, float]:
        """Bytes kept, and seconds more than with nothing chosen."""
        if choice not in self._costs:
            kept, seconds = self.counted.cost(*choice)
            self._costs[choice] = sum(kept.values()), sum(seconds.values())
        return self._costs[choice]

    def _set(self, choice: Choice, block: Block, how: str) -> Choice:
        packed, again = choice.packed - {block}, choice.again - {block}
        if how == PACKED:
            packed |= {block}
        if how == AGAIN:
            # What packs in a block would keep its bits beside the block's own border.
            packed, again = packed - self.within[block], (again | {block}) - self.within[block]
        return Choice(packed, again, choice.everywhere)

    def _moves(self, choice: Choice) -> list[Choice]:
        found = [] if choice.everywhere else [Choice(frozenset(), choice.again, True)]
        for block in self.blocks:
            if any(block in self.within[other] for other in choice.again):
                continue
            if block not in choice.again and block not in self.counted.fixed:
                found.append(self._set(choice, block, AGAIN))
            if not (choice.everywhere or block in choice.packed or block in choice.again):
                found.append(self._set(choice, block, PACKED))
        return found

    def smaller(self, choice: Choice) -> Choice | None:
        """The next one: most bytes for the time; None where nothing keeps less."""
        kept, seconds = self.cost(choice)

        def gain(move):
            less, more = self.cost(move)
            return (kept - less) / max(more - seconds, 1e-6)

        moves = [move for move in self._moves(choice) if self.cost(move)[0] < kept]
        return max(moves, key=gain, default=None)

    def relaxed(self, choice: Choice, budget: int) -> Choice:
        """Without what the last step made needless."""
        while True:
            others = [
                self._set(choice, block, how)
                for block in self.blocks
                for how in ((KEPT,) if choice.everywhere else (KEPT, PACKED))
                if block in choice.again or (block in choice.packed and how == KEPT)
            ]
            if choice.everywhere:
                others.append(choice._replace(everywhere=False))
            others = [
                other
                for other in others
                if self.cost(other)[0] <= budget and self._seconds(other) < self._seconds(choice)
            ]
            if not others:
                return choice
            choice = min(others, key=self._seconds)

    def choose(self, budget: int) -> Choice | None:
        """The cheapest of those that one step from the way down meets; None where nothing does."""
        choice, found = Choice(), []
        while choice is not None and self.cost(choice)[0] > budget:
            enough = [move for move in self._moves(choice) if self.cost(move)[0] <= budget]
            if enough:
                found.append(self.relaxed(min(enough, key=self._seconds), budget))
            choice = self.smaller(choice)
        return min([choice, *found] if choice else found, key=self._seconds, default=None)

    def _seconds(self, choice: Choice) -> float:
        return self.cost(choice)[1]

    def smallest(self) -> Choice:
        choice, following = Choice(), Choice()
        while following is not None:
            choice, following = following, self.smaller(following)
        return choice


def _group(module: nn.Module):
    """The ranks that share what a module computes."""
    group = getattr(module, "process_group", None)
    if group is None and isinstance(module, nn.SyncBatchNorm) and dist.is_initialized():
        return dist.group.WORLD
    return group


def of_first_rank(chooser: Chooser, choice: Choice | None, model, device) -> Choice | None:
    """One choice for the ranks that share statistics: they meet again where blocks run again."""
    group = next(filter(None, map(_group, model.modules())), None)
    if group is None:
        return choice
    codes = [-1] * (len(chooser.blocks) + 1)
    if choice is not None:
        codes = [(b in choice.packed) + 2 * (b in choice.again) for b in chooser.blocks]
        codes.append(int(choice.everywhere))
    sent = torch.tensor(codes, device=device)
    dist.broadcast(sent, group=group, group_src=0)
    *codes, everywhere = sent.tolist()
    if everywhere < 0:
        return None
    packed, again = (
        frozenset(b for b, code in zip(chooser.blocks, codes) if code == how) for how in (1, 2)
    )
    return Choice(packed, again, bool(everywhere))
