"""The subclasses that ``accelerate`` gives SpikingJelly's nodes.

A node keeps its class's place in the order of methods: ours stand right before those of
SpikingJelly's class, so that whatever a subclass overrides still comes first.
"""

import functools
import re
import threading
import types
import warnings
from contextlib import contextmanager

import torch
from torch import nn

from snnfast.interop.spikingjelly import _layers as _layers
from snnfast.interop.spikingjelly import _traced
from snnfast.interop.spikingjelly._engine import (
    V2,
    V12,
    V14,
    Behind,
    Charge,
    FirstStep,
    Unlike,
    Version,
    integrates,
    leaks,
    learns,
    multi_step,
    single_step,
)  # fmt: skip

_HOME = re.compile(r".*\b(clock_driven|activation_based)\.neuron(\.\w+)*")
"""Modules of nodes: of a release, of a copy that a repository carries, or ours of these names."""
_CHARGES = {"IFNode": integrates, "LIFNode": leaks, "ParametricLIFNode": learns}
_HARMLESS = frozenset(
    "__init__ __module__ __doc__ __dict__ __weakref__ __annotations__ __abstractmethods__ "
    "_abc_impl extra_repr reset detach step_mode backend supported_backends supported_step_mode "
    "store_v_seq __repr__ __dir__ to_lava".split()
)
"""What no forward depends on."""
_METHODS = (types.FunctionType, staticmethod, classmethod, torch.jit.ScriptFunction)


class Accelerated:
    """Of every class made here. The names it adds are read from the class, and are such that a
    subclass of somebody's, or ``nn.Module`` (``_version``), has none of them."""

    _accelerated_from: type
    """The class that the module had."""
    _accelerated_calls: frozenset[str]
    """The methods that make its output, which a node may have of its own, too."""

    def __reduce_ex__(self, protocol):
        return blank, (type(self)._accelerated_from,), self.__getstate__()

    def _behind(self, x, behind, reads):
        try:
            return self._accelerated(x, Behind(behind, reads))
        except Unlike:
            return None  # its own forward says why


def blank(plain: type, ways=None) -> nn.Module:
    """An empty module of the class that nodes of class ``plain`` are given."""
    return object.__new__(traced(plain, ways) if ways else made(plain))


class _Node(Accelerated):
    _accelerated_as: tuple[Version, Charge]
    _accelerated_mode: str | None = None
    """Its step mode, where it has but one."""

    def _behind_refusal(self):
        """What a subclass does between the norm and ours must be done."""
        order = type(self).__mro__
        above = order[: order.index(next(c for c in _MIXINS if c in order))]
        own = next((k for c in above for k in _CALLED if k in vars(c)), None)
        return None if own is None else f"its class has its own {own}"

    def _behind_steps(self, x):
        mode = self._accelerated_mode or self.step_mode
        return x if mode == "m" else x.unsqueeze(0)


def _one(node, x):
    cls = type(node)
    if not cls._accelerated_calls.isdisjoint(vars(node)):
        _refuse_own(node)
    return single_step(node, x, *cls._accelerated_as)


def _all(node, x, every: bool, behind=None):
    cls = type(node)
    if not cls._accelerated_calls.isdisjoint(vars(node)):
        _refuse_own(node)
    return multi_step(node, x, *cls._accelerated_as, every, behind)


def _refuse_own(node) -> None:
    own = own_call(node, type(node)._accelerated_from)
    if own is not None:
        raise Unlike(f"{own} is an attribute of this node")


def own_call(node, cls: type) -> str | None:
    """The method of ``cls`` that ``node`` has as an attribute of its own, if there is one."""
    return next((k for k in vars(node) if k in calls(cls)), None)


@functools.cache
def calls(cls: type) -> frozenset[str]:
    """The methods of a class of nodes that make their output."""
    theirs = (c for c in cls.__mro__ if not issubclass(nn.Module, c))
    methods = {k for c in theirs for k, f in vars(c).items() if isinstance(f, _METHODS)}
    return frozenset(methods - _HARMLESS - {"forward", "multi_step_forward"})


class _Single12(_Node):
    _accelerated_mode = "s"

    def _accelerated(self, x, behind):
        return _all(self, x, False, behind)[0]

    def forward(self, x):
        try:
            return _one(self, x)
        except Unlike as why:
            say(self, why, True)
        return super().forward(x)


