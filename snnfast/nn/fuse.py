"""``fuse``: rewrite BatchNorm -> (add) -> neuron into one op, in models that know nothing of it."""

import contextlib
import copy
import functools
import warnings
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from snnfast.nn._chain import fuse_graph
from snnfast.nn._pair import NEURONS, NORMS, is_neuron, refusal, warn_unfused
from snnfast.nn._trace import Guard, Untraceable, has_hooks, required, trace

# Lists of modules, and what adds nothing to the module that it wraps.
_NO_FORWARD = (nn.Module.forward, DistributedDataParallel.forward)


class Fusion(NamedTuple):
    """One batch norm of a model: the name of its module, of the neuron it was fused with (None
    where it was not), why not (None where it was), and whether an addition between the two is a
    part of it."""

    norm: str
    neuron: str | None
    reason: str | None
    added: bool = False

    def __str__(self):
        if self.reason is None:
            return f"{self.norm} -> {self.neuron}: fused"
        return f"{self.norm}: not fused: {self.reason}"


class _Fused:
    """Put before the class of a module whose forward was rewritten."""

    def forward(self, *inputs, **named):
        runs, count, guard, _ = self._fused
        plain = not named and len(inputs) == count and all(isinstance(x, Tensor) for x in inputs)
        why = guard.broken() if plain else f"it is called with other than {count} tensors"
        if why is None:
            return runs[self.training](self, *inputs)
        warn_unfused(type(self).__name__, why, _pairs(self))
        return super().forward(*inputs, **named)

    def __reduce_ex__(self, protocol):
        # As the plain module, fused again by __setstate__: a trace belongs to these very objects.
        state = {key: value for key, value in vars(self).items() if key != "_fused"}
        return _blank, (_plain_class(self),), state

    def __setstate__(self, state):
        own, self.__class__ = type(self), _plain_class(self)
        self.__setstate__({key: value for key, value in state.items() if key != "_fused"})
        _search(self)
        if isinstance(self, _Fused):
            self.__class__ = own  # which may have more before it, such as checkpoint_spikes


def _plain_class(module: _Fused) -> type:
    order = type(module).__mro__
    return order[order.index(_Fused) + 1]


def _blank(cls: type) -> nn.Module:
    return object.__new__(_fused_class(cls))


