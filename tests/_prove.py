"""Every launch of a call, its PTX and its arguments, for SentryWard: does the kernel reach its
barriers together, and are conflicting accesses ordered, whatever the order of threads and blocks?

A kernel is proved for one launch: grid, sizes and numbers are those of the call. Tensors that lie
at different addresses are different objects without an end, so an access behind a tensor's end is
not looked for here; the tests on the host see it.
"""

import contextlib
import functools
import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import _aot
import _cuda_aot
import _cuda_host
import pytest
import torch

from snnfast.backends.cuda import launch as cuda
from snnfast.backends.triton import launch as triton
from snnfast.ops import select

PARAMETER = re.compile(r"\.param\s(?:\.align \d+ )?\.(\w+)\s(?:\.ptr\s.*?)?([\w$]+)(\[\d+\])?,?\n")
QUOTIENT = "@p fma.rn.f32"
"""The one instruction that runs or not with the data (exact_quotient): it changes a float, and no
address or branch depends on one."""
WORDS = {4: "u32", 8: "u64"}


class Field(NamedTuple):
    """Of a parameter: what lies ``at`` so many bytes, a number of its bits or an address."""

    at: int
    size: int
    value: int | float
    address: bool


class Launched(NamedTuple):
    """One launch. ``fields``: of each parameter of the entry."""

    backend: str
    kernel: str
    ptx: str
    blocks: int
    threads: int
    shared: int
    fields: list[list[Field]]

    def input(self) -> dict:
        """What SentryWard wants to know besides the PTX."""
        head = re.search(r"\.entry ([\w$]+)\((.*?)\)\n", self.ptx, re.S)
        declared = PARAMETER.findall(head[2] + "\n")
        arguments, declarations = [], []
        for (kind, name, _), fields in zip(declared, self.fields, strict=False):
            for field in fields:
                where = {"parameter": name, "offset": field.at}
                if field.address and field.value:
                    what = {"type": "pointer", "space": "global", "object": f"at{field.value}"}
                    declarations.append(where | what)
                else:
                    word = WORDS[field.size] if kind == "b8" else kind
                    arguments.append(where | {"type": word, "value": field.value})
        return {
            "schema": "spverify.kernel-input/v1",
            "entry": head[1],
            "launch": {
                "grid_dim": [self.blocks, 1, 1],
                "block_dim": [self.threads, 1, 1],
                "dynamic_shared_bytes": self.shared,
            },
            "arguments": arguments,
            "declarations": declarations,
            "assumptions": {"representative_branches": True},
        }

    @property
    def reduces(self) -> bool:
        """Whether Triton adds up between warps. All lanes of a warp then store the sum that they
        share at one address of shared memory, which SentryWard takes for a race."""
        shared = any(store in self.ptx for store in ("st.shared", "stmatrix"))
        return self.backend == "triton" and "shfl.sync" in self.ptx and shared

    def verdict(self, folder: Path, seconds: int = 120) -> str:
        """SentryWard's ``result``, which no exit status stands for; ``unsupported`` too where it
        is one for some of the data only."""
        from sentryward import verify

        ptx, given = folder / "kernel.ptx", folder / "input.json"
        ptx.write_text(self.ptx)
        given.write_text(json.dumps(self.input()))
        found = verify(ptx, input=given, timeout_seconds=seconds, memory_limit_mib=4096)
        chosen = found.get("frontend_assumptions", {}).get("data_branch_decisions", ())
        lines = self.ptx.splitlines()
        if all(QUOTIENT in lines[each["line"] - 1] for each in chosen):
            return found["result"]
        return "unsupported"


def _of_triton(call) -> Launched:
    found = _aot.compiled(call)
    values = dict(zip(call.kernel.arg_names, call.arguments))
    fields = []
    for name, kind in found.src.signature.items():
        value = values.get(name)
        if kind == "constexpr":
            continue
        address = isinstance(value, torch.Tensor)
        fields.append([Field(0, 8, value.data_ptr() if address else value, address)])
    shared, threads = found.metadata.shared, 32 * found.metadata.num_warps
    name = call.kernel.fn.__name__
    return Launched("triton", name, found.asm["ptx"], call.programs, threads, shared, fields)


@functools.cache
def _ptx_of_cuda(header: str, names: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one.cu").write_text(cuda.source(f"{header}.cuh")[0])
        flags = [*_cuda_aot.FLAGS, *_cuda_aot.INCLUDES, *names, "-arch=sm_90", "-ptx"]
        command = [_cuda_aot.NVCC, *flags, "one.cu", "-o", "one.ptx"]
        subprocess.run(command, check=True, cwd=folder)
        return Path(folder, "one.ptx").read_text()


def _fields(kind, data: bytes, at: int = 0):
    """Of a struct."""
    for each in kind.__annotations__.values():
        if hasattr(each, "_fields"):
            yield from _fields(each, data, at)
            return
        size = struct.calcsize(each.__metadata__[0])
        value = int.from_bytes(data[at : at + size], "little")
        yield Field(at, size, value, each is cuda.Pointer)
        at += size


def _of_cuda(launched, structs) -> Launched:
    kernel = launched.kernel
    kinds = _cuda_host.STRUCTS[launched.name]
    fields = [list(_fields(kind, data)) for kind, data in zip(kinds, structs, strict=True)]
    ptx = _ptx_of_cuda(kernel.header, kernel.names)
    return Launched("cuda", launched.name, ptx, *kernel[2:], fields)


@contextlib.contextmanager
def launches(backend: str):
    """What is launched meanwhile by calls with ``backend=`` on CPU tensors, in a list of functions
    that compile it. Nothing runs: no result means anything."""
    found, refuse, kept = [], select._refuse, []

    def of_triton(call, device):
        kept.append(call.arguments)
        found.append(functools.partial(_of_triton, call))

    def of_cuda(launched, like, *structs):
        found.append(functools.partial(_of_cuda, launched, structs))

    def pointer(tensor, of=cuda.pointer):
        kept.append(tensor)  # or another would get its address
        return of(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_refuse", lambda n, *a: None if n == backend else refuse(n, *a))
        patch.setattr(triton.Call, "launch", of_triton)
        patch.setattr(cuda, "run", of_cuda)
        patch.setattr(cuda, "pointer", pointer)
        select.implementation(backend).forget()
        yield found
        select.implementation(backend).forget()
