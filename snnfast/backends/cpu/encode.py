"""A program as the interpreter's instructions: the bytes of csrc/cpu/program.h's ``ProgramCode``.

What depends on parameters alone is hoisted out of time; an operation that has one reader is fused
into it where the pair is an instruction; registers are few, so that they stay in L1; results go
where they belong without a copy, unless they are read again.
"""

import functools
import struct
from collections import Counter
from collections.abc import Collection

from snnfast.backends.cpu.launch import module
from snnfast.program.ir import LEAVES, Node, Program
from snnfast.program.step import Step

_SWAPPED = {"lt": "gt", "le": "ge"}
_TURNED = {"add": "add", "mul": "mul", "sub": "sub-from", "div": "div-into"}
"""The second operation of a pair whose first one gives its second operand."""
_OPERANDS = 4


@functools.cache
def _operations() -> dict[str, int]:
    return {name: number for number, name in enumerate(module().program_operations())}


def encode(
    program: Program,
    step: Step,
    wanted: Collection[int],
    again: Collection[int],
    surrogate: tuple[int, float, float] = (0, 0.0, 0.0),
) -> bytes:
    """``wanted``: which results are written; ``again``: those that may be read when they are."""
    nodes = [*program.nodes, Node("const")]
    zero = len(program.nodes)
    results = {k: zero if r is None else r for k, r in enumerate(program.results) if k in wanted}
    code = {i: _instruction(nodes, i, surrogate) for i in range(zero)}
    code = _alive({i: c for i, c in code.items() if c}, results.values())
    hoisted = {i: code.pop(i) for i in _hoisted(nodes, code)}
    code = _fused(code, results.values())

    read = {a for _, args in (*code.values(), *hoisted.values()) for a in args}
    read.update(results.values())
    constants = [i for i in sorted(read) if nodes[i].op == "const"]
    places, end = _places(nodes, step, [*constants, *hoisted])
    copies = _placed(code, results, {k: end + k for k in results}, again, places)
    ordered = []
    for i, instruction in code.items():
        ordered.append((i, instruction))
        ordered += copies.pop(i, [])
    ordered += [copy for of_one in copies.values() for copy in of_one]
    registers = _registers(ordered, places, end + len(program.results))
    head = (len(constants), len(hoisted), len(program.results), registers, len(ordered))
    return b"".join((
        struct.pack("=5q", *head),
        struct.pack(f"={len(constants)}d", *(nodes[i].number for i in constants)),
        *(_packed(name, places[i], [places[a] for a in args])
          for i, (name, args) in (*hoisted.items(), *ordered)),
    ))  # fmt: skip


def _packed(name: str, to: int, of: list[int]) -> bytes:
    unused = [0] * (_OPERANDS - len(of))
    return struct.pack(f"={_OPERANDS + 2}i", _operations()[name], to, *of, *unused)


def _places(nodes: list[Node], step: Step, first: list[int]) -> tuple[dict[int, int], int]:
    """{value: its place} of the ``first`` ones and the leaves, and where the results begin."""
    places, end = {i: place for place, i in enumerate(first)}, len(first)
    sizes = {
        "param": step.params, "input": step.inputs, "state": step.states, "dout": step.outputs,
        "dstate": step.states,
    }  # fmt: skip
    for kind, size in sizes.items():
        places |= {i: end + int(node.number) for i, node in enumerate(nodes) if node.op == kind}
        end += size
    return places, end


def _placed(code: dict, results: dict[int, int], where: dict[int, int], again, places) -> dict:
    """Values that are written where a result lies; {value: the copies that the others take}, whose
    places are entered, too."""
    read = Counter({a for _, args in code.values() for a in args})
    read.update(results.values())
    copies: dict[int, list] = {}
    for k, r in results.items():
        if r in code and r not in places and (k in again or read[r] == 1):
            places[r] = where[k]
        else:
            copies.setdefault(r, []).append((-1 - k, ("copy", (r,))))
            places[-1 - k] = where[k]
    return copies


def _instruction(nodes: list[Node], i: int, surrogate) -> tuple[str, tuple[int, ...]] | None:
    """(instruction, what it reads) of an operation; None of a leaf or constant."""
    op, args, _ = nodes[i]
    if op in LEAVES or op == "const":
        return None
    if op in _SWAPPED:
        return _SWAPPED[op], args[::-1]
    if op == "not":
        return op, (args[0], args[0])
    if op == "where" and nodes[args[0]].op == "not":
        return op, (nodes[args[0]].args[0], args[2], args[1])
    if op == "surrogate":
        number, *numbers = surrogate
        nodes += [Node("const", (), number) for number in numbers]
        return f"{op} {number}", (*args, len(nodes) - 2, len(nodes) - 1)
    return op, args


def _alive(code: dict, results) -> dict:
    alive = set(results)
    for i in sorted(code, reverse=True):
        if i in alive:
            alive.update(code[i][1])
    return {i: c for i, c in code.items() if i in alive}


def _hoisted(nodes: list[Node], code: dict) -> list[int]:
    """The operations that no input, state or gradient has part in."""
    still = {i for i, node in enumerate(nodes) if node.op in ("const", "param")}
    for i, (_, args) in code.items():
        if still.issuperset(args):
            still.add(i)
    return [i for i in code if i in still]


def _fused(code: dict, results) -> dict:
    readers = Counter(a for _, args in code.values() for a in args)
    readers.update(results)
    fused = dict(code)
    for i in code:
        name, args = fused[i]
        for at, a in enumerate(args[:2]):
            turned = name if at == 0 else _TURNED.get(name)
            if a in fused and readers[a] == 1 and turned:
                first, of = fused[a]
                pair = f"{first} {turned}"
                if pair in _operations():
                    fused[i] = pair, (*of, *args[:at], *args[at + 1 :])
                    del fused[a]
                    break
    return fused


def _registers(ordered: list, places: dict[int, int], start: int) -> int:
    """Gives each value that has no place a register until its last reader; how many there are."""
    last = {a: n for n, (_, (_, args)) in enumerate(ordered) for a in args}
    free: list[int] = []
    count = 0
    for n, (i, (_, args)) in enumerate(ordered):
        free += {places[a] for a in args if last[a] == n and places[a] >= start}
        if i not in places:
            if not free:
                free.append(start + count)
                count += 1
            places[i] = free.pop()
    return count
