"""What PyTorch and its users meet of the distillation losses: registration, compilation, memory,
refusals. What they compute: test_distill.py."""

import math

import pytest
import torch
from distill_cases import problem

from snnfast import distill, tser_loss, tssd_loss, twkd_loss
from snnfast.ops.distill import _tssd_options, _twkd_options

BACKENDS = ("reference", "cpu")
CALLS = {"twkd_loss": twkd_loss, "tser_loss": tser_loss, "tssd_loss": tssd_loss}


def losses(z, y, teacher, w, **options):
    """One loss of each kind."""
    yield twkd_loss(z, y, teacher, **options)
    yield twkd_loss(z, y, teacher, self_target="correct", temperature=2.7, **options)
    yield tser_loss(z, y, teacher, entropy_temperature=1.5, **options)
    yield tssd_loss(z, y, w, student_steps=max(1, len(z) // 2), ce_steps="both", **options)
    yield tssd_loss(z, y, w, student_steps=1, aux_per_step=False, **options)


def assert_same(one, other, *inputs):
    """Values and gradients."""
    for a, b in zip(*((x, *torch.autograd.grad(x, inputs)) for x in (one, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.unpoisoned
def test_opcheck():
    z, y, teacher, w = problem(dtype=torch.float32)
    z, w = z.detach(), w.detach()
    op = torch.library.opcheck
    loss = _twkd_options(0.2, 0.5, 3.0, "mean", True, False, 0.0, -100, True)
    options = ("twkd_loss", *loss.pack())
    stepwise_op = torch.ops.snnfast.stepwise_loss.default
    op(stepwise_op, (z, y, teacher.float(), *options, True, "cpu"))
    op(stepwise_op, (z, y, teacher.float(), *options, False, "cpu"))
    loss = _tssd_options(1.0, 1.0, 2.0, "all", True, False, 0.0, -100, True)
    options = ("tssd_loss", 2, *loss.pack())
    op(torch.ops.snnfast.tssd_loss.default, (z, y, w, *options, True, True, "cpu"))
    unit = torch.ones(())
    op(torch.ops.snnfast.scale_gradient.default, (z, unit, unit, "cpu"))


@pytest.mark.unpoisoned
@pytest.mark.parametrize("kind", range(5))
def test_compiles_without_a_graph_break(kind):
    def f(z, y, teacher, w):
        return list(losses(z, y, teacher, w, label_smoothing=0.1))[kind]

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 9, 6), (5, 7, 12)):
        z, y, teacher, w = problem(*shape, dtype=torch.float32)
        inputs = (z, y, teacher.float(), w)
        wanted = (z, w) if kind > 2 else (z,)
        assert_same(compiled(*inputs), f(*inputs), *wanted)


@pytest.mark.unpoisoned
def test_weights_may_be_inputs_of_a_compiled_function():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(z, y, teacher, alpha, tau):
        return twkd_loss(z, y, teacher, alpha=alpha, temperature=tau)

    z, y, teacher, _ = problem()
    for alpha, tau in ((0.2, 3.0), (0.3, 2.5), (0.7, 1.25)):
        expected = twkd_loss(z, y, teacher, alpha=alpha, temperature=tau)
        assert_same(f(z, y, teacher, alpha, tau), expected, z)


@pytest.mark.unpoisoned
def test_two_op_calls_and_one_gradient_are_all():
    """Registered calls, and bytes kept per float32 logit, whatever T."""
    from torch.profiler import ProfilerActivity, profile

    for steps in (1, 4, 40):
        z, y, teacher, _ = problem(steps, 64, 100, dtype=torch.float32)
        saved = []

        def pack(tensor, saved=saved):
            saved.append(tensor.numel() * tensor.element_size())
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with profile(activities=[ProfilerActivity.CPU]) as run, hooks:
            twkd_loss(z, y, teacher.float()).backward()
        calls = [e.name for e in run.events() if e.name.startswith("snnfast::")]
        assert calls == ["snnfast::stepwise_loss", "snnfast::scale_gradient"]
        assert sum(saved) <= 4 * z.numel() + 8


BAD = [
    ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
    ({"logits": torch.zeros(2, 3, 4).long()}, TypeError, "logits must be float32.*got int64"),
    ({"logits": torch.zeros(3, 4)}, ValueError, r"logits must be \[T, B, C\].*\(3, 4\)"),
    ({"logits": torch.zeros(0, 3, 4)}, ValueError, r"logits must be \[T, B, C\], none of them 0"),
    (
        {"logits": torch.zeros(2, 0, 4), "target": torch.zeros(0).long()},
        ValueError,
        r"logits must be \[T, B, C\]",
    ),
    ({"target": [0, 1, 2]}, TypeError, "target must be a tensor"),
    ({"target": torch.zeros(3).int()}, TypeError, "target must be int64 labels or.*got int32"),
    ({"target": torch.zeros(3)}, ValueError, r"target must have shape \(3, 4\)"),
    ({"target": torch.zeros(2).long()}, ValueError, r"target must have shape \(3,\), got \(2,\)"),
    ({"target": torch.tensor([0, 4, 0])}, ValueError, r"target must be in 0..3 or ignore_index.*4"),
    ({"target": torch.tensor([0, -1, 0])}, ValueError, "target must be in 0..3.*got -1"),
    ({"target": torch.zeros(3, 4, requires_grad=True)}, ValueError, "target must not require grad"),
    ({"target": torch.zeros(3, 4), "ignore_index": 1}, ValueError, "ignore_index must be negative"),
    ({"alpha": -0.1}, ValueError, "alpha must be >= 0, got -0.1"),
    ({"alpha": math.nan}, ValueError, "alpha must be finite"),
    ({"alpha": "1"}, TypeError, "alpha must be a number, got str"),
    ({"alpha": torch.tensor(1.0)}, TypeError, "alpha must be a number, got a float32 tensor"),
    ({"temperature": 0.0}, ValueError, "temperature must be > 0"),
    ({"temperature": math.inf}, ValueError, "temperature must be finite"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing must be in 0..1"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an int"),
    ({"return_terms": 1}, TypeError, "return_terms must be True or False"),
    ({"scale_by_temperature": None}, TypeError, "scale_by_temperature must be True or False"),
    ({"backend": "cuda"}, ValueError, "backend 'cuda' cannot be used"),
]
TWKD_BAD = [
    ({"other": torch.zeros(3, 5)}, ValueError, r"teacher_logits must have shape \(3, 4\)"),
    ({"other": torch.zeros(3, 4).long()}, TypeError, "teacher_logits must be float32"),
    ({"other": torch.zeros(3, 4).double()}, TypeError, "teacher_logits must be.*got float64"),
    ({"beta": -1}, ValueError, "beta must be >= 0"),
    ({"self_target": "median"}, ValueError, "self_target must be one of mean, correct"),
    ({"skip_all_wrong": 0}, TypeError, "skip_all_wrong must be True or False"),
]
TSER_BAD = [
    ({"other": None}, ValueError, "teacher_logits must be given"),
    ({"lam": -1.0}, ValueError, "lam must be >= 0"),
    ({"ce_temperature": -1.0}, ValueError, "ce_temperature must be > 0"),
    ({"entropy_temperature": 0}, ValueError, "entropy_temperature must be > 0"),
    ({"convex": True, "alpha": 1.5}, ValueError, "alpha must be <= 1 where convex"),
]
TSSD_BAD = [
    ({"other": torch.zeros(3, 3, 4)}, ValueError, r"aux_logits must have shape \(2, 3, 4\)"),
    ({"other": torch.zeros(2, 3, 4).half()}, TypeError, "aux_logits must be float32 as the logits"),
    ({"student_steps": 0}, ValueError, "student_steps must be >= 1, got 0"),
    ({"student_steps": 3}, ValueError, "student_steps must be in 1..T = 2, got 3"),
    ({"student_steps": 1.0}, TypeError, "student_steps must be an int"),
    ({"ce_steps": "most"}, ValueError, "ce_steps must be one of all, student, both"),
    ({"aux_per_step": 1}, TypeError, "aux_per_step must be True or False"),
]
REFUSED = [
    (name, *bad)
    for name, own in (("twkd_loss", TWKD_BAD), ("tser_loss", TSER_BAD), ("tssd_loss", TSSD_BAD))
    for bad in [*BAD, *own]
]


refused = pytest.mark.parametrize(("name", "change", "error", "message"), REFUSED)


@refused
def test_bad_arguments_are_refused(name, change, error, message):
    other = torch.zeros(2, 3, 4) if name == "tssd_loss" else torch.zeros(3, 4)
    arguments = {"logits": torch.zeros(2, 3, 4), "target": torch.zeros(3).long(), "other": other}
    arguments |= {"student_steps": 1} if name == "tssd_loss" else {}
    arguments |= change
    positional = [arguments.pop(key) for key in ("logits", "target", "other")]
    for asked in [change["backend"]] if "backend" in change else BACKENDS:
        with pytest.raises(error, match=f"{name}: {message}"):
            CALLS[name](*positional, **{**arguments, "backend": asked})


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        bad
        for bad in REFUSED
        if not bad[1].keys() & {"logits", "target", "other"}
        and bad[1] not in ({"backend": "cuda"}, {"student_steps": 3})
    ]
    + [(name, {"backend": "cupy"}, ValueError, "backend must be one of auto") for name in CALLS]
    + [("twkd_loss", {"self_target": []}, ValueError, "self_target must be one of mean, correct")],
)
def test_criteria_refuse_them_at_construction(name, change, error, message):
    arguments = {"student_steps": 1} if name == "tssd_loss" else {}
    with pytest.raises(error, match=f"{name}: {message}"):
        getattr(distill, name.removesuffix("_loss").upper())(**arguments | change)


def test_other_logits_must_be_there_for_their_weight():
    z, y, _, _ = problem()
    with pytest.raises(ValueError, match="twkd_loss: teacher_logits must be given"):
        twkd_loss(z, y)
    with pytest.raises(ValueError, match="tser_loss: teacher_logits must be given"):
        tser_loss(z, y)
    with pytest.raises(ValueError, match="tssd_loss: aux_logits must be given"):
        tssd_loss(z, y, student_steps=2)


def test_the_reference_is_differentiable_twice():
    z, y, teacher, _ = problem()
    loss = twkd_loss(z, y, teacher, backend="reference")
    assert torch.autograd.grad(loss, z, create_graph=True)[0].requires_grad


def test_batch_first_logits_are_refused_where_the_target_shows_it():
    z, y, _, _ = problem()
    assert z.shape[0] != z.shape[1]
    with pytest.raises(ValueError, match=r"logits are \[T, B, C\], time first"):
        twkd_loss(z.transpose(0, 1), y, alpha=0.0)
