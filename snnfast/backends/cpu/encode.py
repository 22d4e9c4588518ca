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
    results = {k: r for k, r in enumerate(program.results) if k in wanted}
    results = {k: len(program.nodes) if r is None else r for k, r in results.items()}
    code = {i: _instruction(nodes, i, surrogate) for i in range(len(program.nodes))}
    code = _alive({i: c for i, c in code.items() if c}, results.values())
    hoisted = _hoisted(nodes, code)
    before = {i: code.pop(i) for i in hoisted}
    code = _fused(code, results.values())

    read = {a for _, args in code.values() for a in args}
    everything = {*read, *results.values(), *(a for _, args in before.values() for a in args)}
    constants = [i for i in sorted(everything) if nodes[i].op == "const"]
    places = {i: place for place, i in enumerate((*constants, *before))}
    start = len(places)
    sizes = (step.params, step.inputs, step.states, step.outputs, step.states)
    for kind, size in zip(("param", "input", "state", "dout", "dstate"), sizes, strict=True):
        places |= {i: start + int(n.number) for i, n in enumerate(nodes) if n.op == kind}
        start += size
    result_places = {k: start + k for k in results}

    copies: list[tuple[int, int]] = []
    for k, r in results.items():
        if r in code and r not in places and (k in again or r not in read):
            places[r] = result_places[k]
        else:
            copies.append((r, result_places[k]))
    ordered = [(name, i, args) for i, (name, args) in code.items()]
    for r, place in copies:
        at = next((n + 1 for n, (_, i, _) in enumerate(ordered) if i == r), len(ordered))
        ordered.insert(at, ("copy", -1 - place, (r,)))
    registers = _registers(ordered, places, start + len(program.results))
    instructions = [(name, i, args) for i, (name, args) in before.items()] + ordered
    head = (len(constants), len(before), len(program.results), registers, len(before), len(ordered))
    return b"".join((
        struct.pack("=6q", *head),
        struct.pack(f"={len(constants)}d", *(nodes[i].number for i in constants)),
        *(_packed(name, places.get(i, -1 - i), [places[a] for a in args])
          for name, i, args in instructions),
    ))  # fmt: skip


def _packed(name: str, to: int, of: list[int]) -> bytes:
    return struct.pack(
        f"={_OPERANDS + 2}i", _operations()[name], to, *of, *[0] * (_OPERANDS - len(of))
    )


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
    last = {a: n for n, (_, _, args) in enumerate(ordered) for a in args}
    free: list[int] = []
    count = 0
    for n, (_, i, args) in enumerate(ordered):
        free += {places[a] for a in args if last[a] == n and places[a] >= start}
        if i >= 0 and i not in places:
            if not free:
                free.append(start + count)
                count += 1
            places[i] = free.pop()
    return count
