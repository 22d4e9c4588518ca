"""A run with decoding workers under signals, as `timeout`, systemd and a full memory send them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_files import write_images
from train_cases import arguments

from snnfast.train.checkpoint import load_checkpoint

OPTIONS = {
    "data__name": "folder",
    "data__workers": "2",
    "data__image_size": "16",
    "data__train": "0",
    "data__test": "0",
    "batch_size": "4",
    "objective": "mean_ce",
    "epochs": "1000",
    "checkpoint_every": "1",
    "time_step": "false",
}
ONE = {"OMP_NUM_THREADS": "1"}
# The same command, with less patience for data that do not come.
QUICK = "import sys; from snnfast.train import stop; stop.PATIENCE = 1.0; "
MAIN = "from snnfast.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def run(tmp_path):
    """A run of its own process group that has saved already, and its workers' pids."""
    write_images(tmp_path / "data", per_class=8)
    command = arguments(tmp_path / "run", **OPTIONS, data__root=tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK + MAIN, *command], text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | ONE,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "run" / "checkpoint" / "latest.json").exists())
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


def workers(process):
    """Two that decode, whatever else the process started."""
    return wait_for(lambda: _children(process.pid)[:2])


def _children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed] if len(listed) > 1 else []


def ended(process, status):
    """What it said last; nothing of its group is left."""
    error = process.communicate(timeout=40)[1]
    assert process.returncode == status, error
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        wait_for(lambda: os.killpg(process.pid, 0), seconds=1)
    return error.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_saves(run, tmp_path, number):
    """Twice, as `timeout` does."""
    workers(run)
    os.killpg(run.pid, number)
    os.killpg(run.pid, number)
    assert "saved; to go on: snnfast train" in ended(run, 130)
    assert load_checkpoint(tmp_path / "run")


def test_stopped_workers_do_not_hold_the_exit(run, tmp_path):
    for worker in workers(run):
        os.kill(worker, signal.SIGSTOP)
    os.killpg(run.pid, signal.SIGTERM)
    assert "interrupted" in ended(run, 130)
    assert load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_an_abandoned_worker_ends_with_its_parent(tmp_path, method):
    """At the interpreter's end, and where the parent is killed."""
    write_images(tmp_path, per_class=8)
    script = f"""
import multiprocessing, os, sys, torch
from snnfast.data import load_data
if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    data = load_data("folder", root=sys.argv[1], image_size=8, workers=1)
    batches = data.train.batches(torch.arange(24).split(2))
    next(batches)
    worker = multiprocessing.active_children()[0]
    print(worker.pid, flush=True)
    sys.stdin.read()
"""
    file = tmp_path / "abandon.py"
    file.write_text(script)
    for kill in (False, True):
        command = [sys.executable, str(file), str(tmp_path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   text=True, env=os.environ | ONE)  # fmt: skip
        worker = int(process.stdout.readline())
        process.kill() if kill else process.stdin.close()
        process.wait(20)
        wait_for(lambda worker=worker: not Path(f"/proc/{worker}/stat").exists(), seconds=5)


def test_a_killed_worker_is_told_in_words(run):
    os.kill(workers(run)[0], signal.SIGKILL)
    error = ended(run, 1)
    assert "killed" in error and "data.workers" in error
    assert "to go on: snnfast train" in error
