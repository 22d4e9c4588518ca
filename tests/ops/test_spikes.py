"""What ``pack_spikes`` and ``unpack_spikes`` must do on every backend; layouts, refusals,
registration."""

import pytest
import torch
from backends import CPU, HALF, INTERPRETED, REFERENCE
from spikes_cases import NO_SPIKES, SIZES, expected_bits, spikes_of

import snnfast
from snnfast.ops import spikes

LOOKING = (REFERENCE, *CPU)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF, torch.float64), ids=str)
def test_round_trip(backend, dtype):
    """In each dtype also what is no spike, in turn everywhere, and found where one looks."""
    backend.skip_unless(dtype)
    for n in SIZES[: -3 if backend is INTERPRETED else None]:
        s = spikes_of(n, dtype).to(backend.device)
        s[-1] = 1
        bits = snnfast.pack_spikes(s, backend=backend.name)
        assert bits.dtype == torch.uint8 and torch.equal(bits.cpu(), expected_bits(s))
        back = snnfast.unpack_spikes(bits, s.shape, dtype, backend=backend.name)
        assert back.dtype == dtype and torch.equal(back, s)
        if backend in LOOKING:
            assert torch.equal(spikes.pack_in_memory(s, backend.name, look=True), bits)
        for at, value in zip((0, n // 2, n - 1), (NO_SPIKES * 2)[n % 6 :]):
            other = s.clone()
            other[at] = value
            bits = snnfast.pack_spikes(other, backend=backend.name)
            assert torch.equal(bits.cpu(), expected_bits(other))
            if backend in LOOKING:
                assert spikes.pack_in_memory(other, backend.name, look=True) is None, (at, value)


@pytest.mark.backends(*CPU)
def test_one_thread_or_many_give_the_same_bits(backend):
    s = spikes_of(300_007)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            bits = snnfast.pack_spikes(s, backend=backend.name)
            assert torch.equal(bits, expected_bits(s))
            back = snnfast.unpack_spikes(bits, s.shape, s.dtype, backend=backend.name)
            assert torch.equal(back, s)
    finally:
        torch.set_num_threads(before)


@pytest.mark.backends(*LOOKING)
def test_every_element_is_looked_at(backend):
    """One wrong element anywhere, chunks of threads included, is found."""
    count = 300_000
    for at in (0, 1023, 1024, 65_535, 65_536, 150_000, count - 1):
        s = spikes_of(count, torch.bfloat16)
        s[at] = 0.5
        assert spikes.pack_in_memory(s, backend.name, look=True) is None, at


@pytest.mark.parametrize(
    "view",
    (
        lambda s: s.permute(0, 1, 3, 4, 2),
        lambda s: s.transpose(0, 1),
        lambda s: s[:, :, ::2],
        lambda s: s[1:],
        lambda s: s[0, 0, 0, 0, 0],
        lambda s: s[:0],
        lambda s: s[:1].expand(3, 2, 5, 3, 7),
    ),
    ids=["channels last", "batch first", "gaps", "offset", "scalar", "empty", "expanded"],
)
def test_bits_follow_the_order_of_the_indices(backend, view):
    """Whatever the layout, so that shape and dtype are all that unpacking needs."""
    s = view(spikes_of(3 * 2 * 5 * 3 * 7).view(3, 2, 5, 3, 7).to(backend.device))
    bits = snnfast.pack_spikes(s, backend=backend.name)
    assert torch.equal(bits.cpu(), expected_bits(s))
    back = snnfast.unpack_spikes(bits, s.shape, s.dtype, backend=backend.name)
    assert torch.equal(back, s) and back.is_contiguous()


def test_in_memory_the_order_is_that_of_memory(backend):
    s = spikes_of(2 * 8 * 5 * 3).view(2, 8, 5, 3).to(backend.device)
    s = s.to(memory_format=torch.channels_last)
    bits = spikes.pack_in_memory(s, backend.name, look=False)
    assert torch.equal(bits.cpu(), expected_bits(s.permute(0, 2, 3, 1)))


def test_a_smooth_cotangent_has_no_way_through_bits():
    s = spikes_of(64).requires_grad_()
    assert not snnfast.pack_spikes(s).requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: snnfast.pack_spikes([1]), TypeError, "pack_spikes: s must be a tensor, got list"),
        (lambda: snnfast.pack_spikes(torch.ones(3).int()), TypeError, "s must be float32.*int32"),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1), [8], torch.float32),
            TypeError,
            "bits must be a uint8 tensor, got float32",
        ),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1).byte(), [9], torch.float32),
            ValueError,
            r"bits must have shape \[2\] for 9 elements, got \[1\]",
        ),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1, 1).byte(), [8], torch.float32),
            ValueError,
            r"bits must have shape \[1\] for 8 elements, got \[1, 1\]",
        ),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1).byte(), [8], torch.int32),
            TypeError,
            "dtype must be float32, float16, bfloat16 or float64, got int32",
        ),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1).byte(), [-1, -8], torch.float32),
            ValueError,
            "shape must be >= 0 everywhere",
        ),
        (
            lambda: snnfast.unpack_spikes(torch.ones(1).byte(), [8.0], torch.float32),
            TypeError,
            "shape must be ints, got float",
        ),
        (
            lambda: snnfast.pack_spikes(torch.ones(8), backend="cuda"),
            snnfast.BackendUnavailable,
            "pack_spikes: backend 'cuda' cannot be used",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.unpoisoned
@pytest.mark.backends(REFERENCE, CPU[0])
def test_opcheck(backend):
    s = spikes_of(100).view(10, 10)
    ops = torch.ops.snnfast
    torch.library.opcheck(ops.pack_spikes.default, (s, backend.name))
    bits = ops.pack_spikes(s, backend.name)
    unpack = (bits, [10, 10], torch.float16, backend.name)
    torch.library.opcheck(ops.unpack_spikes.default, unpack)


@pytest.mark.unpoisoned
def test_compile():
    def through(s):
        bits = snnfast.pack_spikes(s)
        return snnfast.unpack_spikes(bits, s.shape, s.dtype) * 2

    compiled = torch.compile(through, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (5, 40, 1001):
        s = spikes_of(n)
        assert torch.equal(compiled(s), s * 2)
