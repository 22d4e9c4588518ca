"""The distillation kernels under Triton's interpreter, on the CPU, held to the float64 reference.

TRITON_INTERPRET must be set before triton is imported, so one process is one mode: the tests start
this file once as a program, which runs every case through snnfast's public functions with
backend="triton" and prints one line of JSON for each; then every case is a test of its own.

The reference gets the same numbers, rounded to the logits' dtype, in float64. Loss, terms and
float32 gradients may be off by 1e-6 of their size (of their norm), half-precision gradients by two
roundings. Unwritten results stand out as NaN.
"""

import itertools
import json
import os
import subprocess
import sys
import traceback

import pytest
import torch

import snnfast
from snnfast.backends.triton import distill as backend

SHAPES = (
    (1, 1, 2), (1, 1, 1), (2, 5, 3), (4, 9, 10), (3, 2, 33), (6, 2, 100), (4, 2, 1000),
    (8, 1, 100), (9, 2, 33), (17, 1, 10), (2, 1, 5000), (9, 1, 2100), (5, 1, 4096),
    (9, 1, 4100),
)  # fmt: skip
LOSSES = {
    "twkd": {},
    "twkd correct": {"self_target": "correct"},
    "tser": {},
    "tssd": {"student_steps": 1},
    "tssd means": {"student_steps": 1, "aux_per_step": False, "ce_steps": "both"},
}
OPTIONS = {
    "twkd": (
        {"alpha": 0.0, "beta": 2.0, "teacher": None},
        {"beta": 0.0, "temperature": 1.0, "scale_by_temperature": False},
        {"self_target": "correct", "skip_all_wrong": True, "all_wrong": True},
        {"self_target": "correct", "all_wrong": True},
        {"self_target": "correct", "target": "soft", "label_smoothing": 0.3},
        {"label_smoothing": 0.1, "ignored": 1},
    ),
    "tser": (
        {"convex": True, "alpha": 0.4, "ce_temperature": 2.0, "temperature": 3.0},
        {"convex": True, "alpha": 1.0, "entropy_temperature": 0.7},
        {"alpha": 0.0, "teacher": None, "lam": 1.5},
        {"ce_temperature": 4.0, "lam": 1.0},
        {"entropy_temperature": 1.0, "scale_by_temperature": False, "target": "soft"},
        {"label_smoothing": 1.0, "ignored": 1, "lam": 0.0},
    ),
    "tssd": (
        {"ce_steps": "student", "temperature": 1.0},
        {"ce_steps": "both", "scale_by_temperature": True, "label_smoothing": 0.2},
        {"alpha": 0.0, "beta": 0.0, "teacher": None},
        {"aux_per_step": False, "ignored": 1},
        {"target": "soft", "student_steps": 3, "ce_steps": "student"},
        {"aux_per_step": False, "temperature": 0.5, "target": "soft"},
    ),
}


def cases() -> dict[str, dict]:
    """Name -> arguments of ``check`` or of ``check_special``."""
    found = {}

    def add(loss, **case):
        name = " ".join((loss, *(f"{k}={v}" for k, v in case.items()))).replace("torch.", "")
        found[name] = {"loss": loss.split()[0], **LOSSES[loss], **case}

    dtypes = itertools.cycle((torch.bfloat16, torch.float16))
    for loss, shape in itertools.product(LOSSES, SHAPES):
        add(loss, shape=shape)
        if shape[2] in (10, 33):
            add(loss, shape=shape, dtype=next(dtypes))
    for loss, changes in OPTIONS.items():
        for shape in ((4, 4, 10), (9, 4, 20)):
            for change in changes:
                add(loss, shape=shape, **change)
        for change in (changes[2], changes[3], changes[4]):
            add(loss, shape=(2, 2, 4100), **change)
    for loss in LOSSES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            add(loss, shape=(4, 6, 12), dtype=dtype, teacher=torch.float16, target="soft half")
        for layout in ("batch first", "classes first", "padded", "static", "ties"):
            add(loss, shape=(4, 3, 12), layout=layout)
        add(loss, shape=(2, 1, 4100), layout="classes first")
        add(loss, shape=(2, 1, 4100), layout="ties")
        add(loss, shape=(4, 3, 100), scale=1e4)
        add(loss, shape=(2, 1, 4100), scale=1e4)
        long = ((9, 2, 10),) if loss in ("twkd", "tssd") else ()
        for shape in ((4, 3, 10), (1, 2, 4100), *long):
            add(loss, shape=shape, special="non-finite logits")
            add(loss, shape=shape, special="wrong label")
            add(loss, shape=shape, special="all ignored")
            add(loss, shape=shape, special="NaN in an ignored row")
    for shape in ((4, 6, 10), (9, 3, 33), (2, 1, 4100)):
        add("twkd", shape=shape, special="tser without entropy")
        add("tssd", shape=shape, special="all steps are the student's")
        add("twkd", shape=(1, *shape[1:]), special="its own teacher")
    for loss in LOSSES:
        add(loss, shape=(4, 70, 10), wide=True)
    add("twkd", shape=(100, 1, 3))
    add("tssd", shape=(100, 1, 3))
    add("twkd", shape=(1, 1, 21841))
    add("tssd", shape=(2, 1, 21841))
    for programs in (1, 129, 2500):
        found[f"finish {programs}"] = {"programs": programs}
    return found


