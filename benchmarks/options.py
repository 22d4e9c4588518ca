"""The command line that the benchmarks share."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import environment
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


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; ``finish`` fills in their defaults."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--device", type=torch.device, default=torch.device(default))
    p.add_argument("--dtypes", type=list_of(one_of("dtype", DTYPES)), help=",".join(DTYPES))
    p.add_argument("--rounds", type=positive, help="interleaved rounds per measurement")
    p.add_argument("--backends", type=list_of(str), help="cpu, or triton,cuda")
    p.add_argument("--quick", action="store_true", help="small and few cases, no compile")
    p.add_argument("--output", type=Path, help="folder; default benchmarks/results/<device>/")
    return p


def finish(args: argparse.Namespace) -> argparse.Namespace:
    args.rounds = args.rounds or (5 if args.quick else 15)
    if args.output is None:
        folder = environment.ROOT / "benchmarks" / "results" / environment.device_slug(args.device)
        args.output = folder / "quick" if args.quick else folder
    return args
