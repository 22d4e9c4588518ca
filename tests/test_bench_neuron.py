"""The neuron benchmark runs, has the peers' modules of the same neurons, and shows no speed for a
wrong one."""

from functools import partial

import benchmark_run
import neuron_case
import neuron_measure
import neuron_peers
import neuron_report
import pytest
import report
import torch
from neuron_case import Case
from peers import Contender

from snnfast import neurons
from snnfast.backends.cpu import neuron as cpu

CPU, F32 = torch.device("cpu"), torch.float32
OURS = {f"snnfast cpu {name}" for name in cpu.executors()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Document, printed text and folder of one run on tiny shapes."""
    return benchmark_run.start(
        "neuron",
        "--quick --minutes 5 --neurons lif,adaptive_lif,liaf --shapes 2x8x4x4 --steps 2,9 "
        "--rounds 2",
        tmp_path_factory.mktemp("bench"),
    )


def test_quick_run_writes_all_measurements(quick):
    benchmark_run.is_whole("neuron", quick)
    rows = quick[0]["rows"]
    cases = {(row["neuron"], row["steps"]) for row in rows}
    assert cases == {("lif", 2), ("lif", 9), ("adaptive_lif", 2), ("adaptive_lif", 9), ("liaf", 2)}
    for case in cases:
        for measurement in ("kernel_forward", "kernel_backward", "training", "inference"):
            some = [row for row in rows if (row["neuron"], row["steps"]) == case]
            some = report.pick(some, measurement=measurement)
            names = {row["contender"] for row in some}
            assert names >= OURS | ({"snnfast.lif cpu"} if case[0] == "lif" else set())
            for row in some:
                if row["kind"] == "ours":
                    assert row["refused"] is None and row["spike_mismatches"] == 0
                    assert row["ms"] > 0 and row["share_of_copy"] > 0


def test_kept_bytes_are_exact(quick):
    """x alone up to 8 steps; beyond, each float32 state at the one border between two segments."""
    for row in quick[0]["rows"]:
        if row["kind"] == "ours" and row["measurement"] == "training":
            border = 0 if row["steps"] <= 8 else row["states"] * 4 / row["steps"]
            assert row["kept_bytes"] == pytest.approx(4 + border, abs=1e-3)


def test_every_peer_is_measured_or_its_absence_explained(quick):
    document = quick[0]
    for neuron, package in (("lif", "SpikingJelly"), ("liaf", "SpikingJelly")):
        named = {row["contender"] for row in report.pick(document["rows"], neuron=neuron)}
        why = {
            note["contender"]: note["why"]
            for note in report.pick(document["left_out"], neuron=neuron)
        }
        for peer in (package, "torch loop", "torch.compile'd loop"):
            assert peer in named or why[peer]
    (note,) = report.pick(document["left_out"], neuron="adaptive_lif", contender="peer", steps=2)
    assert "no package" in note["why"]


def judged(name, contender, steps=4):
    bench = neuron_measure.Bench(CPU, [], rounds=2, compile_s=0.0)
    bench.neuron = name
    bench.layers(Case(name, (4, 16, 8, 8), F32, steps, CPU), [contender])
    training = report.pick(bench.rows, measurement="training")
    (row,) = training or bench.rows
    assert ("ms" in row) == (row["refused"] is None)
    return row


@pytest.mark.parametrize("name", neuron_peers.MODULES)
def test_the_peer_has_that_neuron(name):
    contender = neuron_peers.peer(name, 6)
    if isinstance(contender, str):
        pytest.skip(contender)
    row = judged(name, contender, steps=6)
    assert row["refused"] is None and row["gradient_error"] < 1e-5


@pytest.mark.parametrize("name", neurons.__all__)
def test_flexsn_is_given_that_neuron(name):
    """On a CPU it runs the step that its kernels are made of."""
    contender = neuron_peers.flexsn(name)
    if isinstance(contender, str):
        pytest.skip(contender)
    row = judged(name, contender)
    assert row["refused"] is None and row["gradient_error"] < 1e-5


WRONG = {
    "number": partial(neurons.synaptic, beta=0.801),
    "choice": partial(neurons.synaptic, reset_mechanism="zero"),
    "surrogate": partial(neurons.synaptic, surrogate="sigmoid"),
    "raises": lambda x: 1 // 0,
}


@pytest.mark.parametrize("fault", WRONG)
def test_gate_refuses_a_wrong_neuron(fault):
    layer = WRONG[fault]
    if fault in ("number", "choice"):
        layer = partial(layer, surrogate=neuron_case.surrogate("synaptic"))
    assert judged("synaptic", Contender("wrong", "ours", layer))["refused"]


def test_gate_refuses_a_kernel_that_leaves_an_element_unwritten(monkeypatch):
    write = cpu.neuron_forward

    def neuron_forward(layer, inputs, states, params, outputs, *rest):
        write(layer, inputs, states, params, outputs, *rest)
        outputs[0].view(-1)[-1] = float("nan")

    from snnfast.backends import cpu as backend

    monkeypatch.setattr(backend, "neuron_forward", neuron_forward)
    bench = neuron_measure.Bench(CPU, ["cpu"], rounds=2, compile_s=0.0)
    bench.neuron = "qif"
    bench.kernels(Case("qif", (4, 16, 8, 8), F32, 4, CPU))
    rows = report.pick(bench.rows, kind="ours")
    assert rows and all("1 of 16384 spikes differ" in row["refused"] for row in rows)


def row(neuron, contender, kind, ms, measurement="training", **more):
    case = {"neuron": neuron, "states": 2, "shape": "32x64x32x32", "neurons": 2097152}
    case |= {"dtype": "float32", "steps": 4, "measurement": measurement}
    return case | {"contender": contender, "kind": kind, "ms": ms} | more


def test_targets_say_what_was_measured():
    rows = [
        row("lif", "snnfast.lif cpu", "ours", 1.0, "kernel_forward"),
        row("lif", "snnfast cpu compiled", "ours", 1.3, "kernel_forward"),
        row("lif", "snnfast cpu interpreted", "ours", 2.0, "kernel_forward"),
        row("glif", "snnfast cpu compiled", "ours", 1.0, kept_bytes=4.0),
        row("glif", "torch loop", "peer", 8.5),
        row("glif", "torch.compile'd loop", "peer", 1.4),
        row("adaptive_lif", "snnfast cpu compiled", "ours", 2.0, steps=16, kept_bytes=4.52),
        row("adaptive_lif", "snnfast cpu compiled", "ours", 2.0, steps=1000, neurons=32768),
    ]
    found = {t["target"]: t["met"] for t in neuron_report.targets(rows, "cpu")}
    at = "{} 32x64x32x32 float32 T = 4, {}"
    share = "forward kernel, {}: share of the tuned one's speed"
    assert found[at.format("lif", share.format("compiled"))] is False
    assert found[at.format("lif", share.format("interpreted"))] is True
    speed = "forward + backward, {}: speed relative to {}"
    assert found[at.format("glif", speed.format("compiled", "torch loop"))] is True
    assert found[at.format("glif", speed.format("compiled", "torch.compile'd loop"))] is False
    assert found[at.format("glif", speed.format("interpreted", "torch loop"))] is None
    assert found["bytes kept per neuron and step beyond the floor, most of all cases"] is False
    flat = "adaptive_lif, snnfast cpu compiled: time per neuron and step at T = 1000 over T = 16"
    assert found[flat] is True
    lost = report.losses(rows)
    assert not lost


def test_a_case_without_others_has_no_panel():
    """One of speed-ups and one of bytes where there is somebody to compare with."""
    rows = [
        row("glif", "snnfast cpu compiled", "ours", 1.0, kept_bytes=4.0),
        row("glif", "torch loop", "peer", 8.5, kept_bytes=9.0),
        row("glif", "torch.compile'd loop", "peer", 1.4),
        row("adaptive_lif", "snnfast cpu compiled", "ours", 2.0, steps=1000, kept_bytes=4.5),
    ]
    speed, kept = neuron_report.draw(rows, "cpu").axes
    shown = {line.get_label(): list(line.get_ydata()) for line in speed.lines[:2]}
    assert shown == {"torch loop": [8.5], "torch.compile'd loop": [1.4]}
    assert [list(line.get_ydata()) for line in kept.lines] == [[9.0], [4.0]]
    assert neuron_report.draw(rows[3:], "cpu") is None
