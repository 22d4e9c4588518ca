"""What our Triton kernels should take on a GPU: PREDICTED from machine code, not measured.

    python benchmarks/predict.py                       # H200 and A100, the rows of lif and block
    python benchmarks/predict.py --gpus H200 --measured benchmarks/results/nvidia-h200

Every launch of a pass is made on tensors without memory, compiled ahead of time, and disassembled.
A launch takes a fixed time, and then the longer of

    memory       bytes / min(copy speed, bytes under way / latency): the bytes of the byte model (of
                 what ends a reduction those of its machine code), under way what a thread loads
                 before it first waits, times the threads that registers let be there at once
    instructions of all warps / (multiprocessors x 4 a cycle x what is reached of that)

The constants below are data sheets' and what copies are known to reach. A case's tensors lie
outside the L2, as the benchmarks' do; a layer is its launches, without the host's time. Rows are
those of bench_lif.json and bench_block.json; with --measured the times that stand there are shown
beside. Writes predicted.json where --output says; the one that we stand by until a GPU has measured
lies in benchmarks/results/predicted.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import _aot
import _sass
import block_measure
import environment
import report
import run
import torch
from lif_case import SURROGATE
from measure import dtype_name, label

from snnfast.backends.spec import segments
from snnfast.backends.triton import launch
from snnfast.ops.layer import lif_layer
from snnfast.ops.select import implementation


class Gpu(NamedTuple):
    arch: int
    copy: float
    """Bytes per second that a large copy reads and writes."""
    multiprocessors: int
    clock: float
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    """At most, of a multiprocessor."""


GPUS = {
    "H200": Gpu(90, 4.3e12, 132, 1.83e9),
    "A100": Gpu(80, 1.75e12, 108, 1.41e9),
}
LATENCY = 0.8e-6
"""Of a load under load."""
LAUNCH = 2.0e-6
"""From one kernel to the next in a stream or a graph, its first and last blocks included."""
ISSUED = 0.7
"""Of the issue slots, what code with dependences gets."""


class Cost(NamedTuple):
    seconds: float
    bound: str
    blocks: int
    """At once on a multiprocessor."""


def cost(gpu: Gpu, kernel: _sass.Kernel, programs: int, warps: int, moved: float | None) -> Cost:
    """Of one launch that moves so many bytes; None: as many as its machine code, each loop once."""
    threads = 32 * warps
    by_registers = gpu.registers // (8 * math.ceil(kernel.registers / 8) * threads)
    blocks = max(1, min(by_registers, gpu.threads // threads, gpu.blocks))
    each = kernel.bytes("LDG") + kernel.bytes("STG")
    moved = programs * threads * each if moved is None else moved
    # A loop runs as often as it takes to move all the rest.
    instructions, loops = kernel.size, [b for b in kernel.loops if b.bytes("LDG")]
    if loops:
        body = loops[-1]
        inside = body.bytes("LDG") + body.bytes("STG")
        trips = (moved / (programs * threads) - (each - inside)) / inside
        instructions += max(0.0, trips - 1) * body.size
    ahead = max([kernel.loads_ahead(), *(body.loads_ahead() for body in loops)])
    widest = max(kernel.widths("LDG"), default=32) // 8
    resident = min(blocks, programs / gpu.multiprocessors)
    under_way = gpu.multiprocessors * resident * threads * ahead * widest
    memory = moved / min(gpu.copy, under_way / LATENCY)
    slots = 4 * ISSUED * gpu.clock * min(programs, gpu.multiprocessors)
    issue = programs * warps * instructions / slots
    starved = under_way / LATENCY < gpu.copy
    bound = "instructions" if issue > memory else "latency" if starved else "bandwidth"
    return Cost(LAUNCH + max(memory, issue), bound, blocks)


def launched(run: Callable[[], object]) -> list[launch.Call]:
    """The launches that ``run`` makes, none of which takes place."""
    calls: list[launch.Call] = []
    real = launch.Call.launch
    launch.Call.launch = lambda self, device: calls.append(self)
    try:
        run()
    finally:
        launch.Call.launch = real
    return calls


def predicted(gpu: Gpu, where: dict, name: str, run: Callable[[], object], moved: float) -> dict:
    """The row of a pass that moves so many bytes."""
    calls = launched(run)
    kernels = [_aot.compile_call(call, gpu.arch) for call in calls]
    costs = [
        cost(gpu, kernel, call.programs, call.constants["num_warps"], None if i else moved)
        for i, (kernel, call) in enumerate(zip(kernels, calls, strict=True))
    ]
    seconds = sum(each.seconds for each in costs)
    return {
        **where,
        "contender": name,
        "predicted_ms": 1e3 * seconds,
        "gb_per_s": 1e-9 * moved / seconds,
        "share_of_copy": moved / seconds / gpu.copy,
        "bound": costs[0].bound,
        "registers": kernels[0].registers,
        "instructions": kernels[0].size,
        "blocks": costs[0].blocks,
        "launches": len(calls),
    }


def summed(rows: list[dict], **where) -> dict:
    """The row of a layer: its passes, one after the other."""
    ms, launches = (sum(row[key] for row in rows) for key in ("predicted_ms", "launches"))
    moved = sum(row["gb_per_s"] * row["predicted_ms"] for row in rows)
    return rows[0] | where | {
        "contender": "snnfast triton",
        "predicted_ms": ms,
        "gb_per_s": moved / ms,
        "share_of_copy": sum(r["share_of_copy"] * r["predicted_ms"] for r in rows) / ms,
        "launches": launches,
        "bound": "",
        "registers": None,
        "instructions": None,
        "blocks": None,
    }  # fmt: skip


def tensors(count: int, *shape: int, dtype=torch.float32) -> list:
    return [torch.empty(shape, dtype=dtype, device="meta") for _ in range(count)]


def lif(gpu: Gpu, shape: tuple, dtype: torch.dtype, steps: int) -> list[dict]:
    functions, layer = implementation("triton"), lif_layer(steps, surrogate=SURROGATE)
    x, s, ds, dx = tensors(4, steps, *shape, dtype=dtype)
    (borders,) = tensors(1, segments(steps) - 1, *shape) if segments(steps) > 1 else (None,)
    where = {"shape": label(shape), "dtype": dtype_name(dtype), "steps": steps}
    passes = {
        "forward": (2, lambda: functions.lif_forward(layer, x, None, None, s, None, borders)),
        "backward": (
            3,
            lambda: functions.lif_backward(layer, x, None, None, borders, ds, None, dx),
        ),
    }
    rows = [
        predicted(gpu, {"measurement": f"kernel_{way}"} | where, "triton", run, width * x.nbytes)
        for way, (width, run) in passes.items()
    ]
    return [*rows, summed(rows, measurement="training")]


def block(gpu: Gpu, shape: tuple, batch: int, dtype: torch.dtype, steps: int) -> list[dict]:
    whole, rows = (steps, batch, *shape), []
    y, ds, spikes = tensors(3, *whole, dtype=dtype)
    weight, bias = tensors(2, shape[0])
    case = SimpleNamespace(
        shape=whole, steps=steps, channels=shape[0], height=shape[1], width=shape[2],
        count=y.numel(), device=y.device, y=[y], ds=[ds], spikes=[spikes], weight=weight, bias=bias,
    )  # fmt: skip
    where = {"shape": label(shape), "dtype": dtype_name(dtype), "steps": steps}
    for measurement, residual in block_measure.PARTS.items():
        passes = measurement.replace("part", "passes")
        of_part = [
            predicted(gpu, {"measurement": passes} | where, f"triton: {name}",
                      lambda run=run: run(0), block_measure.PASSES[name][residual] * y.nbytes)
            for name, run in block_measure.launches(case, "triton", residual).items()
        ]  # fmt: skip
        rows += [*of_part, summed(of_part, measurement=measurement)]
    return rows


KEYS = ("measurement", "contender", "shape", "dtype", "steps")


def measured(folder: Path | None) -> dict[tuple, float]:
    """ms of the rows that bench_lif.json and bench_block.json have there, by their KEYS."""
    paths = [folder / f"bench_{name}.json" for name in ("lif", "block")] if folder else []
    rows = [row for path in paths if path.exists() for row in json.loads(path.read_text())["rows"]]
    return {tuple(row[key] for key in KEYS): row["ms"] for row in rows if "ms" in row}


def table(name: str, rows: list[dict]) -> str:
    header = ["contender", "predicted ms", "measured ms", "GB/s", "of copy", "launches",
              "registers", "instructions", "blocks", "bound"]  # fmt: skip
    lines = [f"{name}: PREDICTED from machine code, not measured (measured: where a GPU was)"]
    for case in report.distinct(rows, "measurement", "shape", "dtype", "steps"):
        some = [row for row in rows if tuple(row[k] for k in KEYS if k != "contender") == case]
        cells = [
            [row["contender"], report.number(row["predicted_ms"]),
             "-" if row["measured_ms"] is None else report.number(row["measured_ms"]),
             f"{row['gb_per_s']:.0f}", f"{100 * row['share_of_copy']:.0f} %", str(row["launches"]),
             *("-" if row[k] is None else str(row[k])
               for k in ("registers", "instructions", "blocks")), row["bound"]]
            for row in some
        ]  # fmt: skip
        measurement, shape, dtype, steps = case
        lines += ["", f"{measurement}, {shape} {dtype} T = {steps}", report.grid(header, cells)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = run.list_of(run.sizes("64x32x32", "C, H and W are", axes=3))
    p.add_argument("--gpus", type=run.list_of(run.one_of("GPU", GPUS)), default=[*GPUS.values()])
    p.add_argument("--shapes", type=shapes, default=block_measure.SHAPES, help="C x H x W of both")
    p.add_argument("--steps", type=run.list_of(run.positive), default=[4], help="T: 4,8")
    p.add_argument("--batch", type=run.positive, default=32)
    p.add_argument("--dtypes", type=run.list_of(run.one_of("dtype", run.DTYPES)),
                   default=[torch.float32, torch.bfloat16])  # fmt: skip
    p.add_argument("--measured", type=Path, help="folder of bench_lif.json and bench_block.json")
    p.add_argument("--output", type=Path, help="folder for predicted.json")
    args = p.parse_args(argv)
    names = {gpu: name for name, gpu in GPUS.items()}
    found, known = {}, measured(args.measured)
    for gpu in args.gpus:
        rows = []
        for dtype, steps, shape in itertools.product(args.dtypes, args.steps, args.shapes):
            rows += lif(gpu, (args.batch, *shape), dtype, steps)
            rows += block(gpu, shape, args.batch, dtype, steps)
        for row in rows:
            row["measured_ms"] = known.get(tuple(row[key] for key in KEYS))
        found[names[gpu]] = rows
        print(table(names[gpu], rows), end="\n\n", flush=True)
    if args.output:
        constants = {"latency": LATENCY, "launch": LAUNCH, "issued": ISSUED}
        versions = environment.environment(torch.device("cpu"), ())
        document = {
            "what": "predictions from machine code, not measurements",
            "commit": versions["commit"],
            "triton": versions["versions"]["triton"],
            "constants": constants | {name: gpu._asdict() for name, gpu in GPUS.items()},
            **{f"rows {name}": rows for name, rows in found.items()},
        }
        report.write_json(args.output / "predicted.json", document)


if __name__ == "__main__":
    main()
