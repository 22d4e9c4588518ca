"""The LIF benchmark runs, reports what it must, and shows no speed for a wrong implementation."""

import json
import os
import subprocess
import sys
import types

import benchmark_run
import environment
import harness
import lif_measure
import lif_report
import pytest
import report
import torch
from lif_case import SURROGATE, Case
from peers import Contender

import snnfast
from snnfast.ops.select import implementation
from snnfast.surrogate import ATan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Document, printed text and folder of one run on tiny shapes."""
    return benchmark_run.start(
        "lif",
        "--quick --minutes 5 --shapes 2x8x4x4 --steps 2,9 --rounds 2",
        tmp_path_factory.mktemp("bench"),
    )


def test_quick_run_writes_all_measurements(quick):
    document = quick[0]
    benchmark_run.is_whole("lif", quick)
    assert document["environment"]["versions"]["torch"] == torch.__version__
    for dtype in ("float32", "bfloat16"):
        for steps in (2, 9):
            rows = [r for r in document["rows"] if (r["dtype"], r["steps"]) == (dtype, steps)]
            ours = {r["measurement"]: r for r in rows if r["kind"] == "ours"}
            assert ours.keys() == {"kernel_forward", "kernel_backward", "training", "inference"}
            for row in ours.values():
                assert row["refused"] is None
                assert row["spike_mismatches"] == 0
                assert 0 < row["p20_ms"] <= row["ms"] <= row["p80_ms"]
                assert row["gb_per_s"] > 0 and row["share_of_copy"] > 0
            assert any(r["contender"] == "torch loop" and "ms" in r for r in rows)


def test_kept_bytes_are_exact(quick):
    """x alone up to 8 steps; beyond, a float32 state at the one border between two segments."""
    for row in quick[0]["rows"]:
        if row["kind"] == "ours" and row["measurement"] == "training":
            size = 4 if row["dtype"] == "float32" else 2
            border = 0 if row["steps"] <= 8 else 4 / row["steps"]
            assert row["kept_bytes"] == pytest.approx(size + border, abs=1e-3)


def test_every_peer_is_measured_or_its_absence_explained(quick):
    document = quick[0]
    named = {row["contender"] for row in document["rows"]}
    why = {note["contender"]: note["why"] for note in document["left_out"]}
    for peer in ("SpikingJelly", "snnTorch", "Norse", "torch loop", "torch.compile'd loop"):
        assert any(name.startswith(peer) for name in named) or why[peer]


def ours(x, **changed):
    return snnfast.lif(x, **({"tau": 2.0, "surrogate": SURROGATE} | changed))


WRONG = {
    "threshold": lambda x: ours(x, v_threshold=1.001),
    "reset": lambda x: ours(x, v_reset=None),
    "surrogate": lambda x: ours(x, surrogate=ATan(alpha=2.01)),
    "detach": lambda x: ours(x, detach_reset=True),
    "raises": lambda x: 1 // 0,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", WRONG)
def test_gate_refuses_a_wrong_layer(fault, dtype):
    if fault == "surrogate" and dtype == torch.bfloat16:
        fault = "detach"  # half a percent is within two roundings of bfloat16
    bench = lif_measure.Bench(CPU, [], rounds=2, compile_s=0.0)
    case = Case((4, 16, 8, 8), dtype, 4, CPU)
    bench.layers(case, [Contender("wrong", "ours", WRONG[fault]), Contender("right", "ours", ours)])
    by_name = {"wrong": [], "right": []}
    for row in bench.rows:
        by_name[row["contender"]].append(row)
    assert all("ms" in row and row["refused"] is None for row in by_name["right"])
    assert by_name["wrong"] and all(row["refused"] for row in by_name["wrong"])
    assert not any("ms" in row or "gb_per_s" in row for row in by_name["wrong"])
    assert "REFUSED" in lif_report.case_table(bench.rows)


@pytest.mark.parametrize("spared", ["s", "dx"])
def test_gate_refuses_a_kernel_that_leaves_an_element_unwritten(spared, monkeypatch):
    cpu = implementation("cpu")

    def lif_forward(spec, x, v0, rate, s, v, borders):
        last = s.flatten()[-1].clone()
        cpu.lif_forward(spec, x, v0, rate, s, v, borders)
        if spared == "s":
            s.view(-1)[-1] = last

    def lif_backward(spec, x, v0, rate, borders, ds, dv, dx, dv0, drate):
        last = dx.flatten()[-1].clone()
        cpu.lif_backward(spec, x, v0, rate, borders, ds, dv, dx, dv0, drate)
        if spared == "dx":
            dx.view(-1)[-1] = last

    broken = types.SimpleNamespace(lif_forward=lif_forward, lif_backward=lif_backward)
    monkeypatch.setattr(lif_measure, "implementation", {"broken": broken, "cpu": cpu}.get)
    bench = lif_measure.Bench(CPU, ["broken", "cpu"], rounds=2, compile_s=0.0)
    bench.kernels(Case((4, 16, 8, 8), torch.float32, 4, CPU))
    refused = {r["contender"]: r["refused"] for r in bench.rows if r["kind"] == "ours"}
    found = "spikes differ from the reference" if spared == "s" else "gradient off by"
    assert found in refused["broken"] and refused["cpu"] is None


def test_rounds_interleave_and_spare_the_slow():
    calls = []
    runs = {
        "slow": lambda i: (calls.append("slow"), torch.randn(1500, 1500) @ torch.randn(1500, 1500)),
        "fast": lambda i: calls.append("fast"),
    }
    timings = harness.time_rounds(runs, CPU, rounds=6, seconds=1e-6)
    assert timings["slow"].samples == 2
    assert timings["slow"].ms > timings["fast"].ms
    first, last = calls.index("slow"), len(calls) - 1 - calls[::-1].index("slow")
    assert "fast" in calls[first:last]


def test_peers_are_left_out_with_a_reason_once_the_time_is_over():
    bench = lif_measure.Bench(CPU, ["cpu"], rounds=2, compile_s=0.0, minutes=0.0)
    bench.run((2, 8, 4, 4), torch.float32, 2)
    assert {r["kind"] for r in bench.rows} == {"ours", "probe"}
    assert any("--minutes" in note["why"] for note in bench.left_out)


def row(contender, kind, ms, measurement="training", **more):
    base = {
        "measurement": measurement,
        "contender": contender,
        "kind": kind,
        "shape": "32x512x4x4",
        "neurons": 262144,
        "dtype": "float32",
        "steps": 4,
        "ms": ms,
    }
    return base | more


def test_targets_and_losses_say_what_was_measured():
    rows = [
        row("snnfast cpu", "ours", 1.0),
        row("SpikingJelly", "peer", 6.9),
        row("torch.compile'd loop", "peer", 0.9),
        row("clone/add probe", "probe", 0.71),
    ]
    found = {t["target"]: t["met"] for t in lif_report.targets(rows, "cpu")}
    at = "training, 32x512x4x4 float32 T = 4: speed relative to "
    assert found[at + "SpikingJelly"] is False
    assert found[at + "torch.compile'd loop"] is False
    assert found[at + "clone/add probe"] is True
    assert found[at.replace("32x512x4x4", "32x64x32x32") + "SpikingJelly"] is None
    lost = report.losses(rows)
    assert len(lost) == 1 and "torch.compile'd loop" in lost[0]


def test_time_per_step_must_be_flat():
    def flat(ms):
        rows = [row("snnfast cpu", "ours", t * ms(t), steps=t) for t in (2, 4, 100)]
        return [t["met"] for t in lif_report.targets(rows, "cpu") if "max over min" in t["target"]]

    assert flat(lambda t: 1.0) == [True]
    assert flat(lambda t: 1.0 if t < 100 else 1.4) == [False]


def regressions(*arguments):
    # A process of its own, which no worker of xdist started: there nothing would be timed.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    variables |= {"PYTHONPATH": str(environment.ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_regressions.py", "-q", *arguments],
        cwd=environment.ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_op_has_a_dozen_small_cases_that_run():
    found = regressions("--benchmark-disable", "-rA")
    assert found.returncode == 0, found.stdout
    for op in ("lif", "norm_lif", "distill", "spikes"):
        assert found.stdout.count(f"::test_{op}[") == 12


def test_what_became_slower_fails_the_comparison(tmp_path):
    """The case that was quick before, and none of those that were slow."""
    some = ["-k", "spikes and images and float32 and pack", "--benchmark-only"]
    some.append(f"--benchmark-storage={tmp_path}")
    assert regressions(*some, "--benchmark-autosave").returncode == 0
    (saved,) = tmp_path.rglob("*.json")
    before = json.loads(saved.read_text())
    *better, worse = before["benchmarks"]
    for case in before["benchmarks"]:
        case["stats"]["min"] *= 0.01 if case is worse else 100.0
    saved.write_text(json.dumps(before))
    found = regressions(*some, "--benchmark-compare", "--benchmark-compare-fail=min:30%")
    _, said = (found.stdout + found.stderr).split("has regressed:")
    assert worse["name"] in said and better and not any(case["name"] in said for case in better)
    assert found.returncode != 0
