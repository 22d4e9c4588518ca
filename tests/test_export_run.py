"""``snnfast export`` of a run: files that give what the loaded model gives."""

import json

import nir
import numpy as np
import pytest
import torch
from train_cases import one_thread, small

import snnfast
from snnfast.cli import main
from snnfast.data import load_data
from snnfast.interop import pt2
from snnfast.interop.nir import from_nir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "mine"
    with one_thread():
        assert small(output, data__train="100", data__test="50") == 0
    return output


@pytest.fixture
def shown(run):
    """(images, what the network of the run says of them)."""
    model = snnfast.load(run)
    x = model.preprocess(load_data("digits", test=10).test.images[:2])
    with torch.no_grad():
        return x, model(x)


def test_images_through_an_archive(run, shown, tmp_path, monkeypatch, capfd):
    x, wanted = shown
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert main(["export", str(run), "--format=pt2", "--batch=2"]) == 0
    assert capfd.readouterr() == ("mine.pt2\nx [2, 1, 28, 28]\n->\ny [2, 2, 10]\n", "")
    torch.testing.assert_close(pt2.load("mine.pt2")(x), wanted)


def test_images_through_steps_of_onnx(run, shown, tmp_path, capfd):
    InferenceSession = pytest.importorskip("onnxruntime").InferenceSession
    (x, wanted), path = shown, str(tmp_path / "step.onnx")
    capfd.readouterr()
    command = ["export", str(run), "--format=onnx", "--step", "--batch=2", f"--output={path}"]
    assert main(command) == 0
    name, *lines = capfd.readouterr().out.splitlines()
    arrow = lines.index("->")
    assert (name, lines[0], lines[arrow + 1]) == (path, "x [2, 1, 28, 28]", "y [2, 10]")
    assert lines[arrow + 2 :] == [line.replace(" ", ".next ", 1) for line in lines[1:arrow]]
    shapes = dict(line.split(" ", 1) for line in lines[1:arrow])
    states = [np.zeros(shape, np.float32) for shape in map(json.loads, shapes.values())]
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    for y in wanted:
        given = dict(zip(shapes, states, strict=True)) | {"x": x.numpy()}
        made, *states = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(made), y)


def test_a_graph_of_nir(run, shown, tmp_path, capfd):
    x, wanted = shown
    path = tmp_path / "mine.nir"
    capfd.readouterr()
    assert main(["export", str(run), "--format=nir", f"--output={path}"]) == 0
    graph = nir.read(path)
    assert capfd.readouterr() == (f"{path}\n{len(graph.nodes)} nodes\n", "")
    with torch.no_grad():
        made = from_nir(graph)(x.expand(2, *x.shape))
    torch.testing.assert_close(made.flatten(2), wanted)


def test_what_cannot_be_exported(run, tmp_path, capsys):
    for options, status, message in (
        ([str(tmp_path), "--format=onnx"], 2, f"export: {tmp_path}: not a run: it has no config"),
        ([str(run), "--format=nir", "--step"], 2, "export: --step is for onnx and pt2: NIR has"),
        ([str(run), "--format=pt2", f"--output={tmp_path}/no/m"], 2, "export: output must be"),
    ):
        assert main(["export", *options]) == status
        error = capsys.readouterr().err
        assert error.startswith(f"snnfast: error: {message}") and error.count("\n") == 1
