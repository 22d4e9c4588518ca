"""What every benchmark does: command line, environment, cases, verdict, JSON and plot.

Of a benchmark NAME, NAME_case.py has the data, the contenders and the gate, NAME_measure.py the
measurements (``Bench``), NAME_report.py what is printed and drawn.
"""

import argparse
import gc
import importlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import environment
import report
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def list_of(kind: Callable[[str], object]) -> Callable[[str], list]:
    """Items separated by commas."""
    return lambda text: [kind(item) for item in text.split(",")]


def one_of(what: str, table: dict) -> Callable[[str], object]:
    """A value of ``table`` by its name."""

    def find(text):
        if text not in table:
            raise argparse.ArgumentTypeError(f"{what} must be one of {', '.join(table)}")
        return table[text]

    return find


def sizes(example: str, what: str = "a shape is", axes: int | None = None) -> Callable:
    """A tuple of positive sizes written as ``example``; of ``axes`` sizes where it is given."""
    count = "*" if axes is None else f"{{{axes - 1}}}"

    def find(text):
        if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){count}", text):
            raise argparse.ArgumentTypeError(f"{what} written as {example}, got {text!r}")
        return tuple(map(int, text.split("x")))

    return find


def _bench(name: str) -> type:
    return importlib.import_module(f"{name}_measure").Bench


def parse(name: str, argv: list[str] | None = None, doc: str = "") -> argparse.Namespace:
    """The options of the benchmark ``name``, its own and those that all have."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    p = argparse.ArgumentParser(description=doc.split("\n")[0])
    p.add_argument("--device", type=torch.device, default=torch.device(default))
    p.add_argument("--dtypes", type=list_of(one_of("dtype", DTYPES)), help=",".join(DTYPES))
    p.add_argument("--rounds", type=positive, help="interleaved rounds per measurement")
    p.add_argument("--backends", type=list_of(str), help="cpu, or triton,cuda")
    p.add_argument("--quick", action="store_true", help="small and few cases, no compile")
    p.add_argument("--malloc", choices=("kept", "default"), default="kept",
                   help="on a CPU: told to keep large blocks, or as it is")  # fmt: skip
    p.add_argument("--output", type=Path, help="folder; default benchmarks/results/<device>/")
    p.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True,
                   help="draw a PNG beside the JSON")  # fmt: skip
    _bench(name).options(p)
    args = p.parse_args(argv)
    defaults = {"rounds": 5 if args.quick else 15}
    defaults |= _bench(name).defaults(args.quick, args.device.type == "cuda")
    for key, value in defaults.items():
        if getattr(args, key, None) is None:
            setattr(args, key, value)
    if args.output is None:
        folder = environment.ROOT / "benchmarks" / "results" / environment.device_slug(args.device)
        folder = folder / "default_malloc" if args.malloc == "default" else folder
        args.output = folder / "quick" if args.quick else folder
    return args


def main(name: str, doc: str) -> None:
    """Run the benchmark ``name`` as the command line asks; ``doc`` is that of its script."""
    args = parse(name, doc=doc)
    if args.device.type == "cpu" and args.malloc == "kept":
        environment.pin_malloc()
    begin = time.perf_counter()
    kind, shown = _bench(name), importlib.import_module(f"{name}_report")
    gc.freeze()  # what is imported is not looked through by every collection of garbage
    env = environment.environment(args.device, kind.packages)
    print(environment.heading(f"{kind.title} benchmark", env), flush=True)
    bench = kind(
        args.device,
        environment.backends(args.device, args.backends, f"bench_{name}"),
        args.rounds,
        args.compile_seconds,
        args.seconds,
        args.minutes,
        **{limit: getattr(args, limit) for limit in kind.limits},
    )
    if args.compile_seconds > 0:
        # The first compile of a process also builds inductor's headers, which is nobody's.
        torch.compile(lambda x: x * 2)(torch.ones(64, device=args.device))
    path = args.output / f"bench_{name}.json"

    # Timings on a GPU do not wait for the host, on which the run before may still be seen.
    load = 0.0 if args.device.type == "cuda" else env["load_average"]

    def write() -> dict:
        document = {
            "benchmark": name,
            "environment": env,
            "busy": report.busy(load, bench.other_work),
            "other_work": bench.other_work,
            "settings": {
                **bench.settings(args),
                **{limit: getattr(args, limit) for limit in kind.limits},
                "rounds": args.rounds,
                "seconds_per_contender": args.seconds,
                "compile_seconds": args.compile_seconds,
                "minutes": args.minutes,
                "quick": args.quick,
                "wall_seconds": round(time.perf_counter() - begin, 1),
            },
            "targets": shown.targets(bench.rows, args.device.type),
            "losses": report.losses(bench.rows),
            "left_out": bench.left_out,
            "rows": bench.rows,
        }
        report.write_json(path, document)
        return document

    for rows in bench.cases(args):
        if rows:
            print(f"\n{shown.case_table(rows)}", flush=True)
            write()  # what there is, should the rest not come to an end
    document = write()
    print("\n" + report.summary(document))
    print(f"\nwrote {path}")
    if args.plot:
        why = report.plot(shown.draw, shown.SUBJECT, document, path.with_suffix(".png"))
        print(why or f"wrote {path.with_suffix('.png')}")
