"""Stands in for what launches the CUDA kernels of norm_lif: snnfast._cuda, or CuPy. The device code
runs on the host, behind tests/cuda_shim.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

from snnfast.backends.cuda import lif as cuda
from snnfast.backends.cuda import norm_lif as backend
from snnfast.backends.cuda.launch import IO
from snnfast.backends.spec import segments

ROOT = Path(__file__).resolve().parents[1]


def build(out: Path) -> ctypes.CDLL:
    """The device code and its driver as a shared library."""
    cxx = shutil.which("g++") or shutil.which("c++")
    assert cxx, "the tests of the CUDA device code need a C++ compiler"
    flags = "-std=c++20 -O1 -ffp-contract=off -U_FORTIFY_SOURCE -shared -fPIC".split()
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]
    driver = ROOT / "tests" / "cuda_shim" / "norm_driver.cpp"
    command = [cxx, *flags, "-Wno-unknown-pragmas", *includes, str(driver), "-o", str(out)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out))


class Shim:
    """Stands in for snnfast._cuda. ``bytes``: what the last launch but that of the totals moved, by
    name of the tensor; ``at``: how it fell into blocks."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        library.shim_allow.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        library.shim_bytes.restype = ctypes.c_int64
        self.vector, self.at, self.bytes, self.launches = None, None, {}, []

    def norm_forward(self, dtype, vector, device, stream, args, lif, norm, total):
        numbers = cuda._FORWARD.unpack(args)
        (steps, n, x_stride, channels), flags = numbers[6:10], numbers[-1]
        size, every = 2 if dtype else 4, steps if flags & cuda.EVERY_STATE else 1
        ranges = {
            "x": (numbers[0], ((steps - 1) * x_stride + n) * size),
            "v0": (numbers[1], n * 4),
            "rate": (numbers[2], channels * 4),
            "s": (numbers[3], steps * n * size),
            "v": (numbers[4], every * n * 4),
            "borders": (numbers[5], (segments(steps) - 1) * n * 4),
        }
        return self.run("forward", dtype, vector, (args, lif), norm, total, ranges, steps, n)

    def norm_backward(self, dtype, vector, device, stream, args, lif, norm, total):
        numbers = cuda._BACKWARD.unpack(args)
        (steps, n, x_stride, channels, _, ds_stride), flags = numbers[9:15], numbers[-1]
        size, every = 2 if dtype else 4, steps if flags & cuda.EVERY_STATE else 1
        threads = n // (16 // size) if vector else n
        ranges = {
            "x": (numbers[0], ((steps - 1) * x_stride + n) * size),
            "v0": (numbers[1], n * 4),
            "rate": (numbers[2], channels * 4),
            "borders": (numbers[3], (segments(steps) - 1) * n * 4),
            "ds": (numbers[4], ((steps - 1) * ds_stride + n) * size),
            "dv": (numbers[5], every * n * 4),
            "dx": (numbers[6], (1 if flags & cuda.SUM_DX else steps) * n * size),
            "dv0": (numbers[7], n * 4),
            "drate": (numbers[8], (n if flags & cuda.PER_CHANNEL else threads) * 4),
        }
        return self.run("backward", dtype, vector, (args, lif), norm, total, ranges, steps, n)

    def norm_stats(self, dtype, vector, device, stream, args, norm, total):
        return self.map("stats", dtype, vector, args, norm, total)

    def norm_apply(self, dtype, vector, device, stream, args, norm, total):
        return self.map("apply", dtype, vector, args, norm, total)

    def map(self, kind, dtype, vector, args, norm, total):
        y, dx, dy, steps, n, stride = backend._MAP.unpack(args)
        size = 2 if dtype else 4
        ranges = {"x": (y, ((steps - 1) * stride + n) * size)}
        ranges |= {"dx": (dx, steps * n * size), "dy": (dy, steps * n * size)}
        return self.run(kind, dtype, vector, (args,), norm, total, ranges, steps, n)

    def run(self, kind, dtype, vector, structs, norm, total, ranges, steps, n):
        numbers = backend._NORM.unpack(norm)
        self.at, self.vector = backend.Tiles(*numbers[11:]), vector
        size, of_slot = 2 if dtype else 4, 4 if kind == "stats" else 2
        if kind != "stats":
            rows = ("mean", "scale", "bias", "a", "b", "c")
            ranges |= {r: (p, self.at.channels * 4) for r, p in zip(rows, numbers)}
        ranges["residual"] = (numbers[6], ((steps - 1) * numbers[8] + n) * size)
        ranges["parts"] = (numbers[7], self.at.blocks * self.at.slots * of_slot * 4)
        self.allow(ranges)
        shared = backend.shared_bytes(kind, (16 // size) if vector else 1)
        status = getattr(self.library, f"shim_{kind}")(dtype, int(vector), shared, *structs, norm)
        given = [name for name, (at, _) in ranges.items() if at]
        self.bytes = {name: self.library.shim_bytes(i) for i, name in enumerate(given)}
        self.launches.append(kind)
        return status or (self.totals(total) if total else 0)

    def totals(self, total):
        parts, y, first, second, _, _, dtype, _, *at = backend._TOTAL.unpack(total)
        at = backend.Tiles(*at)
        self.allow(
            {
                "parts": (parts, at.blocks * at.slots * (4 if y else 2) * 4),
                "y": (y, at.channels * at.inner * (2 if dtype else 4)),
                "first": (first, at.channels * 4),
                "second": (second, at.channels * 4),
            }
        )
        self.launches.append("totals")
        return self.library.shim_totals(total)

    def allow(self, ranges):
        self.library.shim_clear()
        for at, count in ranges.values():
            if at:
                self.library.shim_allow(at, at + count)

    def error_string(self, status):
        return f"an illegal memory access was encountered ({status})"


class FakeKernel:
    """cupy.RawKernel for the shim: what CuPy would compile and launch, checked and run here."""

    shim, built = None, []

    def __init__(self, text, name, options):
        assert '#include "norm.cuh"' in text and name == "snnfast_norm"
        self.built.append(options)
        self.options = {o[2:].split("=")[0]: o.split("=")[-1] for o in options if o[:2] == "-D"}

    def compile(self):
        pass

    def __call__(self, grid, block, args, shared_mem=0):
        assert all(each.size == 1 for each in args)
        structs, names = [each.tobytes() for each in args], self.options
        if "SNN_NORM_TOTALS" in names:
            at = backend.Tiles(*backend._TOTAL.unpack(*structs)[8:])
            assert grid == (-(-at.channels // (32 if at.inner == 1 else 1)),)
            assert (block, shared_mem) == ((256,), 2048)
            assert not self.shim.totals(*structs)
            return
        (kind,) = [n[9:].lower() for n in names if n.startswith("SNN_NORM_")]
        at, lanes = backend.Tiles(*backend._NORM.unpack(structs[-1])[11:]), int(names["SNN_LANES"])
        assert grid == (at.blocks,) and block == (128,)
        assert shared_mem == backend.shared_bytes(kind, lanes)
        if kind in ("forward", "backward"):
            layout = cuda._FORWARD if kind == "forward" else cuda._BACKWARD
            assert int(names["SNN_FLAGS"]) == layout.unpack(structs[0])[-1]
        dtype = IO.index(names["SNN_IO"])
        assert not getattr(self.shim, f"norm_{kind}")(dtype, lanes > 1, 0, 0, *structs, b"")
