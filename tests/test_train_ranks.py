"""Several processes over gloo train as one process does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import ranks
import torch
import torch.distributed as dist
from data_files import write_images
from train_cases import arguments, one_thread, rows

from snnfast.cli import main
from snnfast.data.base import Augment, Data
from snnfast.models import create_model, set_process_group
from snnfast.surrogate import ATan
from snnfast.train.config import Config
from snnfast.train.distributed import World
from snnfast.train.loop import Options, Trainer
from snnfast.train.objective import student_objective

STEPS = 20


class Doubles:
    """A split of float64 images."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batches(self, indices, seed=0):
        return ((self.images[index], index) for index in indices)


def smooth_run(rank, size, port, output):
    """20 steps of the smooth twin in float64, 10 samples in batches of 5 over ``size`` ranks:
    the losses, the gradient of the first step and the weights at the end."""
    torch.set_num_threads(1)
    world = World(rank, size, rank)
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 1, 8, 8, generator=generator, dtype=torch.float64)
    split = Doubles(images)
    data = Data(split, split, num_classes=10, in_channels=1, image_size=8, augment=Augment())
    torch.manual_seed(0)
    model = create_model(
        "digits_cnn", num_classes=10, in_channels=1, image_size=8, timesteps=3,
        surrogate=ATan(spiking=False),
    ).double()  # fmt: skip
    set_process_group(model, world.group)
    config = Config(objective="twkd", twkd={"alpha": 0.0})
    options = Options(seed=0, epochs=STEPS // 2, batch_size=5, lr=0.1, packed_spikes=False,
                      accumulate=1, clip_norm=1.0)  # fmt: skip
    trainer = Trainer("student", model, student_objective(config), data, options,
                      device=torch.device("cpu"), world=world)  # fmt: skip
    gradients, losses = [], []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in model.parameters()])
    )
    count = total = 0.0
    for step in trainer.steps():
        trainer.flush()
        losses.append((trainer.sums["loss"] - total) / (trainer.sums["count"] - count))
        total, count = (0.0, 0.0) if step.last else (trainer.sums["loss"], trainer.sums["count"])
    if rank == 0:
        torch.save({"losses": losses, "gradient": gradients[0],
                    "weights": model.state_dict()}, output)  # fmt: skip
    if size > 1:
        dist.destroy_process_group()


def test_two_ranks_are_one_process_in_a_smooth_twin(tmp_path, free_port):
    """Parts of 2 and 3 samples: gradients are weighted, statistics and clipping shared."""
    smooth_run(0, 1, 0, tmp_path / "one")
    ranks.start(smooth_run, 2, free_port, tmp_path / "two")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert len(one["losses"]) == STEPS
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-9)
    assert one["losses"][-1] < 0.9 * one["losses"][0]
    for mine, theirs in zip(one["gradient"], two["gradient"], strict=True):
        assert (mine - theirs).abs().max() <= 1e-10 * (1 + mine.abs().max())
    for name, value in one["weights"].items():
        assert torch.allclose(value.double(), two["weights"][name].double(), atol=1e-8), name


def test_torchrun_gives_the_single_process_first_step(tmp_path, free_port):
    """One step an epoch: the first row's losses are those of the first weights."""
    sizes = {"data__train": "10", "data__test": "20", "epochs": "1", "teacher__epochs": "1",
             "time_step": "false"}  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with one_thread():
        assert main(arguments(tmp_path / "one", **sizes)) == 0
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
              f"--master-port={free_port}", "-m", "snnfast"]  # fmt: skip
    done = subprocess.run([*runner, *arguments(tmp_path / "two", **sizes)], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student  test accuracy") == 1  # rank 0 alone speaks
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["phase"] for row in one] == [row["phase"] for row in two]
    for mine, theirs in zip(one[:1], two[:1], strict=True):
        for term in ("loss", "ce", "train_accuracy"):
            assert mine[term] == pytest.approx(theirs[term], rel=1e-5), term
    names = {"model.safetensors", "teacher.safetensors", "config.toml", "metrics.jsonl"}
    assert names <= {file.name for file in (tmp_path / "two").iterdir()}
    assert json.loads((tmp_path / "two" / "checkpoint" / "latest.json").read_text())


SHORT = {"data__train": "40", "data__test": "20", "time_step": "false", "device": "cpu"}


