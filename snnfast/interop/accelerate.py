"""``accelerate``: the neurons of a model made for another package, run by the kernels of ours."""

import importlib
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_JUDGES = ("snnfast.interop.spikingjelly._judge", "snnfast.interop.snntorch")


KINDS = ("replaced", "traced", "fused", "left")


class Entry(NamedTuple):
    """One module of a report."""

    path: str
    """As in ``model.named_modules()``; "" is the model itself."""
    cls: str
    reason: str | None = None

    def __str__(self):
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.path or 'the model'} ({self.cls}){reason}"


class Report:
    """What ``accelerate`` did, as lists of :class:`Entry`; print it for a table."""

    def __init__(self):
        self.replaced: list[Entry] = []
        """Run by ``snnfast.lif``."""
        self.traced: list[Entry] = []
        """Run by a program traced from their own step."""
        self.fused: list[Entry] = []
        """Batch norms that run in one pass with their neuron: none, see ``accelerate``."""
        self.left: list[Entry] = []
        """Run as before, and why."""
        self.norms = 0
        """The batch norms of the model."""

    def __str__(self):
        rows: dict[tuple, list[str]] = {}
        for kind in KINDS:
            for path, cls, reason in getattr(self, kind):
                rows.setdefault((kind, cls, reason), []).append(path or "the model")
        lines = ["accelerate: " + ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in KINDS)]
        for (kind, cls, reason), paths in rows.items():
            some = ", ".join(paths[:2]) + (", ..." if len(paths) > 2 else "")
            why = f": {reason}" if reason else ""
            lines.append(f"  {kind:8} {len(paths):4} {cls} ({some}){why}")
        if self.norms:
            lines.append(f"  not fused {self.norms:3} batch norms, which would round otherwise")
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: nn.Module) -> Report:
    """Runs the neurons of SpikingJelly in ``model`` by snnfast, in place; nothing else changes.

    IFNode, LIFNode and ParametricLIFNode of SpikingJelly 2.0.0, 0.0.0.0.14 and 0.0.0.0.12 (there
    also MultiStepIFNode, MultiStepLIFNode, MultiStepParametricLIFNode), and subclasses that only
    set defaults, are **replaced**: the node becomes a subclass of its own class, whose step is
    ``snnfast.lif``. A subclass that overrides a step is **traced**, as by ``snnfast.neuron``, where
    the program gives the same spikes, states and gradients on a check that is run here, on random
    numbers and multiples of 1/20; else it is **left** as it is, with the method that blocks it.

    Modules, keys, hooks, ``isinstance``, deepcopy, pickle, ``v``, ``v_seq`` and every ``reset_net``
    stay what they are; ``v``, ``v_threshold``, ``v_reset``, ``tau``, ``w``, ``detach_reset``,
    ``surrogate_function``, ``step_mode`` and ``store_v_seq`` are read at each call. State and
    arithmetic are float32, also where the input is of half precision. A call that cannot be one of
    ours runs as before, and warns once. Batch norms are not fused with their neurons: the spikes
    are to be the same bit for bit, and there they would be so up to rounding. What a traced step
    reads besides its node (globals, closures) is that of the time when it was traced.

    Returns a :class:`Report`.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is nothing to accelerate, and why. Then nothing has changed.

    Example:
        >>> print(snnfast.accelerate(model))
        accelerate: 19 replaced, 0 traced, 0 fused, 0 left
          replaced   19 MultiStepLIFNode (patch_embed.proj_lif, patch_embed.proj_lif1, ...)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch module, got {type(model).__name__}")
    judges = [importlib.import_module(name).judge for name in _JUDGES]
    report, becomes = Report(), []
    report.norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    for path, module in model.named_modules():
        verdict = next((v for v in (judge(module) for judge in judges) if v is not None), None)
        if verdict is None:
            continue
        entry = Entry(path, type(module).__name__, verdict.reason)
        getattr(report, verdict.kind).append(entry)
        if verdict.cls is not None:
            becomes.append((module, verdict.cls))
    if not becomes:
        found = (
            "; ".join(str(entry) for entry in report.left[:3]) or f"none in {type(model).__name__}"
        )
        raise ValueError(
            f"accelerate: model must have neurons of SpikingJelly that can run here, got {found}"
        )
    before = [type(module) for module, _ in becomes]
    try:
        for module, cls in becomes:
            module.__class__ = cls
    except BaseException:
        for (module, _), cls in zip(becomes, before, strict=True):
            if type(module) is not cls:
                module.__class__ = cls
        raise
    return report