@functools.cache
def _fused_class(cls: type) -> type:
    return type(cls.__name__, (_Fused, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def inlined(model: nn.Module) -> set[nn.Module]:
    """The modules of ``model`` whose forward runs as a part of another's, which was rewritten."""
    fused = (m for m in model.modules() if isinstance(m, _Fused))
    return {part for m in fused for part in m._fused[2].inlined}


def _pairs(module: _Fused) -> dict:
    """As ``_rewrite`` gave them, without those that are no more."""
    found = ((norm(), neuron(), added) for norm, neuron, added in module._fused[-1])
    return {norm: (neuron, added) for norm, neuron, added in found if norm and neuron}


def _is_stale(module: nn.Module) -> bool:
    """Whether it was changed since it was rewritten, and nothing was put before its class."""
    if not isinstance(module, _Fused) or type(module) is not _fused_class(_plain_class(module)):
        return False
    if module._fused[2].broken() is not None:
        return True
    pairs = _pairs(module).items()
    return any(refusal(norm, NORMS) or refusal(neuron, NEURONS) for norm, (neuron, _) in pairs)


def _is_part(module: nn.Module) -> bool:
    return isinstance(module, (_BatchNorm, _Fused)) or is_neuron(module)


def _inlined(module: nn.Module, wanted, sealed) -> list[nn.Module]:
    """The submodules to look into: those that have such a batch norm or a neuron within."""
    found = []
    for child in module.children():
        parts = set(child.modules())
        inner = any(map(is_neuron, parts)) or wanted & parts
        if inner and not _is_part(child) and child not in sealed:
            if not has_hooks(child):
                found += [child, *_inlined(child, wanted, sealed)]
    return list(dict.fromkeys(found))


def _compiled(module: nn.Module, graph: fx.Graph):
    whole = fx.GraphModule(module, graph)
    vars(whole).clear()  # as the tracer's
    return type(whole).forward


def _rewrite(module: nn.Module, wanted, sealed) -> tuple[dict, dict]:
    """Fuses the pairs that the forward of ``module`` shows; (pairs, reasons) as fuse_graph."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        raise Untraceable("is not that of its class")
    inlined = _inlined(module, wanted, sealed)
    modules, found = dict(module.named_modules()), {}
    graphs, words = trace(module, set(inlined))
    for training, graph in graphs.items():
        found[training] = fuse_graph(graph, modules, wanted)
    pairs, reasons = found[True]
    if pairs != found[False][0]:
        raise Untraceable("joins other layers in training than in evaluation")
    if pairs:
        runs = {mode: _compiled(module, g) for mode, g in graphs.items()}
        count = len(required(module))
        module.__class__ = _fused_class(type(module))
        refs = [
            (weakref.ref(norm), weakref.ref(neuron), added)
            for norm, (neuron, added) in pairs.items()
        ]
        vars(module)["_fused"] = runs, count, Guard(module, inlined, words), refs
    return pairs, reasons


def _search(model: nn.Module) -> tuple[dict, dict]:
    """As ``fuse_all``: ({norm: (neuron, whether there is an addition)}, {norm: why not}), the
    second for all of them."""
    names = {module: name for name, module in model.named_modules()}
    for module in names:
        if _is_stale(module):
            unfuse(module)
    reasons = {m: refusal(m, NORMS) for m in names if isinstance(m, _BatchNorm)}
    pairs = {}
    for module in names:
        if isinstance(module, _Fused):
            pairs |= _pairs(module)
    wanted = {norm for norm, why in reasons.items() if why is None and norm not in pairs}
    sealed = set()
    for module in reversed(names):  # children before their parents
        parts = list(module.modules())
        inside = [part for part in parts if part in wanted]
        neurons = any(map(is_neuron, parts))
        if not wanted or _is_part(module):
            continue
        if not (inside or neurons) or type(module).forward in _NO_FORWARD:
            continue
        where = f"{type(module).__name__} {names[module]!r}".removesuffix(" ''")
        try:
            found, why = _rewrite(module, wanted, sealed)
        except Untraceable as error:
            found, why = {}, dict.fromkeys(inside, f"the forward of {where} {error}")
            sealed.add(module)
        pairs |= found
        for norm in why:
            hooks = ", which has hooks" if has_hooks(module) else ""
            reasons[norm] = why[norm] or f"its output leaves {where}{hooks}"
        wanted.difference_update(inside if found else (n for n in why if why[n] is not None))
    return pairs, reasons


def fuse_all(model: nn.Module) -> list[Fusion]:
    """Fuses what can be fused in ``model``; says so of each of its batch norms."""
    names = {module: name for name, module in model.named_modules()}
    pairs, reasons = _search(model)
    found = []
    for norm, why in reasons.items():
        if norm in pairs:
            neuron, added = pairs[norm]
            found.append(Fusion(names[norm], names[neuron], None, added))
        else:
            found.append(Fusion(names[norm], None, why or "no call of it was found"))
    return found


def unfuse(module: nn.Module) -> None:
    """Makes it again what it was before it was rewritten, if it was."""
    if isinstance(module, _Fused):
        module.__class__ = _plain_class(module)
        del vars(module)["_fused"]


def fuse(model: nn.Module, *, inplace: bool = False, report: list | None = None) -> nn.Module:
    """Rewrites BatchNorm -> (add) -> neuron into one pass over memory wherever that is safe.

    The pairs are torch's BatchNorm1d, 2d, 3d or SyncBatchNorm and LIF, IF, ParametricLIF or a
    ``Neuron`` of one input of ``snnfast.nn``, with at most one addition between them and time split
    from the batch there (``unflatten``, ``view`` or ``reshape``), in one module's forward or across
    several: a ``Sequential``, a wrapper that folds time into the batch, a residual block. What runs
    in their place is ``snnfast.norm_lif``, or the program of the neuron behind the same
    normalisation. Modules, their classes, parameters, buffers and so the state_dict
    stay as they are; train(), eval(), streaming, deepcopy and pickle work as before.

    The way from a batch norm to its neuron is found with torch.fx. Left alone, with the reason in
    the report, are batch norms whose output something else reads, too, those in a forward that
    cannot be traced (it decides by its input's values or shape, say) or would lose something by it
    (it draws random numbers, writes to its module, reads what a call of another may change, such as
    the state of a neuron, changes the gradient mode), subclasses, hooks, and neurons that return
    their state or are called with ``v0`` or ``timesteps``. A change made later (a hook, an
    attribute, a submodule, an optional argument) runs the original forward and warns, until the
    model is fused again; where SyncBatchNorm shares statistics all ranks must change alike.

    The results are those of the model up to rounding: torch's BatchNorm may compute y scale +
    (bias - mean scale) where the fused op computes (y - mean) scale + bias, so a neuron whose
    potential lies on the threshold to the last bits can differ. In float16 and bfloat16 the model
    rounds what the batch norm and the addition give, and the fused op does not. Training updates
    the running statistics as torch does.

    Args:
        model: torch layers and neurons of ``snnfast.nn``. Fuse before torch.compile, and after
            convert_sync_batchnorm.
        inplace: rewrite the model itself, not a copy.
        report: a list that one ``Fusion`` (norm, neuron, reason) per batch norm is appended to;
            print them to read what was fused, and why the others were not.

    Returns the rewritten model. Warns where there are batch norms and none could be fused.

    Raises:
        TypeError: ``model`` is not a module, or ``report`` not a list.

    Example:
        >>> report = []
        >>> model = snnfast.nn.fuse(model, report=report)
        >>> print(*report, sep="\\n")
        bn1 -> lif1: fused
        bn2: not fused: its output is read by relu
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch module, got {type(model).__name__}")
    if report is not None and not isinstance(report, list):
        raise TypeError(f"fuse: report must be a list or None, got {type(report).__name__}")
    model = model if inplace else copy.deepcopy(model)
    entries = fuse_all(model)
    pairs = [entry for entry in entries if entry.reason is None]
    if entries and not pairs:
        warnings.warn(f"fuse: nothing was fused: {entries[0]}", stacklevel=2)
    if report is not None:
        report += entries
    return model


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Inside the block ``model`` runs as it was before ``fuse``. Gives the batch norms that are
    fused with a neuron outside of it."""
    fused = [m for m in model.modules() if isinstance(m, _Fused)]
    classes = [type(m) for m in fused]
    norms = {norm for m in fused for norm in _pairs(m)}
    try:
        for m in fused:
            m.__class__ = _plain_class(m)
        yield norms
    finally:
        for m, cls in zip(fused, classes, strict=True):
            m.__class__ = cls
