"""``packed_spikes``: what autograd keeps is kept as bits where it is spikes.

What is spikes is found out when autograd saves a tensor. On the CPU its values are looked at: the
first one that is neither 0 nor 1 settles that a tensor is none, and where there is no such value
that same pass has made the bits. So pooled, concatenated or loaded spikes count as well, and no
claim has to be trusted. On a GPU a look would wait for the device: there the ops say what they made
(``mark_spikes``), and only what may be the result of pooling spikes is looked at.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from snnfast.backends.layout import IO_DTYPES, is_dense
from snnfast.ops.select import automatic
from snnfast.ops.spikes import pack_in_memory

SMALLEST = 1024
"""Elements below which a tensor is kept as it is: bits would save less than they cost."""


class _Bits:
    """Bits that live as long as a saved tensor holds them."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


class _Storage:
    """What is known of a storage at one version of it. The weak reference keeps its address from
    being used again, so that the address names it."""

    __slots__ = ("bits", "marked", "reference", "version")

    def __init__(self, t: Tensor, marked: bool):
        self.reference = StorageWeakRef(t.untyped_storage())
        self.version = t._version
        self.marked = marked
        self.bits: WeakValueDictionary[tuple, _Bits] = WeakValueDictionary()


class _Known:
    """Storages by address; those that are gone leave when there are many."""

    def __init__(self):
        self.storages: dict[int, _Storage] = {}
        self.limit = 64
        self.wanted = False  # whether anybody has ever asked for packing

    def get(self, t: Tensor) -> _Storage | None:
        found = self.storages.get(t.untyped_storage()._cdata)
        return found if found is not None and found.version == t._version else None

    def add(self, t: Tensor, marked: bool) -> _Storage:
        if len(self.storages) >= self.limit:
            for address, storage in list(self.storages.items()):
                if storage.reference.expired():
                    self.storages.pop(address, None)
            self.limit = max(64, 2 * len(self.storages))
        storage = self.storages[t.untyped_storage()._cdata] = _Storage(t, marked)
        return storage


class _Local(threading.local):
    def __init__(self):
        self.last_spikes = None  # shape and dtype of what was saved just before, if spikes
        self.pooled = deque(maxlen=16)


_known = _Known()
_local = _Local()


def want_marks() -> None:
    """From now on ``mark_spikes`` takes notes."""
    _known.wanted = True


