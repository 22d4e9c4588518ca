"""The directory of a run: what is replaced in it, what is not, and who is at work there."""

import json
import os
import socket
import subprocess
import sys

import pytest
from train_cases import arguments, one_thread

from snnfast.cli import main
from snnfast.data import DataError
from snnfast.train import build, folder
from snnfast.train.checkpoint import load_checkpoint
from snnfast.train.metrics import Metrics

SHORT = {
    "data__train": "20",
    "data__test": "20",
    "epochs": "1",
    "time_step": "false",
    "objective": "mean_ce",
}
OTHERS = ("checkpoint/mine.bin", "config.toml", "model.safetensors", "tensorboard/mine.txt")


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


def write(path, text="mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contents(output):
    return {p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()}


def refused(capsys, *argv):
    assert main(list(argv)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_what_is_not_a_runs_is_not_touched(tmp_path, capsys, name, options):
    write(tmp_path / name)
    before = contents(tmp_path)
    error = refused(capsys, *arguments(tmp_path, **SHORT), *options)
    assert f"holds {name.partition('/')[0]} and no .snnfast.json" in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("options", [("--overwrite",), ("--resume=auto",)])
@pytest.mark.parametrize("name", ["checkpoint", "tensorboard", "model.safetensors"])
def test_links_are_not_followed(tmp_path, capsys, name, options):
    """Not in a run's directory either."""
    output, other = tmp_path / "run", tmp_path / "other"
    with folder.claimed(output, resume=False, overwrite=False):
        pass
    write(other / "000001" / "mine.bin"), write(other / "latest.json", "{}")
    (output / name).symlink_to(other)
    before = contents(tmp_path)
    error = refused(capsys, *arguments(output, **SHORT), *options)
    assert f"{output / name} is a link" in error
    assert contents(tmp_path) == before


def test_a_run_is_replaced_when_asked_to_and_nothing_but_it(tmp_path, capsys):
    sizes = SHORT | {"tensorboard": "true"}
    assert main(arguments(tmp_path, **sizes)) == 0
    mine = ("notes.txt", "checkpoint/mine/a.txt", "checkpoint/b.txt", "tensorboard/c.txt")
    for name in mine:
        write(tmp_path / name)
    assert main(["eval", str(tmp_path)]) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    error = refused(capsys, *arguments(tmp_path, **sizes, seed="1"))
    assert "holds a run; --resume auto goes on with it, --overwrite replaces it" in error
    assert contents(tmp_path) == before

    assert main([*arguments(tmp_path, **SHORT, seed="1"), "--overwrite"]) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "eval.json").exists() and not (tmp_path / "eval.png").exists()
    assert [file.name for file in (tmp_path / "tensorboard").iterdir()] == ["c.txt"]
    assert "seed = 1\n" in (tmp_path / "config.toml").read_text()
    assert "seed = 1\n" in load_checkpoint(tmp_path)[1]["config"]


def test_a_run_goes_only_when_the_next_can_begin(tmp_path, capsys, monkeypatch):
    assert main(arguments(tmp_path, **SHORT)) == 0
    before = contents(tmp_path)
    for options in (["--model=nothing"], ["--data.train=15"], ["--teacher=nowhere",
                    "--objective=twkd"], ["--device=nothing"]):  # fmt: skip
        assert main([*arguments(tmp_path, **SHORT), "--overwrite", *options]) == 2
        assert contents(tmp_path) == before

    loaded = build.load_data

    def damaged(*args):
        data = loaded(*args)

        def batches(indices, seed=0):
            raise DataError("0.png: damaged")

        monkeypatch.setattr(data.train, "batches", batches, raising=False)
        return data

    monkeypatch.setattr(build, "load_data", damaged)
    assert main([*arguments(tmp_path, **SHORT), "--overwrite"]) == 1
    assert "0.png: damaged" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_run_that_left_nothing_is_begun_again(tmp_path):
    with folder.claimed(tmp_path, resume=False, overwrite=False):
        write(tmp_path / "config.toml"), write(tmp_path / "metrics.jsonl")
    assert main(arguments(tmp_path, **SHORT)) == 0


def test_the_default_output_is_the_recipes_and_the_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1"):
        argv = [a for a in arguments("", **SHORT, seed=seed) if not a.startswith("--output")]
        assert main(argv) == 0
        capsys.readouterr()
        assert f"output: runs/digits_twkd-{seed} holds a run" in refused(capsys, *argv)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "digits_twkd-0",
        "digits_twkd-1",
    }


@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--resume=auto",)])
def test_two_runs_are_not_in_one_directory(tmp_path, capsys, options):
    """The first holds the lock as long as it lives, and no longer."""
    code = (
        "import sys; from pathlib import Path; from snnfast.train import folder\n"
        "with folder.claimed(Path(sys.argv[1]), resume=False, overwrite=False):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"in\n"
    started = json.loads((tmp_path / ".snnfast.json").read_text())["started"]
    argv = [*arguments(tmp_path, **SHORT), *options]
    error = refused(capsys, *argv)
    assert f"is in use by process {first.pid} on {socket.gethostname()}" in error
    assert f"which started {started}" in error
    assert os.listdir(tmp_path) == [".snnfast.json"]
    first.kill(), first.communicate()
    assert main(argv) == 0


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from snnfast.train import folder\n"
        "output = Path(sys.argv[1])\n"
        "with folder.claimed(output, resume=False, overwrite=False):\n"
        "    worker = os.fork() or time.sleep(60) or os._exit(0)\n"
        "try:\n"
        "    time.sleep(0.3); folder.check_free(output); print(os.waitpid(worker, os.WNOHANG))\n"
        "finally:\n"
        "    os.kill(worker, signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "(0, 0)\n", done.stderr  # it is free, and the worker lives


def test_the_lock_is_held_from_the_first_write_to_the_last(tmp_path, capsys, monkeypatch):
    seen = []

    def add(self, row):
        with pytest.raises(folder.ConfigError, match=f"in use by process {os.getpid()} "):
            folder.check_free(tmp_path)
        seen.append(row["phase"])
        kept(self, row)

    kept = Metrics.add
    monkeypatch.setattr(Metrics, "add", add)
    assert main(arguments(tmp_path, **SHORT)) == 0
    assert seen == ["student", "result"]
    folder.check_free(tmp_path)


@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--resume", "auto")])
def test_names_of_a_run_that_are_something_else(tmp_path, capsys, options):
    others = {"metrics.jsonl": "mkdir", "checkpoint": "touch", ".snnfast.json": "fifo"}
    for name, make in others.items():
        output = tmp_path / name.strip(".")
        write(output / "mine.txt")
        path = output / name
        os.mkfifo(path) if make == "fifo" else getattr(path, make)()
        error = refused(capsys, *arguments(output, **SHORT), *options)
        assert f"{name} must be a" in error and path.exists()


def test_a_marker_of_somebody_else_is_not_overwritten(tmp_path, capsys):
    write(tmp_path / ".snnfast.json", '{"my": "notes"}')
    error = refused(capsys, *arguments(tmp_path, **SHORT))
    assert "must be the marker of a run" in error
    assert (tmp_path / ".snnfast.json").read_text() == '{"my": "notes"}'
