"""The criteria as modules, and what distillation is judged by. The losses: ops/test_distill.py."""

import math

import pytest
import torch
from distill_cases import problem

from snnfast import distill, tser_loss, tssd_loss, twkd_loss

T = 5


@pytest.mark.parametrize("name", ["TWKD", "TSER", "TSSD"])
def test_modules_are_their_functions(name):
    z, y, teacher, w = problem()
    function = {"TWKD": twkd_loss, "TSER": tser_loss, "TSSD": tssd_loss}[name]
    options = {"alpha": 0.4, "temperature": 2.5, "label_smoothing": 0.1}
    if name == "TSSD":
        options |= {"student_steps": 2, "ce_steps": "both"}
    criterion = getattr(distill, name)(**options)
    other = w if name == "TSSD" else teacher
    assert criterion(z, y, other) == function(z, y, other, **options)
    loss, terms = criterion(z, y, other, return_terms=True)
    assert loss == function(z, y, other, **options) and len(terms) == 3
    assert "temperature=2.5" in repr(criterion)
    criterion.alpha = 0.0
    assert criterion(z, y, other) != loss
    with pytest.raises(TypeError, match="gamma"):
        getattr(distill, name)(**options, gamma=1.0)


def test_defaults_are_the_papers():
    assert (distill.TWKD().alpha, distill.TWKD().beta, distill.TWKD().temperature) == (
        0.2,
        0.5,
        3.0,
    )
    assert (distill.TSER().alpha, distill.TSER().lam, distill.TSER().temperature) == (
        0.2,
        0.05,
        4.0,
    )
    module = distill.TSSD(student_steps=2)
    assert (module.alpha, module.beta, module.temperature) == (1.0, 1.0, 2.0)
    assert not module.scale_by_temperature and module.ce_steps == "all" and module.aux_per_step
    with pytest.raises(TypeError, match="student_steps"):
        distill.TSSD()


def test_criteria_name_an_unknown_argument():
    with pytest.raises(TypeError, match=r"^TWKD: got an unexpected keyword argument 'tau'"):
        distill.TWKD(tau=2.0)
    with pytest.raises(TypeError, match=r"^TSSD: missing a required .*'student_steps'"):
        distill.TSSD()


def test_full_range_is_the_accuracy_of_every_prefix():
    z, y, _, _ = problem(seed=4)
    z = z.detach()
    expected = [(z[:k].mean(0).argmax(-1) == y).double().mean().item() for k in range(1, T + 1)]
    assert distill.full_range(z, y).tolist() == expected
    assert len(set(expected)) > 1
    with pytest.raises(ValueError, match=r"full_range: logits must be \[T, B, C\]"):
        distill.full_range(z[0], y)
    with pytest.raises(ValueError, match=r"full_range: target must have shape \(7,\)"):
        distill.full_range(z, y[:3])
    with pytest.raises(TypeError, match="full_range: target must be int64"):
        distill.full_range(z, y.float())


def test_anytime_stops_at_the_first_confident_step():
    z = problem(steps=6, batch=50, scale=1.0)[0].detach()
    for threshold in (0.0, 0.3, 0.6, 0.9, 1.0):
        prediction, steps = distill.anytime(z, threshold)
        for b in range(50):
            for k in range(1, 7):
                q = torch.softmax(z[:k, b].mean(0), -1)
                if q.max() >= threshold or k == 6:
                    break
            assert (int(steps[b]), int(prediction[b])) == (k, int(q.argmax()))
    assert prediction.dtype == steps.dtype == torch.int64
    assert 1 < distill.anytime(z, 0.6)[1].double().mean() < 6
    assert distill.anytime(z, 0.0)[1].eq(1).all() and distill.anytime(z, 1.0)[1].eq(6).all()
    for threshold, error in ((1.5, ValueError), (math.nan, ValueError), ("high", TypeError)):
        with pytest.raises(error, match="anytime: threshold must be"):
            distill.anytime(z, threshold)
    with pytest.raises(ValueError, match=r"anytime: logits must be \[T, B, C\]"):
        distill.anytime(z[0], 0.5)
