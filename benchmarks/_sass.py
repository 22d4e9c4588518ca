"""Reads GPU machine code (SASS): what a kernel costs, without a GPU.

    kernels = read("lif.cubin")             # {name: Kernel}; also bytes, or SASS text
    kernel = kernels["lif_backward"]
    kernel.registers, kernel.spills, kernel.size, kernel.widths("LDG"), kernel.bytes("STG")

``cubins(path)`` takes the cubins out of an object file, a shared library or a fat binary. The
disassembler comes from PATH or from Triton's wheel; both read what nvcc and Triton write.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One line: ``@!P0 LDG.E.128 R4, desc[UR6][R8.64] ;`` at a byte offset in its kernel."""

    offset: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def base(self) -> str:
        """The opcode without its modifiers: LDG of LDG.E.128."""
        return self.opcode.split(".")[0]

    @property
    def bits(self) -> int:
        """Width of a memory access."""
        sizes = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
        return next((sizes[part] for part in self.opcode.split(".") if part in sizes), 32)

    @property
    def writes(self) -> set[int]:
        """General registers that a load fills."""
        first = _registers(self.operands[0])
        return {first[0] + i for i in range(max(1, self.bits // 32))} if first else set()

    @property
    def reads(self) -> set[int]:
        """General registers among the sources (all operands for a store)."""
        stores = self.base in ("STG", "STS", "STL", "RED", "ST")
        found = set()
        for operand in self.operands if stores else self.operands[1:]:
            for register in _registers(operand):
                wide = 2 if f"R{register}.64" in operand else 1
                data = stores and "[" not in operand
                wide = max(wide, self.bits // 32) if data else wide
                found.update(range(register, register + wide))
        return found


def _registers(operand: str) -> list[int]:
    return [int(number) for number in re.findall(r"\bR(\d+)\b", operand)]


@dataclass(frozen=True)
class Kernel:
    """The instructions of one kernel, without padding. ``registers`` and ``stack`` (bytes a thread)
    are None when read from text."""

    name: str
    instructions: tuple[Instruction, ...]
    registers: int | None = None
    stack: int | None = None

    @property
    def size(self) -> int:
        """Number of instructions."""
        return len(self.instructions)

    @property
    def spills(self) -> int:
        """Accesses to local memory."""
        return self.count("LDL") + self.count("STL")

    @cached_property
    def loops(self) -> list["Kernel"]:
        """The body of every loop (from a backward branch to its target), the innermost first."""
        bodies = []
        for instruction in self.instructions:
            target = _target(instruction)
            if target is not None and target < instruction.offset:
                inside = (i for i in self.instructions if target <= i.offset <= instruction.offset)
                bodies.append(Kernel(self.name, tuple(inside)))
        return sorted(bodies, key=lambda body: body.size)

    def count(self, base: str) -> int:
        """How many instructions have this opcode, whatever their modifiers."""
        return sum(i.base == base for i in self.instructions)

    def widths(self, base: str) -> dict[int, int]:
        """{bits: how many} of LDG, STG, ..."""
        return dict(Counter(i.bits for i in self.instructions if i.base == base))

    def bytes(self, base: str) -> int:
        """What one thread moves with LDG, STG, ... in one pass over the instructions."""
        return sum(bits // 8 * number for bits, number in self.widths(base).items())

    def loads_ahead(self) -> int:
        """Global loads issued before the first instruction that needs one of them."""
        loaded, issued = set(), 0
        for instruction in self.instructions:
            if loaded & instruction.reads:
                break
            if instruction.base == "LDG":
                issued += 1
                loaded |= instruction.writes
        return issued


def _target(instruction: Instruction) -> int | None:
    if instruction.base != "BRA":
        return None
    match = re.search(r"0x([0-9a-f]+)", instruction.operands[-1])
    return int(match[1], 16) if match else None


def parse(text: str, usage: dict[str, tuple[int, int]] | None = None) -> dict[str, Kernel]:
    """The kernels in the output of ``nvdisasm -c`` or ``cuobjdump -sass``."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
    kernels, labels = {}, {}
    name, offset, pending = None, 0, []
    for row in text.splitlines():
        header = re.search(r"\.section\s+\.text\.([^,\s]+)|Function : (\S+)", row)
        if header:
            name = (header[1] or header[2]).strip('"')
            kernels[name] = []
            continue
        label = re.match(r"\s*(\.L_\w+):", row)
        if label:
            pending.append(label[1])
            continue
        match = line.search(row)
        if match and name is not None:
            offset = int(match[1], 16)
            labels.update({(name, waiting): offset for waiting in pending})
            pending = []
            operands = tuple(match[4].split(", ")) if match[4] else ("",)
            kernels[name].append(Instruction(offset, match[2] or "", match[3], operands))
    return {
        name: Kernel(name, _finish(name, rows, labels), *(usage or {}).get(name, (None, None)))
        for name, rows in kernels.items()
    }


def _finish(name, rows, labels) -> tuple[Instruction, ...]:
    """Labels become offsets; the padding (NOP, and the branch to itself at the end) goes."""
    kept = []
    for row in rows:
        label = re.search(r"`\((\.L_\w+)\)", row.operands[-1])
        if label and row.base == "BRA":
            target = f"0x{labels[name, label[1]]:x}"
            row = Instruction(row.offset, row.guard, row.opcode, (*row.operands[:-1], target))
        if row.base != "NOP" and _target(row) != row.offset:
            kept.append(row)
    return tuple(kept)


@lru_cache
def tool(name: str) -> str:
    """Path of nvdisasm or cuobjdump. FileNotFoundError when there is none."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("triton")
    if not found and spec and spec.origin:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(path) if path.exists() else None
    if not found:
        raise FileNotFoundError(
            f"{name}: neither on PATH nor in Triton's wheel: pip install triton"
        )
    return found


def _run(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def read(source: "str | Path | bytes") -> dict[str, Kernel]:
    """The kernels of a cubin (its path or its bytes), or of SASS text."""
    if isinstance(source, bytes):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(source)
            file.flush()
            return read(Path(file.name))
    if isinstance(source, str) and "\n" in source:
        return parse(source)
    return parse(disassembled(source, "-c"), usage(source))


def usage(path: "str | Path") -> dict[str, tuple[int, int]]:
    """{name: (registers, stack)} of a cubin's kernels."""
    report = _run(tool("cuobjdump"), "-res-usage", str(path))
    lines = r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+)"
    return {
        name: (int(registers), int(stack)) for name, registers, stack in re.findall(lines, report)
    }


def disassembled(path: "str | Path", *options: str) -> str:
    """What nvdisasm writes, but for the labels of indirect branches, which take a third of its
    time."""
    return _run(tool("nvdisasm"), "-ndf", *options, str(path))


def cubins(path: "str | Path", directory: "str | Path") -> list[Path]:
    """Writes the cubins inside an object file, library or fat binary to ``directory``."""
    before = set(Path(directory).iterdir())
    _run(tool("cuobjdump"), "-xelf", "all", str(Path(path).resolve()), cwd=str(directory))
    return sorted(set(Path(directory).iterdir()) - before)
