"""Archives of torch.export: they hold what the model does, and run without it."""

import subprocess
import sys

import pytest
import torch
from export_cases import NETWORKS, conv_net, resnet, stepped
from torch import nn

import snnfast
from snnfast.interop import pt2

LOAD = """
import sys, torch, snnfast.nn
for path in sys.argv[1:]:
    run, given = torch.export.load(path).module(), torch.load(path + ".in")
    torch.save(run(*given), path + ".out")
"""


def test_an_archive_runs_in_a_process_of_its_own(tmp_path):
    paths, wanted = [], []
    for name, make in NETWORKS.items():
        model, x = make()
        with torch.no_grad():
            y = model(x)
        assert 0.02 < y.abs().mean()
        path = tmp_path / f"{name}.pt2"
        assert pt2.export(model, x, path) == {}
        torch.save((x,), f"{path}.in")
        paths.append(str(path))
        wanted.append(y)
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    for path, y in zip(paths, wanted, strict=True):
        assert torch.equal(torch.load(f"{path}.out"), y)


def test_a_step_takes_and_gives_the_states(tmp_path):
    model, x = conv_net()
    rest = pt2.export(model, x, tmp_path / "step.pt2", step=True)
    run = pt2.load(tmp_path / "step.pt2")
    with torch.no_grad():
        (y,), wanted = stepped(run, (x,), rest), model(x)
    assert torch.equal(y, wanted)
    with torch.no_grad():
        assert torch.equal(model(x), wanted)


def test_states_are_called_by_their_neuron(tmp_path):
    neurons = snnfast.nn.ParametricLIF(v_reset=-0.25), snnfast.nn.Synaptic()
    model, x = conv_net(*neurons)
    rest = pt2.export(model, x, tmp_path / "step.pt2", step=True)
    assert {name: list(v.shape) for name, v in rest.items()} == {
        "1.v": [3, 4, 6, 6],
        "3.syn": [3, 40],
        "3.mem": [3, 40],
    }
    assert torch.equal(rest["1.v"], torch.full((3, 4, 6, 6), -0.25)) and not rest["3.mem"].any()


def test_a_dimension_may_be_free(tmp_path):
    model, x = conv_net()
    free = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    pt2.export(model, x, tmp_path / "free.pt2", dynamic_shapes=(free,))
    longer = torch.cat([x, -x, x])[:, :2]
    with torch.no_grad():
        assert torch.equal(pt2.load(tmp_path / "free.pt2")(longer), model(longer))


def test_what_cannot_be_exported_is_said(tmp_path):
    model, x = conv_net()
    path = tmp_path / "never.pt2"
    for arguments, kind, message in (
        ((print, x), TypeError, "pt2.export: model must be a torch module, got builtin_function"),
        ((model, [x]), TypeError, "pt2.export: example must be a tensor, or a tuple of tensors, g"),
        ((model, ()), ValueError, "pt2.export: example must be a tensor, or a tuple of tensors, g"),
        ((nn.ReLU(), x), ValueError, "pt2.export: model must be in evaluation mode, got one in"),
    ):
        with pytest.raises(kind, match=message.replace("(", r"\(")):
            pt2.export(*arguments, path)
    with pytest.raises(ValueError, match=r"pt2.export: example must be \[T, ...\], T >= 1"):
        pt2.export(model, x[:0], path, step=True)
    with pytest.raises(ValueError, match=r"pt2.export: model must return a tensor \[T, ...\] with"):
        model, x = resnet()
        pt2.export(model, x[0], path, step=True)  # an image, which it shows for all its T
    with pytest.raises(ValueError, match=r"pt2.export: dynamic_shapes must be None where step"):
        pt2.export(model, x, path, step=True, dynamic_shapes=({0: "B"},))
    assert not path.exists()
