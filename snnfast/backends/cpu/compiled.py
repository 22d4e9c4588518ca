"""Neurons that a program defines as machine code, which LLVM makes at their first use."""

import functools
import importlib.util
import struct
import threading
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from snnfast.backends.cpu.launch import module, pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import SEGMENT, NeuronLayer
from snnfast.program import llvm_walk
from snnfast.program.llvm_walk import Shape, Wanted
from snnfast.program.step import Step
from snnfast.program.surrogates import gradient_program

_STORAGE = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "half",
    torch.bfloat16: "bfloat",
}
_LANES = {"float": 32, "double": 16}
_CACHE_LINE = 64
_lock = threading.Lock()


@functools.cache
def available() -> bool:
    """Whether llvmlite is there, and a processor that has what the code is made of."""
    if importlib.util.find_spec("llvmlite") is None:
        return False
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    on_x86 = all(features.get(name) for name in ("avx2", "fma", "f16c"))
    return on_x86 or llvm.get_process_triple().startswith(("aarch64", "arm64"))


def machine_code(text: str, name: str):
    """(address of the function, what keeps it there) of LLVM IR."""
    # Two threads that miss at once would both fill the cache, and the first one's code be freed.
    with _lock:
        return _machine_code(text, name)


@functools.cache
def _machine_code(text: str, name: str):
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    code = llvm.parse_assembly(text)
    code.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(code, passes)
    engine = llvm.create_mcjit_compiler(code, machine)
    engine.finalize_object()
    return engine.get_function_address(name), engine


def _shape(step: Step, dtype: torch.dtype, stream: bool, channels: tuple[bool, ...]) -> Shape:
    storage = _STORAGE[dtype]
    lanes = _LANES["double" if storage == "double" else "float"]
    return Shape(storage, lanes, module().TILE, SEGMENT, stream, channels)


def _constants(numbers: list[float], dtype: torch.dtype) -> bytes:
    real = numpy.float64 if dtype == torch.float64 else numpy.float32
    with numpy.errstate(over="ignore"):
        return numpy.array(numbers, numpy.float64).astype(real).tobytes()


@functools.lru_cache(1024)
def _forward(step: Step, dtype: torch.dtype, *rest) -> tuple[int, bytes]:
    text, numbers = llvm_walk.forward(step, _shape(step, dtype, *rest))
    return machine_code(text, "forward")[0], _constants(numbers, dtype)


@functools.lru_cache(1024)
def _backward(
    step: Step, surrogate: int, a: float, b: float, wanted: Wanted, dtype: torch.dtype, *rest
) -> tuple[int, bytes]:
    gradient = gradient_program(surrogate, a, b)
    text, numbers = llvm_walk.backward(step, _shape(step, dtype, *rest), gradient, wanted)
    return machine_code(text, "backward")[0], _constants(numbers, dtype)


def neuron_forward(
    layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
    params: Sequence[Tensor], outputs: Sequence[Tensor], new_states: Sequence[Tensor] = (),
    borders: Tensor | None = None,
) -> None:  # fmt: skip
    x, count = inputs[0], layer.step.states
    stream = _streams([*inputs, *outputs], outputs)
    walk = _forward(layer.step, x.dtype, stream, _channels(params))
    numbers = [*_rows(inputs), *map(pointer, states), *map(pointer, outputs)]
    numbers += [*_states(new_states or [None] * count, x), *_borders(borders, count)]
    _run(walk, layer, x, params, numbers, ())


def neuron_backward(
    layer: NeuronLayer, inputs: Sequence[Tensor], states: Sequence[Tensor | None],
    params: Sequence[Tensor], borders: Tensor | None, douts: Sequence[Tensor | None],
    dstates: Sequence[Tensor | None], dinputs: Sequence[Tensor | None],
    dstates0: Sequence[Tensor | None], dparams: Sequence[Tensor | None],
) -> None:  # fmt: skip
    x, count = inputs[0], layer.step.states
    kinds = ["none" if d is None else "steps" if d.dim() == x.dim() else "sum" for d in dinputs]
    wanted = Wanted(
        tuple(d is not None for d in douts), tuple(kinds), tuple(d is not None for d in dparams)
    )
    whole = [d for d, kind in zip(dinputs, kinds, strict=True) if kind == "steps"]
    stream = _streams([*inputs, *(d for d in douts if d is not None), *whole], whole)
    own = 0 if layer.step.gradient else layer.surrogate
    walk = _backward(layer.step, own, layer.a, layer.b, wanted, x.dtype, stream, _channels(params))
    numbers = [*_rows(inputs), *map(pointer, states), *_borders(borders, count)]
    numbers += [*_rows(douts), *_states(dstates, x), *map(pointer, dinputs)]
    numbers += map(pointer, dstates0)
    _run(walk, layer, x, params, numbers, dparams)


def _run(walk, layer: NeuronLayer, x: Tensor, params, numbers: list[int], dparams) -> None:
    address, constants = walk
    n = x.numel() // layer.steps
    numbers = [layer.steps, n, *numbers, *map(pointer, params)]
    real = "d" if x.dtype == torch.float64 else "f"
    args = struct.pack(f"{len(numbers)}q{len(layer.rest)}{real}", *numbers, *layer.rest) + constants
    rows = [(p.data_ptr(), bool(p.dim())) for p in params]
    sizes = (layer.steps, n, layer.channels, layer.inner)
    neuron = (DTYPES[x.dtype], torch.get_num_threads(), *sizes, (), (), (), rows, 0)
    module().run_compiled(address, args, neuron, [*map(pointer, dparams)])


def _channels(params: Sequence[Tensor]) -> tuple[bool, ...]:
    return tuple(bool(p.dim()) for p in params)


def _streams(moved: list[Tensor], written: Sequence[Tensor]) -> bool:
    """Whether what is written goes past the caches: where they could not hold it until it is read
    again, and its rows begin on their lines."""
    size, steps = moved[0].element_size(), moved[0].shape[0]
    return size * sum(t.numel() for t in moved) > module().CACHE_BYTES and all(
        t.data_ptr() % _CACHE_LINE == 0 and t.numel() // steps * size % _CACHE_LINE == 0
        for t in written
    )


def _rows(tensors: Sequence[Tensor | None]) -> list[int]:
    """Addresses of tensors [T, ...], and from step to step in bytes."""
    found = []
    for t in tensors:
        found += (0, 0) if t is None else (t.data_ptr(), t.stride(0) * t.element_size())
    return found


def _states(tensors: Sequence[Tensor | None], x: Tensor) -> list[int]:
    """Addresses of states after the last step, then of those after every step; 0: not this one."""
    every = [t is not None and t.dim() == x.dim() for t in tensors]
    pairs = list(zip(tensors, every, strict=True))
    return [
        *(0 if e else pointer(t) for t, e in pairs),
        *(pointer(t) if e else 0 for t, e in pairs),
    ]


def _borders(borders: Tensor | None, count: int) -> list[int]:
    """Addresses of the borders of each state."""
    if borders is None:
        return [0] * count
    step = borders.stride(0) * borders.element_size()
    return [borders.data_ptr() + k * step for k in range(count)]
