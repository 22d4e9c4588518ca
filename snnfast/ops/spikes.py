"""``pack_spikes`` and ``unpack_spikes``: spikes as bits, and back.

The contract, the launch on a backend, and the public functions, in that order. Element i, in
row-major order, is bit i % 8 of byte i // 8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from snnfast import reference
from snnfast.ops import allocate
from snnfast.ops import validation as check
from snnfast.ops.select import by_name, implementation, select

_library = torch.library.Library("snnfast", "FRAGMENT")
_library.define("pack_spikes(Tensor s, str backend) -> Tensor")
_library.define(
    "unpack_spikes(Tensor bits, SymInt[] shape, ScalarType dtype, str backend) -> Tensor"
)


def _empty_bits(s: Tensor) -> Tensor:
    return torch.empty((s.numel() + 7) // 8, dtype=torch.uint8, device=s.device)


@torch.library.register_fake("snnfast::pack_spikes", lib=_library)
def _(s, backend):
    return _empty_bits(s)


@torch.library.register_fake("snnfast::unpack_spikes", lib=_library)
def _(bits, shape, dtype, backend):
    return bits.new_empty(shape, dtype=dtype)


def _run_pack(s, backend):
    if backend == "reference":
        return reference.pack_spikes(s)
    bits = _empty_bits(s)
    if s.numel():
        implementation(backend).pack_spikes(s.contiguous(), bits)
    return bits


def _run_unpack(bits, shape, dtype, backend):
    if backend == "reference":
        return reference.unpack_spikes(bits, shape, dtype)
    s = allocate.empty(bits, shape, dtype)
    if s.numel():
        implementation(backend).unpack_spikes(bits.contiguous(), s)
    return s


for _device in ("CPU", "CUDA"):
    _library.impl("pack_spikes", by_name(_run_pack), _device)
    _library.impl("unpack_spikes", by_name(_run_unpack), _device)


def pack_in_memory(s: Tensor, backend: str, look: bool) -> Tensor | None:
    """The bits of a dense ``s``, not empty, in the order of its memory. With a ``look``, which a
    backend of the CPU has: None if an element is neither +0 nor 1."""
    if backend == "reference":
        s = s.as_strided((s.numel(),), (1,))
        is_spikes = not look or ((s == 1) | ((s == 0) & ~s.signbit())).all()
        return reference.pack_spikes(s) if is_spikes else None
    bits = _empty_bits(s)
    if look:
        return bits if implementation(backend).pack_if_spikes(s, bits) else None
    implementation(backend).pack_spikes(s, bits)
    return bits


def pack_spikes(s: Tensor, *, backend: str | None = None) -> Tensor:
    """A spike tensor as bits, 1 for each element: what is not 0 is a spike.

    Args:
        s: spikes, 0 or 1, of any shape; float32, float16, bfloat16 or float64. Read without a copy
            where it is contiguous; copied once otherwise. Any other value that is not 0, NaN too,
            counts as a 1.
        backend: auto, reference, cpu, triton or cuda; see ``snnfast.backend``.

    Returns:
        bits [ceil(N / 8)] uint8, N the number of elements. Element i of s in row-major order,
        whatever its memory layout, is bit i % 8 (from the lowest) of byte i // 8; bits behind the
        last element are 0. Not differentiable.

    Moves b + 1/8 bytes per element, b those of the dtype.

    Raises:
        TypeError: ``pack_spikes: s must be ..., got ...``.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> bits = snnfast.pack_spikes(s)
        >>> torch.equal(snnfast.unpack_spikes(bits, s.shape, s.dtype), s)
        True
    """
    check.check_input("pack_spikes", "s", s)
    seen = check.transformed(s)
    name = select("pack_spikes", backend, s.device.type, s.dtype, False, transformed=seen)
    if seen:
        return reference.pack_spikes(s.detach())
    return torch.ops.snnfast.pack_spikes(s.detach(), name)


def unpack_spikes(
    bits: Tensor, shape: Sequence[int], dtype: torch.dtype, *, backend: str | None = None
) -> Tensor:
    """Spikes 0 or 1 from the bits that ``pack_spikes`` made.

    Args:
        bits: [ceil(N / 8)] uint8.
        shape: of the result, N elements.
        dtype: float32, float16, bfloat16 or float64.
        backend: auto, reference, cpu, triton or cuda; see ``snnfast.backend``.

    Returns a contiguous tensor. Moves b + 1/8 bytes per element, b those of the dtype.

    Raises:
        TypeError, ValueError: ``unpack_spikes: <argument> must be ..., got ...``.
        BackendUnavailable: the backend asked for cannot run here.
    """
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        raise TypeError(f"unpack_spikes: bits must be a uint8 tensor, got {check.type_name(bits)}")
    if dtype not in check.IO_DTYPES:
        got = str(dtype).removeprefix("torch.")
        raise TypeError(
            f"unpack_spikes: dtype must be float32, float16, bfloat16 or float64, got {got}"
        )
    if not isinstance(shape, Sequence):
        raise TypeError(f"unpack_spikes: shape must be ints, got {check.type_name(shape)}")
    shape, count = list(shape), 1
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise TypeError(f"unpack_spikes: shape must be ints, got {check.type_name(size)}")
        if size < 0:
            raise ValueError(f"unpack_spikes: shape must be >= 0 everywhere, got {shape}")
        count = count * size
    if bits.dim() != 1 or bits.shape[0] != (count + 7) // 8:
        raise ValueError(
            f"unpack_spikes: bits must have shape [{(count + 7) // 8}] for {count} elements, "
            f"got {list(bits.shape)}"
        )
    seen = check.transformed(bits)
    name = select("unpack_spikes", backend, bits.device.type, dtype, False, transformed=seen)
    if seen:
        return reference.unpack_spikes(bits, shape, dtype)
    return torch.ops.snnfast.unpack_spikes(bits, shape, dtype, name)
