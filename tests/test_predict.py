"""``snnfast predict`` on image files."""

import pytest
import torch
from PIL import Image
from train_cases import one_thread, small

import snnfast
from snnfast.cli import main
from snnfast.data import load_data
from snnfast.distill import anytime


@pytest.fixture(scope="module", autouse=True)
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert small(output, data__train="1000", timesteps="4") == 0
    return output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """40 test digits, more than are seen at once."""
    folder = tmp_path_factory.mktemp("digits")
    for number, pixels in enumerate(load_data("digits", test=40).test.images):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("sure", ["all", "some", "none"])
def test_the_table_is_that_of_early_exit(run, files, capsys, sure):
    model = snnfast.load(run)
    with torch.no_grad():
        logits = model(model.preprocess([Image.open(file) for file in files]))
    half = logits.double().mean(0).softmax(-1).amax(-1).median().item()
    threshold = {"all": 0.0, "some": half, "none": 1.0}[sure]
    capsys.readouterr()
    assert main(["predict", str(run), *map(str, files), f"--threshold={threshold!r}"]) == 0
    head, *lines, blank, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", "confidence", "sure", "at"] and blank == ""
    assert f"4 timesteps whose confidence reaches {threshold:g}," in note
    prediction, steps = anytime(logits, threshold)
    assert len(lines) == 40
    shown = set()
    for i, line in enumerate(lines):
        file, name, confidence, percent, step = line.split()
        mean = logits[: steps[i], i].double().mean(0).softmax(-1)
        assert (file, name, percent) == (str(files[i]), str(prediction[i].item()), "%")
        assert float(confidence) == pytest.approx(100 * mean.max().item(), abs=0.051)
        assert step == ("-" if mean.max() < threshold else str(steps[i].item()))
        shown.add(step)
    assert shown == {"1"} if sure == "all" else "-" in shown
    assert (len(shown) > 2) == (sure == "some")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["RUN"], 2, "required: IMAGE"),
        (["nowhere", "FILE"], 2, "predict: nowhere: not a run"),
        (["RUN", "FILE", "nothing.png"], 1, "predict: nothing.png cannot be decoded: "),
        (["RUN", __file__], 1, "cannot be decoded: it is none of JPEG, PNG, "),
        (["RUN", "FILE", "--threshold", "2"], 2, "must be a number from 0 to 1, got '2'"),
        (["RUN", "FILE", "--threshold", "nan"], 2, "must be a number from 0 to 1, got 'nan'"),
        (["RUN", "FILE", "--weights", "ema"], 2, "it has no config.toml or no ema.safetensors"),
        (["RUN", "FILE", "--device", "gpu"], 2, "device 'gpu' cannot be used"),
    ],
)
def test_bad_requests_are_refused(run, files, capsys, argv, status, message):
    stands_for = {"RUN": str(run), "FILE": str(files[0])}
    assert main(["predict", *(stands_for.get(a, a) for a in argv)]) == status
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.count("\n") == 1


def test_an_ann_has_one_step(tmp_path, files, capsys):
    """It is sure at the first, or not at all."""
    assert small(tmp_path, model="ann_digits_cnn", data__train="100") == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path), str(files[0]), "--threshold=0"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].endswith("% " + "1".rjust(8)) and "first of 1 timesteps" in out
