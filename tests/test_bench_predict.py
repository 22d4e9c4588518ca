"""benchmarks/predict.py: the model on kernels written by hand, and the rows of a real case."""

import json

import pytest
import report
import torch
from _aot import compiled
from _machine_code import read_all
from _sass import parse, read
from predict import GPUS, LAUNCH, cost, main
from test_triton_aot import make_call

H200 = GPUS["H200"]
LOAD = "LDG.E.128 R{0}, desc[UR4][R2.64]"
STORE = "STG.E.128 desc[UR4][R2.64], R{0}"


def kernel(*lines: str, registers: int = 32):
    text = "Function : k\n" + "\n".join(
        f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate([*lines, "EXIT"])
    )
    (found,) = parse(text, {"k": (registers, 0)}).values()
    return found


def adds(count: int, register: int = 8) -> list[str]:
    return [f"FADD R{register}, R{register}, R{register}"] * count


COPY = [LOAD.format(8), *adds(1), STORE.format(8)]
MANY = 1 << 20


def test_a_copy_takes_its_bytes_at_the_speed_of_a_copy():
    found = cost(H200, kernel(*COPY), MANY, 4, None)
    moved = MANY * 128 * 32
    assert found.bound == "bandwidth" and found.blocks == 16
    assert found.seconds == pytest.approx(LAUNCH + moved / H200.copy)
    assert cost(H200, kernel(*COPY), MANY, 4, 2 * moved).seconds > 1.9 * found.seconds


def test_instructions_bound_what_computes_much():
    few = cost(H200, kernel(LOAD.format(8), *adds(1000), STORE.format(8)), MANY, 4, None)
    more = cost(H200, kernel(LOAD.format(8), *adds(2000), STORE.format(8)), MANY, 4, None)
    assert few.bound == more.bound == "instructions"
    assert (more.seconds - LAUNCH) / (few.seconds - LAUNCH) == pytest.approx(2003 / 1003)


def test_registers_bound_what_is_under_way():
    found = [cost(H200, kernel(*COPY, registers=r), MANY, 4, None) for r in (32, 64, 128, 255)]
    assert [each.blocks for each in found] == [16, 8, 4, 2]
    assert found[-1].bound == "latency" and found[-1].seconds > 2 * found[0].seconds


def test_few_programs_do_not_fill_a_device():
    full = cost(H200, kernel(*COPY), 132 * 16, 4, 1e6)
    part = cost(H200, kernel(*COPY), 8, 4, 1e6)
    assert part.bound == "latency" and part.seconds > 10 * full.seconds


def test_a_loop_runs_as_often_as_its_bytes_take():
    loop = kernel(LOAD.format(8), *adds(700), "@P0 BRA 0x0", STORE.format(8))
    once = cost(H200, loop, MANY, 4, MANY * 128 * 32)
    tenfold = cost(H200, loop, MANY, 4, MANY * 128 * (16 + 10 * 16))
    assert once.bound == tenfold.bound == "instructions"
    rise = (tenfold.seconds - LAUNCH) / (once.seconds - LAUNCH)
    assert rise == pytest.approx((704 + 9 * 702) / 704)


def test_the_rows_are_those_that_are_measured(tmp_path, capsys):
    where = {"shape": "64x8x8", "dtype": "bfloat16", "steps": 4}
    row = {"measurement": "part", "contender": "snnfast triton", **where, "ms": 0.1234}
    report.write_json(tmp_path / "bench_block.json", {"rows": [row]})
    options = ["--gpus", "H200", "--shapes", "64x8x8", "--batch", "4", "--dtypes", "bfloat16"]
    main([*options, "--measured", str(tmp_path), "--output", str(tmp_path)])
    document = json.loads((tmp_path / "predicted.json").read_text())
    assert "not measurements" in document["what"]
    rows = {(r["measurement"], r["contender"]): r for r in document["rows H200"]}
    passes = ["statistics", "apply", "backward 1", "backward 2"]
    assert rows.keys() == {
        *(("kernel_forward", "triton"), ("kernel_backward", "triton")),
        *(("training", "snnfast triton"), ("part", "snnfast triton")),
        *(("part + residual", "snnfast triton"),),
        *((kind, f"triton: {p}") for kind in ("passes", "passes + residual") for p in passes),
    }
    assert all(0 < r["share_of_copy"] <= 1 and r["predicted_ms"] > 0 for r in rows.values())
    measured = {key for key, r in rows.items() if r["measured_ms"] is not None}
    assert measured == {("part", "snnfast triton")}
    of_part = [r["predicted_ms"] for (kind, _), r in rows.items() if kind == "passes"]
    assert rows["part", "snnfast triton"]["predicted_ms"] == pytest.approx(sum(of_part))
    out = capsys.readouterr().out
    assert "PREDICTED from machine code, not measured" in out and "0.123" in out


def test_kernels_that_are_read_at_once_are_those_that_are_read_alone():
    """Two of each architecture, with a loop and without; all but the names of branches."""

    def seen(kernel):
        rows = [(i.guard, i.opcode, i.reads) for i in kernel.instructions]
        loops = [(loop.size, loop.widths("LDG")) for loop in kernel.loops]
        return kernel.registers, kernel.stack, kernel.loads_ahead(), loops, rows

    calls = [make_call(T, torch.float32, backward=False, number=1.7) for T in (4, 16)]
    cubins = [compiled(call, arch).asm["cubin"] for arch in (80, 90) for call in calls]
    for cubin, kernels in read_all(cubins).items():
        alone = read(cubin)
        assert kernels.keys() == alone.keys()
        assert all(seen(kernels[name]) == seen(alone[name]) for name in alone)
