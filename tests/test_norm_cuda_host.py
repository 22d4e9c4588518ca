"""How the CUDA backend launches norm_lif, seen without a GPU on its module for the host
(_cuda_host.py): tiles, blocks, bytes. What it computes: ops/test_norm_lif.py.
"""

import itertools

import _cuda_host
import pytest
import torch
from backends import HOST
from norm_cases import call, case, check, check_statistics

from snnfast.backends.cuda import lif as cuda
from snnfast.backends.cuda import norm_lif as backend
from snnfast.backends.spec import segments
from snnfast.ops import select

DTYPES = ("float32", "float16", "bfloat16")
ONE, ROW, ANY = backend.ONE_CHANNEL, backend.ROW_OF_CHANNELS, backend.ANY_CHANNELS
# (samples, channels, inner), and how fp32 and half precision go about it: None is by element.
SHAPES = [
    ((2, 3, 5), None, None),
    ((3, 16, 49), ANY, ANY),
    ((2, 5, 64), ONE, ONE),
    ((1, 3, 1024), ONE, ONE),
    ((70, 16, 1), ROW, ROW),
    ((4, 700, 1), ROW, ANY),
    ((304, 3, 1), ANY, ANY),
    ((2, 1500, 1), ROW, ANY),
    ((64, 1, 9), ANY, ANY),
]


def forget_plans():
    for cached in (backend.plan, backend._map, cuda._plan):
        cached.cache_clear()
    select.implementation("cuda").forget()


@pytest.fixture
def shim(monkeypatch):
    monkeypatch.setattr(select, "_refuse", lambda *args: None)
    yield _cuda_host.install(monkeypatch)


@pytest.fixture
def blocks(request, monkeypatch):
    """So many at most."""
    monkeypatch.setattr(backend, "_BLOCKS", request.param)
    forget_plans()
    yield
    forget_plans()


def run(**arguments):
    """Everything that a case computes."""
    wanted = case(**arguments)
    ours, running = call(HOST, wanted)
    return {"s": ours.s, **ours.backward(wanted.ds, wanted.dv), **running}


