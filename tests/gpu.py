"""The gpu tests in several processes at once: what takes time there is compiling kernels.

    python tests/gpu.py                                       # all of them
    python tests/gpu.py --seconds 180 --output tests.json     # as many as begin in that time

Every process goes through the same list and runs what no other has taken: first one case of every
test on every backend, then a second one of each, and so on, so that what the time leaves undone is
more of the same. A kernel that faults takes the device from its process; that one ends, and another
goes on behind the test that did it. Needs torch, Triton and pytest, and no plugin of pytest's.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PATHS = [str(TESTS / "ops"), *sorted(map(str, TESTS.glob("test_gpu*.py")))]
GRACE = 60
"""Seconds that a test which has begun may go on when the time is over."""
LOST = 86
"""Exit status of a process that has no device any more."""


def breadth_first(items: list) -> list:
    """One case of every test on every backend, then a second one, in an order of cases by chance
    (the same in every process), since a parametrisation's first cases have much in common."""
    groups = defaultdict(list)
    for item in items:
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        groups[item.nodeid.split("[")[0], str(backend)].append(item)
    for group in groups.values():
        random.Random(group[0].nodeid).shuffle(group)
    rounds = itertools.zip_longest(*groups.values())
    return [item for each in rounds for item in each if item is not None]


class Worker:
    """A plugin of pytest: runs what it is the first to take, and notes what became of it.

    ``folder``: selected, the tests in order; outcomes, a line of JSON for each; taken/, a file for
    each test that a process has begun.
    """

    def __init__(self, folder: Path, end: float):
        self.folder, self.end = folder, end
        self.outcomes = os.open(folder / "outcomes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, test: str, outcome: str, seconds: float = 0.0, why: str = "") -> None:
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 2), "why": why[-2000:]}
        os.write(self.outcomes, f"{json.dumps(line)}\n".encode())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = breadth_first(items)
        selected = self.folder / f"selected.{os.getpid()}"
        selected.write_text("\n".join(item.nodeid for item in items))
        selected.replace(self.folder / "selected")

    def pytest_collectreport(self, report):
        if report.failed:
            self.note(report.nodeid, "failed", why=report.longreprtext)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.note(report.nodeid, "failed", report.duration, report.longreprtext)
        elif report.skipped:
            self.note(report.nodeid, "skipped", why=str(report.longrepr[-1]))
        elif report.when == "call":
            self.note(report.nodeid, "passed", report.duration)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        import torch

        for item in session.items:
            if time.time() > self.end:
                break
            if self.take(item.nodeid):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                try:
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                except Exception as error:
                    self.note(item.nodeid, "failed", why=f"the device is lost: {error}")
                    pytest.exit("the device is lost", returncode=LOST)
        return True

    def take(self, test: str) -> bool:
        name = hashlib.sha256(test.encode()).hexdigest()
        try:
            with open(self.folder / "taken" / name, "x") as file:
                file.write(test)
        except FileExistsError:
            return False
        return True


def spawn(paths: list[str], folder: Path, end: float) -> subprocess.Popen:
    command = [sys.executable, __file__, "--worker", str(folder), "--end", str(end), *paths]
    variables = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(command, env={**os.environ, **variables})


def work(paths: list[str], folder: Path, end: float) -> int:
    """What a process does."""
    options = ["-m", "gpu", "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider"]
    return pytest.main([*options, *paths], plugins=[Worker(folder, end)])


def taken(folder: Path) -> list[str]:
    return [path.read_text() for path in (folder / "taken").iterdir()]


def run(paths: list[str], workers: int, seconds: float) -> dict:
    """Run the tests; the document that says what became of them."""
    begin = time.time()
    end = begin + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "taken").mkdir()
        running = {spawn(paths, folder, end): 0 for _ in range(workers)}
        try:
            while running and time.time() < end + GRACE:
                time.sleep(0.05)
                for process in [p for p in running if p.poll() is not None]:
                    before, count = running.pop(process), len(taken(folder))
                    # Another in its place where it crashed, unless none got as far as a test.
                    if process.returncode not in (0, 1, 5) and count > before:
                        running[spawn(paths, folder, end)] = count
        finally:
            for process in running:
                process.kill()
                process.wait()
        return document(folder) | {"workers": workers, "seconds": round(time.time() - begin, 1)}


def document(folder: Path) -> dict:
    found: dict[str, dict] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "outcomes").read_text().splitlines():
            outcome = json.loads(line)
            if found.get(outcome["test"], {}).get("outcome") != "failed":
                found[outcome["test"]] = outcome
    for test in taken(folder):
        if test not in found:
            found[test] = {"test": test, "outcome": "failed", "why": "it crashed or did not end"}
    listed = folder / "selected"
    selected = listed.read_text().splitlines() if listed.exists() else []
    if all(each["outcome"] == "skipped" for each in found.values()):
        found[""] = {"test": "", "outcome": "failed", "why": "no test ran"}
    skipped: dict[str, int] = defaultdict(int)
    for each in found.values():
        if each["outcome"] == "skipped":
            skipped[each["why"]] += 1
    slowest = sorted(found.values(), key=lambda each: -each.get("seconds", 0.0))[:10]
    return {
        "selected": len(selected),
        "not_begun": len(set(selected) - found.keys()),
        "passed": sum(each["outcome"] == "passed" for each in found.values()),
        "skipped": dict(skipped),
        "failed": [each for each in found.values() if each["outcome"] == "failed"],
        "slowest": {each["test"]: each.get("seconds", 0.0) for each in slowest},
    }


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("paths", nargs="*", default=PATHS)
    p.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1) - 2)))
    p.add_argument("--seconds", type=float, default=3e3, help="after this, no test is begun")
    p.add_argument("--output", type=Path, help="a file of JSON: counts, failures, what was slow")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--end", type=float, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.worker:
        return work(args.paths, args.worker, args.end)
    found = run(args.paths, args.workers, args.seconds)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    for why, count in found["skipped"].items():
        print(f"{count} {why}")
    for each in found["failed"]:
        print(f"FAILED {each['test']}\n{each['why']}")
    print(", ".join(f"{found[key]} {key.replace('_', ' ')}" for key in ("passed", "not_begun")),
          f"of {found['selected']}, {sum(found['skipped'].values())} skipped, "
          f"{len(found['failed'])} failed in {found['seconds']} s")  # fmt: skip
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
