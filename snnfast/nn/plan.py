"""``plan``: which blocks of a model pack or are computed again, for a given memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnfast.nn._blocks import Block, find, give, is_given
from snnfast.nn._count import Count, count
from snnfast.nn.checkpoint import again, packed
from snnfast.nn.fuse import inlined

KEPT, PACKED, AGAIN = "as it is", "packed", "computed again"
REST = "(between blocks)"


class _Choice(NamedTuple):
    """Which blocks pack, which run again, and whether all that do not are packed."""

    packed: frozenset[Block] = frozenset()
    again: frozenset[Block] = frozenset()
    everywhere: bool = False


class _Chooser:
    """The fastest choice found for a budget, by what each saves for a second."""

    def __init__(self, blocks: list[Block], counted: Count):
        self.counted = counted
        self.blocks = [block for block in blocks if block in counted.seconds]
        within: dict[Block, set[Block]] = {block: set() for block in self.blocks}
        for save in counted.saves:
            for i, block in enumerate(save.inside):
                within[block].update(save.inside[i + 1 :])
        self.within = within
        self._costs: dict[_Choice, tuple[int, float]] = {}

    def cost(self, choice: _Choice) -> tuple[int, float]:
        """Bytes kept, and seconds more than with nothing chosen."""
        if choice not in self._costs:
            kept, seconds = self.counted.cost(*choice)
            self._costs[choice] = sum(kept.values()), sum(seconds.values())
        return self._costs[choice]

    def _set(self, choice: _Choice, block: Block, how: str) -> _Choice:
        packed, again = choice.packed - {block}, choice.again - {block}
        if how == PACKED:
            packed |= {block}
        if how == AGAIN:
            # What packs in a block would keep its bits beside the block's own border.
            packed, again = packed - self.within[block], (again | {block}) - self.within[block]
        return _Choice(packed, again, choice.everywhere)

    def _moves(self, choice: _Choice) -> list[_Choice]:
        found = [] if choice.everywhere else [_Choice(frozenset(), choice.again, True)]
        for block in self.blocks:
            if any(block in self.within[other] for other in choice.again):
                continue
            if block not in choice.again and block not in self.counted.fixed:
                found.append(self._set(choice, block, AGAIN))
            if not (choice.everywhere or block in choice.packed or block in choice.again):
                found.append(self._set(choice, block, PACKED))
        return found

    def smaller(self, choice: _Choice) -> _Choice | None:
        """The next one: most bytes for the time; None where nothing keeps less."""
        kept, seconds = self.cost(choice)

        def gain(move):
            less, more = self.cost(move)
            return (kept - less) / max(more - seconds, 1e-6)

        moves = [move for move in self._moves(choice) if self.cost(move)[0] < kept]
        return max(moves, key=gain, default=None)

    def relaxed(self, choice: _Choice, budget: int) -> _Choice:
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

    def choose(self, budget: int) -> _Choice | None:
        """The cheapest of those that one step from the way down meets; None where nothing does."""
        choice, found = _Choice(), []
        while choice is not None and self.cost(choice)[0] > budget:
            enough = [move for move in self._moves(choice) if self.cost(move)[0] <= budget]
            if enough:
                found.append(self.relaxed(min(enough, key=self._seconds), budget))
            choice = self.smaller(choice)
        return min([choice, *found] if choice else found, key=self._seconds, default=None)

    def _seconds(self, choice: _Choice) -> float:
        return self.cost(choice)[1]

    def smallest(self) -> _Choice:
        choice, following = _Choice(), _Choice()
        while following is not None:
            choice, following = following, self.smaller(following)
        return choice


class PlannedBlock(NamedTuple):
    """A line of a plan. Bytes are counted where a tensor is saved first; ``ms``: how much longer a
    step takes by the choice."""

    name: str
    before: int
    after: int
    choice: str
    ms: float

    def __str__(self):
        more = f", + {self.ms:.1f} ms" if self.ms else ""
        return f"{self.name}: {_size(self.before)} -> {_size(self.after)}, {self.choice}{more}"


class Plan:
    """What ``plan`` has chosen; print it for a table. ``undo()`` makes the model what it was."""

    def __init__(self, blocks: list[PlannedBlock], budget: int, changed: list):
        self.blocks, self.budget, self._changed = blocks, budget, changed

    @property
    def before(self) -> int:
        """Bytes kept for backward without the plan."""
        return sum(block.before for block in self.blocks)

    @property
    def after(self) -> int:
        """Bytes kept with it."""
        return sum(block.after for block in self.blocks)

    @property
    def ms(self) -> float:
        """How much longer a step takes."""
        return sum(block.ms for block in self.blocks)

    def undo(self) -> None:
        """Every block runs as before; other changes of the model stay."""
        for module, _, now in self._changed:
            if type(module) is not now:
                raise ValueError(
                    f"plan: a planned block must be undone before it is changed otherwise, got "
                    f"{type(module).__name__}"
                )
        while self._changed:
            module, before, _ = self._changed.pop()
            module.__class__ = before

    def __str__(self):
        width = max(len(block.name) for block in self.blocks)
        lines = [
            f"plan: {_size(self.before)} -> {_size(self.after)} kept for backward, budget "
            f"{_size(self.budget)}, about {self.ms:.0f} ms more a step"
        ]
        for name, before, after, choice, ms in self.blocks:
            more = f"  {ms:8.1f} ms" if ms else ""
            lines.append(
                f"  {name:{width}}  {_size(before):>9} -> {_size(after):>9}  {choice:14}{more}".rstrip()
            )
        return "\n".join(lines)

    __repr__ = __str__


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _checked(model, example, budget) -> tuple[nn.Module, tuple]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"plan: model must be a torch module, got {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if "_orig_mod" in model._modules:
        raise ValueError("plan: model must be planned before torch.compile, got a compiled one")
    if any(map(is_given, model.modules())):
        raise ValueError(
            "plan: model must have no block that is planned or checkpointed already, got one; undo "
            "that plan"
        )
    inputs = example if isinstance(example, tuple) else (example,)
    for t in inputs:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"plan: example must be a tensor or a tuple of them, got {type(t).__name__}"
            )
    if not inputs:
        raise ValueError("plan: example must be a tensor or a tuple of them, got ()")
    own = [*model.parameters(), *model.buffers(), inputs[0]][0].device
    for t in inputs:
        if t.device != own:
            raise ValueError(f"plan: example must be on the model's device, {own}, got {t.device}")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(
            "plan: budget must be bytes (an int) or a share of what is kept now (a float), got "
            f"{type(budget).__name__}"
        )
    if not (budget >= 1 if isinstance(budget, int) else 0 < budget <= 1):
        raise ValueError(
            "plan: budget must be bytes, an int from 1, or a share of what is kept now, a float in "
            f"0..1, got {budget}"
        )
    return model, inputs


def plan(
    model: nn.Module, example: "Tensor | tuple[Tensor, ...]", *, budget: "int | float"
) -> Plan:
    """Lets ``model`` keep at most ``budget`` bytes for backward, at the least cost in time.

        >>> print(snnfast.nn.plan(model, images, budget=0.5))   # half of what it keeps now
        >>> plan = snnfast.nn.plan(model, images, budget=200_000_000)
        >>> plan.undo()

    One forward, in which nothing is kept, shows what autograd saves in every block of the model, what
    of that is spikes, and how long the block takes. Then each block keeps its tensors as they are,
    or spikes as bits (``packed_spikes``), or the bits at its border alone and is computed again in
    backward (``checkpoint_spikes``): the cheapest bytes come first, until the budget is met. Blocks
    are the smallest modules with neurons and weights in them, shortcuts in them, and in a plain
    ``Sequential`` of layers the parts that end in neurons; what runs between blocks can be packed.

    The model is changed in place: parameters, keys, attributes and results stay, bit for bit, and
    so do random numbers, running statistics and streams; ``deepcopy`` and pickle take the plan
    along. Plan after ``fuse``, before torch.compile, under the autocast and ``backend`` of the
    step and outside of ``packed_spikes``, with an input of its shape and in the mode of training.
    Ranks that share statistics follow the choice of the first.

    Bytes are those that autograd saves, in the model: not parameters, buffers, the example, the
    output, nor what the loss keeps. A part under saved-tensor hooks of its own is not seen. While
    a block is computed again, it keeps what it would have kept without a plan, until backward has
    passed it.

    Args:
        model: a module; of DistributedDataParallel, what it wraps.
        example: its input, or a tuple of its inputs.
        budget: bytes kept for backward, an int; or a share of those kept now, a float in 0..1.

    Returns a ``Plan``: ``blocks`` with name, bytes before and after, choice and milliseconds;
    ``before``, ``after`` and ``ms`` of all; ``undo()``.

    Raises:
        TypeError, ValueError: ``plan: <argument> must be ..., got ...``; also where the budget is
            less than what can be reached, where nothing can keep less, or where the model has a
            plan or checkpoints already.
    """
    model, inputs = _checked(model, example, budget)
    blocks = list({(b.module, b.part): b for b in find(model, "", inlined(model))}.values())
    counted = count(model, blocks, inputs)
    chooser = _Chooser(blocks, counted)
    now, least = chooser.cost(_Choice())[0], chooser.cost(chooser.smallest())[0]
    if least >= now:
        raise ValueError(
            f"plan: model must have blocks that can keep less for backward, got "
            f"{type(model).__name__}, which keeps {now} bytes"
        )
    limit = budget if isinstance(budget, int) else int(budget * now)
    choice = _of_first_rank(chooser, chooser.choose(limit), model, inputs[0].device)
    if choice is None:
        raise ValueError(
            f"plan: budget must be at least {least} bytes, {least / now:.3f} of what is kept now, "
            f"got {budget}"
        )
    return _apply(model, chooser, choice, limit)


def _of_first_rank(chooser: _Chooser, choice: _Choice | None, model, device) -> _Choice | None:
    """One choice for the ranks that share statistics: they meet again where blocks run again."""
    groups = (getattr(module, "process_group", None) for module in model.modules())
    group = next((group for group in groups if group is not None), None)
    if group is None:
        return choice
    codes = [-1] * (len(chooser.blocks) + 1)
    if choice is not None:
        codes = [(b in choice.packed) + 2 * (b in choice.again) for b in chooser.blocks]
        codes.append(int(choice.everywhere))
    sent = torch.tensor(codes, device=device)
    torch.distributed.broadcast(sent, group=group, group_src=0)
    *codes, everywhere = sent.tolist()
    if everywhere < 0:
        return None
    packed, again = (
        frozenset(b for b, code in zip(chooser.blocks, codes) if code == how) for how in (1, 2)
    )
    return _Choice(packed, again, bool(everywhere))


def _apply(model: nn.Module, chooser: _Chooser, choice: _Choice, limit: int) -> Plan:
    before, _ = chooser.counted.cost(*_Choice())
    after, seconds = chooser.counted.cost(*choice)
    rows, repeated = [], choice.again.union(*(chooser.within[block] for block in choice.again))
    for block in (*chooser.blocks, None):
        how = PACKED if choice.everywhere or block in choice.packed else KEPT
        how = AGAIN if block in repeated else how
        name, ms = REST if block is None else block.name, 1e3 * seconds.get(block, 0.0)
        rows.append(PlannedBlock(name, before.get(block, 0), after.get(block, 0), how, ms))
    hows: dict[Block, Callable] = dict.fromkeys(choice.packed, packed)
    hows |= dict.fromkeys(choice.again, again)
    if choice.everywhere:
        hows[Block("", model)] = packed
    return Plan(rows, limit, give(hows))
