"""Kernels that many tests look at, read at once: nvdisasm takes a third of a second to start,
whatever it is given."""

import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import _sass
import pytest


def _arch(cubin: bytes) -> str:
    """SM90, as nvdisasm calls the machine of a cubin: in the flags of its ELF header."""
    (flags,) = struct.unpack_from("<I", cubin, 48)
    return f"SM{(flags >> 8 if cubin[8] >= 8 else flags) & 255}"  # byte 8: version of the ABI


def _code(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and instructions of each function: the sections .text.<name> of the ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + i * size) for i in range(count)]
    for at, _, _, _, offset, length in sections:
        at += sections[names][4]
        name = cubin[at : cubin.index(b"\0", at)].decode()
        if name.startswith(".text."):
            yield name.removeprefix(".text."), cubin[offset : offset + length]


def read_all(cubins: Iterable[bytes]) -> dict[bytes, dict[str, _sass.Kernel]]:
    """``_sass.read`` of each, by one nvdisasm for each architecture. Offsets count from the first
    kernel of all."""
    found, parts = {cubin: {} for cubin in cubins}, {}
    for cubin in found:
        parts.setdefault(_arch(cubin), []).extend((cubin, *each) for each in _code(cubin))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code")
        usage = {}
        for cubin in found:
            path.write_bytes(cubin)
            usage[cubin] = _sass.usage(path)
        for arch, functions in parts.items():
            path.write_bytes(b"".join(code for _, _, code in functions))
            rows = {
                int(match[1], 16): row
                for row in _sass.disassembled(path, "-b", arch).splitlines()
                if (match := re.match(r"\s*/\*([0-9a-f]+)\*/", row))
            }
            end = 0
            for cubin, name, code in functions:
                start, end = end, end + len(code)
                text = "\n".join(rows[at] for at in range(start, end, 16))
                found[cubin] |= _sass.parse(f"Function : {name}\n{text}", usage[cubin])
    return found


class _Wanted(BaseException):
    """A test looks at a kernel that was not read yet."""


def _parameters(test) -> dict:
    return test.callspec.params if hasattr(test, "callspec") else {}


def _further(test, wanted: list) -> bool:
    """Whether a test wants one more kernel. What else ends it ends it again in its own turn."""
    before = len(wanted)
    try:
        test.obj(**_parameters(test))
    except (_Wanted, Exception, pytest.skip.Exception):
        pass
    return len(wanted) > before


@contextmanager
def reading(tests: Iterable[pytest.Function]) -> Iterator[None]:
    """``_sass.read`` knows the cubins of all the tests that need nothing but their parameters: each
    runs until it looks at a kernel, and so again as long as one wants more."""
    known, wanted, read = {}, [], _sass.read

    def look(source):
        if isinstance(source, bytes) and source not in known:
            wanted.append(source)
            raise _Wanted
        return known[source] if isinstance(source, bytes) else read(source)

    tests = [t for t in tests if set(t._fixtureinfo.argnames) <= {*_parameters(t)}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sass, "read", look)
        while tests := [test for test in tests if _further(test, wanted)]:
            known.update(read_all(wanted))
            wanted.clear()
        patch.setattr(_sass, "read", lambda source: known.get(source) or read(source))
        yield
