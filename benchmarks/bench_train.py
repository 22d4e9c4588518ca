"""One training step of ResNet-18 with the TWKD objective: ours and the peers side by side.

    python benchmarks/bench_train.py            # CPU, or CUDA where there is one
    python benchmarks/bench_train.py --quick    # seconds: 8x8 images, T = 2, float32

Measured per (dtype, T) at CIFAR's shape, the teacher's logits given: forward, loss, backward and
SGD with momentum and weight decay. Images per second; bytes kept between forward and backward, and
at the peak, both above parameters, gradients and momenta; and the loss of the first step.

Contenders, all with the same weights: snnfast.models' resnet18 inside packed_spikes(); the same
network from SpikingJelly's modules; from torch's, with a loop over time in each layer of neurons;
the last through torch.compile. All run the stem's convolution once for the static image. Half
precision is autocast's. What fails the gate of train_gate.py gets no speed: loss and gradients of
the first step in float32 must be the loop's where rounding cannot move a spike, to 1e-5 and 1e-3,
and the loss of the whole batch must be near it ("change"). On CUDA everything is measured
contiguous and channels-last. Where a step is too slow to be timed (bfloat16 on a CPU without
instructions for it), memory is that of one image. Writes bench_train.json and bench_train.png to
benchmarks/results/<device>/.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment
import harness
import options
import peers
import report
import train_measure
import train_report


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = options.parser(__doc__.split("\n")[0])
    p.add_argument("--timesteps", type=options.list_of(options.positive), help="T: 2,4,6")
    p.add_argument("--batch", type=options.positive, help="images a step; default 32, on CUDA 128")
    p.add_argument("--image-size", type=options.positive, help="side of the images; default 32")
    p.add_argument("--compile-seconds", type=float, help="seconds of all compiles together")
    p.add_argument("--minutes", type=float, help="after this, no case is begun")
    p.add_argument("--step-seconds", type=float, default=60.0, help="longest step that is timed")
    p.add_argument("--seconds", type=float, help="seconds of timing for each contender and case")
    args = p.parse_args(argv)
    quick, cuda = args.quick, args.device.type == "cuda"
    args.timesteps = args.timesteps or ([2] if quick else [4, 2, 6])
    args.batch = args.batch or (2 if quick else 128 if cuda else 32)
    args.image_size = args.image_size or (8 if quick else 32)
    args.dtypes = args.dtypes or [torch.float32, torch.bfloat16][: 1 if quick else 2]
    if args.seconds is None:
        args.seconds = 1.0 if quick else 4.0 if cuda else 20.0
    if args.minutes is None:
        args.minutes = 1.0 if quick else 15.0
    if args.compile_seconds is None:
        args.compile_seconds = 0.0 if quick else 300.0
    return options.finish(args)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    begin = time.perf_counter()
    env = environment.environment(args.device, peers.PACKAGES[:1])
    print(environment.heading("Training benchmark", env), flush=True)
    bench = train_measure.Bench(
        args.device,
        environment.backends(args.device, args.backends, "bench_train"),
        args.rounds,
        args.compile_seconds,
        seconds=args.seconds,
        minutes=args.minutes,
        step_seconds=args.step_seconds,
    )
    # What targets are stated for comes first.
    for dtype in args.dtypes:
        for steps in args.timesteps:
            rows = bench.run(args.image_size, args.batch, steps, dtype)
            if rows:
                print(f"\n{train_report.case_table(rows)}", flush=True)
    document = {
        "benchmark": "train",
        "environment": env,
        "busy": report.busy(env["load_average"], bench.other_work),
        "other_work": bench.other_work,
        "settings": {
            "model": "resnet18",
            "parameters": train_measure.parameters(),
            "batch": args.batch,
            "image_size": args.image_size,
            "rounds": args.rounds,
            "seconds_per_contender": args.seconds,
            "step_seconds": args.step_seconds,
            "compile_seconds": args.compile_seconds,
            "minutes": args.minutes,
            "quick": args.quick,
            "wall_seconds": round(time.perf_counter() - begin, 1),
        },
        "targets": train_report.targets(bench.rows, args.device.type),
        "losses": train_report.losses(bench.rows),
        "left_out": bench.left_out,
        "rows": bench.rows,
    }
    print("\n" + train_report.summary(document))
    harness.write_json(args.output / "bench_train.json", document)
    print(f"\nwrote {args.output / 'bench_train.json'}")
    path = args.output / "bench_train.png"
    why = train_report.plot(bench.rows, env, path, document["busy"])
    print(why or f"wrote {path}")
    return document


if __name__ == "__main__":
    if parse(None).device.type == "cpu":
        environment.pin_malloc()
    main()
