"""What the benchmarks do on a GPU alone, with the device stubbed: buffers that rotate past the L2,
their outputs, too, and bytes as they were asked for."""

import itertools
import json
import os
import subprocess
import sys
import types
import weakref

import benchmark_run  # noqa: F401, finds the benchmarks
import block_case
import block_measure
import gpu_run
import harness
import lif_case
import lif_measure
import measure
import pytest
import torch

CPU = torch.device("cpu")
L2 = 60 << 20


@pytest.fixture
def bench(monkeypatch):
    """A benchmark that takes its device for a GPU with an L2 of 60 MB."""
    properties = types.SimpleNamespace(L2_cache_size=L2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = measure.Bench(CPU, [], rounds=2, compile_s=0.0)
    found.device = torch.device("cuda")
    return found


@pytest.mark.parametrize("size", [12_800, 1 << 20, 100 << 20, 1 << 30])
def test_sets_are_four_times_the_l2(bench, size):
    sets = bench.sets(size)
    assert sets >= 2 and 4 * L2 <= sets * size <= 4 * L2 + 2 * size
    bench.device = CPU
    assert bench.sets(size) == 1


def test_no_buffer_comes_again_before_all_others_did():
    turns = []
    runs = {name: lambda i: turns.append(i) for name in "abc"}
    harness.time_rounds(runs, CPU, rounds=3, seconds=0.01)
    assert turns == list(range(len(turns)))


def test_outputs_are_held_until_their_set_comes_again():
    alive = []

    def run(i):
        out = torch.zeros(1)
        alive.append(weakref.ref(out))
        return out

    rotated = measure.rotating({"a": run, "b": run}, 3)
    for i, name in zip(range(9), itertools.cycle("ab")):
        rotated[name](i)
        assert sum(ref() is not None for ref in alive) == min(i + 1, 3)
    assert measure.rotating({"a": run}, 1) == {"a": run}


def places(tensors) -> tuple:
    return tuple(t.data_ptr() for t in tensors if t is not None)


def test_the_passes_of_a_block_write_to_each_set_its_own(monkeypatch):
    written = []
    backend = types.SimpleNamespace(
        norm_stats=lambda *a: None,
        lif_forward=lambda *a: written.append(("apply", places([a[4], a[6]]))),
        norm_lif_backward=lambda *a: written.append(("backward 1", places([a[6], a[9]]))),
        norm_dy=lambda *a: written.append(("backward 2", places([a[2], a[3]]))),
    )
    monkeypatch.setattr(block_measure, "implementation", lambda name: backend)
    case = block_case.Case((4, 2, 2), 2, 9, torch.float32, CPU, sets=3)
    for launch in block_measure.launches(case, "recorded", True).values():
        for i in range(6):
            launch(i)
    for what in ("apply", "backward 1", "backward 2"):
        where = [place for name, place in written if name == what]
        assert where[:3] == where[3:]
        assert len({p for place in where for p in place}) == 3 * len(where[0])


def test_the_kernels_of_lif_write_to_each_set_its_own(monkeypatch):
    written = []
    backend = types.SimpleNamespace(
        lif_forward=lambda *a: written.append(places([a[4], a[6]])),
        lif_backward=lambda *a: written.append(places([a[4], a[7]])),
    )
    monkeypatch.setattr(lif_measure, "implementation", lambda name: backend)
    case = lif_case.Case((2, 4), torch.float32, 9, CPU, sets=3)
    monkeypatch.setattr(case, "judge", lambda *a: lif_case.Verdict())
    runs = {}
    bench = lif_measure.Bench(CPU, ["recorded"], rounds=2, compile_s=0.0)
    monkeypatch.setattr(bench, "timed", lambda case, found, widths: runs.update(found) or found)
    with pytest.raises(KeyError):  # there are no timings to make rows of
        bench.kernels(case)
    for way in ("forward", "backward"):
        written.clear()
        for i in range(6):
            runs[f"recorded {way}"](i)
        assert written[:3] == written[3:]
        assert len({place for each in written for place in each}) == 6


def test_layers_return_what_they_wrote():
    case = lif_case.Case((2, 4), torch.float32, 4, CPU)
    leaf = case.x[0].clone().requires_grad_()
    layer = lif_case.ours("cpu").layer
    assert torch.equal(lif_measure._train(layer, [leaf], case.ds, 0) != 0, case.spikes)
    assert torch.equal(lif_measure._infer(layer, case.x, 0) != 0, case.spikes)


def test_bytes_are_those_that_were_asked_for(monkeypatch):
    """A block of the allocator is larger than what was asked for, by up to 511 bytes."""
    now = {"current": 1000, "peak": 1000}

    def stats(device):
        rounded = {f"allocated_bytes.all.{k}": 512 * -(-v // 512) for k, v in now.items()}
        return {f"requested_bytes.all.{k}": v for k, v in now.items()} | rounded

    def reset(device):
        now["peak"] = now["current"]

    monkeypatch.setattr(torch.cuda, "memory_stats", stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(
        torch.cuda, "memory_allocated", lambda d: stats(d)["allocated_bytes.all.current"]
    )

    def fn():
        now["current"] += 300
        now["peak"] = now["current"] + 50
        return "s"

    x = types.SimpleNamespace(is_cuda=True, device=torch.device("cuda"))
    assert harness._watched(fn, x) == ("s", 300, 350)


def test_what_cannot_be_profiled_on_a_gpu_is_timed_all_the_same():
    """This torch knows no CUDA, so its profiler refuses."""
    assert harness.count_ops(lambda: None, torch.device("cuda")) is None
    with pytest.raises(ZeroDivisionError):
        harness.count_ops(lambda: 1 // 0, CPU)


# Each benchmark as gpu_run.py starts it, on little, with the device stubbed: every line that it
# takes on a GPU.
SMALL = {
    "lif": "--shapes 2x8x4x4 --steps 9",
    "block": "--shapes 8x4x4 --batch 2 --dtypes bfloat16",
    "distill": "--shapes 3x4x5 --objectives twkd",
    "train": "--batch 2 --image-size 8 --seconds 0.01",
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_on_a_device(name, tmp_path):
    (part,) = [part for part in gpu_run.QUICK if part.name == name]
    (command,) = part.commands
    command = command.format(output=tmp_path, scratch=tmp_path).split() + SMALL[name].split()
    root = gpu_run.ROOT
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "tests/stubbed_device.py", *command, "--rounds", "1"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / f"bench_{name}.json").read_text())
    assert document["environment"]["gpu"]["name"] == "A stub"
    refused = [row for row in document["rows"] if row.get("refused")]
    assert not refused, refused
    ours = {row["contender"] for row in document["rows"] if "ms" in row and row["kind"] == "ours"}
    assert all(any(backend in each for each in ours) for backend in ("triton", "cuda"))
    assert not any("Error" in note["why"] for note in document["left_out"])
