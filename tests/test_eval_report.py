"""``snnfast eval`` and ``snnfast report`` on runs of seconds, and the script in examples/."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from train_cases import arguments, one_thread, phase

import snnfast
from snnfast.cli import main
from snnfast.data import load_data
from snnfast.distill import anytime
from snnfast.monitoring import Monitor
from snnfast.train import report

SHORT = {"data__train": "200", "epochs": "1", "teacher__epochs": "1", "time_step": "false"}


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of per-step cross-entropy and one of TWKD."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "ce-0": {"objective": "step_ce"},
        "ce-1": {"objective": "step_ce", "seed": "1"},
        "twkd-0": {"objective": "twkd", "tensorboard": "true", "monitor": "true"},
    }.items():
        assert main(arguments(folder / name, **SHORT, **options)) == 0
    return folder


def test_eval_is_the_full_range_out_of_one_pass(runs, capsys):
    assert main(["eval", str(runs / "ce-0"), "--timesteps", "1..6"]) == 0
    found = json.loads((runs / "ce-0" / "eval.json").read_text())
    assert len(found["accuracy"]) == 6 and found["samples"] == 100
    assert found["accuracy"][:4] == phase(runs / "ce-0", "student")[-1]["test_accuracy"]
    text = capsys.readouterr().out
    assert "early exit" in text and "conv3" in text and "uJ" in text
    assert (runs / "ce-0" / "eval.png").read_bytes().startswith(b"\x89PNG")

    data = load_data("digits", test=100)
    images, targets = next(data.test.batches([torch.arange(100)]))
    with torch.no_grad():
        logits = snnfast.load(runs / "ce-0")(images, timesteps=6)
    for row in found["early_exit"]:
        prediction, steps = anytime(logits, row["threshold"])
        assert row["accuracy"] == pytest.approx((prediction == targets).double().mean().item())
        assert row["mean_timesteps"] == pytest.approx(steps.double().mean().item())
    layers = found["activity"]["layers"]
    assert [layer["name"] for layer in layers] == ["conv1", "conv2", "conv3", "head"]
    assert layers[0]["runs"] == 1 and layers[1]["runs"] == 6 and layers[1]["binary"]


@pytest.mark.parametrize("command", ["eval", "report", "profile"])
def test_what_cannot_be_written_is_shown(runs, tmp_path, capsys, command):
    """After minutes of work: a folder stands where a file should."""
    run, output = str(runs / "ce-0"), shutil.copytree(runs / "ce-0", tmp_path / "run")
    files = ("eval.png", "report.md", "profile.png")
    for name in files:
        (output / name).unlink(missing_ok=True), (output / name).mkdir()
    argv = {
        "eval": ["eval", str(output)],
        "report": ["report", run, "--output", str(output)],
        "profile": ["profile", "digits_cnn", "--batch_size=2", "--channels=1", "--image_size=28",
                    "--output", str(output)],
    }  # fmt: skip
    assert main(argv[command]) == 1
    out, error = capsys.readouterr()
    shown = {"eval": "early exit", "report": "| run | seeds |", "profile": "forward ms"}
    assert shown[command] in out
    assert f"snnfast: error: {command}: " in error and error.count("\n") == 1
    assert "written: " in error and not list(output.glob(".*.part.*"))


def test_eval_defaults_to_the_trained_timesteps(runs):
    assert main(["eval", str(runs / "ce-1")]) == 0
    assert json.loads((runs / "ce-1" / "eval.json").read_text())["timesteps"] == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "nowhere"], "nowhere: not a run"),
        (["eval", "RUN", "--timesteps", "2..4"], "must be T or 1..T, got '2..4'"),
        (["eval", "RUN", "--timesteps", "0"], "must be a whole number from 1, got '0'"),
        (["eval", "RUN", "--weights", "ema"], "it has no config.toml or no ema.safetensors"),
        (["report", "nowhere"], f"nowhere is not a run: there is no {Path.cwd()}/nowhere/config"),
        (["report", "RUNS"], "config.toml; there are runs in it: "),
        (["report", "RUN", "RUN"], "two runs of 'step_ce' have the same seed"),
    ],
)
def test_bad_requests_are_refused(runs, capsys, argv, message):
    stands_for = {"RUN": str(runs / "ce-0"), "RUNS": str(runs)}
    assert main([stands_for.get(a, a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_report_groups_seeds(runs, tmp_path, capsys):
    names = ("ce-0", "ce-1", "twkd-0")
    assert main(["report", *(str(runs / n) for n in names), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("| objective")]
    assert len(lines) == 2 and lines[0].startswith("| objective step_ce | 2 |")
    assert " ± " in lines[0] and " ± " not in lines[1]
    last = [100 * phase(runs / n, "student")[-1]["test_accuracy"][0] for n in names[:2]]
    assert f"| {sum(last) / 2:.2f} ± {abs(last[0] - last[1]) / 2**0.5:.2f} |" in lines[0]
    assert (tmp_path / "report.md").read_text().strip() == text.strip()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_unfinished_run_is_not_reported(runs, tmp_path):
    for name in ("config.toml", "metrics.jsonl"):
        text = (runs / "ce-0" / name).read_text()
        (tmp_path / name).write_text(text.replace("epochs = 1\n", "epochs = 3\n", 1))
    with pytest.raises(report.ConfigError, match=r"not finished: 1 of 3 epochs"):
        report.read(tmp_path)


def test_monitor_is_of_the_training_steps(runs):
    """A number for each layer and quantity; those of the test, in evaluation mode, are not in."""
    row = phase(runs / "twkd-0", "student")[-1]
    names = ("rate", "dead", "saturated", "v_mean", "v_std", "gradient_mean", "gradient_std")
    found = {name: value for name, value in row.items() if "/" in name}
    assert set(found) == {f"{what}/bn{i}.neuron" for what in names for i in (1, 2, 3)}
    assert all(0 < found[f"rate/bn{i}.neuron"] < 1 for i in (1, 2, 3))
    assert found["gradient_std/bn1.neuron"] > 0
    assert not any("/" in name for name in phase(runs / "twkd-0", "teacher")[-1])
    assert not any("/" in name for name in phase(runs / "ce-0", "student")[-1])
    plain = {name: value for name, value in row.items() if "/" not in name}
    assert plain["images"] == 200


def test_monitor_begins_anew_with_every_epoch(tmp_path, monkeypatch):
    calls, scalars = [], Monitor.scalars

    def noted(self):
        calls.append(self.layers["bn1.neuron"].calls)
        return scalars(self)

    monkeypatch.setattr(Monitor, "scalars", noted)
    few = {"data__train": "40", "data__test": "20", "objective": "step_ce", "time_step": "false"}
    assert main(arguments(tmp_path / "run", monitor="true", teacher__model="none", **few)) == 0
    assert calls == [4, 4]  # the steps of an epoch, and none of its test


def test_monitor_refuses_what_it_cannot_see(tmp_path, capsys):
    assert main(arguments(tmp_path / "run", monitor="true", compile="default")) == 2
    assert "monitor must be false where compile is not none" in capsys.readouterr().err


def test_tensorboard_has_the_numbers(runs):
    if importlib.util.find_spec("tensorboard") is None:
        assert not (runs / "twkd-0" / "tensorboard").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "twkd-0" / "tensorboard"))
    board.Reload()
    row = phase(runs / "twkd-0", "student")[-1]
    (scalar,) = board.Scalars("student/loss")
    assert scalar.step == row["step"] and scalar.value == pytest.approx(row["loss"])
    assert board.Scalars("teacher/test_accuracy")
    (rate,) = board.Scalars("student/rate/bn1.neuron")
    assert rate.value == pytest.approx(row["rate/bn1.neuron"])
    assert not (runs / "ce-0" / "tensorboard").exists()


def test_the_example_is_short_and_learns(capsys, monkeypatch):
    path = Path(__file__).parent.parent / "examples" / "your_own_network.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location("your_own_network", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "load_data", lambda name: load_data(name, train=1000, test=100))
    example.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("epoch 3: ") and float(last.split("'")[-2]) > 70
