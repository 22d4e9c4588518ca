"""Every argument of every public function, replaced by what it cannot be: refused by name."""

import inspect

import pytest
import torch

import snnfast
from snnfast import distill

X = torch.randn(4, 3, 5)
LABELS = torch.zeros(3).long()
ROWS = {name: torch.ones(5) for name in ("weight", "bias", "running_mean", "running_var")}
CALLS = {
    snnfast.lif: {"x": X, "v0": torch.zeros(3, 5)},
    snnfast.norm_lif: {"y": X, "residual": X, "training": False, **ROWS},
    snnfast.twkd_loss: {"logits": X, "target": LABELS, "teacher_logits": X[0]},
    snnfast.tser_loss: {"logits": X, "target": LABELS, "teacher_logits": X[0]},
    snnfast.tssd_loss: {"logits": X, "target": LABELS, "aux_logits": X, "student_steps": 2},
    snnfast.mean_cross_entropy: {"logits": X, "target": LABELS},
    snnfast.temporal_cross_entropy: {"logits": X, "target": LABELS},
    snnfast.pack_spikes: {"s": X},
    snnfast.unpack_spikes: {"bits": torch.ones(2).byte(), "shape": [16], "dtype": torch.float32},
    distill.full_range: {"logits": X, "target": LABELS},
    distill.anytime: {"logits": X, "threshold": 0.5},
}
WRONG = {
    "None": None,
    "a text": "x",
    "a list": [1, 2],
    "a number": 3.5,
    "an int": -7,
    "a flag": True,
    "an object": object(),
    "NaN": float("nan"),
    "huge": 1e300,
    "ints": torch.ones(2, 2).int(),
    "nothing": torch.empty(0),
    "a scalar": torch.tensor(1.0),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.ones(4, 3, 5, device="meta"),
    "complex": torch.ones(4, 3, 5, dtype=torch.complex64),
}
CASES = [(f, name) for f in CALLS for name in inspect.signature(f).parameters]


@pytest.mark.parametrize("function, name", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_what_an_argument_cannot_be(function, name):
    for wrong in WRONG.values():
        for backend in ("cpu", "reference"):
            arguments = dict(CALLS[function])
            if "backend" in inspect.signature(function).parameters:
                arguments["backend"] = backend
            arguments[name] = wrong
            try:
                function(**arguments)
            except (TypeError, ValueError) as error:
                op = function.__name__
                op = {"mean_cross_entropy": "tssd_loss", "temporal_cross_entropy": "twkd_loss"}.get(
                    op, op
                )
                assert str(error).startswith(f"{op}: "), (wrong, backend, error)
