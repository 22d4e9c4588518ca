"""Finished runs as models: of this version and of those before."""

import tarfile
from pathlib import Path

import pytest
from train_cases import one_thread, rows

import snnfast
from snnfast.cli import main
from snnfast.data import load_data
from snnfast.train.evaluate import accuracy

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture
def old(tmp_path):
    """Runs of version 0.1.0, without what neither loading nor resuming reads: ``finished`` after
    one epoch, and ``interrupted`` after the first of two."""
    with tarfile.open(FIXTURES / "run_0_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_run_of_0_1_0_loads(old):
    model = snnfast.load(old / "finished")
    data = load_data("digits", train=10, test=20)
    assert not model.training and model.timesteps == 2
    assert accuracy(model, data.test, data.prepare) == rows(old / "finished")[0]["test_accuracy"]


def test_a_run_of_0_1_0_goes_on(old):
    run = old / "interrupted"
    (before,) = rows(run)
    argv = ["train", str(run / "config.toml"), "--output", str(run), "--resume", "auto"]
    assert main(argv) == 0
    first, second, result = rows(run)
    assert first == before and second["epoch"] == 2 and second["loss"] < first["loss"]
    assert set(second) >= set(first) and set(result) >= set(rows(old / "finished")[-1])