def _look_is_free(t: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return t.device.type == "cpu"


def mark_spikes(s: Tensor) -> None:
    """Notes that ``s``, fresh from an op, holds nothing but 0 and 1. Of no effect before anybody
    has asked for packing, under torch.compile, and where ``s`` can be looked at later."""
    if torch.compiler.is_compiling() or not _known.wanted or _look_is_free(s):
        return
    if type(s) is Tensor and s.numel() >= SMALLEST:
        _known.add(s, marked=True)


@cache
def _backend(device: str, dtype: torch.dtype) -> str:
    return automatic(device, dtype, smooth=False, own=None)[0]


class _Packed(NamedTuple):
    """A saved tensor as bits, in the order of memory."""

    bits: _Bits
    shape: torch.Size
    strides: tuple[int, ...]
    contiguous: bool
    dtype: torch.dtype
    backend: str

    def unpack(self) -> Tensor:
        make = torch.ops.snnfast.unpack_spikes
        if self.contiguous:
            return make(self.bits.tensor, self.shape, self.dtype, self.backend)
        flat = make(self.bits.tensor, [self.shape.numel()], self.dtype, self.backend)
        return flat.as_strided(self.shape, self.strides)


def _may_be_pooled(t: Tensor) -> bool:
    """Whether ``t`` has the size of what was pooled from spikes, and the device may be waited for.

    Max-pooling saves its input, then the int64 indices, which have the shape of its result.
    """
    if (t.numel(), t.dtype, t.device) not in _local.pooled:
        return False
    return not (t.is_cuda and torch.cuda.is_current_stream_capturing())


def _as_bits(t: Tensor) -> _Packed | None:
    """``t`` packed, or None where it is not known for spikes."""
    contiguous = t.is_contiguous()
    if not contiguous and not is_dense(t.shape, t.stride()):
        return None
    backend = _backend(t.device.type, t.dtype)
    storage = _known.get(t)
    place = (t.storage_offset(), t.numel(), t.dtype)
    bits = storage.bits.get(place) if storage is not None else None
    if bits is None:
        trusted = storage is not None and storage.marked and not _look_is_free(t)
        if not (trusted or _look_is_free(t) or _may_be_pooled(t)):
            return None
        packed = pack_in_memory(t, backend, look=not trusted)
        if packed is None:
            return None
        storage = storage or _known.add(t, marked=False)
        bits = storage.bits[place] = _Bits(packed)
    return _Packed(bits, t.shape, t.stride(), contiguous, t.dtype, backend)


def _has_memory(t: Tensor) -> bool:
    """Whether the values of ``t`` are what lies in its memory, now: not a lazy negative, no tensor
    of zeros without memory, and nothing that is traced and run again later."""
    if type(t) is not Tensor or t.layout != torch.strided or t.device.type not in ("cpu", "cuda"):
        return False
    if t.is_neg() or t._is_zerotensor():
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def _pack(t: Tensor):
    """The hook: what autograd keeps instead of ``t``."""
    before, _local.last_spikes = _local.last_spikes, None
    if _has_memory(t):
        if t.dtype in IO_DTYPES and t.numel() >= SMALLEST and not t.is_inference():
            packed = _as_bits(t)
            if packed is not None:
                _local.last_spikes = t.shape, t.dtype
                return packed
        elif t.dtype == torch.int64 and before is not None and not _look_is_free(t):
            shape, dtype = before
            if t.dim() == len(shape) and t.numel() <= shape.numel():
                _local.pooled.append((t.numel(), dtype, t.device))
    return t, None if t.is_inference() else t._version


def _unpack(kept) -> Tensor:
    """The hook back. Autograd leaves the check of versions to whoever has hooks."""
    if isinstance(kept, _Packed):
        return kept.unpack()
    t, version = kept
    if version is not None and t._version != version:
        raise RuntimeError(
            "packed_spikes: a tensor that backward needs must not be changed in place, got "
            f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} at version {t._version}, kept "
            f"at version {version}"
        )
    return t


@contextmanager
def packed_spikes() -> Iterator[None]:
    """Inside the block, spikes that autograd keeps for backward are kept as bits.

    One bit for each neuron and timestep, instead of 2 or 4 bytes: spikes that a convolution, a
    linear layer or pooling keeps for its weights' gradient, whoever made the layer. All consumers
    of a tensor share its bits; each unpacks them in backward, and what it unpacks is freed behind
    it. The gradients are those of the tensors themselves, bit for bit. Backward may run outside
    the block.

        >>> with snnfast.packed_spikes():
        ...     loss = criterion(model(x), target)
        >>> loss.backward()

    Packed are float tensors of 1024 elements and more that hold nothing but 0 and 1 and have no
    gaps in memory, views such as flatten and s[t] too. On the CPU that is found out by looking. On
    a GPU it is what ``snnfast.lif`` and ``snnfast.norm_lif`` have made since a first block was
    entered, and what was max-pooled from that (its first look waits for the device, and none is
    taken while a CUDA graph is captured). Everything else is kept as ever.

    In-place changes: a tensor that was packed has been read, and may change; one that was kept as
    it is must not, and backward then raises RuntimeError, as without the block. Changes that
    autograd does not see (``.data``, NumPy) are not seen here either.

    Other users of saved-tensor hooks: only the innermost run. Within ``torch.utils.checkpoint`` and
    ``torch.autograd.graph.save_on_cpu`` inside the block it is theirs, so there nothing is packed
    but the inputs of a checkpoint, which it saves outside of its own; a block inside of them packs,
    and they do not see what it keeps. Blocks may be nested. Gradients are right, and those of
    higher order as without the block, in every one of these cases. What ``torch.compile`` keeps
    between its own kernels it decides itself.
    """
    want_marks()
    with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
        yield
