"""snnfast.keep_memory: large blocks are not paged in anew. In a process of its own."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import snnfast

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults(), faults()]
print(snnfast.keep_memory())
print(*before, faults(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is GNU malloc's")
def test_a_block_is_paged_in_once():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    took_effect, faults = run.stdout.splitlines()
    first, second, kept_first, kept = map(int, faults.split())
    assert took_effect == "True" and min(first, second, kept_first) > 1000 and kept < 100
