"""Short runs of the digits' recipe, for the tests of training."""

import json

import torch

from snnfast.cli import main

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
