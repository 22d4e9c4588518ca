"""The distillation benchmark runs, reports what it must, and shows no speed for a wrong loss."""

import json
import subprocess
import sys
import time
import types
from functools import partial

import benchmark_run
import distill_measure
import distill_report
import environment
import harness
import pytest
import report
import run
import torch
from distill_case import COMPILED, EAGER, LOOP, OBJECTIVES, Case, Contender

from snnfast.backends import cpu
from snnfast.ops.select import implementation

CPU = torch.device("cpu")
TWKD, CORRECT, TSER, TSSD = OBJECTIVES
SHAPES = ["3x8x5", "2x4x300"]
by_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Document, printed text and folder of one run on tiny shapes."""
    arguments = f"--quick --rounds 2 --shapes {','.join(SHAPES)} --dtypes float32,bfloat16"
    return benchmark_run.start("distill", arguments, tmp_path_factory.mktemp("bench"))


def test_quick_run_writes_all_measurements(quick):
    document = quick[0]
    benchmark_run.is_whole("distill", quick)
    cases = {(r["objective"], r["shape"], r["dtype"]) for r in document["rows"]}
    assert cases == {
        (o.name, shape, dtype)
        for o in OBJECTIVES
        for shape in SHAPES
        for dtype in ("float32", "bfloat16")
    }
    for case in cases:
        rows = [r for r in document["rows"] if (r["objective"], r["shape"], r["dtype"]) == case]
        named = [(r["measurement"], r["contender"]) for r in rows]
        assert named == [
            ("kernel", "copy_"),
            ("kernel", "cpu"),
            ("training", "snnfast cpu"),
            ("training", EAGER),
            ("training", LOOP),
            ("forward", "snnfast cpu"),
            ("forward", EAGER),
            ("forward", LOOP),
        ]
        for row in rows:
            assert 0 < row["p20_ms"] <= row["ms"] <= row["p80_ms"]
            assert row["gb_per_s"] > 0 and row["share_of_copy"] > 0
            if row["kind"] != "probe":
                assert row["refused"] is None
                assert row["value_error"] < 1e-5 and row["gradient_error"] < 1e-2
        times = {(r["measurement"], r["contender"]): r["ms"] for r in rows}
        for row in rows:
            if row["kind"] == "ours" and row["measurement"] != "kernel":
                expected = {p: times[row["measurement"], p] / row["ms"] for p in (EAGER, LOOP)}
                assert row["speedup_over"] == pytest.approx(expected)


def test_one_gradient_is_kept_and_one_op_called_each_way(quick):
    for row in quick[0]["rows"]:
        if row["kind"] == "ours" and row["measurement"] == "training":
            size = 4 if row["dtype"] == "float32" else 2
            # Beside the gradients lies the scalar that backward multiplies them by.
            assert row["kept_bytes"] == pytest.approx(size + 4 / row["logits"], abs=1e-3)
            assert (row["ops_forward"], row["ops_backward"]) == (1, 1)


def test_what_is_left_out_is_explained(quick):
    why = {note["contender"]: note["why"] for note in quick[0]["left_out"]}
    assert "--compile-seconds" in why[COMPILED]


@by_objective
def test_eager_composition_is_the_objective(objective):
    """Held to the float64 reference, with no needless work in it: its ops do not grow with T."""
    ops = set()
    for steps in (2, 9):
        case = Case(objective, (steps, 16, 12), torch.float32, CPU)
        leaves = tuple(z.requires_grad_() for z in case.inputs[0])
        value = case.evaluate(objective.eager(steps), leaves)
        verdict = case.judge(value, torch.autograd.grad(value, leaves))
        assert verdict.refused is None
        assert max(verdict.value_error, verdict.gradient_error) < 2e-6
        ops.add(harness.count_ops(lambda: case.evaluate(objective.eager(steps), leaves), CPU))  # noqa: B023
        looped = case.evaluate(objective.loop(steps), leaves)
        assert case.judge(looped, torch.autograd.grad(looped, leaves)).refused is None
    assert len(ops) == 1


def test_some_steps_are_right_and_some_are_not():
    case = Case(CORRECT, (6, 64, 10), torch.float32, CPU)
    right = (case.inputs[0][0].argmax(-1) == case.target).float()
    assert 0.3 < right.mean() < 0.7
    assert not right.mean(0).bool().all()


def changed(objective, **options):
    """The eager composition with other options."""
    return lambda steps: partial(objective.composition, **objective.arguments(steps) | options)


def undetached(z, target, w, **options):
    """TSSD whose teacher takes a gradient: the value is right, the gradient is not."""
    log_p, log_q = ((logits / 2.0).log_softmax(-1) for logits in (z, w))
    extra = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return TSSD.eager(z.shape[0])(z, target, w) + extra - extra.detach()


WRONG = {
    "teacher's weight": (TWKD, changed(TWKD, alpha=0.2001)),
    "own target": (CORRECT, changed(CORRECT, self_target="mean")),
    "temperature": (TSER, changed(TSER, temperature=4.01)),
    "student steps": (TSSD, changed(TSSD, student_steps=1)),
    "gradient": (TSSD, lambda steps: undetached),
    "constant": (TWKD, lambda steps: lambda z, *rest: z.sum() * 0 + 1.0),
    "shape": (TWKD, lambda steps: lambda z, *rest: TWKD.eager(steps)(z, *rest)[None]),
    "not a number": (TWKD, lambda steps: lambda z, *rest: z.sum() * float("nan")),
    "raises": (TWKD, lambda steps: lambda *inputs: 1 // 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", WRONG)
def test_gate_refuses_a_wrong_loss(fault, dtype):
    objective, make = WRONG[fault]
    bench = distill_measure.Bench(CPU, [], rounds=2, compile_s=0.0)
    case = Case(objective, (4, 16, 8), dtype, CPU)
    right = objective.ours(4, "reference")
    bench.losses(case, [Contender("wrong", "ours", make(4)), Contender("right", "ours", right)])
    by_name = {"wrong": [], "right": []}
    for row in bench.rows:
        by_name[row["contender"]].append(row)
    assert len(by_name["right"]) == 2
    assert all("ms" in row and row["refused"] is None for row in by_name["right"])
    assert len(by_name["wrong"]) == 2 and all(row["refused"] for row in by_name["wrong"])
    assert not any("ms" in row or "gb_per_s" in row for row in by_name["wrong"])
    assert "REFUSED" in distill_report.case_table(bench.rows)
    json.dumps(bench.rows, allow_nan=False)


@pytest.mark.parametrize("spared", ["loss", "unit", "gradient"])
@pytest.mark.parametrize("objective", [TWKD, TSSD], ids=lambda o: o.name)
def test_gate_refuses_a_kernel_that_leaves_an_element_unwritten(objective, spared, monkeypatch):
    def launch(name):
        def run(spec, logits, target, third, loss, terms, unit, *gradients):
            written = {"loss": loss, "unit": unit, "gradient": gradients[-1].view(-1)[-1]}[spared]
            before = written.clone()
            getattr(cpu, name)(spec, logits, target, third, loss, terms, unit, *gradients)
            written.copy_(before)

        return run

    broken = {name: launch(name) for name in ("stepwise_loss", "tssd_loss")}
    monkeypatch.setitem(sys.modules, "snnfast.backends.broken", types.SimpleNamespace(**broken))
    bench = distill_measure.Bench(CPU, ["broken", "cpu"], rounds=2, compile_s=0.0)
    bench.kernels(Case(objective, (4, 16, 8), torch.float32, CPU))
    refused = {r["contender"]: bool(r["refused"]) for r in bench.rows if r["kind"] == "ours"}
    assert refused == {"broken": True, "cpu": False}


@by_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_launch_is_the_launch_of_the_public_function(objective, dtype, monkeypatch):
    """The numbers that the kernel is timed with are those that the op hands to it."""
    seen = []

    def record(launch):
        def run(spec, *tensors):
            seen.append(spec)
            return launch(spec, *tensors)

        return run

    for name in ("stepwise_loss", "tssd_loss"):
        monkeypatch.setattr(cpu, name, record(getattr(cpu, name)))
    case = Case(objective, (4, 16, 8), dtype, CPU)
    implementation("cpu").forget()  # the launches that it remembers are not those here
    distill_measure.launcher(case, "cpu")[0](0)
    case.evaluate(objective.ours(4, "cpu"), case.inputs[0])
    implementation("cpu").forget()
    timed, called = (spec._replace(gradient_scale=1.0) for spec in seen)
    assert timed == called


@pytest.mark.unpoisoned
def test_compiled_composition_is_one_graph_and_counted():
    bench = distill_measure.Bench(CPU, [], rounds=2, compile_s=120.0)
    case = Case(CORRECT, (3, 8, 5), torch.float32, CPU)
    bench.losses(case, bench._contenders(case))
    rows = [row for row in bench.rows if row["contender"] == COMPILED]
    assert [row["measurement"] for row in rows] == ["training", "forward"]
    assert all(row["refused"] is None and row["ms"] > 0 for row in rows)
    assert rows[0]["ops_forward"] >= 1 and rows[0]["ops_backward"] >= 1
    eager = next(row for row in bench.rows if row["contender"] == EAGER)
    assert rows[0]["ops_forward"] < eager["ops_forward"] / 4

    bench.compile_limit = bench.compile_took / 2
    bench._contenders(case)
    assert bench.left_out[-1]["contender"] == COMPILED
    assert "--compile-seconds" in bench.left_out[-1]["why"]


def test_nothing_is_compiled_once_the_time_is_over():
    bench = distill_measure.Bench(CPU, [], rounds=2, compile_s=30.0, minutes=0.0)
    bench.run(TSER, (2, 4, 3), torch.float32)
    assert {r["contender"] for r in bench.rows} == {"copy_", EAGER, LOOP}
    assert "--minutes" in bench.left_out[0]["why"]


def test_other_work_on_the_machine_is_noticed():
    """A child that spins is other work until it is waited for; the process itself is none."""

    def foreign(seconds=1.0):
        begin, before = time.perf_counter(), environment.foreign_seconds()
        while time.perf_counter() - begin < seconds:
            pass
        return environment.foreign_seconds() - before

    spin = "import time; end = time.time() + 60\nwhile time.time() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", spin])
    try:
        assert foreign() > 0.3
    finally:
        child.kill()
        child.wait()
    assert report.busy(0.0, 0.3) and report.busy(0.6, None)
    assert not report.busy(0.2, 0.02) and not report.busy(0.2, None)


def row(contender, kind, ms, measurement="training", **more):
    base = {
        "measurement": measurement,
        "contender": contender,
        "kind": kind,
        "objective": "TWKD",
        "shape": "4x128x10",
        "dtype": "float32",
        "logits": 5120,
        "ms": ms,
    }
    return base | more


def test_targets_and_losses_say_what_was_measured():
    def ours(ms, shape, ratio, kept):
        more = {"speedup_over": {EAGER: ratio}, "kept_bytes": kept}
        return row("snnfast cpu", "ours", ms, shape=shape, ops_forward=1, ops_backward=1, **more)

    rows = [
        ours(1.0, "4x128x10", 7.9, 4.0008),
        row(EAGER, "peer", 7.9),
        row(COMPILED, "peer", 0.9),
        ours(2.0, "4x512x1000", 3.1, 4.6),
    ]
    found = {t["target"]: t["met"] for t in distill_report.targets(rows, "cpu")}
    at = "training, TWKD {} float32: speed relative to eager"
    assert found[at.format("4x128x10")] is False
    assert found[at.format("4x512x1000")] is True
    assert found[at.format("6x128x100")] is None
    assert found["snnfast cpu: op calls forward, most of all cases"] is True
    kept = "snnfast cpu: bytes kept per float32 logit beyond 1 KB, most of all cases"
    assert found[kept] is False
    found = {t["target"]: t["met"] for t in distill_report.targets(rows[:3], "cpu")}
    assert found[kept] is True
    lost = report.losses(rows)
    assert len(lost) == 1 and COMPILED in lost[0]


def test_every_shape_has_a_target():
    shapes = {"x".join(map(str, shape)) for shape in distill_measure.SHAPES}
    assert shapes == set(distill_report.SPEEDUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "4x128"], "T, B and C are written as 4x128x10"),
        (["--objectives", "kd"], "objective must be one of twkd, twkd-correct, tser, tssd"),
        (["--dtypes", "float64"], "dtype must be one of float32"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.parse("distill", arguments)
    assert message in capsys.readouterr().err


def test_what_is_measured_under_the_default_malloc_lies_apart():
    kept, default = (run.parse("lif", ["--malloc", how]).output for how in ("kept", "default"))
    assert default == kept / "default_malloc"
