"""``accelerate``: the neurons of a model made for another package, run by the kernels of ours."""

import importlib
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast.nn.fuse import Fusion, fuse_all, unfuse
from snnfast.ops.validation import check_bool

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
        self.fused: list[Fusion] = []
        """Batch norms that run in one pass with their neuron, by the names of both."""
        self.unfused: list[Fusion] = []
        """Batch norms that do not, and why; empty where that was not asked for."""
        self.left: list[Entry] = []
        """Run as before, and why."""
        self.norms = 0
        """The batch norms of the model."""

    def __str__(self):
        rows: dict[tuple, list[str]] = {}
        for kind in ("replaced", "traced", "left"):
            for path, cls, reason in getattr(self, kind):
                rows.setdefault((kind, cls, reason), []).append(path or "the model")
        for norm, neuron, _, added in self.fused:
            what = "norms with what is added behind them" if added else "norms"
            rows.setdefault(("fused", what, None), []).append(f"{norm} -> {neuron}")
        for norm, _, reason, _ in self.unfused:
            rows.setdefault(("unfused", "norms", reason), []).append(norm)
        lines = ["accelerate: " + ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in KINDS)]
        for (kind, cls, reason), paths in rows.items():
            some = ", ".join(paths[:2]) + (", ..." if len(paths) > 2 else "")
            why = f": {reason}" if reason else ""
            lines.append(f"  {kind:8} {len(paths):4} {cls} ({some}){why}")
        if self.norms and not (self.fused or self.unfused):
            lines.append(f"  not fused {self.norms:3} batch norms, which would round otherwise")
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: nn.Module, *, fuse: bool = False) -> Report:
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
    ours runs as before, and warns once. What a traced step reads besides its node (globals,
    closures) is that of the time when it was traced.

    With ``fuse`` batch norms run in one pass with the node behind them, as by
    ``snnfast.nn.fuse(model, inplace=True)``: less memory and time, but spikes that are the same up
    to rounding alone, where they are else the same bit for bit. Containers that fold time into the
    batch, norms with a step mode, an addition between norm and node, and channels that are moved to
    the last axis are seen through. A norm that cannot be fused is named with its reason. What is
    changed later (a hook on a norm or its node, a submodule, by ``convert_sync_batchnorm``) runs as
    before, and warns, until the model is fused again. A model of DistributedDataParallel may be
    wrapped before or after; where SyncBatchNorm shares statistics all ranks must change alike.

    Returns a :class:`Report`.

    Raises:
        TypeError: ``model`` is no module, ``fuse`` no bool.
        ValueError: there is nothing to accelerate, and why. Then nothing has changed.

    Example:
        >>> print(snnfast.accelerate(model))
        accelerate: 19 replaced, 0 traced, 0 fused, 0 left
          replaced   19 MultiStepLIFNode (patch_embed.proj_lif, patch_embed.proj_lif1, ...)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch module, got {type(model).__name__}")
    check_bool("accelerate", "fuse", fuse)
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
    plain = [module for module in model.modules() if "_fused" not in vars(module)]
    try:
        for module, cls in becomes:
            module.__class__ = cls
        for entry in fuse_all(model) if fuse else ():
            (report.fused if entry.reason is None else report.unfused).append(entry)
    except BaseException:
        for module in plain:
            unfuse(module)
        for (module, _), cls in zip(becomes, before, strict=True):
            if type(module) is not cls:
                module.__class__ = cls
        raise
    return report
