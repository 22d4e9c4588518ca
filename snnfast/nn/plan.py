"""``plan``: which blocks of a model pack or are computed again, for a given memory."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnfast.nn._blocks import Block, find, give, is_given
from snnfast.nn._choose import AGAIN, KEPT, PACKED, Choice, Chooser, of_first_rank
from snnfast.nn._count import count
from snnfast.nn.checkpoint import again, packed
from snnfast.nn.fuse import inlined

REST = "(between blocks)"


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
            sizes = f"{_size(before):>9} -> {_size(after):>9}"
            more = f"{ms:9.1f} ms" if ms else ""
            lines.append(f"  {name:{width}}  {sizes}  {choice:14}{more}")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


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
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    if not tensors:
        kind = "no tensor in the tuple" if isinstance(example, tuple) else type(example).__name__
        raise TypeError(
            f"plan: example must be a tensor or a tuple of arguments with one in it, got {kind}"
        )
    own = [*model.parameters(), *model.buffers(), tensors[0]][0].device
    for t in tensors:
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


def plan(model: nn.Module, example: "Tensor | tuple", *, budget: "int | float") -> Plan:
    """Lets ``model`` keep at most ``budget`` bytes for backward, at the least cost in time.

        >>> print(snnfast.nn.plan(model, images, budget=0.5))   # half of what it keeps now
        >>> plan = snnfast.nn.plan(model, images, budget=200_000_000)
        >>> plan.undo()

    One forward, in which nothing is kept, shows what autograd saves in every block of the model,
    what of that is spikes, and how long the block takes. Then each block keeps its tensors as they
    are, or spikes as bits (``packed_spikes``), or the bits at its border alone and is computed
    again in backward (``checkpoint_spikes``): the cheapest bytes come first, until the budget is
    met. Blocks are the smallest modules with neurons and weights in them, shortcuts in them, and in
    a plain ``Sequential`` of layers the parts that end in neurons; what runs between blocks can be
    packed. A model whose forward calls all layers itself has no blocks, and can only be packed; so
    can what ``fuse`` has drawn into the forward of another module.

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
        example: its input, or a tuple of its arguments, of which one at least is a tensor.
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
    chooser = Chooser(blocks, counted)
    now, least = chooser.cost(Choice())[0], chooser.cost(chooser.smallest())[0]
    if least >= now:
        raise ValueError(
            f"plan: model must have blocks that can keep less for backward, got "
            f"{type(model).__name__}, which keeps {now} bytes"
        )
    limit = budget if isinstance(budget, int) else int(budget * now)
    choice = of_first_rank(chooser, chooser.choose(limit), model, counted.device)
    if choice is None:
        raise ValueError(
            f"plan: budget must be at least {least} bytes, {least / now:.3f} of what is kept now, "
            f"got {budget}"
        )
    return _apply(model, chooser, choice, limit)


def _apply(model: nn.Module, chooser: Chooser, choice: Choice, limit: int) -> Plan:
    before, _ = chooser.counted.cost(*Choice())
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
