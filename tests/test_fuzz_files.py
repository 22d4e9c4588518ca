"""Some mutated files; tests/fuzz_files.py reads as many as one likes."""

import re

import fuzz_files

# A reader that goes wrong in many ways, one for each of the first files, and is right after them.
FAULTS = """
import itertools, os, sys, time, fuzz_files, numpy as np
def spin():
    end = time.process_time() + 1.1
    while time.process_time() < end: pass
def refuse(text):
    raise ValueError(text)
faults = (
    lambda: os.kill(os.getpid(), 11),
    lambda: time.sleep(60),
    lambda: sys.exit("stop"),
    lambda: 1 / 0,
    lambda: bytes(2**40),
    lambda: refuse("cifar: Unable to allocate 1 TiB"),
    lambda: refuse("bad"),
    spin,
    lambda: np.ones(24 * 2**20),
)
load, numbers = fuzz_files.load_data, itertools.count(-8)
def faulty(name, **options):
    number = next(numbers)  # eight files are read as they are, to begin with
    if number >= 0 and number + int(sys.argv[2]) < len(faults):
        faults[number + int(sys.argv[2])]()
    return load(name, **options)
fuzz_files.load_data, fuzz_files.CPU = faulty, 1
fuzz_files.MEMORY = 120 * 2**20
fuzz_files._targets = lambda folder: list(fuzz_files._cifar(folder))
"""
EXPECTED = (
    "the process ended with -11",
    "nothing for 10 seconds",
    "SystemExit: stop",
    "ZeroDivisionError: division by zero",
    "MemoryError: ",
    "for want of memory: cifar: Unable to allocate 1 TiB",
    "nothing is named: ValueError: bad",
    r"1\.\d seconds",
    r"1\d\d MB",
)


def test_mutated_files_are_read_or_refused(capsys):
    assert fuzz_files.run(6, seed=1) == []
    assert int(capsys.readouterr().out.split()[0]) > 5


def test_failures_are_seen(monkeypatch):
    monkeypatch.setattr(fuzz_files, "WORKER", FAULTS + fuzz_files.WORKER)
    monkeypatch.setattr(fuzz_files, "SILENCE", 10)
    monkeypatch.setattr(fuzz_files, "MOST", len(EXPECTED))
    failures = fuzz_files.run(120, seed=2)
    assert len(failures) == len(EXPECTED)
    for number, (failure, expected) in enumerate(zip(failures, EXPECTED)):
        assert re.fullmatch(rf"file {number} of seed 2, cifar.*: {expected}", failure), failure
