"""The block benchmark runs, reports what it must, and shows no speed for a wrong block."""

from functools import partial

import benchmark_run
import block_case
import block_measure
import block_report
import pytest
import report
import run
import torch
from block_case import BANDS, FLIPS, Case, Contender, Fused, Unfused, ours, unfused
from block_measure import COMPILED
from peers import time_loop

import snnfast
from snnfast.surrogate import ATan

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
MEASUREMENTS = {"passes", "passes + residual", "part", "part + residual", "block", "residual block"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Document, printed text and folder of one run on a tiny shape."""
    return benchmark_run.start(
        "block", "--quick --shapes 8x6x6 --rounds 2 --minutes 5", tmp_path_factory.mktemp("bench")
    )


def test_quick_run_writes_all_measurements(quick):
    document = quick[0]
    benchmark_run.is_whole("block", quick)
    for dtype in ("float32", "bfloat16"):
        rows = [row for row in document["rows"] if row["dtype"] == dtype]
        ours = {r["measurement"]: r for r in rows if r["kind"] == "ours"}
        assert ours.keys() == MEASUREMENTS
        for row in rows:
            assert not row.get("refused")
            assert 0 < row["p20_ms"] <= row["ms"] <= row["p80_ms"]
            assert row["gb_per_s"] > 0 and row["share_of_copy"] > 0
        peers = {r["contender"]: r["ms"] for r in rows
                 if r["measurement"] == "part" and r["kind"] == "peer"}  # fmt: skip
        expected = {name: ms / ours["part"]["ms"] for name, ms in peers.items()}
        assert ours["part"]["speedup_over"] == pytest.approx(expected) and expected
    why = {note["contender"]: note["why"] for note in document["left_out"]}
    assert "--compile-seconds" in why[COMPILED]


def test_kept_bytes_are_those_of_the_floor(quick):
    """y, and the residual or the convolution's input, whole or as bits; and numbers per channel."""
    rows = [row for row in quick[0]["rows"] if row["kind"] == "ours" and "kept_bytes" in row]
    for row in rows:
        b = 4 if row["dtype"] == "float32" else 2
        bits = "packed" in row["contender"]
        spikes = 0 if row["measurement"] == "part" else 1 / 8 if bits else b
        per_channel = block_report.PER_CHANNEL * 8 / row["elements"]
        assert b + spikes <= row["kept_bytes"] <= b + spikes + per_channel
        # At the peak y and s, their gradients, and what makes one from the other.
        assert row["kept_bytes"] + 2 * b <= row["peak_bytes"] < 40 * b
    assert any("packed" in row["contender"] for row in rows)


def test_unfused_keeps_more(quick):
    """BatchNorm's input, LIF's input, and in a block the convolution's."""
    for row in quick[0]["rows"]:
        if row["contender"] == "BatchNorm2d + snnfast.lif cpu" and row["dtype"] == "float32":
            layers = 2 if row["measurement"].startswith("part") else 3
            assert row["kept_bytes"] == pytest.approx(4 * layers, abs=0.5)


class Changed(Fused):
    """Ours with other arguments of norm_lif."""

    def __init__(self, channels, **changed):
        super().__init__(channels, "cpu")
        self.changed = changed

    def forward(self, y, residual=None):
        arguments = {
            "weight": self.weight,
            "bias": self.bias,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "training": True,
            "surrogate": ATan(alpha=2.0),
        }
        return snnfast.norm_lif(y, residual, **(arguments | self.changed))


class Deaf(Unfused):
    """Leaves the residual out."""

    def forward(self, y, residual=None):
        return super().forward(y) + (0 if residual is None else residual.detach() * 0)


class Scaled(Unfused):
    """Right spikes, a gradient of the weight that is half of it."""

    def forward(self, y, residual=None):
        weight = self.weight
        half = weight.detach() + (weight - weight.detach()) / 2
        n = torch.nn.functional.batch_norm(
            y.flatten(0, 1), self.running_mean, self.running_var, half, self.bias, True
        ).unflatten(0, y.shape[:2])
        return self.neuron(n if residual is None else n + residual)


class Half(Unfused):
    """Right spikes, a gradient of the residual that is half of it."""

    def forward(self, y, residual=None):
        if residual is not None:
            residual = residual.detach() + (residual - residual.detach()) / 2
        return super().forward(y, residual)


def _raise(channels):
    raise RuntimeError("no such part")


LIF = partial(snnfast.lif, surrogate=ATan(alpha=2.0), backend="cpu")
WRONG = {
    "threshold": partial(Changed, v_threshold=1.01),
    "eps": partial(Changed, eps=0.01),
    "soft reset": partial(Changed, v_reset=None),
    "surrogate": partial(Changed, surrogate=ATan(alpha=2.1)),
    "detached reset": partial(Changed, detach_reset=True),
    "momentum": partial(Changed, momentum=0.2),
    "no statistics": partial(Changed, running_mean=None, running_var=None),
    "weight's gradient": partial(Scaled, neuron=LIF),
    "two": partial(Unfused, neuron=lambda x: 2 * LIF(x)),
    "shape": partial(Unfused, neuron=lambda x: LIF(x)[:, :1]),
    "raises": _raise,
}


def judged(build, measurement, dtype=F32, half=True):
    bench = block_measure.Bench(CPU, [], rounds=2, compile_s=0.0)
    case = bench.case((8, 6, 6), 4, dtype, 4)
    contenders = [Contender("it", "ours", build, half=half), ours("cpu")]
    bench.layers(case, measurement, contenders)
    right = [row for row in bench.rows if row["contender"] == "snnfast cpu"]
    assert all(row["refused"] is None and "ms" in row for row in right)
    (row,) = (row for row in bench.rows if row["contender"] == "it")
    assert ("ms" in row) == (row["refused"] is None)
    if row["refused"]:
        assert not {"ms", "gb_per_s", "kept_bytes"} & row.keys()
        assert "REFUSED" in block_report.case_table(bench.rows)
    return row


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("measurement", ["part", "residual block"])
def test_gate_refuses_a_wrong_part(fault, measurement):
    assert judged(WRONG[fault], measurement)["refused"]


def test_gate_refuses_a_part_without_its_residual():
    for measurement in ("part + residual", "residual block"):
        assert judged(partial(Half, neuron=LIF), measurement)["refused"].startswith("dr off")
    assert judged(partial(Deaf, neuron=LIF), "part")["refused"] is None
    assert judged(partial(Deaf, neuron=LIF), "part + residual")["refused"]
    assert judged(partial(Deaf, neuron=LIF), "residual block")["refused"]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("measurement", ["part", "part + residual", "block", "residual block"])
def test_gate_lets_right_parts_pass(measurement, dtype):
    row = judged(partial(Unfused, neuron=time_loop), measurement, dtype)
    assert row["refused"] is None and row["spikes_compared"] >= 4 * 4 * 6 * 6


def test_half_precision_is_no_excuse_for_a_wrong_threshold():
    assert judged(partial(Changed, v_threshold=1.2), "part", BF16)["refused"]
    # What holds X and V in float32 is held to float32 whatever its input.
    assert judged(partial(Changed, v_threshold=1.001), "part", BF16, half=False)["refused"]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_spike_may_differ_on_the_threshold_only(dtype):
    """And after it did, that neuron's later spikes may."""
    case = Case((2, 4, 4), 2, 3, dtype, CPU)
    contender = Contender("it", "peer", None)
    band = BANDS[dtype]
    margin = torch.full(case.shape, -0.5, dtype=torch.float64)
    for first, refused in ((0.9 * band, False), (1.1 * band, True)):
        margin[1, 0, 0, 0, 0] = -first
        s = (margin >= 0).to(dtype)
        s[1, 0, 0, 0, 0] = 1
        s[2, 0, 0, 0, 0] = 1  # far off the threshold, but behind a flip

        verdict, clean = spikes_verdict(s, margin, case, contender, dict.fromkeys(FLIPS, 1.0))
        assert bool(verdict.refused) == refused
        assert verdict.spike_flips == 2 and verdict.flip_margin == pytest.approx(first)
        assert clean.tolist() == [False, True]


def spikes_verdict(s, margin, case, contender, flips):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_case, "FLIPS", flips)
        return block_case._spikes(s, margin, case, contender)


