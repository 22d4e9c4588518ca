"""A short subset of the tests under other versions of Python, torch and numpy.

python tests/matrix.py                                        # every row, with the wheels in dist/
python tests/matrix.py --python 3.12 --torch 2.10.0 --numpy 1.26.4
python tests/matrix.py --here                                 # in the environment that is active

`make wheels` fills dist/. A row is an environment of its own under build/matrix; its last line says
what was run, or why not.
"""

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/matrix"
PYTHONS, NUMPYS = ("3.11", "3.12", "3.13"), ("1.26.4", "2.4.6")
TORCHES = ("2.10.0", "2.11.0", "2.12.0", "2.13.0")
TESTS = ("ops/test_spikes", "test_data_events", "test_data_folder", "test_load", "test_typed")


def check(python: Path | str, tests: Path = ROOT) -> str:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{name}.py" for name in TESTS]
    # A set of the hub needs pandas, which asks for numpy 2.
    command += ["-k", "not interpreted and not triton and not cuda and not hub"]
    return said(command, cwd=tests)


def said(command, **options) -> str:
    """The last line of what it prints; RuntimeError with that line where it fails."""
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    line = (done.stdout.strip().splitlines() or ["no word"])[-1]
    if done.returncode:
        raise RuntimeError(line)
    return line


def row(python: str, torch: str, numpy: str) -> str:
    place = FOLDER / f"{python}-{torch}-{numpy}"
    tag = f"cp{python.replace('.', '')}"
    wheel = next((ROOT / "dist").glob(f"*-{tag}-{tag}-*.whl"), None)
    if wheel is None:
        raise RuntimeError(f"no wheel for {python} in dist; run: make wheels")
    said([f"python{python}", "-m", "venv", "--clear", place])
    wanted = [f"torch=={torch}", f"numpy=={numpy}", "pytest", f"{wheel}[train,events]"]
    said([place / "bin/pip", "install", "--quiet", *wanted])
    # The tests without the checkout's package, which has a module for another Python.
    tests = place / "checkout"
    tests.mkdir()
    for name in ("tests", "benchmarks", "pyproject.toml"):
        (tests / name).symlink_to(ROOT / name)
    return check(place / "bin/python", tests)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--here", action="store_true")
    for name, values in (("python", PYTHONS), ("torch", TORCHES), ("numpy", NUMPYS)):
        parser.add_argument(f"--{name}", nargs="*", default=values)
    options = parser.parse_args()
    if options.here:
        print(check(sys.executable))
        sys.exit()
    failed = 0
    for versions in itertools.product(options.python, options.torch, options.numpy):
        try:
            text = row(*versions)
        except (OSError, RuntimeError) as error:
            text, failed = f"not run or failed: {error}", failed + 1
        print("python {}, torch {}, numpy {}: ".format(*versions) + text, flush=True)
    sys.exit(failed > 0)
