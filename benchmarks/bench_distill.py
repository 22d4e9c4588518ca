"""Distillation losses: our backends and eager and compiled PyTorch side by side in one run.

    python benchmarks/bench_distill.py            # CPU, or CUDA where there is one: under 4 minutes
    python benchmarks/bench_distill.py --quick    # under a minute

Measured per (objective, T x B x C, dtype), b bytes per logit:
  kernel    one launch on preallocated outputs, which reads the logits and writes their gradient,
            2b per logit; against copy_ of the logits, which moves the same
  training  loss(logits).backward(), 4b per logit: forward 2b, and 2b to scale the kept gradient
  forward   loss(logits) without gradients, b per logit
  memory    bytes that the loss keeps for its backward, and its ops or launches
GB/s are these bytes over the time, for all contenders, whatever they really move; TSSD has two
tensors of logits, and both count. What fails the gate of distill_case.py, 1e-5 in float32 against
float64 in value and gradient, gets no speed. Writes bench_distill.json and bench_distill.png to
benchmarks/results/<device>/.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import distill_measure
import distill_report
import environment
import harness
import options
import report
from distill_case import OBJECTIVES

SHAPES = [(4, 128, 10), (6, 128, 100), (4, 512, 1000), (10, 32, 10)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    objectives = {objective.name.replace(" ", "-").lower(): objective for objective in OBJECTIVES}
    p = options.parser(__doc__.split("\n")[0])
    p.add_argument("--objectives", default=OBJECTIVES, help=",".join(objectives),
                   type=options.list_of(options.one_of("objective", objectives)))  # fmt: skip
    shapes = options.list_of(options.sizes("4x128x10", "T, B and C are", axes=3))
    p.add_argument("--shapes", type=shapes, help="T x B x C: 4x128x10,...")
    p.add_argument("--compile-seconds", type=float, help="longest compile of a composition")
    p.add_argument("--minutes", type=float, help="after this, nothing more is compiled")
    args = p.parse_args(argv)
    quick = args.quick
    args.shapes = args.shapes or ([SHAPES[0], SHAPES[2]] if quick else SHAPES)
    args.dtypes = args.dtypes or [torch.float32]
    if args.minutes is None:
        args.minutes = 3.0
    if args.compile_seconds is None:
        args.compile_seconds = 0.0 if quick else 30.0
    return options.finish(args)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    begin = time.perf_counter()
    env = environment.environment(args.device, ())
    print(environment.heading("Distillation benchmark", env), flush=True)
    bench = distill_measure.Bench(
        args.device,
        environment.backends(args.device, args.backends, "bench_distill"),
        args.rounds,
        args.compile_seconds,
        seconds=0.2 if args.quick else 0.5,
        minutes=args.minutes,
    )
    if args.compile_seconds > 0:
        # The first compile of a process also builds inductor's headers.
        torch.compile(lambda x: x * 2)(torch.ones(64, device=args.device))
    for dtype in args.dtypes:
        for shape in args.shapes:
            for objective in args.objectives:
                print(flush=True)
                rows = bench.run(objective, shape, dtype)
                print(distill_report.case_table(rows), flush=True)
    document = {
        "benchmark": "distill",
        "environment": env,
        "busy": report.busy(env["load_average"], bench.other_work),
        "other_work": bench.other_work,
        "settings": {
            "rounds": args.rounds,
            "seconds_per_contender": bench.seconds,
            "compile_seconds": args.compile_seconds,
            "minutes": args.minutes,
            "quick": args.quick,
            "wall_seconds": round(time.perf_counter() - begin, 1),
        },
        "targets": distill_report.targets(bench.rows, args.device.type),
        "losses": distill_report.losses(bench.rows),
        "left_out": bench.left_out,
        "rows": bench.rows,
    }
    print("\n" + distill_report.summary(document))
    harness.write_json(args.output / "bench_distill.json", document)
    print(f"\nwrote {args.output / 'bench_distill.json'}")
    path = args.output / "bench_distill.png"
    why = distill_report.plot(bench.rows, env, path, document["busy"])
    print(why or f"wrote {path}")
    return document


if __name__ == "__main__":
    if parse(None).device.type == "cpu":
        environment.pin_malloc()
    main()
