"""The scripts of examples/, whole, on a few images."""

import functools
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from data_files import write_cifar

import snnfast.data

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as a script does, on 200 and 100 digits; returns what it prints."""
    few = functools.partial(snnfast.data.load_data, train=200, test=100)

    def load(name, **options):
        return few(name, **options) if name == "digits" else snnfast_load(name, **options)

    snnfast_load = snnfast.data.load_data
    monkeypatch.setattr(snnfast.data, "load_data", load)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_and_short():
    tested = re.findall(r'run\("(\w+)"', Path(__file__).read_text())
    scripts = {path.stem: path.read_text().count("\n") for path in EXAMPLES.glob("*.py")}
    assert sorted(scripts) == sorted(set(tested) | {"your_own_network"})  # in test_eval_report.py
    assert max(scripts.values()) < 80


def test_event_stream(run):
    assert re.search(r"accuracy [\d.]+%, [1-8]\.\d of 8 frames", run("event_stream"))


def test_temporal_task(run):
    assert re.findall(r"^(.*): [\d.]+% after 1", run("temporal_task", "1"), re.M) == [
        "LIF",
        "adaptive LIF",
    ]


def test_finetune_spikingjelly(run):
    pytest.importorskip("spikingjelly.activation_based", reason="make peers installs it")
    said = run("finetune_spikingjelly")
    assert "1 replaced" in said and "fine-tuned" in said


def test_eight_gpus(run, monkeypatch, free_port):
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": free_port}
    for name, value in (environment | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))
    assert re.search(r"epoch 2: loss [\d.]+ on 1 ranks", run("eight_gpus", "2"))
    assert not torch.distributed.is_initialized()


def test_cifar10_twkd(run, tmp_path):
    write_cifar(tmp_path, 10, per_class=2, binary=True)
    said = run("cifar10_twkd", str(tmp_path), "--epochs=1")
    assert re.search(r"epoch 1: loss [\d.]+ \[.T=1: [\d.]+%", said)
