"""How the CUDA losses run, without a GPU: the module on the host (_cuda_host.py), what is launched
and which bytes it moves. What the losses are: ops/test_distill.py.
"""

import math

import _cuda_host
import pytest
import torch
from backends import HALF, HOST
from distill_cases import LOSSES, check, probabilities, problem, run

from snnfast import tssd_loss, twkd_loss
from snnfast.backends.cuda import distill as backend
from snnfast.ops import select

DTYPES = (torch.float32, *HALF)


@pytest.fixture
def shim(monkeypatch):
    monkeypatch.setattr(select, "_refuse", lambda *why: None)
    return _cuda_host.install(monkeypatch)


@pytest.fixture
def streaming(monkeypatch):
    """No row in shared memory."""
    monkeypatch.setattr(backend, "_RESIDENT_BYTES", 0)
    backend.plan.cache_clear()
    yield
    backend.plan.cache_clear()


def rows(shim):
    """The last launch over rows."""
    return next(each for each in reversed(shim.launches) if each.name.endswith("_rows"))


def inputs(*shape, dtype=torch.float32):
    return [t.detach() for t in problem(*shape, dtype=dtype)]


@pytest.mark.parametrize("loss", LOSSES)
def test_how_a_row_lies_in_a_block(shim, loss):
    """In shared memory where it fits, with some four classes a thread."""
    for shape, threads, resident in (
        ((3, 2, 128), 32, True),
        ((3, 2, 129), 64, True),
        ((3, 2, 257), 128, True),
        ((3, 2, 513), 256, True),
        ((4, 1, 5000), 256, False),
    ):
        check(HOST, loss=loss, shape=shape)
        assert rows(shim).threads == threads and rows(shim).choices[1] == resident


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "classes"), [(1, 10), (4, 10), (20, 33), (4, 1000)])
def test_logits_are_read_once_and_gradients_written_once(shim, steps, classes, dtype):
    z, y, teacher, w = inputs(steps, 3, classes, dtype=dtype)
    size = 3 * classes * z.element_size()
    run("twkd", z, probabilities(3, classes, dtype=dtype), teacher, backend="cuda")
    assert rows(shim).choices[1]
    assert rows(shim).bytes == {"logits": steps * size, "gradient": steps * size, "other": size,
                                "probabilities": size, "parts": 48}  # fmt: skip
    run("tser", z, y, teacher, backend="cuda")
    assert rows(shim).bytes["logits"] == rows(shim).bytes["gradient"] == steps * size
    assert shim.names == 2 * ["stepwise_rows", "finish_loss", "scale_gradient"]
    loss = tssd_loss(z, y, w.requires_grad_(), student_steps=1, backend="cuda")
    each = [rows(shim).bytes[name] for name in ("logits", "other", "aux_gradient")]
    assert each == 3 * [steps * size] and "gradient" not in rows(shim).bytes
    loss.backward()
    assert shim.names[6:] == ["tssd_rows", "finish_loss", "scale_gradient"]
    for function, other, how in ((twkd_loss, teacher, {}), (tssd_loss, w, {"student_steps": 1})):
        function(z, y, other.detach(), backend="cuda", **how)
        assert not rows(shim).bytes.keys() & {"gradient", "aux_gradient"}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_threads_does_not_matter(shim, request, loss, resident):
    """No barrier is missing: the last warp and the last thread first give the same bits."""
    if not resident:
        request.getfixturevalue("streaming")
    z, y, teacher, w = inputs(3, 3, 600)
    found = []
    for backwards in (0, 1):
        shim.library.shim_backwards(backwards)
        try:
            result = run(loss, z, y, w if "tssd" in loss else teacher, backend="cuda")
        finally:
            shim.library.shim_backwards(0)
        found.append([result.loss, *result.gradients.values()])
    assert all(map(torch.equal, *found))


def test_rows_keep_vectors_of_their_own(shim, streaming, monkeypatch):
    """The workspace of streamed rows: blocks that run at once share none of it."""
    kept, run = [], backend._Rows.run
    monkeypatch.setattr(
        backend._Rows, "run", lambda rows, *args: (kept.append(rows.kept), run(rows, *args))
    )
    z, y, teacher, w = inputs(4, 5, 70)
    twkd_loss(z, y, teacher, backend="cuda")
    torch.testing.assert_close(kept[0], z.mean(0)[:, None])
    tssd_loss(z, y, w, student_steps=2, aux_per_step=False, backend="cuda")
    means = torch.stack([z.mean(0), z[:2].mean(0), w.mean(0)], 1)
    torch.testing.assert_close(kept[1], means)


def test_many_rows_add_up(shim):
    """The finish: 4099 rows, some of which do not count."""
    check(HOST, loss="twkd", shape=(1, 4099, 2), ignored=586, other=None, alpha=0.0, beta=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale(shim, dtype):
    """16 bytes at a time, and the rest; in fp32, rounded once."""
    for n in (1, 7, 8, 4096, 5003):
        storage = torch.randn(n + 1).to(dtype)
        for gradient in (storage[:n], storage[1:]):
            factor, unit = torch.tensor(65536.0), torch.tensor(1 / 3000)
            scaled = torch.full((n,), math.nan, dtype=dtype)
            backend.scale_gradient(gradient, factor, unit, scaled)
            want = (gradient.float() * (factor * unit)).to(dtype)
            assert torch.equal(scaled, want)


def test_a_failed_launch_raises(shim):
    z, y, _, _ = inputs(2, 2, 4)
    shim.allows = False
    with pytest.raises(RuntimeError, match="distill: the CUDA launch failed: an illegal memory"):
        twkd_loss(z, y, alpha=0.0, backend="cuda")
    with pytest.raises(RuntimeError, match="distill: the CUDA launch failed: an illegal memory"):
        backend.scale_gradient(z, torch.tensor(1.0), torch.tensor(1.0), torch.empty_like(z))


def test_the_shim_notices_threads_that_part(shim):
    assert shim.library.shim_notices_divergence()


@pytest.mark.parametrize("resident", [True, False])
def test_compiled_at_first_use(shim, request, resident, monkeypatch):
    """Without snnfast._cuda: one kernel an objective, dtype and layout by NVRTC."""
    if not resident:
        request.getfixturevalue("streaming")
    built = _cuda_host.without_module(shim, monkeypatch)
    for dtype in ("float32", "bfloat16"):
        for classes in (10, 33):
            for loss in ("twkd", "tser", "tssd"):
                check(HOST, loss=loss, shape=(4, 3, classes), dtype=dtype)
    assert len(built) == 1 + 2 * 3  # finish; two objectives and the scaling a dtype
