"""A symbolic trace of a module's forward that refuses what torch.fx would get wrong in silence.

torch.fx runs forward once on stand-ins and writes down the operations. What forward reads beside
its tensors is baked in: flags, random numbers, the gradient mode. So the trace is taken in every
mode and must come out the same, and a forward that computes with real tensors, draws numbers,
writes to its module, or reads what a call of another module may change is refused.
"""

import inspect
import operator
import random
import weakref
from contextlib import contextmanager
from functools import partial
from types import FunctionType

import numpy
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast.nn import peers
from snnfast.nn.streaming import Mark
from snnfast.ops import select
from snnfast.ops.attributes import Attributes, parts_of, same


class Untraceable(Exception):
    """Says why, to follow "its forward"."""


class _Proxy(fx.Proxy):
    @property
    def __class__(self):  # so that isinstance(x, Tensor) takes the branch it takes on tensors
        return torch.Tensor

    def __setattr__(self, name, value):  # x.data = y would be lost
        if name not in ("tracer", "node"):
            raise Untraceable(f"sets {name} of a tensor")
        super().__setattr__(name, value)


def _in_place(name: str):
    function = getattr(operator, name)

    def method(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# torch.fx alone would read x += y as x = x + y, whatever else refers to x.
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


def whole(x) -> int:
    return int(x)


class _LikeInt(type):
    def __instancecheck__(cls, value):
        return isinstance(value, int)


class _Int(int, metaclass=_LikeInt):
    """``int`` as a forward sees it that is traced: that of a stand-in is an operation."""

    def __new__(cls, *given):
        if len(given) == 1 and issubclass(type(given[0]), fx.Proxy):
            return given[0].tracer.create_proxy("call_function", whole, given, {})
        return int(*given)


def _with_int(forward):
    """``forward``, for which ``int(H / 2)`` of a size is no number yet."""
    if not isinstance(forward, FunctionType) or "int" in forward.__globals__:
        return forward
    names = forward.__code__.co_names
    if "int" not in names or "type" in names:  # type(x) is int
        return forward
    known = forward.__globals__ | {"int": _Int}
    own = FunctionType(
        forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    return own


class _NoTensors(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise Untraceable(f"computes {function} with tensors that do not come from its input")


def _context() -> tuple:
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in devices),
        *(torch.get_autocast_dtype(device) for device in devices),
        select.asked_for(),
    )


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, inlined):
        super().__init__()
        self.inlined, self.context = inlined, _context()

    def is_leaf_module(self, module, name):
        return module not in self.inlined

    def call_module(self, module, forward, args, kwargs):
        if module in self.inlined and peers.folds(type(module)) and not kwargs:
            forward = partial(peers.folded, module)
        return super().call_module(module, forward, args, kwargs)

    def proxy(self, node):
        return _Proxy(node, self)

    def create_arg(self, value):
        return value.node if issubclass(type(value), fx.Proxy) else super().create_arg(value)

    def create_node(self, *args, **kwargs):
        if _context() != self.context:
            raise Untraceable("changes the gradient mode, autocast or the backend for a part of it")
        return super().create_node(*args, **kwargs)


def _generators() -> tuple:
    """The state of the generators that _NoTensors does not see."""
    _, keys, position, *_ = numpy.random.get_state()
    return random.getstate(), keys.tobytes(), position


@contextmanager
def _no_reads(own, words: dict):
    """Refuses in the block, where no module but ``own`` runs, that an attribute of another is read:
    its forward may change it (V of a neuron), and the trace has what it was before. A string
    (``step_mode``) is what its user sets: ``words`` is given {(module, name): string}."""
    read = []

    def look(module, name):
        try:
            value = object.__getattribute__(module, name)
        except AttributeError:
            if name not in module._parameters and name not in module._modules:
                note(module, name, None)
            raise
        if not (callable(value) or hasattr(nn.Module, name) or name in _INTERNAL):
            note(module, name, value)
        return value

    def note(module, name, value):
        if module in own or type(module).__module__.startswith("torch.nn."):
            return
        if isinstance(value, str):
            words[module, name] = value
        else:
            read.append(f"reads {name} of {type(module).__name__}, which a call may change")

    nn.Module.__getattribute__ = look
    try:
        yield
    except Exception:
        if not read:
            raise
    finally:
        del nn.Module.__getattribute__
    if read:
        raise Untraceable(read[0])


