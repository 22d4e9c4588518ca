"""The pickles in which CIFAR is published, read without :mod:`pickle`.

A pickle is a program. The one that is interpreted here makes containers, numbers, texts, and arrays
of uint8 and int64 from their bytes; it calls nothing, and its size and its steps are bounded.
"""

import math
import pickletools
from dataclasses import dataclass

import numpy as np

STEPS = 1_000_000  # the longest published file, CIFAR-100's for training, has about 250,000
_MARK = object()
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_LITERALS = """BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE
    BINBYTES SHORT_BINBYTES""".split()
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = ("PROTO", "FRAME", "STOP")
_NUMBERS = ("u1", "i8")


class _Raw(dict):
    """Bytes by their text in Latin-1, made once: a text of many megabytes can be named often."""

    def __missing__(self, text: str) -> bytes:
        self[text] = _is(text, str).encode("latin1")
        return self[text]


@dataclass(frozen=True)
class _Global:
    """A name, which nothing looks up: :func:`_reduce` knows what it stands for."""

    name: str


@dataclass
class _Dtype:
    name: str


@dataclass
class Array:
    """``values`` is a NumPy array over the bytes of the file, read only."""

    values: np.ndarray | None = None


def load(content: bytes) -> dict[str, list | Array | str | int | None]:
    """The dictionary that ``content`` holds; ValueError or IndexError for anything else.
    Strings of Python 2 come out as texts in Latin-1."""
    stack: list = []
    memo: dict[int, object] = {}  # by number: a list would be as long as the file says
    raw = _Raw()
    for step, (opcode, given, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if step == STEPS:
            raise ValueError(f"more than {STEPS} operations")
        if name in _LITERALS:
            stack.append(given)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if given not in memo:
                raise ValueError(f"nothing was kept as {given}")
            stack.append(memo[given])
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("APPEND", "APPENDS"):
            items = _marked(stack) if name == "APPENDS" else [stack.pop()]
            _is(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _marked(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            # Keys are texts: the hash of nested tuples can take for ever.
            keys = [_is(key, str) for key in items[::2]]
            _is(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        elif name == "TUPLE":
            stack.append(tuple(_marked(stack)))
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[len(stack) - count :])]
        elif name == "GLOBAL":
            stack.append(_Global(given.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            module, known = _is(stack.pop(-2), str), _is(stack.pop(), str)
            stack.append(_Global(f"{module}.{known}"))
        elif name == "REDUCE":
            stack.append(_reduce(_is(stack.pop(-2), _Global), _is(stack.pop(), tuple), raw))
        elif name == "BUILD":
            state = _is(stack.pop(), tuple)
            _build(stack[-1], state, raw)
        elif name not in _IGNORED:
            raise ValueError(f"{name} is none of what CIFAR's pickles hold")
    (content,) = stack
    return _is(content, dict)


def _is(value, kind):
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, got {type(value).__name__}")
    return value


def _marked(stack: list) -> list:
    """What was pushed since the last mark, taken off."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise ValueError("a mark is missing")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _reduce(call: _Global, given: tuple, raw: _Raw):
    # The module was renamed in NumPy 2.
    name = call.name.replace("numpy._core.", "numpy.core.")
    if name == "numpy.core.multiarray._reconstruct" and given[0] == _Global("numpy.ndarray"):
        return Array()
    if name == "numpy.dtype":
        kind = _is(given[0], str)
        if kind not in _NUMBERS:
            raise ValueError(f"arrays must be of {' or '.join(_NUMBERS)}, got {kind[:20]!r}")
        return _Dtype(kind)
    if name == "_codecs.encode" and given[1:] == ("latin1",):  # bytes, before protocol 3
        return raw[_is(given[0], str)]
    raise ValueError(f"{call.name[:80]} is not an array")


def _build(value, state: tuple, raw: _Raw) -> None:
    """NumPy's states: (version, byte order, ...) and (version, shape, dtype, Fortran, bytes)."""
    if isinstance(value, _Dtype) and state[1] in ("|", "<"):
        return
    if not isinstance(value, Array):
        raise ValueError(f"{type(value).__name__} has no such state")
    _, shape, dtype, fortran, content = state
    dtype = np.dtype(_is(dtype, _Dtype).name)
    shape = tuple(_is(side, int) for side in _is(shape, tuple)[:3])
    content = raw[content] if isinstance(content, str) else _is(content, bytes)
    fits = math.prod(shape) * dtype.itemsize == len(content)
    if not 1 <= len(shape) <= 2 or min(shape) < 0 or not fits or fortran:
        raise ValueError(f"{len(content)} bytes are not an array {dtype} {list(shape)}")
    value.values = (
        np.frombuffer(content, dtype).reshape(shape) if content else np.empty(shape, dtype)
    )


def numbers(values) -> np.ndarray:
    """An array, or int64 [N] of a list of whole numbers; ValueError for anything else."""
    if isinstance(values, Array):
        if values.values is None:
            raise ValueError("an array is empty")
        return values.values
    return np.array([_is(value, int) for value in _is(values, list)], np.int64)
