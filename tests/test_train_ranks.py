"""Several processes over gloo train as one process does."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from train_cases import arguments, rows

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
    mp.start_processes(smooth_run, (2, free_port, tmp_path / "two"), nprocs=2, start_method="spawn")
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
    command = arguments(tmp_path / "one", **sizes)
    subprocess.run([sys.executable, "-m", "snnfast", *command], check=True, env=environment,
                   capture_output=True)  # fmt: skip
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


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
