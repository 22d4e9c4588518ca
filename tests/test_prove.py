"""No kernel has a race, whatever the order of threads and blocks: proved for the launches of some
calls. Not among the other tests; `make prove` runs them.

What nothing is said of, since SentryWard cannot: Triton's sums between warps (``reduces``), rows of
a loss (whether a row counts is in the data), and the mark that packing leaves (all who store it
store the same).
"""

from collections import Counter

import _prove
import pytest
import torch
from _cuda_aot import needs_nvcc

import snnfast
from snnfast.ops.select import implementation

pytestmark = [pytest.mark.prove, pytest.mark.unpoisoned]
STEPS = (1, 4, 8, 16, 100)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPE = (2, 8, 9, 8)
LAYERS = ("lif", "lif with states", "lif with a rate", "norm_lif", "norm_lif last")


def lif(backend, T, dtype, kind):
    """Some blocks, the last one of which is not full."""
    x = torch.zeros(T, *SHAPE, dtype=dtype, requires_grad=True)
    options, more = {}, []
    if kind == "lif with states":
        more = [torch.zeros(*SHAPE, requires_grad=True)]
        options = {"v0": more[0], "return_state": "all", "v_reset": None, "tau": 1.7}
    elif kind == "lif with a rate":
        more = [torch.ones(8, requires_grad=True)]
        options = {"inv_tau": more[0], "surrogate": "atan"}
    found = snnfast.lif(x, backend=backend, **options)
    found = found if isinstance(found, tuple) else (found,)
    torch.autograd.grad(found, [x, *more], [torch.zeros_like(t) for t in found])


def norm_lif(backend, T, dtype, kind):
    def make():
        t = torch.zeros(T, *SHAPE, dtype=dtype)
        if kind == "norm_lif last":
            t = t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        return t.requires_grad_()

    y, r = make(), make() if T in (4, 16) else None
    weight, bias = (torch.ones(8, requires_grad=True) for _ in range(2))
    running = {"running_mean": torch.zeros(8), "running_var": torch.ones(8)}
    s = snnfast.norm_lif(y, r, weight=weight, bias=bias, training=True, backend=backend, **running)
    wanted = [t for t in (y, r, weight, bias) if t is not None]
    torch.autograd.grad(s, wanted, make().detach())


def spikes(backend, dtype):
    s = torch.zeros(9000, dtype=dtype)
    bits = snnfast.pack_spikes(s, backend=backend)
    snnfast.unpack_spikes(bits, s.shape, dtype, backend=backend)


def numbers(backend, dtype):
    """What follows from statistics and sums that are given."""
    made = [torch.zeros(300, dtype=torch.float32) for _ in range(3)]
    kernels = implementation(backend)
    stats, totals = torch.zeros(4, 300), torch.zeros(5, 300)
    kernels.norm_prepare(0.1, 1.25, 1e-5, stats, *made)
    kernels.norm_finish(9, stats, totals)


def loss(backend, dtype):
    logits = torch.zeros(4, 6, 10, dtype=dtype, requires_grad=True)
    teacher, target = torch.zeros(6, 10), torch.zeros(6, dtype=torch.int64)
    value = snnfast.twkd_loss(logits, target, teacher, backend=backend)
    value.backward()


def prove(launches, folder, counts):
    for compiled in launches:
        launched = compiled()
        rows = launched.kernel.endswith("_rows")
        if launched.reduces or rows:
            counts[launched.backend, launched.kernel, "not asked"] += 1
            continue
        verdict = launched.verdict(folder)
        counts[launched.backend, launched.kernel, verdict] += 1
        assert verdict == "race_free", launched.kernel


@pytest.fixture(scope="module")
def counts(request):
    found = Counter()
    yield found
    for key, number in sorted(found.items()):
        print("\n" + " ".join((*key, str(number))), end="")


both = pytest.mark.parametrize("backend", ["triton", pytest.param("cuda", marks=needs_nvcc)])


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", STEPS, ids="T{}".format)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind, T, dtype, backend, tmp_path, counts):
    with _prove.launches(backend) as found:
        (norm_lif if kind.startswith("norm") else lif)(backend, T, dtype, kind)
    assert len(found) == (6 if kind.startswith("norm") else 2)
    prove(found, tmp_path, counts)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", (spikes, numbers, loss), ids=lambda call: call.__name__)
def test_others(call, dtype, backend, tmp_path, counts):
    with _prove.launches(backend) as found:
        call(backend, dtype)
    assert found
    prove(found, tmp_path, counts)
