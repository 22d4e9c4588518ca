"""bench_dropin.py: what a run writes, and what its gate refuses."""

from functools import partial

import dropin_case
import dropin_measure
import dropin_report
import pytest
import torch
from benchmark_run import is_whole, start
from dropin_case import NETWORKS, QUICK, SIZES, Case, Contender, Jelly, Run
from dropin_measure import NEURONS, STEP
from peer_neurons import package

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def peers():
    package("spikingjelly.activation_based.neuron")
    package("snntorch")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return start("dropin", "--quick --rounds 2", tmp_path_factory.mktemp("dropin"))


def test_quick_run_is_whole(quick):
    is_whole("dropin", quick)
    document = quick[0]
    for network in NETWORKS:
        rows = [row for row in document["rows"] if row["network"] == network]
        fused = [row for row in rows if "fuse=True" in row["contender"]]
        assert [row["measurement"] for row in fused] == [STEP] * (network != "snntorch_conv")
        found = {(row["measurement"], row["kind"]): row for row in rows if row not in fused}
        assert found.keys() == {(m, k) for m in (NEURONS, STEP) for k in ("peer", "ours")}
        assert all(r["peak_bytes"] < found[STEP, "ours"]["peak_bytes"] for r in fused)
        assert not any(row["refused"] for row in rows) and all(row["ms"] > 0 for row in rows)
        assert found[STEP, "ours"]["kept_bytes"] < found[STEP, "peer"]["kept_bytes"]
        assert found[STEP, "ours"]["peak_bytes"] < found[STEP, "peer"]["peak_bytes"]
        assert found[STEP, "ours"]["spikes_compared"] > 1000
    assert [target["need"] for target in document["targets"]] == [8.0, 8.0]


def judged(begin, fused: bool = False) -> dict:
    """The row of a contender beside SpikingJelly's own."""
    bench = dropin_measure.Bench(CPU, [], rounds=2, compile_s=0.0, seconds=0.01)
    theirs = Contender("spikingjelly", "peer", partial(Jelly, ours=False))
    with pytest.MonkeyPatch.context() as patch:
        both = [("", theirs), ("", Contender("it", "ours", begin, fused))]
        patch.setattr(dropin_case, "contenders", lambda name: both)
        sizes = SIZES["sew_resnet18"] | QUICK["sew_resnet18"]
        rows = bench.run(Case("sew_resnet18", sizes, CPU))
    assert not any(row["refused"] for row in rows if row["kind"] == "peer")
    (row,) = (r for r in rows if r["kind"] == "ours" and r["measurement"] == STEP)
    assert ("ms" in row) == (row["refused"] is None)
    return row


def test_gate_lets_ours_pass():
    assert judged(partial(Jelly, ours=True))["spike_flips"] == 0
    assert judged(partial(Jelly, ours=True, fused=True), fused=True)["spikes_compared"] > 1000


def other_threshold(model, steps, **how) -> Run:
    run = Jelly(model, steps, ours=True, **how)
    run.neurons()[3].v_threshold = 1.01
    return run


def other_gradient(model, steps) -> Run:
    run = Jelly(model, steps, ours=True)
    run.neurons()[3].surrogate_function.alpha *= 1.5
    return run


def no_network(model, steps) -> Run:
    raise RuntimeError("no such network")


def test_gate_refuses_what_is_not_the_same():
    assert "spikes differ" in judged(other_threshold)["refused"]
    assert "spikes differ" in judged(partial(other_threshold, fused=True), fused=True)["refused"]
    assert judged(other_gradient)["refused"].startswith("gradients off")
    assert judged(no_network)["refused"] == "RuntimeError: no such network"


def test_targets_are_of_the_neurons():
    rows = [
        {"network": "spikformer", "measurement": m, "kind": kind, "ms": ms, "contender": kind}
        for m, kind, ms in (
            (NEURONS, "peer", 9.0), (NEURONS, "ours", 1.0), (STEP, "peer", 3.0), (STEP, "ours", 2.0)
        )
    ]  # fmt: skip
    found = dropin_report.targets(rows, "cpu")
    assert [(t["measured"], t["met"]) for t in found] == [(9.0, True), (None, None)]
    assert dropin_report.targets(rows, "cuda") == []
