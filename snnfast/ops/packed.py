"""``packed_spikes``: what autograd keeps is kept as bits where it is spikes.

What is spikes is found out when autograd saves a tensor. On the CPU its values are looked at: the
first one that is neither 0 nor 1 settles that a tensor is none, and where there is no such value
that same pass has made the bits. So pooled, concatenated or loaded spikes count as well, and no
claim has to be trusted. On a GPU a look would wait for the device: there the ops say what they made
(``mark_spikes``), and autograd's graph what was picked out of that. Nothing waits.
"""

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

# Nodes of autograd's graph whose result shares the memory of their input.
_VIEWS = frozenset(
    "AliasBackward0 AsStridedBackward0 DiagonalBackward0 ExpandBackward0 PermuteBackward0 "
    "ReshapeAliasBackward0 SelectBackward0 SliceBackward0 SplitBackward0 SplitWithSizesBackward0 "
    "SqueezeBackward0 SqueezeBackward1 SqueezeBackward2 TBackward0 TransposeBackward0 "
    "UnbindBackward0 UnfoldBackward0 UnsafeViewBackward0 UnsqueezeBackward0 "
    "ViewBackward0".split()
)
# Those whose first result has no value but those of their inputs, in memory of its own.
_PICKS = frozenset(
    "AdaptiveMaxPool2DBackward0 AdaptiveMaxPool3DBackward0 AmaxBackward0 CatBackward0 "
    "CloneBackward0 FlipBackward0 GatherBackward0 IndexBackward0 IndexSelectBackward0 MaxBackward0 "
    "MaximumBackward0 MaxPool2DWithIndicesBackward0 MaxPool3DWithIndicesBackward0 RepeatBackward0 "
    "RollBackward0 StackBackward0 ToCopyBackward0 UpsampleNearest2DBackward0".split()
)


class _Bits:
    """Bits that live as long as a saved tensor holds them."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


class _Storage:
    """What is known of a storage at one version of it: its bits, and on a GPU that it is spikes.
    The weak reference keeps its address from being used again, so that the address names it."""

    __slots__ = ("bits", "reference", "version")

    def __init__(self, t: Tensor):
        self.reference = StorageWeakRef(t.untyped_storage())
        self.version = t._version
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

    def add(self, t: Tensor) -> _Storage:
        if len(self.storages) >= self.limit:
            for address, storage in list(self.storages.items()):
                if storage.reference.expired():
                    self.storages.pop(address, None)
            self.limit = max(64, 2 * len(self.storages))
        storage = self.storages[t.untyped_storage()._cdata] = _Storage(t)
        return storage


_known = _Known()


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
        _known.add(s)
        if s.grad_fn is not None:
            # A tensor without memory that counts the changes of s, also when s is gone.
            changes = s.detach()
            changes.data = _nothing(s.device, s.dtype)
            s.grad_fn.spikes = changes, s._version


@cache
def _nothing(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, device=device, dtype=dtype)


def _picked_from_spikes(t: Tensor) -> bool:
    """Whether ``t`` was made by one op, and views, out of marked spikes.

    Neither they nor ``t`` may have changed since. Of a result between two ops that cannot be told
    once it is gone: so one op, no more.
    """
    if t._version or t.grad_fn is None:
        return False
    found, todo = False, [(t.grad_fn, 0, False)]
    while todo:
        node, output, picked = todo.pop()
        name = type(node).__name__
        if name in _PICKS and not picked and output == 0:
            picked = True
        elif name not in _VIEWS:
            changes, version = getattr(node, "spikes", (None, 0))
            if changes is None or changes._version != version or output or not picked:
                return False
            found = True
            continue
        todo += [(*edge, picked) for edge in node.next_functions]
    return found


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


def _as_bits(t: Tensor) -> _Packed | None:
    """``t`` packed, or None where it is not known for spikes."""
    contiguous = t.is_contiguous()
    if not contiguous and not is_dense(t.shape, t.stride()):
        return None
    backend = _backend(t.device.type, t.dtype)
    storage = _known.get(t)
    region = (t.storage_offset(), t.numel(), t.dtype)
    bits = storage.bits.get(region) if storage is not None else None
    if bits is None:
        look = _look_is_free(t)
        if not (look or storage is not None or _picked_from_spikes(t)):
            return None
        packed = pack_in_memory(t, backend, look)
        if packed is None:
            return None
        storage = storage or _known.add(t)
        bits = storage.bits[region] = _Bits(packed)
    return _Packed(bits, t.shape, t.stride(), contiguous, t.dtype, backend)


def _has_memory(t: Tensor) -> bool:
    """Whether the values of ``t`` are what lies in its memory, now: not a lazy negative, no tensor
    of zeros without memory, and nothing that is traced and run again later."""
    if type(t) is not Tensor or t.layout != torch.strided or t.device.type not in ("cpu", "cuda"):
        return False
    if t.is_neg() or t._is_zerotensor():
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def bits_of(t: Tensor) -> _Packed | None:
    """``t`` as bits, or None where it stays as it is."""
    if t.dtype in IO_DTYPES and t.numel() >= SMALLEST and _has_memory(t) and not t.is_inference():
        return _as_bits(t)
    return None


def _pack(t: Tensor):
    """The hook: what autograd keeps instead of ``t``."""
    kept = bits_of(t)
    if kept is not None:
        return kept
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
    a GPU, which is never waited for, it is what ``snnfast.lif`` and ``snnfast.norm_lif`` have made
    since a first block was entered, its views, and what one op has picked out of that for which
    gradients flow: a max-pool, a copy (reshape, contiguous, another dtype), an index, a
    concatenation. Everything else is kept as ever.

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
