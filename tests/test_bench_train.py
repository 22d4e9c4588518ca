"""The training benchmark runs, reports what it must, and shows no speed for another network."""

from functools import partial

import benchmark_run
import pytest
import report
import run
import torch
import train_case
import train_gate
import train_measure
import train_report
from train_case import Case, Contender, LoopLayers, LoopLIF, PeerResNet18, Training, loop, ours
from train_cases import one_thread
from train_gate import Gate

import snnfast
from snnfast.models import create_model
from snnfast.surrogate import Sigmoid

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
CONTENDERS = ["snnfast cpu", "SpikingJelly", "memopt level 1", "torch loop"]
PLANS = ["plan for little", "plan at memopt's peak"]


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Document, printed text and folder of one run."""
    return benchmark_run.start(
        "train",
        "--quick --rounds 2 --seconds 0.1",
        tmp_path_factory.mktemp("bench"),
        OMP_NUM_THREADS="1",
    )


def test_quick_run_measures_every_contender(quick):
    document = quick[0]
    benchmark_run.is_whole("train", quick)
    assert document["settings"]["parameters"] == 11_220_132
    rows = {row["contender"]: row for row in document["rows"]}
    assert list(rows) == [*CONTENDERS, *PLANS]
    for row in rows.values():
        assert row["refused"] is None and row["loss_error"] <= 1e-5
        assert 0 < row["p20_ms"] <= row["ms"] <= row["p80_ms"]
        assert row["images_per_s"] == pytest.approx(2000 / row["ms"])
        assert 0 < row["kept_bytes"] < row["peak_bytes"]
    assert rows[PLANS[0]]["kept_bytes"] < 0.3 * rows["snnfast cpu"]["kept_bytes"]
    assert rows[PLANS[1]]["peak_bytes"] <= rows["memopt level 1"]["peak_bytes"]
    expected = {name: rows[name]["ms"] / rows["snnfast cpu"]["ms"] for name in CONTENDERS[1:]}
    assert rows["snnfast cpu"]["speedup_over"] == pytest.approx(expected)
    (note,) = document["left_out"]
    assert note["contender"] == "torch.compile'd loop" and "--compile-seconds" in note["why"]


def test_kept_bytes_are_those_of_the_layers(quick):
    """Of 557,056 neurons of a 32x32 image's step, a 16th at 8x8: what batch norms read, and bits;
    the loop keeps four tensors for each, and SpikingJelly more."""
    rows = {row["contender"]: row for row in quick[0]["rows"]}
    neurons = 557_056 / 16 * 2 * 2  # images, steps
    # Inputs of the shortcuts' batch norms and what they add come on top, and few numbers else.
    assert 4 * neurons < rows["snnfast cpu"]["kept_bytes"] < 5.4 * neurons
    assert rows["torch loop"]["kept_bytes"] > 14 * neurons
    assert rows["SpikingJelly"]["kept_bytes"] > rows["torch loop"]["kept_bytes"]


def changed(**arguments):
    """Ours with another neuron."""
    found = ours("cpu")
    neuron = train_case.NEURON | arguments
    found.build = partial(create_model, "resnet18", num_classes=train_case.CLASSES, **neuron)
    return found


def another_loss(**arguments):
    found = ours("cpu")
    found.loss = partial(snnfast.twkd_loss, **(train_case.OBJECTIVE | arguments))
    return found


def weaker_shortcut():
    found = loop()

    def build():
        model = PeerResNet18(LoopLayers)
        shortcut = model.layer3[0].downsample
        shortcut.register_forward_hook(lambda module, args, y: 0.99 * y)
        return model

    found.build = build
    return found


@pytest.fixture(scope="module")
def gate():
    return Gate(Case(8, 2, 2, F32, CPU))


@pytest.mark.parametrize(
    ("contender", "why"),
    [
        (changed(v_threshold=1.001), "loss"),
        (changed(decay_input=True), "loss"),
        (changed(v_reset=None), "loss"),
        (changed(surrogate=Sigmoid(alpha=4.01)), "gradients off"),
        (changed(detach_reset=True), "gradients off"),
        (another_loss(alpha=0.201), "loss"),
        (weaker_shortcut(), "loss"),
    ],
)
def test_gate_refuses_another_network(contender, why, gate):
    verdict = gate.judge(Training(Case(8, 2, 2, F32, CPU), contender))
    assert verdict.refused.startswith(why), verdict


def test_gate_looks_at_the_whole_batch_as_well(gate):
    contender = loop()
    contender.loss = lambda z, *rest: (
        train_case.LOOP_LOSS(z, *rest) * (1.1 if z.shape[1] == 3 else 1.0)
    )
    verdict = gate.judge(Training(Case(8, 3, 2, F32, CPU), contender))
    assert verdict.refused.startswith("loss of the whole batch") and verdict.loss_error == 0


def test_half_precision_is_that_of_autocast():
    training, seen = Training(Case(8, 2, 1, BF16, CPU), ours("cpu")), []
    training.model.fc.register_forward_hook(lambda module, args, z: seen.append(z.dtype))
    assert training.step().isfinite() and seen == [BF16]
    assert all(p.dtype == p.grad.dtype == F32 for p in training.model.parameters())


def test_small_images_are_off_the_threshold():
    """What another reading of the same neurons finds."""
    model, seen = train_case.loop().build(), []
    case = train_gate.off_threshold(2, CPU)
    model.load_state_dict(case.weights)
    for m in model.modules():
        if isinstance(m, LoopLIF):
            m.register_forward_hook(lambda module, args, s: seen.append(args[0].detach()))
    model(case.images, 2)
    assert len(seen) == 17
    for x in seen:
        h = torch.stack([x[0], torch.where(x[0] >= 1, 0.0, x[0] / 2) + x[1]])
        assert (h - 1).abs().min() > train_gate.MARGIN / 2


def test_what_is_refused_has_no_numbers(monkeypatch):
    def fail():
        raise RuntimeError("no such network")

    bad = [changed(v_threshold=1.01), Contender("raises", "peer", fail, None)]
    bad[0].name = "wrong"
    monkeypatch.setattr(train_measure, "spikingjelly", lambda device: [*bad, "not installed"])
    monkeypatch.setattr(train_measure, "memopt", lambda device: [])
    bench = train_measure.Bench(CPU, ["cpu"], rounds=2, compile_s=0.0, seconds=0.1)
    rows = bench.run(8, 2, 2, F32)
    assert [bool(row["refused"]) for row in rows] == [False, True, True, False, False]
    for row in rows[1:3]:
        assert not {"ms", "images_per_s", "peak_bytes"} & row.keys()
    assert rows[2]["refused"] == "RuntimeError: no such network"
    assert train_report.case_table(rows).count("REFUSED") == 2
    assert bench.left_out[0]["why"] == "not installed"


def test_what_is_too_slow_is_not_timed(monkeypatch):
    monkeypatch.setattr(train_measure, "spikingjelly", lambda device: [])
    monkeypatch.setattr(train_measure, "memopt", lambda device: [])
    bench = train_measure.Bench(CPU, ["cpu"], 2, compile_s=9.0, seconds=0.1, step_seconds=0.0)
    rows = bench.run(8, 5, 2, F32)
    assert [row["batch"] for row in rows] == [2, 2, 2] and not any("ms" in row for row in rows)
    assert all(row["peak_bytes"] > 0 for row in rows)
    assert bench.run(8, 5, 2, F32) == []  # once is enough
    assert "--step-seconds" in bench.left_out[0]["why"]
    assert any(note["why"] == "nothing is timed here" for note in bench.left_out)
    bench.end = 0.0
    assert bench.run(8, 5, 1, F32) == [] and "--minutes" in bench.left_out[-1]["why"]


def row(contender, kind, **more):
    base = {"side": 32, "batch": 32, "dtype": "float32", "steps": 4}
    base |= {"refused": None, "loss": 5.0, "loss_error": 0.0}
    return base | {"contender": contender, "kind": kind} | more


def test_targets_and_losses_say_what_was_measured():
    rows = [
        row("snnfast cpu", "ours", ms=1.0, peak_bytes=30),
        row("SpikingJelly", "peer", ms=1.2, peak_bytes=100, loss_error=2e-5),
        row("memopt level 1", "peer", ms=1.5, peak_bytes=40),
        row("torch loop", "peer", ms=0.9, peak_bytes=80),
        row("plan at memopt's peak", "ours", ms=1.0, peak_bytes=40),
    ]
    measured = [(t["measured"], t["met"]) for t in train_report.targets(rows, "cpu")]
    assert measured[0] == (1.2, False) and measured[1] == (0.3, True)
    assert measured[2] == (1.5, True)
    rows[-1]["peak_bytes"] = 41
    assert train_report.targets(rows, "cpu")[2]["met"] is False, "beyond the peak"
    assert measured[3][0] == pytest.approx(2e-5) and measured[3][1] is False
    (lost,) = report.losses(rows)
    assert "torch loop" in lost
    assert [t["met"] for t in train_report.targets(rows, "cuda")] == [None] * 3
    fast = [
        row("snnfast triton", "ours", ms=1.0, peak_bytes=50, dtype="bfloat16"),
        row("SpikingJelly cuda", "peer", ms=2.5, peak_bytes=120, dtype="bfloat16"),
        row("SpikingJelly triton", "peer", ms=1.9, peak_bytes=100, dtype="bfloat16"),
    ]
    measured = [(t["measured"], t["met"]) for t in train_report.targets(fast, "cuda")]
    assert measured == [(1.9, False), (0.5, True), (None, None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timesteps", "0"], "must be a whole number from 1"),
        (["--dtypes", "float64"], "dtype must be one of float32"),
        (["--batch", "none"], "must be a whole number from 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.parse("train", arguments)
    assert message in capsys.readouterr().err