class _Multi12(_Node):
    _accelerated_mode = "m"

    def _accelerated(self, x, behind=None):
        if x.dim() < 2 or self.backend == "lava":
            raise Unlike(f"x is {list(x.shape)}, backend {self.backend!r}")
        s, self.v_seq = _all(self, x, True, behind)
        return s

    def forward(self, x_seq):
        try:
            return self._accelerated(x_seq)
        except Unlike as why:
            say(self, why)
        return super().forward(x_seq)


class _Both14(_Node):
    def _accelerated(self, x, behind):
        if self.step_mode == "m":
            return self._accelerated_all(x, behind)
        return _all(self, x, False, behind)[0]

    def _accelerated_all(self, x_seq, behind=None):
        if self.training and type(self).single_step_forward is not _Both14.single_step_forward:
            raise Unlike("its single_step_forward is its own, and is called for each step")
        s, every = _all(self, x_seq, bool(self.store_v_seq), behind)
        if self.store_v_seq:
            self.v_seq = every
        return s

    def single_step_forward(self, x):
        try:
            return _one(self, x)
        except Unlike as why:
            say(self, why)
        return super().single_step_forward(x)

    def multi_step_forward(self, x_seq):
        try:
            return self._accelerated_all(x_seq)
        except Unlike as why:
            say(self, why)
        return super().multi_step_forward(x_seq)


class _Both2(_Node):
    def _accelerated(self, x, behind):
        _check_plain(self, (), {})
        if self.step_mode == "m":
            s, self.v_seq = _all(self, x, bool(self.store_v_seq), behind)
            return s
        s, _ = _all(self, x, False, behind)
        if self.store_v_seq:
            self._append_v_seq(self.v)
        return s

    def single_step_forward(self, x, *args, **kwargs):
        try:
            _check_plain(self, args, kwargs)
            s = _one(self, x)
            if self.store_v_seq:
                self._append_v_seq(self.v)
            return s
        except Unlike as why:
            say(self, why)
        return super().single_step_forward(x, *args, **kwargs)

    def multi_step_forward(self, x_seq, *args, **kwargs):
        try:
            _check_plain(self, args, kwargs)
            s, self.v_seq = _all(self, x_seq, bool(self.store_v_seq))
            return s
        except Unlike as why:
            say(self, why)
        return super().multi_step_forward(x_seq, *args, **kwargs)


_MIXINS = (_Single12, _Multi12, _Both14, _Both2)
_CALLED = ("__call__", "forward", "single_step_forward", "multi_step_forward")


def _check_plain(node, args, kwargs) -> None:
    if args or kwargs:
        raise Unlike("it is called with more than x")
    if node._neuron_precision is not None:
        raise Unlike("it has a precision of its own")


class _Local(threading.local):
    strict = False


_local = _Local()
_said: set = set()


@contextmanager
def strictly():
    """In the block Unlike is raised where a node would else run as SpikingJelly has it."""
    _local.strict = True
    try:
        yield
    finally:
        _local.strict = False


def say(node, why: Unlike, single: bool = False) -> None:
    """That a node runs as SpikingJelly has it, once for each class and reason."""
    if single and isinstance(why, FirstStep):
        return
    if _local.strict:
        raise why
    if (type(node), str(why)) not in _said:
        _said.add((type(node), str(why)))
        warnings.warn(
            f"accelerate: {type(node).__name__} runs as SpikingJelly has it: {why}", stacklevel=4
        )


def base_of(cls: type) -> type | None:
    """The class of SpikingJelly's that ``cls`` is, or is made of."""
    found = (c for c in cls.__mro__ if issubclass(c, nn.Module) and _HOME.fullmatch(c.__module__))
    return next((c for c in found if not issubclass(c, Accelerated)), None)


def is_ours(base: type) -> bool:
    """Whether a class of that name runs by ``lif`` from the start."""
    return base.__module__.startswith("snnfast.")


def overridden(cls: type, base: type) -> list[str]:
    """What ``cls`` overrides of what ``base`` computes."""
    order = cls.__mro__
    theirs = {k for c in base.__mro__[: base.__mro__.index(nn.Module)] for k in vars(c)}
    own = [k for c in order[: order.index(base)] for k in vars(c)]
    return [k for k in dict.fromkeys(own) if k in theirs and k not in _HARMLESS]


