"""Stands in for what launches the CUDA distillation losses: snnfast._cuda, or CuPy. The device code
runs on the host, behind tests/cuda_shim.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

from snnfast.backends.cuda import distill as backend
from snnfast.backends.cuda.launch import IO

ROOT = Path(__file__).resolve().parents[1]


def build(out: Path) -> ctypes.CDLL:
    """The device code and its driver as a shared library."""
    cxx = shutil.which("g++") or shutil.which("c++")
    assert cxx, "the tests of the CUDA device code need a C++ compiler"
    flags = "-std=c++17 -O2 -ffp-contract=off -U_FORTIFY_SOURCE -shared -fPIC".split()
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cuda")]
    driver = ROOT / "tests" / "cuda_shim" / "distill_driver.cpp"
    command = [cxx, *flags, "-Wno-unknown-pragmas", *includes, str(driver), "-o", str(out)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out))


class Shim:
    """Stands in for snnfast._cuda. ``bytes``: what the last rows moved, by name of the tensor."""

    NAMES = ("logits", "other", "labels", "probabilities", "gradient", "aux_gradient", "slots",
             "parts")  # fmt: skip

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        library.shim_allow.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        library.shim_bytes.restype = ctypes.c_int64
        self.resident, self.threads, self.launches = None, None, 0

    def stepwise_loss(self, *launch):
        return self._loss(self.library.shim_stepwise, False, *launch)

    def tssd_loss(self, *launch):
        return self._loss(self.library.shim_tssd, True, *launch)

    def _loss(self, run, aux, dtype, resident, threads, shared, device, stream, rows, args, finish):
        self.rows(run, aux, dtype, resident, threads, shared, rows, args)
        return self.status or self.finish(finish)

    def rows(self, run, aux, dtype, resident, threads, shared, rows, args):
        self.resident, self.threads = resident, threads
        numbers = backend._ROW.unpack(rows)
        steps, batch, classes = numbers[8:11]
        other_dtype, soft_dtype, _, slots = numbers[-4:]
        size, total = (4, 2, 2)[dtype], steps * batch * classes
        strides = numbers[12:15], numbers[15:18] if aux else (0, classes, 1)

        def extent(strides):
            return 1 + sum((n - 1) * st for n, st in zip((steps, batch, classes), strides))

        bytes_of = (
            extent(strides[0]) * size,
            extent(strides[1]) * (4, 2, 2)[other_dtype],
            batch * 8,
            batch * classes * (4, 2, 2)[soft_dtype],
            total * size,
            total * size,
            batch * slots * classes * 4,
            batch * 16,
        )
        given = [i for i in range(8) if numbers[i]]
        self.allow([(numbers[i], bytes_of[i]) for i in given])
        self.status = run(dtype, int(resident), threads, shared, rows, args)
        self.launches += 1
        self.bytes = {self.NAMES[i]: self.library.shim_bytes(at) for at, i in enumerate(given)}
        return self.status

    def finish(self, finish):
        numbers = backend._FINISH.unpack(finish)
        batch, terms = numbers[5], numbers[-1]
        bytes_of = (batch * 16, batch * 8, 4, terms * 4, 4)
        self.allow([(p, n) for p, n in zip(numbers[:5], bytes_of) if p])
        self.launches += 1
        return self.library.shim_finish(finish)

    def scale_gradient(self, dtype, device, stream, args):
        *pointers, n = backend._SCALE.unpack(args)
        size = (4, 2, 2)[dtype]
        self.allow(list(zip(pointers, (n * size, n * size, 4, 4))))
        self.launches += 1
        return self.library.shim_scale(dtype, args)

    def allow(self, ranges):
        self.library.shim_clear()
        for at, count in ranges:
            self.library.shim_allow(at, at + count)

    def error_string(self, status):
        return f"an illegal memory access was encountered ({status})"


class FakeKernel:
    """cupy.RawKernel for the shim: what CuPy would compile and launch, checked and run here."""

    shim, built = None, []

    def __init__(self, text, name, options):
        assert '#include "distill.cuh"' in text and name == "snnfast_distill"
        self.built.append(options)
        self.options = {o[2:].split("=")[0]: o.split("=")[-1] for o in options if o[:2] == "-D"}

    def compile(self):
        pass

    def __call__(self, grid, block, args, shared_mem=0):
        assert all(each.size == 1 for each in args)
        structs = [each.tobytes() for each in args]
        shim, names = self.shim, self.options
        dtype = IO.index(names["SNN_IO"]) if "SNN_IO" in names else 0
        if "SNN_FINISH" in names:
            assert (grid, block, shared_mem) == ((1,), (256,), 128)
            assert not shim.finish(*structs)
        elif "SNN_SCALE" in names:
            n, lanes = backend._SCALE.unpack(*structs)[-1], (4, 8, 8)[dtype]
            assert grid == (-(-n // (lanes * 256)),) and block == (256,) and not shared_mem
            assert not shim.scale_gradient(dtype, 0, 0, *structs)
        else:
            aux = "SNN_TSSD" in names
            run = shim.library.shim_tssd if aux else shim.library.shim_stepwise
            assert grid == (backend._ROW.unpack(structs[0])[9],)
            resident = names["SNN_RESIDENT"] == "true"
            assert not shim.rows(run, aux, dtype, resident, block[0], shared_mem, *structs)