def _rank(rank, size, port, command, log, before):
    """A rank by itself: without torchrun nobody but the ranks ends ranks."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    torch.set_num_threads(1)
    exec(before)
    sys.exit(main(command))


@pytest.fixture
def start(tmp_path, free_port):
    """Start ranks with a command each; returns them and the files of what they say."""
    started = []

    def start(commands, before=""):
        context = ranks.context()
        for rank, command in enumerate(commands):
            log = tmp_path / f"rank{rank}.log"
            process = context.Process(
                target=_rank, args=(rank, len(commands), free_port, command, log, before)
            )
            process.start()
            started.append((process, log))
        return list(started)

    yield start
    for process, _ in started:
        process.kill()
        process.join()


def ends(ranks, status, seconds=60):
    """What each rank said last; they exit with ``status``, without a traceback."""
    end = time.monotonic() + seconds
    said = []
    for process, log in ranks:
        process.join(max(0, end - time.monotonic()))
        error = log.read_text()
        assert process.exitcode == status, error
        assert "Traceback" not in error, error
        said.append(error.splitlines()[-1])
    return said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "0.5"}, "lr is 0.05 on rank 0 and 0.5 on rank 1"),
        ({"objective": "mean_ce"}, "objective is twkd on rank 0 and mean_ce on rank 1"),
        ({"data__root": "other"}, "number of training samples is 24 on rank 0 and 30 on rank 1"),
    ],
)
def test_ranks_that_differ_stop(tmp_path, start, changes, message):
    same = SHORT
    if "data__root" in changes:
        write_images(tmp_path / "same", per_class=8)
        write_images(tmp_path / "other", per_class=10)
        same = SHORT | {"data__name": "folder", "data__root": tmp_path / "same", "data__train": "0",
                        "data__test": "0", "data__image_size": "16"}  # fmt: skip
        changes = {"data__root": tmp_path / "other"}
    commands = [arguments(tmp_path / "run", **same | own) for own in ({}, changes)]
    for error in ends(start(commands), 2):
        assert error == f"snnfast: error: ranks must train the same: {message}"
    assert not (tmp_path / "run").exists()


def test_a_run_goes_only_when_the_ranks_agree(tmp_path, start):
    kept = SHORT | {"epochs": "1", "objective": "mean_ce", "data__name": "folder",
                    "data__train": "0", "data__test": "0", "data__image_size": "16"}  # fmt: skip
    commands = []
    for count in (8, 10):
        root = tmp_path / str(count)
        write_images(root, per_class=count)
        commands += [[*arguments(tmp_path / "run", **kept, data__root=root), "--overwrite"]]
    assert main(commands[0]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for error in ends(start(commands), 2):
        assert "number of training samples is 24 on rank 0 and 30 on rank 1" in error
    assert before == {file: file.read_bytes() for file in before}


def test_other_code_stops(tmp_path, start):
    before = "import os, snnfast.train.distributed as d; d.__version__ += os.environ['RANK']"
    command = arguments(tmp_path / "run", **SHORT)
    for error in ends(start([command] * 2, before), 2):
        assert "code is snnfast" in error and "on rank 0 and snnfast" in error


def test_a_checkpoint_that_one_rank_alone_sees_stops(tmp_path, start):
    """Nothing of it is lost."""
    kept, other = tmp_path / "kept", tmp_path / "other"
    assert main(arguments(kept, **SHORT, epochs="1", teacher__epochs="1")) == 0
    before = {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()}
    options = SHORT | {"epochs": "1", "teacher__epochs": "1", "resume": "auto"}
    ranks = start([arguments(output, **options) for output in (other, kept)])
    for error in ends(ranks, 2):
        assert "resume is no checkpoint on rank 0 and student at epoch 0, step 4 (digest" in error
    assert before == {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()}


def test_what_one_rank_cannot_read_all_are_told(tmp_path, start):
    write_images(tmp_path / "data")
    options = SHORT | {"data__name": "folder", "data__root": tmp_path / "data", "data__train": "0",
                       "data__test": "0"}  # fmt: skip
    commands = [arguments(tmp_path / "run", **options | {"data__root": root})
                for root in (tmp_path / "data", tmp_path / "nothing")]  # fmt: skip
    first, second = start(commands)
    (mine,) = ends([second], 2)
    (other,) = ends([first], 1)
    assert "must hold train/CLASS" in mine
    assert f"rank 1 ended: {mine.removeprefix('snnfast: error: ')}" in other


@pytest.mark.parametrize(
    ("size", "victim", "number"),
    [(3, 1, signal.SIGKILL), (3, 1, signal.SIGSTOP), (2, 0, signal.SIGSTOP)],
)
def test_a_rank_that_dies_ends_the_others(tmp_path, start, size, victim, number):
    """Killed, or stopped, which is what a machine that is gone looks like. Rank 0 has the store."""
    command = arguments(tmp_path / "run", **SHORT, epochs="100000", checkpoint_every="1")
    before = "import snnfast.train.peers as p; p.BEAT, p.SILENCE, p.GRACE = 0.3, 10, 1.0"
    ranks = start([command] * size, before)
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint" / "latest.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(ranks.pop(victim)[0].pid, number)
    for error in ends(ranks, 1, seconds=30):
        assert f"rank {victim} no longer answers" in error or (not victim and "store" in error)
        assert "--resume auto" in error
