"""Which of SpikingJelly's nodes becomes what."""

import functools
import importlib.metadata
import sys
import types
from pathlib import Path

from torch import nn

from snnfast import surrogate as surrogates
from snnfast.interop.spikingjelly import _nodes, _traced
from snnfast.interop.spikingjelly._check import difference, numbers, step_shape, twin
from snnfast.interop.spikingjelly._engine import VERSIONS, Unlike, fires_by
from snnfast.interop.spikingjelly._traced import Way
from snnfast.interop.verdict import Verdict
from snnfast.reference.neuron import fire

_HOOKS = ("neuronal_charge", "neuronal_fire", "neuronal_reset")
_ENTRIES = ("forward", "single_step_forward", "multi_step_forward")
_known: dict[type, str | None] = {}
_judged: dict[tuple, Verdict] = {}


def judge(module: nn.Module) -> Verdict | None:
    """What becomes of a module; None where it is no node of SpikingJelly."""
    cls = type(module)
    if isinstance(module, _nodes.Accelerated):
        return Verdict("traced" if isinstance(module, _nodes.Traced) else "replaced", cls)
    base = _nodes.base_of(cls)
    if base is None:
        return None
    own = _nodes.own_call(module, cls) or next((k for k in _ENTRIES if k in vars(module)), None)
    if own is not None:
        return _left(f"{own} is an attribute of this node")
    if "v" not in vars(module).get("_memories", ()) or hasattr(cls, "v"):
        return _left(f"{base.__name__} keeps no v among its memories")
    try:
        fires_by(module)
        with _nodes.strictly():
            return _as_lif(module, cls, base) or _by_steps(module, cls, base)
    except Unlike as why:
        return _left(str(why))
    except TypeError as error:  # of its __init_subclass__, say
        return _left(f"no subclass can be made of it: {error}")


def _left(reason: str) -> Verdict:
    return Verdict("left", reason=reason)


def _as_lif(module, cls: type, base: type) -> Verdict | None:
    """Of a node that computes what SpikingJelly's class does."""
    ours, changed = _nodes.made(cls), _nodes.overridden(cls, base)
    if ours is None or any(name not in _ENTRIES for name in changed):
        return None
    unused = [k for k in _HOOKS if any(k in vars(c) for c in cls.__mro__) and k not in dir(base)]
    if unused:
        return _left(f"it overrides {unused[0]}, which SpikingJelly 2.0 never calls")
    if changed and not _goes_on(cls, base):
        return None
    if base not in _known:
        _known[base] = None if _is_released(base) else _compared(module, base)
    if _known[base] is not None:
        return _left(_known[base])
    if not changed:
        node = twin(module, ours)
        node.forward(numbers(node, 1, *step_shape(node)))  # as it is set now: raises Unlike
    return Verdict("replaced", ours)


@functools.cache
def _is_released(base: type) -> bool:
    """Whether a class is of an installed release that is known here. Others are compared by what
    they compute, for which SpikingJelly 2.0 would import the compiler (5 s)."""
    if _nodes.is_ours(base):
        return True
    if base.__module__.split(".")[0] != "spikingjelly":
        return False
    try:
        installed = importlib.metadata.distribution("spikingjelly")
    except importlib.metadata.PackageNotFoundError:
        return False
    file = sys.modules[base.__module__].__file__ or ""
    inside = Path(str(installed.locate_file("spikingjelly"))) in Path(file).parents
    known = installed.version in [version.name for version in VERSIONS]
    return inside and known and all(map(_is_unpatched, base.__mro__))


def _is_unpatched(cls: type) -> bool:
    """Whether the methods of a class come from where it does."""
    methods = [f for f in vars(cls).values() if isinstance(f, types.FunctionType)]
    return cls is nn.Module or all(f.__module__ == cls.__module__ for f in methods)


def _goes_on(cls: type, base: type) -> bool:
    """Whether an entry that ``cls`` overrides ends in one of SpikingJelly's."""
    order = cls.__mro__
    for name, f in [item for c in order[: order.index(base)] for item in vars(c).items()]:
        if name in _ENTRIES and isinstance(f, types.FunctionType):
            calls = set(f.__code__.co_names)
            if calls & set(_ENTRIES[1:]) or {"super", "forward"} <= calls:
                return True
    return False