def test_many_flips_are_refused_even_on_the_threshold():
    case = Case((2, 4, 4), 2, 3, F32, CPU)
    margin = torch.full(case.shape, -1e-9, dtype=torch.float64)
    verdict, _ = block_case._spikes(torch.ones(case.shape), margin, case, ours("cpu"))
    assert "spikes differ" in verdict.refused


def test_gate_looks_at_whole_channels():
    wide = Case((4, 256, 256), 2, 2, F32, CPU)
    assert wide.chosen().tolist() == [3] or len(wide.chosen()) == 1
    assert Case((8, 4, 4), 2, 2, F32, CPU).chosen().tolist() == list(range(8))


@pytest.mark.unpoisoned
def test_compiled_part_is_one_graph_and_serves_the_block_too():
    bench = block_measure.Bench(CPU, [], rounds=2, compile_s=300.0)
    case = bench.case((4, 4, 4), 2, F32, 2)
    for measurement in ("part", "block"):
        bench.layers(case, measurement, bench._contenders(case, measurement))
    rows = {r["measurement"]: r for r in bench.rows if r["contender"] == COMPILED}
    assert rows["part"]["refused"] is None and rows["block"]["refused"] is None
    assert rows["part"]["ops_forward"] >= 1 and rows["part"]["ops_backward"] >= 1
    assert len(bench._parts) == 1 and bench.compile_left < 300
    bench.compile_left = 0.0
    names = [c.name for c in bench._contenders(case, "block")]
    assert COMPILED in names  # it was compiled before
    names = [c.name for c in bench._contenders(case, "residual block")]
    assert COMPILED not in names and "--compile-seconds" in bench.left_out[-1]["why"]