TEMPERATURES = {"twkd": 3.0, "tser": 4.0, "tssd": 2.0}


def make_problem(shape, dtype, layout, scale, target, teacher, all_wrong, ignored, loss):
    """Logits, target, and teacher or auxiliary logits, for a public function."""
    generator = torch.Generator().manual_seed(sum(shape))
    steps, batch, classes = shape

    def normal(*sizes):
        return torch.randn(sizes, generator=generator) * 2 * scale

    def laid_out(dtype):
        if layout == "batch first":
            return normal(batch, steps, classes).to(dtype).transpose(0, 1)
        if layout == "classes first":
            return normal(classes, steps, batch).to(dtype).permute(1, 2, 0)
        if layout == "padded":
            return normal(steps, batch + 1, classes + 3).to(dtype)[:, 1:, 2:-1]
        if layout == "ties":
            return normal(*shape).round().clamp(-1, 1).to(dtype)
        if layout == "static":
            return normal(1, batch, classes).to(dtype).expand(shape)
        return normal(*shape).to(dtype)

    logits = laid_out(dtype)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    # Some steps are right: the label is the largest class of the first.
    labels[::2] = logits[0, ::2].float().argmax(-1)
    if all_wrong:
        labels[0] = (logits[:, 0].float().sum(0)).argmin()
    labels[:ignored] = -100
    if target is not None:
        # Need not add up to 1.
        labels = torch.rand(batch, classes, generator=generator).softmax(-1)
        labels = labels * torch.linspace(0.5, 1.5, batch)[:, None]
        labels = labels.half() if target == "soft half" else labels
    if teacher is None:
        other = None
    elif loss == "tssd":
        other = laid_out(dtype)
    else:
        other = normal(batch, classes).to(teacher)
    return logits, labels, other


def run(loss, logits, target, other, backend, options):
    """Loss, terms, and gradients of logits and of auxiliary logits."""
    function = getattr(snnfast, f"{loss}_loss")
    leaves = [logits.detach().requires_grad_()]
    if loss == "tssd" and other is not None:
        other = other.detach().requires_grad_()
        leaves.append(other)
    value, terms = function(
        leaves[0], target, other, return_terms=True, backend=backend, **options
    )  # fmt: skip
    return value.detach(), terms, torch.autograd.grad(value, leaves)


def check(
    loss, shape, dtype=torch.float32, layout=None, scale=1.0, target=None,
    teacher=torch.float32, all_wrong=False, ignored=0, wide=False, **options,
):  # fmt: skip
    """One loss, forward and backward, against the reference in float64. ``wide``: with the tiles of
    a large batch."""
    backend.tile.cache_clear()
    backend._MANY = 0 if wide else 2**18
    problem = make_problem(shape, dtype, layout, scale, target, teacher, all_wrong, ignored, loss)
    logits, labels, other = problem
    if loss == "tssd":
        options["student_steps"] = min(options.get("student_steps", 2), shape[0])
    value, terms, gradients = run(loss, logits, labels, other, "triton", options)
    exact, exact_terms, exact_gradients = run(loss, *map(double, problem), "reference", options)
    # A KL is a difference of logarithms, each off by a rounding, times the temperature squared.
    size = sum(term.abs() for term in exact_terms.values())
    bound = 1e-6 * size + torch.finfo(torch.float32).eps * TEMPERATURES[loss] ** 2
    assert value.dtype == torch.float32 and terms.keys() == exact_terms.keys()
    for ours, theirs in [(value, exact), *((terms[name], exact_terms[name]) for name in terms)]:
        assert (ours - theirs).abs() <= bound, f"{ours.item()} is not {theirs.item()}"
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        error = (ours - theirs).abs()
        if dtype == torch.float32:
            assert error.norm() <= 1e-6 * theirs.norm()
        else:
            # Rounded when kept and when scaled: each half an eps, or half of the least number. The
            # interpreter cuts bfloat16 off instead: twice that.
            info = torch.finfo(dtype)
            eps = 2 * info.eps if dtype == torch.bfloat16 else info.eps
            bound = eps * (1 + eps) * theirs.abs() + info.smallest_normal * info.eps
            assert (error <= bound + 1e-6 * theirs.abs().max()).all()


