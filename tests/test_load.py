"""Finished runs as models: of this version and of those before; images as they were trained on."""

import json
import tarfile
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from train_cases import arguments, one_thread, rows, small

import snnfast
from snnfast.cli import main
from snnfast.data import load_data
from snnfast.train.checkpoint import CheckpointError, save_weights
from snnfast.train.evaluate import accuracy, batches

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by data set, trained when first asked for, with the test split that they were tested on
    as evaluation reads it: (run, data)."""
    found = {}

    def get(name):
        if name not in found:
            home = tmp_path_factory.mktemp(name)
            root, options = data_files.write_data(name, home / "data"), {}
            if name == "digits":
                options = {"train": 40, "test": 20, "normalise": True}
            elif name == "cifar10_dvs":
                options = {"timesteps": 2, "image_size": 8}
            elif name == "folder":
                options = {"image_size": 32}
            given = {f"data__{k}": str(v) for k, v in options.items() if k != "timesteps"}
            assert small(home / "run", name, root, **given) == 0
            own = {} if name == "digits" else {"root": root}
            found[name] = home / "run", load_data(name, **own, **options)
        return found[name]

    return get


def evaluated(model, data):
    """The logits of evaluation [T, N, classes] on the whole test split."""
    with torch.no_grad():
        return torch.cat([logits for logits, _ in batches(model, data.test, data.prepare)], 1)


def seen(model, images):
    with torch.no_grad():
        return model(model.preprocess(images))


def test_a_run_of_0_1_0_loads(old):
    """Its config says what its weights do not."""
    model = snnfast.load(old / "finished")
    data = load_data("digits", train=10, test=20)
    assert not model.training and model.timesteps == 2
    assert accuracy(model, data.test, data.prepare) == rows(old / "finished")[0]["test_accuracy"]
    assert model.classes == tuple("0123456789")
    assert torch.equal(seen(model, data.test.images), evaluated(model, data))


def test_a_run_of_0_1_0_goes_on(old):
    run = old / "interrupted"
    (before,) = rows(run)
    argv = ["train", str(run / "config.toml"), "--output", str(run), "--resume", "auto"]
    assert main(argv) == 0
    first, second, result = rows(run)
    assert first == before and second["epoch"] == 2 and second["loss"] < first["loss"]
    assert set(second) >= set(first) and set(result) >= set(rows(old / "finished")[-1])


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_pixels_in_memory_are_seen_as_evaluation_sees_them(trained, name):
    """To the bit, whatever they come in."""
    run, data = trained(name)
    model = snnfast.load(run)
    expected, pixels = evaluated(model, data), data.test.images
    arrays = pixels.movedim(1, -1).numpy()
    assert expected.std(1).min() > 0
    as_images = [Image.fromarray(array.squeeze()) for array in arrays]
    forms = [pixels, pixels.float() / 255, arrays, (arrays / np.float32(255)), as_images]
    forms += [list(arrays), tuple(pixels)]
    for images in forms:
        assert torch.equal(seen(model, images), expected)
    one = model.preprocess(as_images[3])
    assert one.dtype == torch.float32 and torch.equal(one[0], model.preprocess(pixels)[3])
    assert len(model.classes) == 10 and model.classes[1] in ("1", "automobile")


def test_image_files_are_seen_as_evaluation_sees_them(trained):
    run, data = trained("folder")
    model, files = snnfast.load(run), data.test.samples.files
    expected, opened = evaluated(model, data), [Image.open(file) for file in files]
    assert opened[0].size == (40, 30) and expected.std(1).min() > 0
    assert torch.equal(seen(model, opened), expected)
    arrays = np.stack([np.array(image) for image in opened])
    assert torch.equal(seen(model, arrays), expected)
    assert torch.equal(seen(model, torch.from_numpy(arrays).movedim(-1, 1)), expected)
    turned = (arrays / 255).astype(">f4")  # of the other byte order
    assert torch.equal(model.preprocess(turned), model.preprocess(turned.astype("<f4")))
    # Floating point is scaled by the same filter, without rounding to 8 bits in between.
    close = model.preprocess(arrays / 255.0) - model.preprocess(arrays)
    assert 0 < close.abs().max() <= 0.51 / 255 / 0.224 * 2
    assert model.classes == ("n000", "n001", "n002")


def test_recordings_are_seen_as_evaluation_sees_them(trained, capsys):
    run, data = trained("cifar10_dvs")
    model, frames = snnfast.load(run), data.test.images.transpose(0, 1)  # [T, N, 2, 8, 8]
    assert frames.float().std(1).max() > 0
    for given in (frames, frames.numpy(), frames.double()):
        assert torch.equal(model.preprocess(given), frames.float())
    assert torch.equal(model.preprocess(frames[:, 3]), frames[:, 3:4].float())
    assert torch.equal(seen(model, frames), evaluated(model, data))
    for wrong, error in ((frames[..., :4], ValueError), (Image.new("L", (8, 8)), TypeError)):
        with pytest.raises(error, match=r"preprocess: .*frames"):
            model.preprocess(wrong)
    assert model.classes[8] == "ship"
    capsys.readouterr()
    assert main(["predict", str(run), "x.png"]) == 2
    assert "takes frames of events, not images" in capsys.readouterr().err


def test_grey_and_colour_become_what_the_network_has(trained):
    grey, colour = (snnfast.load(trained(name)[0]).preprocess for name in ("digits", "folder"))
    g = np.random.default_rng(0).integers(0, 256, (20, 60), dtype=np.uint8)
    rgb = np.stack([g] * 3, -1)
    assert torch.equal(grey(rgb), grey(g)) and torch.equal(colour(rgb), colour(g))
    assert grey(g).shape == (1, 1, 28, 28) and colour(g).shape == (1, 3, 32, 32)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8))
    for mode in ("RGBA", "P", "1", "L", "CMYK"):
        other = image.convert(mode)
        assert torch.equal(colour(other), colour(other.convert("RGB")))


ENDLESS = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images must be one or more, got none"),
        ("cat.png", TypeError, "images must be PIL images, NumPy arrays, tensors .*, got str"),
        (Image.new("I;16", (28, 28)), ValueError, "8 bits a channel, got mode 'I;16'"),
        (Image.new("F", (28, 28)), ValueError, "8 bits a channel, got mode 'F'"),
        (torch.zeros(28, 28), ValueError, r"\[C, H, W\] or \[B, C, H, W\], .*got \[28, 28\]"),
        (torch.zeros(0, 1, 28, 28), ValueError, r"none of them 0, got \[0, 1, 28, 28\]"),
        (np.zeros((2, 2, 28, 28, 1)), ValueError, r"an array must be .*got \[2, 2, 28, 28, 1\]"),
        (np.zeros((1, 28, 28)), ValueError, "float64 images must have 1 channels, got 28"),
        (torch.zeros(1, 28, 28).long(), TypeError, "uint8 or floating point, got int64"),
        (np.array([["a"]]), TypeError, "uint8 or floating point, got <U1"),
        (torch.full((1, 28, 28), 255.0), ValueError, "must be in 0..1, got 255 to 255"),
        (torch.full((1, 28, 28), torch.nan), ValueError, "must be in 0..1, got nan to nan"),
        (ENDLESS, ValueError, "lists must not hold themselves"),
        (torch.zeros(1, 28, 28).to_sparse(), TypeError, "must be dense .*, got a sparse_coo one"),
        (torch.zeros(1, 28, 28, device="meta"), TypeError, "hold values, got a meta one"),
        (torch.nested.nested_tensor([torch.zeros(1, 28, 28)]), TypeError, "got a nested one"),
        (Image.new("RGB", (0, 5)), ValueError, "must have pixels, got 0 x 5"),
        (Image.new("La", (5, 5)), ValueError, "must become RGB: conversion from La"),
    ],
)
def test_what_is_no_image_is_refused(trained, images, error, message):
    with pytest.raises(error, match=f"preprocess: .*{message}"):
        snnfast.load(trained("digits")[0]).preprocess(images)


def copied(run, to, weights=None, **shape):
    """A run as its config and weights alone; ``shape`` changes what their header holds."""
    to.mkdir()
    (to / "config.toml").write_text((run / "config.toml").read_text())
    with safe_open(run / "model.safetensors", "pt") as file:
        header = json.loads(file.metadata()["shape"]) | shape
    header = {"shape": json.dumps({k: v for k, v in header.items() if v is not None})}
    save_weights(load_file(run / "model.safetensors") | (weights or {}), to / "model.safetensors",
                 header)  # fmt: skip
    return to


def test_names_of_folders_that_were_not_kept_are_missed_in_words(tmp_path, trained):
    run = trained("folder")[0]
    with pytest.warns(UserWarning, match=r"does not hold the names of its classes, the folders"):
        model = snnfast.load(copied(run, tmp_path / "run", preprocess=None))
    whole = snnfast.load(run).preprocess
    assert model.classes is None
    assert model.preprocess == whole.model_copy(update={"classes": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5] * 2}, "not that of its network"),
        ({"size": 32, "resize": 32}, "not that of its network"),
        ({"resize": 28_000}, "not that of its network"),
        ({"classes": ["a"]}, "not that of its network"),
        ({"std": [0.0]}, "damaged: std.0 Input should be greater than 0"),
        ({"resize": "28"}, "damaged: resize Input should be a valid integer"),
        ({"more": 1}, "damaged: more "),
    ],
)
def test_damaged_preprocessing_is_refused(tmp_path, trained, change, message):
    run = trained("digits")[0]
    kept = json.loads((run / "preprocess.json").read_text())
    assert kept == json.loads(snnfast.load(run).preprocess.model_dump_json())
    with pytest.raises(CheckpointError, match=rf"model.safetensors: its preprocess is {message}"):
        snnfast.load(copied(run, tmp_path / "run", preprocess=kept | change))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("conv1.weight", lambda w: w.index_fill(0, torch.tensor(3), torch.nan), "finite, got nan"),
        ("fc.bias", lambda w: w - torch.inf, "finite, got -inf"),
        ("bn1.running_mean", lambda w: w * torch.nan, "finite, got nan"),
        ("bn1.running_var", lambda w: -w, ">= 0, got -"),
        ("fc.weight", lambda w: w.half(), "float32, got float16"),
        ("bn1.num_batches_tracked", lambda w: w.float(), "int64, got float32"),
    ],
)
def test_weights_that_nothing_good_comes_of_are_refused(
    tmp_path, trained, capsys, name, spoil, message
):
    """By name of the tensor: by load, by eval, and where they are to teach."""
    run = trained("digits")[0]
    tensor = load_file(run / "model.safetensors")[name]
    bad = copied(run, tmp_path / "run", {name: spoil(tensor)})
    with pytest.raises(CheckpointError, match=f"model.safetensors: {name} must be {message}"):
        snnfast.load(bad)
    assert main(["eval", str(bad)]) == 2
    assert f"{name} must be {message}" in capsys.readouterr().err
    assert not (bad / "eval.json").exists()


def test_eval_refuses_data_of_other_classes(tmp_path, trained, capsys):
    root = data_files.write_data("folder", tmp_path)
    for split in ("train", "test"):
        (root / split / "n000").rename(root / split / "n003")
    assert main(["eval", str(trained("folder")[0]), "--data.root", str(root)]) == 2
    error = capsys.readouterr().err
    assert "the classes must be those of training, 3, got 3 (not in both: n000, n003)" in error


def test_weights_of_a_bad_teacher_are_refused(tmp_path, capsys):
    teacher = snnfast.models.create_model(
        "ann_digits_cnn", num_classes=10, in_channels=1, image_size=28
    )
    weights = teacher.state_dict() | {"head.bias": torch.full((10,), torch.nan)}
    save_weights(weights, tmp_path / "t.safetensors")
    assert main([*arguments(tmp_path / "run"), f"--teacher={tmp_path / 't.safetensors'}"]) == 2
    error = capsys.readouterr().err
    assert "teacher.checkpoint: " in error and "head.bias must be finite, got nan" in error


def test_a_run_says_what_it_is_before_it_starts(tmp_path, capsys):
    root = data_files.write_data("folder", tmp_path / "data")
    assert small(tmp_path / "run", "folder", root, data__image_size="64", device="cpu") == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "folder: 12 images to train and 12 to test, 3 classes, 3x64x64 pixels, "
        "digits_resnet of 19,723 parameters, T = 2, cpu, float32, "
        f"into {tmp_path / 'run'}"
    )


def test_a_model_that_there_is_not_is_refused(old):
    path = old / "finished" / "config.toml"
    path.write_text(path.read_text().replace('"digits_resnet"', '"nope"', 1))
    with pytest.raises(CheckpointError, match=r"no such model as config.toml names: create_model"):
        snnfast.load(old / "finished")
