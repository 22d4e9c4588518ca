"""Short runs of the digits' recipe, for the tests of training."""

import json

import torch

import snnfast
from snnfast.cli import main
from snnfast.data import Augment, Data, TensorSplit
from snnfast.train import loop
from snnfast.train.loop import Options, Trainer
from snnfast.train.objective import step_logits

TINY = {
    "epochs": "2",
    "teacher.epochs": "2",
    "batch_size": "10",
    "data.train": "200",
    "data.test": "100",
    "tensorboard": "false",
}


def arguments(output, recipe="digits_twkd", **changes):
    """A command line: ``changes`` are keys, "__" for the dot of a table."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    options = {"output": str(output)} | TINY | changes
    return ["train", recipe, *(f"--{name}={value}" for name, value in options.items())]


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def phase(output, name):
    return [row for row in rows(output) if row["phase"] == name]


def without_times(output):
    """The metrics of a run but for what depends on the clock."""
    return [{name: value for name, value in row.items() if name in NUMBERS} for row in rows(output)]


NUMBERS = {"phase", "epoch", "step", "lr", "loss", "ce", "kl", "self", "train_accuracy",
           "test_accuracy", "ema_accuracy"}  # fmt: skip


class one_thread:
    """Threads that wait for a busy core make steps of a millisecond take a hundred."""

    def __enter__(self):
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error):
        torch.set_num_threads(self.threads)


def small(output, name="digits", root=None, **changes):
    """Train a small network, whose neurons fire after a few steps, for an epoch on the data set of
    that name, from files under ``root``; the exit status."""
    options = {"model": "digits_resnet", "timesteps": "2", "objective": "mean_ce",
               "teacher__model": "none", "time_step": "false", "epochs": "1",
               "data__name": name, "neuron__v_threshold": "0.1"}  # fmt: skip
    if name != "digits":
        sizes = {"data__train": "0", "data__test": "0", "data__augment": "none"}
        options |= sizes | {"data__root": str(root), "data__workers": "0"}
    return main(arguments(output, **options | changes))


# What may not be called while a device is not to be waited for.
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


def trainer_of(device, augment=(), sequences=False, **options):
    """All that a recipe can ask for in a step, on a small network."""
    shape = (14, 2, 3, 16, 16) if sequences else (14, 3, 16, 16)
    images, targets = torch.rand(shape).to(device), (torch.arange(14) % 10).to(device)
    split = TensorSplit(images, targets)
    data = Data(split, split, 10, 3, 16, augment=Augment(augment))
    shape_of = {"num_classes": 10, "in_channels": 3, "image_size": 16}
    student = snnfast.models.create_model("digits_resnet", timesteps=2, **shape_of).to(device)
    teacher = snnfast.models.create_model("ann_digits_cnn", **shape_of).to(device)
    criterion = snnfast.distill.TWKD(self_target="correct", skip_all_wrong=True)

    def objective(output, targets, taught):
        return criterion(step_logits(output), targets, taught, return_terms=True)

    values = {"seed": 0, "epochs": 2, "batch_size": 3, "lr": 0.1, "clip_norm": 1.0, "ema": 0.9}
    return Trainer(
        "student", student, objective, data, Options(**values | options), device=device,
        teacher=teacher.eval().requires_grad_(False), frames=3,
    )  # fmt: skip


def taken_for_a_gpu(monkeypatch):
    """The loop takes a CPU for a device that must be waited for."""
    monkeypatch.setattr(loop, "reads_wait", lambda device: True)
    monkeypatch.setitem(loop.DTYPES, "fp16", torch.bfloat16)  # with the scaler, but quick on a CPU
