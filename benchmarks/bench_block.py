"""BatchNorm + LIF, alone and with convolutions around it: ours and the peers side by side.

    python benchmarks/bench_block.py            # CPU, or CUDA where there is one: under 6 minutes
    python benchmarks/bench_block.py --quick    # under a minute

In training mode, forward + backward, at the shapes of a ResNet-18's four stages. Per (C x H x W, T,
dtype), b bytes per element of what is normalised:
  passes            ours, pass by pass on preallocated outputs
  part              BatchNorm + LIF: statistics b, apply 2b, backward 5b
  part + residual   with spikes added between the two: b, 3b, 7b
  block             conv3x3 - BN - LIF: 6b more for the convolution
  residual block    conv - BN - LIF - conv - BN - add - LIF
  memory            bytes kept between forward and backward, and at the peak, the inputs included
                    that are kept or alive; per element of what is normalised, in both layers
GB/s are these bytes over the time, for all contenders, whatever they really move; the share is that
of a copy_ of the same tensor in the same rounds (of the floor's bytes at copy speed, that is).

Contenders: snnfast.norm_lif; the same inside packed_spikes(), which keeps spikes as bits; and
BatchNorm2d with snnfast.lif, with SpikingJelly's LIFNode, and with a loop over time, the last
through torch.compile as one graph. In the blocks the convolutions are torch's for all. What fails
the gate of block_case.py gets no speed. Where a convolution is too slow to be timed (bfloat16 on a
CPU without instructions for it), the blocks' memory is measured on one image. Writes
bench_block.json and bench_block.png to benchmarks/results/<device>/.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import block_measure
import block_report
import environment
import harness
import options
import peers
import report

SHAPES = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = options.parser(__doc__.split("\n")[0])
    shapes = options.list_of(options.sizes("64x32x32", "C, H and W are", axes=3))
    p.add_argument("--shapes", type=shapes, help="C x H x W: 64x32x32,...")
    p.add_argument("--steps", type=options.list_of(options.positive), help="T: 4,8")
    p.add_argument("--batch", type=options.positive, help="B; default 32, with --quick 2")
    p.add_argument("--compile-seconds", type=float, help="seconds of all compiles together")
    p.add_argument("--minutes", type=float, help="after this, only our own parts are measured")
    p.add_argument("--block-seconds", type=float, default=4.0,
                   help="longest pass of a block's convolutions")  # fmt: skip
    args = p.parse_args(argv)
    quick = args.quick
    args.shapes = args.shapes or ([(64, 16, 16), (512, 4, 4)] if quick else SHAPES)
    args.steps = args.steps or ([4] if quick else [4, 8])
    args.batch = args.batch or (2 if quick else 32)
    args.dtypes = args.dtypes or [torch.float32, torch.bfloat16]
    if args.minutes is None:
        args.minutes = 0.6 if quick else 4.5
    if args.compile_seconds is None:
        args.compile_seconds = 0.0 if quick else 100.0
    return options.finish(args)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    begin = time.perf_counter()
    env = environment.environment(args.device, peers.PACKAGES[:1])
    print(environment.heading("Block benchmark", env), flush=True)
    bench = block_measure.Bench(
        args.device,
        environment.backends(args.device, args.backends, "bench_block"),
        args.rounds,
        args.compile_seconds,
        seconds=0.2 if args.quick else 0.5,
        minutes=args.minutes,
        block_seconds=args.block_seconds,
    )
    if args.compile_seconds > 0:
        # The first compile of a process also builds inductor's headers.
        torch.compile(lambda x: x * 2)(torch.ones(64, device=args.device))
    # What targets are stated for comes first: small T, float32, the parts before the blocks.
    for steps in sorted(args.steps):
        for dtype in args.dtypes:
            for run in (bench.run_parts, bench.run_blocks):
                for shape in args.shapes:
                    rows = run(bench.case(shape, args.batch, dtype, steps))
                    if rows:
                        print(f"\n{block_report.case_table(rows)}", flush=True)
    document = {
        "benchmark": "block",
        "environment": env,
        "busy": report.busy(env["load_average"], bench.other_work),
        "other_work": bench.other_work,
        "settings": {
            "batch": args.batch,
            "rounds": args.rounds,
            "seconds_per_contender": bench.seconds,
            "compile_seconds": args.compile_seconds,
            "block_seconds": args.block_seconds,
            "minutes": args.minutes,
            "quick": args.quick,
            "wall_seconds": round(time.perf_counter() - begin, 1),
        },
        "targets": block_report.targets(bench.rows, args.device.type),
        "losses": block_report.losses(bench.rows),
        "left_out": bench.left_out,
        "rows": bench.rows,
    }
    print("\n" + block_report.summary(document))
    harness.write_json(args.output / "bench_block.json", document)
    print(f"\nwrote {args.output / 'bench_block.json'}")
    path = args.output / "bench_block.png"
    why = block_report.plot(bench.rows, env, path, document["busy"])
    print(why or f"wrote {path}")
    return document


if __name__ == "__main__":
    if parse(None).device.type == "cpu":
        environment.pin_malloc()
    main()