def walks(shim):
    """The launches that walk over neurons, without those that add up what they leave."""
    return [each for each in shim.launches if "NormArgs" in each.structs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape,wide,half", SHAPES, ids=str)
def test_accesses(shim, shape, wide, half, dtype):
    layout = wide if dtype == "float32" else half
    run(shape=shape, dtype=dtype, residual=True, training=True)
    over = walks(shim)
    names = ["norm_stats", "norm_lif_forward", "norm_lif_backward", "norm_dy"]
    assert [each.name for each in over] == names and len(shim.launches) == len(names) + 2
    for each in over:
        assert each.choices[1] == (layout is not None)
        assert layout is None or each.structs["NormArgs"].at.layout == layout


def test_what_is_not_aligned(shim):
    """Goes element by element; vectors of channels matter to themselves alone."""
    for at, name in itertools.product((0, 8, 3), ("y", "residual", "ds")):
        wanted = case(T=5, shape=(1, 4, 128), dtype="bfloat16", residual=True)
        moved = {"ds": wanted.ds, **wanted.inputs}
        view = torch.zeros(5, 1536, dtype=torch.bfloat16)[:, at : at + 512].view(5, 1, 4, 128)
        moved[name] = view.copy_(moved[name])
        ds = moved.pop("ds")
        call(HOST, wanted._replace(inputs=moved))[0].backward(ds, None)
        first = next(each for each in shim.launches[::-1] if each.name == "norm_lif_backward")
        assert first.choices[1] == (at % 8 == 0)
    wanted = case(shape=(6, 16, 1), fixed=("bias",))
    bias = torch.cat([torch.zeros(1), wanted.fixed["bias"]])[1:]
    assert bias.data_ptr() % 16
    call(HOST, wanted._replace(fixed={"bias": bias}))
    assert shim.last.choices[1] and shim.last.structs["NormArgs"].at.layout == ANY


@pytest.mark.parametrize("blocks", [1, 3], indirect=True)
@pytest.mark.parametrize("shape", [(40, 16, 32), (400, 24, 1), (701, 5, 3), (999, 20, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_tiles_a_block(shim, blocks, dtype, shape):
    """Blocks that go from sample to sample add up as many of them as are."""
    for residual in (False, True):
        check(HOST, T=3, shape=shape, dtype=dtype, residual=residual, v0=True, state=True)
        first = next(each for each in walks(shim)[::-1] if "parts" in each.bytes)
        at = first.structs["NormArgs"].at
        assert at.blocks < at.tiles


@pytest.mark.parametrize("blocks", [2, 1], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_several_tiles_a_block(shim, blocks, dtype):
    """However few threads share a channel."""
    for shape in ((6, 16, 81), (400, 24, 1), (3, 1500, 1), (2, 3, 1000), (5, 1, 7), (16, 64, 64),
                  (300, 3, 1)):  # fmt: skip
        for data in ((4, 0.0, 0.0), (9, 1e4, 0.0), (3, 0.0, 300.0), (1, -7.0, 3e3)):
            check_statistics(HOST, data[0], shape, "contiguous", *data[1:], dtype)


@pytest.mark.parametrize("blocks", [4], indirect=True)
@pytest.mark.parametrize("shape", [(40, 16, 32), (130, 24, 1), (10, 5, 63)], ids=str)
def test_same_bits_in_any_order(shim, blocks, shape):
    """Threads run forwards or backwards: sums are a fixed sequence of additions."""
    results = []
    for backwards in (False, True):
        shim.library.shim_backwards(backwards)
        results.append(run(shape=shape, training=True))
    shim.library.shim_backwards(0)
    assert all(map(torch.equal, *(result.values() for result in results)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_bytes(shim, steps, dtype):
    """Every element is read and written once in each pass; numbers per channel are few."""
    for shape, residual in itertools.product(((16, 16, 64), (128, 128, 1)), (False, True)):
        arguments = dict(T=steps, shape=shape, dtype=dtype, residual=residual, training=True,
                         v0=True, state=True)  # fmt: skip
        y = case(**arguments).inputs["y"]
        shim.launches.clear()
        run(**arguments)
        stats, forward, first, second = walks(shim)
        tensor, small = y.numel() * y.element_size(), y[0].numel() * 4
        ends = {"borders": (segments(steps) - 1) * small} if steps > 8 else {}
        streams = {"x": tensor} | ({"residual": tensor} if residual else {})
        assert tensor <= stats.bytes["x"] <= tensor * 1.3  # and an element or two for each neuron
        for each in (forward, first):
            # Mean and scale are rows of one tensor.
            rows = each.bytes.pop("mean") / 2, each.bytes.pop("bias")
            assert max(rows) <= tensor / 2
        assert forward.bytes == streams | ends | {"s": tensor, "v0": small, "v": small}
        parts = first.bytes.pop("parts")
        assert parts == 8 * first.blocks * first.structs["NormArgs"].at.slots
        assert parts <= tensor / 30 or shape[2] == 1
        written = {"dx": tensor} if residual else {}
        states = {"v0": small, "dv": small, "dv0": small}
        assert first.bytes == streams | ends | written | states | {"ds": tensor}
        passed = ("x", "dx", "dy") if residual else ("x", "ds", "dx")
        assert all(second.bytes[name] == tensor for name in passed)


def test_a_failed_launch_raises(shim):
    shim.allows = False
    with pytest.raises(RuntimeError, match="norm_lif: the CUDA launch failed: an illegal memory"):
        run(shape=(2, 16, 16))


def test_compiled_at_first_use(shim, monkeypatch):
    """Without snnfast._cuda: one kernel a configuration by NVRTC, and the same results."""
    built = _cuda_host.without_module(shim, monkeypatch)
    for steps, shape in ((4, (2, 16, 32)), (3, (9, 16, 1)), (20, (1, 7, 11))):
        check(HOST, T=steps, shape=shape, dtype="bfloat16", residual=True, training=True)
    # T = 3 and 4 share theirs: two pairs of scans, of stats and of dy; two add up.
    assert len(built) == 10


def test_constants_are_those_of_the_headers():
    """The constants are those of the headers."""
    text = (_cuda_host.CUDA / "norm_lif_args.h").read_text()
    assert f"kTotalThreads = {backend._TOTAL_THREADS};" in text
    for name, value in (("kAnyChannels", ANY), ("kOneChannel", ONE), ("kRowOfChannels", ROW)):
        assert f"  {name} = {value}," in text
    text = (_cuda_host.CUDA / "lif_args.h").read_text()
    for name, value in (("kHasDx", cuda.HAS_DX), ("kHasResidual", cuda.HAS_RESIDUAL),
                        ("kRecompute", cuda.RECOMPUTE)):  # fmt: skip
        assert f"  {name} = {value}," in text
    assert cuda._THREADS == backend._THREADS


@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_tiles(lanes):
    """Each block's tiles hold the same channels at the same places; slots hold all of a tile's."""
    for channels in (1, 3, 64, 100, 512, 2048):
        for inner in (1, 16, 49, 64, 1024, 3136):
            for samples in (1, 37, 4096):
                neurons = samples * channels * inner
                at = backend.tiles(neurons, lanes, channels, inner, True, 4)
                tile = 128 * lanes
                assert at.tiles == -(-neurons // tile) and 0 < at.blocks <= at.tiles
                assert at.blocks == at.tiles or at.blocks * tile % (channels * inner) == 0
                if at.tiles > 2048 + channels * inner:
                    assert at.blocks <= 2048 + channels * inner
                for block in (0, at.blocks // 2, at.blocks - 1):
                    first = block * tile
                    touched = (first + tile - 1) // inner - first // inner + 1
                    assert min(touched, channels) <= at.slots <= channels
                assert at.group * at.slots <= 128 or at.group == 1