def double(tensor):
    floating = tensor is not None and tensor.is_floating_point()
    return tensor.double() if floating else tensor


def check_special(loss, shape, special, **options):
    """What is no number, or holds to the last bit."""
    logits, labels, other = make_problem(
        shape, torch.float32, None, 1.0, None, torch.float32, False, 0, loss
    )
    steps = shape[0]
    if special == "non-finite logits":
        for bad in (float("nan"), float("inf"), -float("inf")):
            for t in {0, steps - 1} if loss != "tssd" or bad != bad else (0,):
                broken = logits.clone()
                broken[t, -1, 1] = bad
                value, _, _ = run(loss, broken, labels, other, "triton", options)
                assert not value.isfinite(), f"{bad} at step {t}"
    elif special == "wrong label":
        for wrong in (-1, shape[2], 2**40) if shape[2] == 10 else (shape[2],):
            broken = labels.clone()
            broken[-1] = wrong
            value, _, gradients = run(loss, logits, broken, other, "triton", options)
            assert value.isnan()
            assert gradients[0][:, -1].isnan().all() and gradients[0][:, :-1].isfinite().all()
    elif special == "all ignored":
        ignored = torch.full_like(labels, -100)
        value, terms, gradients = run(loss, logits, ignored, other, "triton", options)
        assert value.isnan() and all(term.isnan() for term in terms.values())
        assert all((gradient == 0).all() for gradient in gradients)
    elif special == "NaN in an ignored row":
        labels[0] = -100
        value, _, gradients = run(loss, logits, labels, other, "triton", options)
        logits[:, 0], other[..., 0, :] = float("nan"), float("nan")
        same, _, others = run(loss, logits, labels, other, "triton", options)
        assert torch.equal(value, same)
        assert all(map(torch.equal, gradients, others)) and (others[0][:, 0] == 0).all()
    elif special == "tser without entropy":
        taught = {"alpha": 0.3, "temperature": 2.0}
        one = run("twkd", logits, labels, other, "triton", taught | {"beta": 0.0})
        two = run("tser", logits, labels, other, "triton", taught | {"lam": 0.0})
        assert torch.equal(one[0], two[0]) and torch.equal(one[2][0], two[2][0])
    elif special == "all steps are the student's":
        options |= {"student_steps": steps, "alpha": 3.0}
        _, terms, gradients = run(loss, logits, labels, other, "triton", options)
        assert terms["temporal"] == 0
        _, _, without = run(loss, logits, labels, other, "triton", options | {"alpha": 0.0})
        assert torch.equal(gradients[0], without[0])
    elif special == "its own teacher":
        _, terms, gradients = run(loss, logits, labels, logits[0], "triton", options)
        assert terms["kl"] == 0 and terms["self"] == 0
        none = options | {"alpha": 0.0, "beta": 0.0}
        _, _, without = run(loss, logits, labels, None, "triton", none)
        assert torch.equal(gradients[0], without[0])


def check_finish(programs):
    """The last kernel alone: four terms, one without weight and NaN."""
    torch.manual_seed(0)
    parts = torch.rand(programs, 8, dtype=torch.float64)
    parts[:, 4] = torch.randint(0, 64, (programs,))
    parts[0, 4] = 2.0**24
    parts[0, 2] = float("nan")
    loss, terms, unit = torch.empty(()), torch.empty(4), torch.empty(())
    weights = (1.0, 0.5, 0.0, -2.0)
    call = backend.finish_call(
        parts.float(), loss, terms, unit, (1.0, 9.0, 3.0, 0.5), weights, 0.25
    )
    call.launch(loss.device)
    n = parts[:, 4].sum()
    exact = parts.sum(0)[:4] * torch.tensor([1.0, 9.0, 3.0, 0.5]) * torch.tensor(2.0).log() / n
    torch.testing.assert_close(terms, exact.float(), rtol=1e-6, atol=0, equal_nan=True)
    wanted = exact[0] + 0.5 * exact[1] - 2 * exact[3]
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(unit, (0.25 / n).float(), rtol=3e-7, atol=0)


@pytest.fixture(scope="module")
def outcomes():
    """Name -> None, or the traceback of the case."""
    done = subprocess.run(
        [sys.executable, __file__],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", cases())
def test_interpreted(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


def poison(make):
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return made


def main():
    torch.set_num_threads(1)
    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, poison(getattr(torch, name)))
    for name, case in cases().items():
        try:
            if "programs" in case:
                check_finish(**case)
            else:
                (check_special if "special" in case else check)(**case)
            error = None
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([name, error]))


if __name__ == "__main__":
    main()