class Sigmoid(nn.Module):
    """What nodes are compared with."""

    alpha = 4.0

    def forward(self, u):
        return fire(u, surrogates.resolve("sigmoid"))


def _compared(module, base: type) -> str | None:
    """Why SpikingJelly's class is not the one that is known here, by what it computes."""
    node = twin(module, base)
    node.surrogate_function = Sigmoid()  # whatever this one has
    changes = [{"v_reset": r, "v": r or 0.0} for r in (0.0, None, -0.15, None)]
    if hasattr(node, "decay_input"):
        for change, decay_input in zip(changes, (False, False, True, True), strict=True):
            change["decay_input"] = decay_input
    for mode in ("s", "m") if hasattr(node, "step_mode") else (None,):
        steps = [c if mode is None else {"step_mode": mode, **c} for c in changes]
        sequences = mode == "m" or base.__name__.startswith("MultiStep")
        differs = difference(node, base, _nodes.made(base), sequences=sequences, changes=steps)
        if differs is not None:
            return f"{base.__module__}.{base.__name__} differs from those known: {differs}"
    return None


def _by_steps(module, cls: type, base: type) -> Verdict:
    """Of a node whose step is traced."""
    _traced.constants(module, tuple(vars(module)["_memories"]))  # refused before it is tried
    node = twin(module, cls)
    key = cls, getattr(node, "step_mode", None), _traced.constants(node, ()), fires_by(node)
    key += tuple((name, p.shape) for name, p in node.named_parameters())
    if key not in _judged:
        _judged[key] = _first_that_agrees(node, cls, base)
    return _judged[key]


def _first_that_agrees(node, cls: type, base: type) -> Verdict:
    changed = _nodes.overridden(cls, base)
    what = ", ".join(changed) or f"{base.__name__} is no LIF"
    found, refused, differ = {}, {}, {}
    for mode, ways in _ways(node, cls, base, changed).items():
        for way in [way for one in ways for way in _with_v_seq(node, one)]:
            merged = getattr(node, way.timesteps) if way.timesteps else 0
            change = {} if mode is None else {"step_mode": mode}
            stores = _STORES if hasattr(node, "store_v_seq") and way.keeps is None else ({},)
            try:
                differs = difference(
                    node, cls, _nodes.traced(cls, (way,)), sequences=way.layout != "step",
                    merged=merged, changes=[change | store for store in stores],
                )  # fmt: skip
            except Unlike as why:
                refused.setdefault(mode, f"{what}: {why}")
                continue
            if differs is None:
                found[mode] = way
                break
            differ.setdefault(mode, f"{what}: a loop over its steps differs: {differs}")
    mode = getattr(node, "step_mode", None)
    if mode in found:
        return Verdict("traced", _nodes.traced(cls, tuple(found.values())))
    return _left(differ.get(mode) or refused[mode])  # a way that got further says more


_STORES = {"store_v_seq": False}, {"store_v_seq": True}


def _with_v_seq(node, way: Way) -> tuple[Way, ...]:
    """A way with either ``store_v_seq``, and with the one that the node has."""
    store = getattr(node, "store_v_seq", None)
    return (way,) if store is None else (way, way._replace(keeps=bool(store)))


def _ways(node, cls: type, base: type, changed: list[str]) -> dict[str | None, list[Way]]:
    """By step mode, what a call may turn out to be."""
    if not hasattr(cls, "single_step_forward"):
        over_time = Way("forward", "super", "sequence")
        if base.__name__.startswith("MultiStep"):
            return {None: [over_time]}
        return {None: [Way("forward", "forward"), over_time]}
    if "forward" not in changed:
        one = Way("single_step_forward", "single_step_forward")
        return {"s": [one], "m": [one._replace(entry="multi_step_forward", layout="sequence")]}
    one = Way("forward", "forward", mode="s")
    many = [one._replace(layout="sequence", mode="m", resets=r) for r in (False, True)]
    for name, value in vars(node).items():
        if type(value) is int and value > 1:
            way = one._replace(layout="merged", mode="m", timesteps=name)
            many += [way._replace(resets=r) for r in (True, False)]
    return {"s": [one], "m": many}
