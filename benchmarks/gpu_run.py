"""The gpu tests and the benchmarks on a machine with a CUDA device, most valuable first.

    python benchmarks/gpu_run.py           # in under ten minutes, the installation included
    python benchmarks/gpu_run.py --full    # all of them, about an hour

A part that fails, or that its time is over for, stops no other; the exit status is 0 where none
did. Everything goes to one folder (--output; benchmarks/results/<device>/): gpu.json with what
became of the parts, tests.json, bench_*.json and, with --full, their plots; gpu.log has all that
was printed. So a folder from elsewhere lands in its place by one copy of its *.json.

Compiling kernels takes longest, so the tests run in many processes, and the benchmarks once beside
them with next to no time to measure: what they compile, Triton finds on disk when it counts.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import environment
import torch

ROOT = environment.ROOT
LOG, DOCUMENT = "gpu.log", "gpu.json"
QUICK_SECONDS = 570
"""Of all quick parts together."""


class Part(NamedTuple):
    """Commands that run side by side, for at most so many seconds. In an argument, {output} is the
    folder of what is kept and {scratch} that of what is not."""

    name: str
    seconds: float
    commands: list[str]


INSTALL = "-m pip install --quiet --no-build-isolation --no-deps -e ."
TESTS = "tests/gpu.py --output {output}/tests.json"
MEASURED = "--device cuda --output {output}"
WARM_UP = "--device cuda --output {scratch} --no-plot --rounds 1"
BLOCK = "benchmarks/bench_block.py --compile-seconds 0 --steps 4 --minutes 1 --dtypes"
LIF = "benchmarks/bench_lif.py --compile-seconds 0 --steps 4,16 --minutes 0.5"
DISTILL = "benchmarks/bench_distill.py --compile-seconds 0 --shapes 6x128x100,4x512x1000"
NEURON = "benchmarks/bench_neuron.py --compile-seconds 0 --neurons lif,adaptive_lif --steps 4"
TRAIN = "benchmarks/bench_train.py --compile-seconds 0 --timesteps 4 --dtypes bfloat16"
QUICK = [
    Part("install", 110, [INSTALL]),
    Part(
        "tests",
        180,
        [
            f"{TESTS} --workers 11 --seconds 130",
            f"{BLOCK} bfloat16 {WARM_UP}",
            f"{BLOCK} float32 {WARM_UP}",
            f"{LIF} {WARM_UP}",
            f"{NEURON} {WARM_UP}",
            f"{DISTILL} {WARM_UP}",
            f"{TRAIN} {WARM_UP} --seconds 0.1",
        ],
    ),
    Part("block", 90, [f"{BLOCK} bfloat16,float32 {MEASURED} --no-plot"]),
    Part("lif", 60, [f"{LIF} {MEASURED} --no-plot"]),
    Part("neuron", 20, [f"{NEURON} {MEASURED} --no-plot --minutes 0.1"]),
    Part("distill", 40, [f"{DISTILL} {MEASURED} --no-plot"]),
    Part("train", 70, [f"{TRAIN} {MEASURED} --no-plot --seconds 1"]),
]
FULL = [
    Part("install", 600, [INSTALL]),
    Part("tests", 2400, [f"{TESTS} --seconds 2200"]),
    *(
        Part(name, seconds, [f"benchmarks/bench_{name}.py {MEASURED}"])
        for name, seconds in (
            ("block", 900),
            ("lif", 900),
            ("neuron", 900),
            ("distill", 600),
            ("train", 1500),
        )
    ),
]


def run(part: Part, output: Path, scratch: Path, seconds: float) -> str:
    """What became of it, in words: "passed", or why not. All that it started has ended."""
    end = time.monotonic() + seconds
    folders = {"output": str(output), "scratch": str(scratch)}
    commands = [[word.format_map(folders) for word in c.split()] for c in part.commands]
    running, why = [], []
    with open(output / LOG, "a") as log:
        print(f"\n== {part.name}", file=log, flush=True)
        try:
            for command in commands:
                # Each leads a group, which its children belong to.
                running.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=ROOT,
                        env=os.environ | {"PYTHONUNBUFFERED": "1"},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        finally:
            for process, command in zip(running, commands):
                status = process.poll()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if status != 0:
                    how = f"status {status}" if status is not None else f"{seconds:.0f} s were over"
                    why.append(f"{Path(command[0]).stem}: {how}")
    return "; ".join(why) or "passed"


def compiled() -> int:
    """Kernels that Triton has on disk."""
    folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    return sum(1 for _ in Path(folder).glob("*/*.cubin"))


def run_all(parts: list[Part], output: Path, limit: float, env: dict) -> list[dict]:
    """What became of each part, which gpu.json says after each."""
    output.mkdir(parents=True, exist_ok=True)
    (output / LOG).write_text("")
    begin, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            print(f"{part.name}: at most {part.seconds:.0f} s", flush=True)
            start, kernels, outcome = time.monotonic(), compiled(), "the time is over"
            seconds = min(part.seconds, begin + limit - start)
            if seconds > 0:
                outcome = run(part, output, Path(scratch), seconds)
            row = {"part": part.name, "outcome": outcome}
            row["seconds"] = round(time.monotonic() - start, 1)
            row["kernels_compiled"] = compiled() - kernels
            print(f"  {outcome} in {row['seconds']} s", flush=True)
            found.append(row)
            document = {"environment": env, "parts": found}
            (output / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")
    return found


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--full", action="store_true", help="all tests and cases, without haste")
    p.add_argument("--output", type=Path, help="folder; default benchmarks/results/<device>/")
    args = p.parse_args(argv)
    if not torch.cuda.is_available():
        sys.exit("gpu_run: torch finds no CUDA device: nvidia-smi shows whether the driver does")
    device = torch.device("cuda")
    output = args.output or ROOT / "benchmarks" / "results" / environment.device_slug(device)
    parts, limit = (FULL, float("inf")) if args.full else (QUICK, QUICK_SECONDS)
    major, minor = torch.cuda.get_device_capability(device)
    os.environ.setdefault("SNNFAST_CUDA_ARCHS", f"{major}{minor}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = run_all(parts, output.resolve(), limit, environment.environment(device, ()))
    wrong = [row for row in found if row["outcome"] != "passed"]
    print(f"\n{len(found) - len(wrong)} of {len(found)} parts passed; {output} has all of it")
    for row in wrong:
        print(f"  {row['part']}: {row['outcome']}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