def required(module: nn.Module) -> list[str]:
    """The arguments that forward cannot be called without."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not needed or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise Untraceable("must take its tensors as positional arguments")
    return [p.name for p in needed]


def _once(module: nn.Module, inlined, words: dict) -> fx.Graph:
    cls, names = type(module), ", ".join(required(module))
    # torch.fx would give a stand-in to optional arguments, too; this forward has none.
    original = peers.folded if peers.folds(cls) else _with_int(cls.forward)
    call = eval(f"lambda self, {names}: original(self, {names})", {"original": original})
    modules = list(module.modules())
    numbers = _generators()
    module.__class__ = type(cls.__name__, (cls,), {"forward": call})
    before, tracer = Attributes(modules), _Tracer(inlined)
    try:
        with _no_reads({module, *inlined}, words), _NoTensors(), peers.in_words():
            graph = tracer.trace(module)
        if before.changed():
            raise Untraceable("writes to the attributes of a module")
        if _generators() != numbers:
            raise Untraceable("draws random numbers")
    finally:
        module.__class__ = cls
        vars(tracer).clear()  # else the modules would live in it until the next garbage collection
        if before.changed():
            before.restore()
    return graph


def trace(module: nn.Module, inlined) -> tuple[dict[bool, fx.Graph], dict]:
    """The graphs of ``module.forward`` on its required arguments, in training mode (True) and in
    evaluation mode (False), and what they hang on: {(another module, attribute): string}. Calls of
    the modules in ``inlined`` are traced, too; all others are nodes. Raises Untraceable; leaves the
    module as it was."""
    flags = [(m, m.training) for m in module.modules()]
    graphs, words = {}, {}
    try:
        for training in (True, False):
            for m, _ in flags:
                m.training = training
            with torch.enable_grad():
                graphs[training] = _once(module, inlined, words)
            with torch.no_grad():
                other = _once(module, inlined, words)
            if str(other) != str(graphs[training]):
                raise Untraceable("depends on the gradient mode")
    except Untraceable:
        raise
    except Exception as error:  # whatever the user's code raises on stand-ins
        raise Untraceable(f"cannot be traced: {str(error).strip().splitlines()[0]}") from error
    finally:
        for m, training in flags:
            m.training = training
    return graphs, words


# The last three are set by torch.compile and by fuse.
_INTERNAL = {*vars(nn.Module()), "_compiled_call_impl", "_is_torch_compile", "_fused"}


def _facts(modules) -> tuple:
    """What a trace of the modules has baked in and their user may change: attributes, children."""
    facts = []
    for m in modules:
        facts += m._modules.values()
        facts += [p is None for p in (*m._parameters.values(), *m._buffers.values())]
        for key, value in vars(m).items():
            if key not in _INTERNAL:
                facts += (value, *parts_of(value))
    return tuple(facts)


class Guard:
    """Whether the graphs of ``module`` still say what its forward does. Keeps no module alive that
    is replaced in it."""

    def __init__(self, module: nn.Module, inlined, words: dict):
        self._words = [(weakref.ref(m), name, word) for (m, name), word in words.items()]
        self._module, self._inlined = weakref.ref(module), list(map(weakref.ref, inlined))
        facts = self._facts()
        weak = [isinstance(f, nn.Module) for f in facts]
        self.facts = [(weakref.ref(f) if w else f, w) for f, w in zip(facts, weak, strict=True)]

    @property
    def inlined(self) -> list[nn.Module]:
        found = [ref() for ref in self._inlined]
        return [m for m in found if m is not None]

    def _facts(self) -> tuple:
        inlined = self.inlined
        return (*map(type, inlined), *_facts([self._module(), *inlined]))

    def broken(self) -> str | None:
        inlined, training = self.inlined, self._module().training
        facts = tuple([f() if weak else f for f, weak in self.facts])
        words = any(getattr(m(), name, None) != word for m, name, word in self._words)
        if words or not same(self._facts(), facts):
            return "an attribute or a submodule was changed"
        if any(has_hooks(m) for m in inlined):
            return "a hook was added within it"
        if any(m.training != training for m in inlined):
            return "parts of it are in training mode and others are not"
        return None


def has_hooks(module: nn.Module) -> bool:
    forward = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return bool(
        module._backward_hooks
        or module._backward_pre_hooks
        or any(not isinstance(hook, Mark) for hook in forward)
    )
