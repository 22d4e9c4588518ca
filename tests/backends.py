"""Every backend that runs on this machine, for the tests in tests/ops: each states once what an op
must do, through the public functions, and takes ``backend`` as an argument.

    def test_something(backend):
        s = snnfast.lif(x.to(backend.device), backend=backend.name)

A new backend is one more value in EVERY, entered for the length of a test. One that needs a process
of its own, as Triton's interpreter does (TRITON_INTERPRET counts when triton is imported, so one
process is one mode), names its environment: tests/ops/conftest.py runs these tests in one pytest
below this one, once a file, and hands on what became of them. In that environment they run as any
other: TRITON_INTERPRET=1 pytest tests/ops -k interpreted.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from snnfast.backends import cuda, triton
from snnfast.backends.cpu import interpreted, neuron
from snnfast.backends.cuda import launch
from snnfast.ops import select

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """What ``backend=`` of the public functions is called ``name``, and how it gets there."""

    id: str
    name: str
    device: str = "cpu"
    doubles: bool = False
    slow: bool = False
    entered: Callable[[], AbstractContextManager] = nullcontext
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self):
        return self.id

    @property
    def elsewhere(self) -> bool:
        """Whether its tests need another process."""
        return any(os.environ.get(name) != value for name, value in self.environment.items())

    def some(self, options, seed: int) -> list:
        """All of the options; where it is slow one of them, another with the next seed."""
        options = list(options)
        return [options[seed % len(options)]] if self.slow else options

    def roundings(self, dtype: torch.dtype) -> int:
        """What two roundings to that dtype come to: the interpreter cuts bfloat16 off."""
        return 4 if self.environment and dtype == torch.bfloat16 else 2

    def skip_unless(self, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not self.doubles:
            pytest.skip("computes in float32")


@contextmanager
def _baseline():
    """As on an older machine, where no machine code is made either."""
    from snnfast import _C

    _C.use_instruction_set("baseline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron, "executor", lambda: interpreted)
        yield
    _C.use_instruction_set(_C.instruction_sets()[-1])


@contextmanager
def _on_the_host():
    import _cuda_host

    refuse = select._refuse
    with pytest.MonkeyPatch.context() as patch:
        _cuda_host.install(patch)
        patch.setattr(
            select, "_refuse", lambda name, *a: None if name == "cuda" else refuse(name, *a)
        )
        yield


@contextmanager
def _interpreted():
    """The interpreter replaces the language's functions by its own again for each function that a
    kernel calls, which takes longer than all the rest: here once for a test."""
    if os.environ.get("TRITON_INTERPRET") != "1":  # the test runs elsewhere
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda fn: interpreter._LangPatchScope())
        _remember_shapes(patch)
        yield
    scope.restore()


def _remember_shapes(patch) -> None:
    """The interpreter works the shape of every value out anew, and whether two that are alike are,
    which takes half of the time: here once for each shape."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    of_type, of_value = tl.block_type.__init__, tl.tensor.__init__
    broadcast, numpys = TritonSemantic.broadcast_impl_value, interpreter._get_np_dtype
    types, values, dtypes = {}, {}, {}

    def make_type(self, element_ty, shape):
        key = tuple(shape)
        if key not in types:
            of_type(self, element_ty, shape)
            types[key] = self.shape, self.numel, str(self.shape)
        self.element_ty = element_ty
        self.shape, self.numel, text = types[key]
        self.name = f"<{text}, {element_ty}>"

    def make_value(self, handle, type):
        key = tuple(type.shape) if type.is_block() else ()
        if key not in values:
            of_value(self, handle, type)
            values[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = values[key]

    def broadcast_unlike(self, one, other):
        if getattr(one.type, "shape", None) is getattr(other.type, "shape", None):
            return one, other
        return broadcast(self, one, other)

    def numpy_dtype(type):
        name = type.scalar.name
        if name not in dtypes:
            dtypes[name] = numpys(type)
        return dtypes[name]

    patch.setattr(tl.block_type, "__init__", make_type)
    patch.setattr(tl.tensor, "__init__", make_value)
    patch.setattr(TritonSemantic, "broadcast_impl_value", broadcast_unlike)
    patch.setattr(interpreter, "_get_np_dtype", numpy_dtype)


REFERENCE = Backend("reference", "reference", doubles=True)
CPU = (
    Backend("cpu", "cpu", doubles=True),
    Backend("cpu baseline", "cpu", doubles=True, entered=_baseline),
)
HOST = Backend("cuda on the host", "cuda", slow=True, entered=_on_the_host)
INTERPRETED = Backend(
    "triton interpreted", "triton", slow=True, entered=_interpreted,
    environment={"TRITON_INTERPRET": "1"},
)  # fmt: skip


@contextmanager
def at_first_use():
    """CUDA's kernels are compiled when they are called, though nvcc built them at install."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "ahead_of_time", lambda: None)
        yield


def _runs(backend: Backend) -> bool:
    functions = {"triton": triton, "cuda": cuda}[backend.name]
    with backend.entered():
        return torch.cuda.is_available() and functions.available.__wrapped__() is None


GPU = tuple(
    backend
    for backend in (
        Backend("triton on a GPU", "triton", "cuda"),
        Backend("cuda on a GPU", "cuda", "cuda"),
        Backend("cuda at first use on a GPU", "cuda", "cuda", entered=at_first_use),
    )
    if _runs(backend)
)
KERNELS = (*CPU, HOST, INTERPRETED, *GPU)
EVERY = (REFERENCE, *KERNELS)
PROGRAMS = tuple(backend for backend in EVERY if backend is not HOST)
"""Those that run a neuron by its program, many cases: the host compiles each by itself."""


def parameters(backends) -> list:
    return [
        pytest.param(b, id=b.id, marks=[pytest.mark.gpu] * (b.device == "cuda")) for b in backends
    ]


def named(arguments: dict) -> str:
    """A row of a table as the id of its test."""
    return " ".join(
        f"{k}={'x'.join(map(str, v)) if k == 'shape' else v}" for k, v in arguments.items()
    )
