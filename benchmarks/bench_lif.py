"""LIF, forward and backward: our backends and the installed peers side by side in one run.

    python benchmarks/bench_lif.py            # CPU, or CUDA where there is one: under 10 minutes
    python benchmarks/bench_lif.py --quick    # under a minute

Measured per (shape, dtype, T):
  kernels    one launch on preallocated outputs, against copy_ (forward: reads x, writes s, 2b bytes
             per neuron and timestep) and torch.add(out=) (backward: reads x and ds, writes dx, 3b)
  training   s = layer(x); s.backward(ds), 5b, against every peer and a clone/add probe
  inference  s = layer(x) without gradients, 2b
  memory     bytes that the layer keeps for its backward, and its ops or launches
GB/s are these bytes over the time, for all contenders, whatever they really move. The states that
are kept at the borders of segments for T > 8 are not counted. What fails the gate of lif_case.py
gets no speed. Writes bench_lif.json and bench_lif.png to benchmarks/results/<device>/.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment
import harness
import lif_measure
import lif_report
import options
import peers
import report


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = options.parser(__doc__.split("\n")[0])
    shapes = options.list_of(options.sizes("32x64x32x32"))
    p.add_argument("--shapes", type=shapes, help="one timestep each: 32x512x4x4,...")
    p.add_argument("--steps", type=options.list_of(options.positive), help="T: 2,4,8,16,32,100")
    p.add_argument("--compile-seconds", type=float, help="longest compile of the peers' loop")
    p.add_argument("--minutes", type=float, help="after this, only our own are measured")
    args = p.parse_args(argv)
    quick = args.quick
    args.shapes = args.shapes or (
        [(8, 64, 16, 16)] if quick else [(32, 512, 4, 4), (32, 64, 32, 32)]
    )
    args.steps = args.steps or ([2, 4, 16] if quick else [2, 4, 8, 16, 32, 100])
    args.dtypes = args.dtypes or [torch.float32, torch.bfloat16]
    if args.minutes is None:
        args.minutes = 0.6 if quick else 9.0
    if args.compile_seconds is None:
        args.compile_seconds = 0.0 if quick else 30.0
    return options.finish(args)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    begin = time.perf_counter()
    env = environment.environment(args.device, peers.PACKAGES)
    print(environment.heading("LIF benchmark", env), flush=True)
    bench = lif_measure.Bench(
        args.device,
        environment.backends(args.device, args.backends, "bench_lif"),
        args.rounds,
        args.compile_seconds,
        seconds=0.2 if args.quick else 1.0,
        minutes=args.minutes,
    )
    if args.compile_seconds > 0:
        # The first compile of a process also builds inductor's headers, which is nobody's T = 2.
        torch.compile(lambda x: x * 2)(torch.ones(64, device=args.device))
    for shape in args.shapes:
        for dtype in args.dtypes:
            for steps in sorted(args.steps):
                print(flush=True)
                print(lif_report.case_table(bench.run(shape, dtype, steps)), flush=True)
    document = {
        "benchmark": "lif",
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
        "targets": lif_report.targets(bench.rows, args.device.type),
        "losses": lif_report.losses(bench.rows),
        "left_out": bench.left_out,
        "rows": bench.rows,
    }
    print("\n" + lif_report.summary(document))
    harness.write_json(args.output / "bench_lif.json", document)
    print(f"\nwrote {args.output / 'bench_lif.json'}")
    why = lif_report.plot(bench.rows, env, args.output / "bench_lif.png")
    print(why or f"wrote {args.output / 'bench_lif.png'}")
    return document


if __name__ == "__main__":
    if parse(None).device.type == "cpu":
        environment.pin_malloc()
    main()