def test_only_our_own_parts_are_measured_once_the_time_is_over():
    bench = block_measure.Bench(CPU, ["cpu"], rounds=2, compile_s=30.0, minutes=0.0)
    case = bench.case((4, 4, 4), 2, F32, 2)
    bench.run_parts(case)
    assert {row["kind"] for row in bench.rows} == {"ours", "probe"}
    assert bench.run_blocks(case) == []
    assert all("--minutes" in note["why"] for note in bench.left_out[-2:])


def test_a_block_that_is_too_slow_is_measured_for_its_memory():
    bench = block_measure.Bench(CPU, ["cpu"], rounds=2, compile_s=0.0, block_seconds=0.0)
    case = bench.case((4, 8, 8), 4, F32, 2)
    rows = bench.run_blocks(case)
    assert rows and not any("ms" in row for row in rows)
    assert {row["batch"] for row in rows} == {1}
    assert all(row["kept_bytes"] > 4 for row in rows)
    assert any("--block-seconds" in note["why"] for note in bench.left_out)
    assert "-" in block_report.case_table(rows)
    assert bench.run_blocks(bench.case((4, 8, 8), 4, F32, 3)) == []  # once is enough


def row(contender, kind, ms, measurement="part", **more):
    base = {
        "measurement": measurement,
        "contender": contender,
        "kind": kind,
        "shape": "64x32x32",
        "elements": 8388608,
        "dtype": "float32",
        "steps": 4,
    }
    return base | ({"ms": ms} if ms else {}) | more


def test_targets_and_losses_say_what_was_measured():
    rows = [
        row("snnfast cpu", "ours", 1.0, kept_bytes=4.0),
        row("BatchNorm2d + SpikingJelly", "peer", 4.9, kept_bytes=14.0),
        row(COMPILED, "peer", 0.9),
        row("snnfast cpu", "ours", 2.0, "part + residual", kept_bytes=8.0),
        row("snnfast cpu, packed", "ours", 2.2, "part + residual", kept_bytes=4.125),
        row("BatchNorm2d + SpikingJelly", "peer", 7.1, "part + residual"),
        row("snnfast cpu, packed", "ours", None, "block", kept_bytes=4.3),
    ]
    found = {t["target"]: t["met"] for t in block_report.targets(rows, "cpu")}
    speed = "{}, 64x32x32 float32 T = 4: speed relative to {}"
    assert found[speed.format("part", "SpikingJelly")] is False
    assert found[speed.format("part", COMPILED)] is False
    assert found[speed.format("part + residual", "SpikingJelly")] is True
    assert found[speed.format("part + residual", COMPILED)] is None
    kept = "{}, {}: bytes kept per element, most of all cases"
    assert found[kept.format("part + residual", "float32")] is True
    assert found[kept.format("block", "float32")] is False
    assert found[kept.format("block", "bfloat16")] is None
    lost = report.losses(rows)
    assert len(lost) == 1 and COMPILED in lost[0]


def test_on_a_gpu_the_fastest_peer_counts_and_every_pass():
    rows = [
        row("snnfast triton", "ours", 1.0, dtype="bfloat16"),
        row("BatchNorm2d + SpikingJelly cuda", "peer", 2.5, dtype="bfloat16"),
        row("BatchNorm2d + SpikingJelly triton", "peer", 1.9, dtype="bfloat16"),
        row("triton: apply", "ours", 1.0, "passes", share_of_copy=0.9),
        row("triton: backward 1", "ours", 1.0, "passes", share_of_copy=0.8),
    ]
    met = [(t["measured"], t["met"]) for t in block_report.targets(rows, "cuda")][:3]
    assert met == [(1.9, False), (0.9, True), (0.8, False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64x32"], "C, H and W are written as 64x32x32"),
        (["--steps", "0"], "must be a whole number from 1"),
        (["--dtypes", "float64"], "dtype must be one of float32"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.parse("block", arguments)
    assert message in capsys.readouterr().err


def test_unfused_contender_is_the_fused_one():
    case = Case((4, 4, 4), 2, 3, F32, CPU)
    fused, apart = (case.part(contender) for contender in (ours("cpu"), unfused("cpu")))
    s = fused(case.y[0], case.spikes[0].detach())
    assert torch.equal(s, apart(case.y[0], case.spikes[0].detach()))
    torch.testing.assert_close(fused.running_var, apart.running_var)
    assert fused.num_batches_tracked == apart.num_batches_tracked == 1
