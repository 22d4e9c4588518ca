"""The distillation objectives against closed forms and loops, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from snnfast.distill import TWKD, full_range
from snnfast.reference_distill import twkd_loss

EXACT = {"rtol": 1e-12, "atol": 1e-12}
T, B, C = 5, 7, 6


def problem(steps=T, seed=0):
    """Logits [T, B, C] that require grad, labels [B] and teacher logits [B, C], float64."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(steps, B, C, generator=g, dtype=torch.float64)
    target = torch.randint(0, C, (B,), generator=g)
    teacher = 3 * torch.randn(B, C, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), target, teacher


def jensen_gap(z, temperature):
    """tau^2 mean_B [ mean_t LSE(z_t / tau) - LSE(zbar / tau) ], gradient through zbar, too."""
    per_step = torch.logsumexp(z / temperature, -1).mean(0)
    return temperature**2 * (per_step - torch.logsumexp(z.mean(0) / temperature, -1)).mean()


def classic_kl(teacher, student, temperature):
    """tau^2 KL(teacher || student) of [B, C] logits, as Hinton et al. have it."""
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


def value_and_gradient(loss, z):
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.detach(), gradient


def assert_same(one, other, z):
    for ours, theirs in zip(value_and_gradient(one, z), value_and_gradient(other, z), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_identities_of_each_term(temperature):
    """Each temporal-wise term is its classical form on the mean logits plus a Jensen gap."""
    z, y, teacher = problem()

    def loss(alpha, beta, taught):
        return twkd_loss(z, y, taught, alpha=alpha, beta=beta, temperature=temperature)

    mean = z.mean(0)
    ce = F.cross_entropy(mean, y) + jensen_gap(z, 1.0)
    assert_same(loss(0, 0, teacher), ce, z)
    ce = F.cross_entropy(mean, y) + jensen_gap(z, 1.0)
    kl = classic_kl(teacher, mean, temperature) + jensen_gap(z, temperature)
    assert_same(loss(1, 0, teacher), ce + kl, z)
    ce = F.cross_entropy(mean, y) + jensen_gap(z, 1.0)
    # Autograd runs through zbar on the right and not on the left: detaching changes nothing.
    assert_same(loss(0, 1, None), ce + jensen_gap(z, temperature), z)


def test_jensen_identity_of_the_whole_loss():
    z, y, teacher = problem(seed=1)
    alpha, beta, tau = 0.2, 0.5, 3.0
    mean = z.mean(0)
    right = F.cross_entropy(mean, y) + alpha * classic_kl(teacher, mean, tau)
    right = right + jensen_gap(z, 1.0) + (alpha + beta) * jensen_gap(z, tau)
    assert_same(twkd_loss(z, y, teacher), right, z)


def test_one_step_is_classical_distillation():
    z, y, teacher = problem(steps=1)
    right = F.cross_entropy(z[0], y) + 0.2 * classic_kl(teacher, z[0], 3.0)
    assert_same(twkd_loss(z, y, teacher, beta=9.0), right, z)


def loop_loss(z, y, teacher, alpha, beta, tau, scale):
    """TWKD with self_target="correct", row by row and step by step."""
    total = 0.0
    steps, batch, classes = z.shape
    for b in range(batch):
        right = [z[t, b].detach() for t in range(steps) if int(z[t, b].argmax()) == int(y[b])]
        own = sum(right) / len(right) if right else torch.zeros(classes, dtype=z.dtype)
        for t in range(steps):
            log_q = torch.log_softmax(z[t, b] / tau, -1)
            total = total - torch.log_softmax(z[t, b], -1)[y[b]]
            for weight, logits in ((alpha, teacher[b]), (beta, own)):
                p = torch.softmax(logits / tau, -1)
                total = total + weight * scale * (p * (p.log() - log_q)).sum()
    return total / (steps * batch)


@pytest.mark.parametrize("scaled", [True, False])
def test_self_target_of_right_steps(scaled):
    z, y, teacher = problem(seed=2)
    with torch.no_grad():
        z[1, 0, y[0]] = z[3, 0, y[0]] = 20.0  # right at two of the steps
        z[:, 1, y[1]] = 20.0  # right at all
        z[:, 2, y[2]] = -20.0  # right at none: a uniform target
    right = (z.argmax(-1) == y).sum(0)
    assert right[1] == T and right[2] == 0 and 2 <= right[0] < T
    loss = twkd_loss(
        z,
        y,
        teacher,
        alpha=0.3,
        beta=0.7,
        temperature=2.0,
        self_target="correct",
        scale_by_temperature=scaled,
    )
    assert_same(loss, loop_loss(z, y, teacher, 0.3, 0.7, 2.0, 4.0 if scaled else 1.0), z)


def test_rows_without_a_right_step_are_drawn_to_the_uniform_distribution():
    """Identity: KL(uniform || q) = mean over classes of -ln q, less ln C."""
    z, y, _ = problem(seed=3)
    with torch.no_grad():
        z.scatter_(2, y.expand(T, B).unsqueeze(-1), -20.0)
    _, terms = twkd_loss(z, y, self_target="correct", temperature=2.0, return_terms=True)
    expected = 4.0 * (-F.log_softmax(z / 2.0, -1).mean(-1) - math.log(C)).mean()
    torch.testing.assert_close(terms["self"], expected.detach(), **EXACT)


@pytest.mark.parametrize("self_target", ["mean", "correct"])
def test_terms_add_up_and_are_detached(self_target):
    z, y, teacher = problem()
    loss, terms = twkd_loss(
        z, y, teacher, alpha=0.3, beta=0.7, self_target=self_target, return_terms=True
    )
    assert list(terms) == ["ce", "kl", "self"]
    assert not any(term.requires_grad for term in terms.values())
    assert all(term > 0 for term in terms.values())
    total = terms["ce"] + 0.3 * terms["kl"] + 0.7 * terms["self"]
    torch.testing.assert_close(loss.detach(), total, **EXACT)


def test_teacher_gets_no_gradient_and_may_be_missing():
    z, y, teacher = problem()
    teacher.requires_grad_()
    twkd_loss(z, y, teacher).backward()
    assert teacher.grad is None
    _, terms = twkd_loss(z, y, return_terms=True)
    assert terms["kl"] == 0


def test_temperature_squared_is_optional():
    z, y, teacher = problem()
    _, scaled = twkd_loss(z, y, teacher, return_terms=True)
    _, plain = twkd_loss(z, y, teacher, scale_by_temperature=False, return_terms=True)
    for name, factor in (("ce", 1), ("kl", 9), ("self", 9)):
        torch.testing.assert_close(scaled[name], factor * plain[name], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    z, y, teacher = problem()
    low = z.detach().to(dtype).requires_grad_()
    loss = twkd_loss(low, y, teacher.to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == dtype
    exact = twkd_loss(low.detach().double(), y, teacher.to(dtype).double())
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-6, atol=0)


def test_module_is_the_function():
    z, y, teacher = problem()
    options = {
        "alpha": 0.4,
        "beta": 0.6,
        "temperature": 2.0,
        "self_target": "correct",
        "scale_by_temperature": False,
    }
    criterion = TWKD(**options)
    assert criterion(z, y, teacher) == twkd_loss(z, y, teacher, **options)
    loss, terms = criterion(z, y, teacher, return_terms=True)
    assert loss == twkd_loss(z, y, teacher, **options) and set(terms) == {"ce", "kl", "self"}
    assert "self_target='correct'" in repr(criterion)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4).long()}, TypeError, "logits must be floating point"),
        ({"logits": torch.zeros(3, 4)}, ValueError, r"logits must be \[T, B, C\].*\[3, 4\]"),
        ({"logits": torch.zeros(0, 3, 4)}, ValueError, r"logits must be \[T, B, C\]"),
        ({"target": torch.zeros(3)}, TypeError, "target must be int64"),
        ({"target": torch.zeros(2).long()}, ValueError, r"target must be \[3\], got \[2\]"),
        ({"teacher_logits": torch.zeros(3, 5)}, ValueError, r"teacher_logits must be \[3, 4\]"),
        ({"teacher_logits": torch.zeros(3, 4).long()}, TypeError, "teacher_logits must be float"),
        ({"alpha": math.nan}, ValueError, "alpha must be finite"),
        ({"beta": math.inf}, ValueError, "beta must be finite"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0"),
        ({"self_target": "median"}, ValueError, "self_target must be one of mean, correct"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"logits": torch.zeros(2, 3, 4), "target": torch.zeros(3).long()} | change
    with pytest.raises(error, match=f"twkd_loss: {message}"):
        twkd_loss(**arguments)


def test_full_range_is_the_accuracy_of_every_prefix():
    z, y, _ = problem(seed=4)
    expected = [(z[:k].mean(0).argmax(-1) == y).double().mean().item() for k in range(1, T + 1)]
    assert full_range(z.detach(), y).tolist() == expected
    assert len(set(expected)) > 1
    with pytest.raises(ValueError, match=r"full_range: logits must be \[T, B, C\]"):
        full_range(z[0].detach(), y)
    with pytest.raises(ValueError, match=r"full_range: target must be \[7\]"):
        full_range(z.detach(), y[:3])
