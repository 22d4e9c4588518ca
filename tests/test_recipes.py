"""Every recipe that comes with snnfast, on tiny files in its data set's real format."""

import itertools

import data_files
import pytest
import torch
from train_cases import one_thread

from snnfast.train import config as recipes
from snnfast.train.distributed import World
from snnfast.train.evaluate import accuracy
from snnfast.train.objective import inference_steps
from snnfast.train.run import _Run
from snnfast.train.stop import Stop


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Directories with the tiny data sets, by name, written when first asked for."""
    written = {}

    def root(name):
        if name not in written:
            written[name] = tmp_path_factory.mktemp(name)
            data_files.write_data(name, written[name])
        return written[name]

    return root


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_builds_and_takes_two_steps(name, tmp_path, roots):
    """With its own model, data pipeline, optimiser and criterion; batches of 2, no autocast."""
    overrides = {"output": str(tmp_path), "batch_size": "2", "amp": "none", "data.workers": "0"}
    data = recipes.load(name).data.name
    if data != "digits":
        overrides["data.root"] = str(roots(data))
    config = recipes.load(name, overrides)
    run = _Run(config, torch.device("cpu"), World(), Stop())
    if run.teacher is not None:
        run.teacher.eval()
    trainer = run.student_trainer()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    steps = list(itertools.islice(trainer.steps(), 2))
    assert [step.step for step in steps] == [1, 2]
    means = trainer.means()
    assert means["loss"] > 0 and 0 <= means["train_accuracy"] <= 1
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters())]
    assert all(moved), [n for n, m in zip(dict(trainer.model.named_parameters()), moved) if not m]
    some = torch.arange(2)
    images, targets = next(run.data.test.batches([some]))
    measured = accuracy(
        trainer.model, _Two(images, targets), run.data.prepare, inference_steps(config)
    )
    assert len(measured) == inference_steps(config)


class _Two:
    """A split of two samples."""

    def __init__(self, images, targets):
        self.two = images, targets

    def __len__(self):
        return 2

    def batches(self, indices, seed=0):
        return iter([self.two])
