"""Random inputs for as long as one likes: calls of the ops between guard pages, held to the
reference; random neurons, held to their loop; and damaged or hostile data files.

    python tests/fuzz.py --minutes 60
    python tests/fuzz.py --minutes 5 --seed 7 ops
"""

import argparse
import sys
import time

import fuzz_files
import fuzz_neurons
import fuzz_ops

PARTS = {"ops": fuzz_ops.run, "neurons": fuzz_neurons.run, "files": fuzz_files.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, help="the same cases again; else others every time")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    seed = time.time_ns() % 100_000 if options.seed is None else options.seed
    print(f"seed {seed}")
    failures = []
    for part in parts:
        failures += PARTS[part](options.minutes * 60 / len(parts), seed)
    print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
