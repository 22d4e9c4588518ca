"""`make gpu` without a GPU: its tests import on a machine that has little, its processes share a
suite, outlive a lost device and a crash, and its parts end, fail and report."""

import json
import os
import signal
import subprocess
import sys
import time

import benchmark_run
import gpu
import gpu_run
import pytest
import run as benchmarks
import torch

ABSENT = (
    "pydantic", "tomli_w", "spikingjelly", "snntorch", "norse", "kornia", "xdist", "hypothesis",
    "pytest_benchmark", "mlxtend", "matplotlib", "tqdm", "PIL", "datasets", "aedat", "torchvision",
)  # fmt: skip

# A CUDA device as far as the collection of tests looks at one.
BARE = f"""
import functools, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import torch
torch.cuda.is_available = lambda: True
from snnfast.backends import cuda, triton
cuda.available = triton.available = functools.cache(lambda: None)
import pytest
sys.exit(pytest.main(["-m", "gpu", "--collect-only", "-q", *sys.argv[1:]]))
"""


def test_the_gpu_tests_are_collected_where_little_is_installed():
    found = subprocess.run(
        [sys.executable, "-c", BARE, *gpu.PATHS],
        cwd=gpu.TESTS.parent,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    for name in ("triton", "cuda", "cuda at first use"):
        for file in ("ops/test_lif.py", "test_gpu.py"):
            lines = [line for line in found.stdout.splitlines() if f"tests/{file}::" in line]
            assert any(f"{name} on a GPU" in line for line in lines)


SUITE = """
import os, time
import pytest, torch
from pathlib import Path

torch.cuda.is_available = lambda: True
lost = []

def synchronize():
    if lost:
        raise RuntimeError("an illegal memory access was encountered")

torch.cuda.synchronize = synchronize
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("backend", ["a", "b"])
@pytest.mark.parametrize("case", range(6))
def test_many(case, backend):
    if lost:
        pytest.fail("in a process without a device")

def test_wrong():
    assert 1 + 1 == 3

def test_lost():
    lost.append(1)

def test_crash():
    os._exit(17)

def test_skipped():
    pytest.skip("not here")

def test_fixture(missing):
    pass
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    return path


def test_processes_share_a_suite_and_outlive_what_kills_one(suite, tmp_path, capsys):
    output = tmp_path / "tests.json"
    arguments = [str(suite), "--workers", "3", "--seconds", "100", "--output", str(output)]
    assert gpu.main(arguments) == 1
    found = json.loads(output.read_text())
    assert (found["selected"], found["passed"], found["not_begun"]) == (17, 12, 0)
    assert found["skipped"] == {"Skipped: not here": 1}
    why = {each["test"].split("::")[-1]: each["why"] for each in found["failed"]}
    assert why.keys() == {"test_wrong", "test_lost", "test_crash", "test_fixture"}
    assert "assert (1 + 1) == 3" in why["test_wrong"]
    assert "illegal memory access" in why["test_lost"]
    assert "crashed" in why["test_crash"]
    out = capsys.readouterr().out
    assert "12 passed, 0 not begun of 17, 1 skipped, 4 failed" in out


def test_what_hangs_is_ended_and_the_rest_is_said_to_be_left(tmp_path, monkeypatch):
    path = tmp_path / "test_hangs.py"
    path.write_text("import time, pytest\npytestmark = pytest.mark.gpu\n"
                    "def test_a():\n    time.sleep(600)\ndef test_b():\n    pass\n")  # fmt: skip
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    begin = time.monotonic()
    found = gpu.run([str(path)], 1, 20.0)
    assert time.monotonic() - begin < 60
    (failed,) = found["failed"]
    assert failed["test"].endswith("test_a") and "did not end" in failed["why"]
    assert found["not_begun"] == 1 and found["passed"] == 0


def test_skipped_tests_alone_show_nothing(tmp_path):
    path = tmp_path / "test_skipped.py"
    path.write_text("import pytest\n@pytest.mark.gpu\ndef test_a():\n    pytest.skip('why')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    for paths in ([str(path)], [str(tmp_path / "pytest.ini")]):
        found = gpu.run(paths, 1, 60.0)
        assert [each["why"] for each in found["failed"]] == ["no test ran"]


def test_a_file_that_does_not_import_fails(tmp_path):
    path = tmp_path / "test_broken.py"
    path.write_text("import no_such_package\n")
    found = gpu.run([str(path)], 2, 60.0)
    assert any("no_such_package" in each["why"] for each in found["failed"])


class Item:
    def __init__(self, test, backend, case):
        self.nodeid = f"{test}[{case}-{backend}]"
        self.callspec = type("Callspec", (), {"params": {"backend": backend, "case": case}})


def test_every_test_and_backend_comes_once_before_one_comes_twice():
    items = [Item(t, b, c) for t in "xyz" for c in range(5 if t == "x" else 2) for b in "ab"]
    order = gpu.breadth_first(items)
    assert sorted(map(id, order)) == sorted(map(id, items))
    firsts = {(i.nodeid.split("[")[0], i.callspec.params["backend"]) for i in order[:6]}
    assert len(firsts) == 6
    assert all(i.nodeid.startswith("x") for i in order[-6:])


# The parts.

HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "fails.py").write_text("import sys; print('so it fails'); sys.exit(3)\n")
    (tmp_path / "writes.py").write_text(
        "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')\n"
    )
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    return [
        gpu_run.Part("one", 60, ["fails.py", "writes.py {scratch}/nothing.json"]),
        gpu_run.Part("two", 2, ["hangs.py", "writes.py {output}/beside.json"]),
        gpu_run.Part("three", 60, ["writes.py {output}/bench_x.json"]),
    ]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_parts_end_fail_and_report(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run, "QUICK", parts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu_run.environment, "device_slug", lambda device: "a-gpu")
    monkeypatch.setattr(gpu_run.environment, "environment", lambda device, packages: {"gpu": "a"})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SNNFAST_CUDA_ARCHS", "")
    monkeypatch.delenv("SNNFAST_CUDA_ARCHS")
    assert gpu_run.main([]) == 1
    output = tmp_path / "benchmarks" / "results" / "a-gpu"
    document = json.loads((output / "gpu.json").read_text())
    assert document["environment"] == {"gpu": "a"}
    outcomes = {row["part"]: row["outcome"] for row in document["parts"]}
    assert outcomes["one"] == "fails: status 3"
    assert outcomes["two"] == "hangs: 2 s were over"
    assert outcomes["three"] == "passed"
    kept = {path.name for path in output.iterdir()}
    assert kept == {"gpu.json", "gpu.log", "beside.json", "bench_x.json"}
    log = (output / "gpu.log").read_text()
    assert "so it fails" in log
    child = int(log.split("child ")[1].split()[0])
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)
    out = capsys.readouterr().out
    assert "1 of 3 parts passed" in out and "  one: fails: status 3" in out
    assert os.environ["SNNFAST_CUDA_ARCHS"] == "90"
    monkeypatch.setattr(gpu_run, "QUICK", parts[2:])
    assert gpu_run.main(["--output", str(tmp_path / "other")]) == 0


def test_no_part_begins_when_the_whole_time_is_over(parts, tmp_path):
    found = gpu_run.run_all(parts[1:], tmp_path / "out", 1.0, {})
    assert [row["outcome"] for row in found] == ["hangs: 1 s were over", "the time is over"]


def test_without_a_device_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu_run.main([])


def test_the_parts_fit_their_time_and_their_commands_are_understood():
    assert sum(part.seconds for part in gpu_run.QUICK) <= gpu_run.QUICK_SECONDS < 600
    names = ["install", "tests", "block", "lif", "neuron", "distill", "train"]
    for parts in (gpu_run.QUICK, gpu_run.FULL):
        assert [part.name for part in parts] == names
        for part in parts:
            for command in part.commands:
                script, *options = command.format(output="out", scratch="away").split()
                if script == "-m":
                    continue
                assert (gpu_run.environment.ROOT / script).is_file()
                if "bench_" in script:
                    name = script.partition("bench_")[2].removesuffix(".py")
                    args = benchmarks.parse(name, options)
                    assert args.device.type == "cuda"
                    assert args.plot or parts is gpu_run.QUICK
    quick = [c for part in gpu_run.QUICK for c in part.commands if "{output}" in c]
    assert len(quick) == 6  # with log and document eight files, which is how many may come back


def test_a_benchmark_that_is_ended_leaves_what_it_has_measured(tmp_path):
    folder = tmp_path / "bench"
    # One case, then another that ends the process.
    script = tmp_path / "ended.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(benchmark_run.environment.ROOT / 'benchmarks')!r})\n"
        "import lif_measure, run\n"
        "one = lif_measure.Bench.run\n"
        "def once(self, *case):\n"
        "    if self.rows:\n"
        "        os._exit(9)\n"
        "    return one(self, *case)\n"
        "lif_measure.Bench.run = once\n"
        "run.main('lif', '')\n"
    )
    options = "--device cpu --quick --shapes 2x8x4x4 --steps 2,4 --rounds 2 --no-plot --output"
    done = subprocess.run([sys.executable, script, *options.split(), folder], capture_output=True)
    assert done.returncode == 9
    assert json.loads((folder / "bench_lif.json").read_text())["rows"]