@functools.cache
def made(plain: type) -> type | None:
    """The subclass of ``plain`` whose nodes run by ``lif``; None where it is no such node."""
    base = base_of(plain)
    kind = base.__name__
    charge = _CHARGES.get(kind.removeprefix("MultiStep"))
    if charge is None:
        return None
    if is_ours(base):
        return plain
    if hasattr(base, "single_step_functional_forward"):
        mixin, version = _Both2, V2
    elif hasattr(base, "single_step_forward"):
        mixin, version = _Both14, V14
    else:
        mixin, version = (_Multi12 if kind.startswith("MultiStep") else _Single12), V12
    ours = named(base, (mixin, base), {"_accelerated_as": (version, charge)})
    return ours if plain is base else named(plain, (plain, ours), {})


def named(plain: type, bases: tuple, namespace: dict) -> type:
    """A subclass that is called as ``plain`` is."""
    like = {k: getattr(plain, k) for k in ("__module__", "__qualname__", "__doc__")}
    own = {"_accelerated_from": plain, "_accelerated_calls": calls(plain)}
    return type(plain.__name__, bases, like | namespace | own)


class Traced(Accelerated):
    _accelerated_ways: tuple[_traced.Way, ...]

    def _accelerated_way(self):
        """What a call of the node is to be now; None: what it was before."""
        mode = getattr(self, "step_mode", None)
        called = "forward", "multi_step_forward" if mode == "m" else "single_step_forward"
        ways = (way for way in type(self)._accelerated_ways if way.entry in called)
        return next((way for way in ways if way.mode in (None, mode)), None)

    def _behind_refusal(self):
        """``forward`` of the releases hands all on to the two others."""
        order = type(self)._accelerated_from.__mro__
        ours = {way.entry for way in type(self)._accelerated_ways}
        above = [vars(c) for c in order if c not in base_of(type(self)).__mro__]
        own = [k for k in ("__call__", "forward") if k not in ours and any(k in c for c in above)]
        return f"its class has its own {own[0]}" if own else None

    def _behind_steps(self, x):
        way = self._accelerated_way()
        if way is None or (way.layout == "merged" and len(x) % getattr(self, way.timesteps)):
            return None
        return _traced.over_time(self, x, way)

    def _accelerated(self, x, behind):
        return self._accelerated_by(self._accelerated_way(), x, behind)

    def _accelerated_by(self, way, x, behind=None):
        _refuse_own(self)
        plain = type(self)._accelerated_from
        keeps = way.layout != "step" and _keeps_v(self)
        s = _traced.run(self, x, plain, way, keeps, behind)
        if way.layout == "step" and hasattr(self, "_append_v_seq") and self.store_v_seq:
            self._append_v_seq(self._v_seq_source())
        return s

    def __reduce_ex__(self, protocol):
        cls = type(self)
        return blank, (cls._accelerated_from, cls._accelerated_ways), self.__getstate__()


@functools.cache
def traced(plain: type, ways: tuple[_traced.Way, ...]) -> type:
    """The subclass of ``plain`` whose methods run in these ways, and else as they are."""
    entries = {way.entry: _entry(plain, way.entry, ways) for way in ways}
    return named(plain, (Traced, plain), entries | {"_accelerated_ways": ways})


def _entry(plain: type, name: str, ways):
    ways, theirs = {way.mode: way for way in ways if way.entry == name}, getattr(plain, name)

    def method(self, *args, **kwargs):
        way = ways.get(self.step_mode if None not in ways else None)
        if way is None:
            return theirs(self, *args, **kwargs)
        try:
            if len(args) != 1 or kwargs:
                raise Unlike("it is called with more than x")
            (x,) = args
            s = self._accelerated_by(way, _traced.over_time(self, x, way))
            return s.view(x.shape) if way.layout != "sequence" else s
        except Unlike as why:
            say(self, why, way.layout == "step")
        return theirs(self, *args, **kwargs)

    method.__name__ = name
    return method


def _keeps_v(node) -> bool:
    """Whether a sequence leaves V of every step: asked for, or always."""
    return node.store_v_seq if hasattr(node, "store_v_seq") else hasattr(node, "v_seq")
