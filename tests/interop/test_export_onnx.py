"""ONNX: in its own runtime a model gives the spikes that it gives here."""

import pytest
import torch
from export_cases import NETWORKS, ready, stepped
from family_cases import ROWS, inputs, neuron
from torch import nn

import snnfast
from snnfast.interop import onnx

pytestmark = pytest.mark.unpoisoned  # as in test_export_pt2


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the dev extra brings it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in found.get_inputs()]

    def run(*inputs):
        named = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(y) for y in found.run(None, named)]

    run.inputs, run.outputs = names, [o.name for o in found.get_outputs()]
    return run


def in_onnx(model, *inputs, path, step=True):
    """The outputs of the file's whole sequence, which those of its steps must be; and the
    model's."""
    with torch.no_grad():
        wanted = model(*inputs)
    assert onnx.export(model, inputs, path) == {}
    made = session(path)(*inputs)
    if step:
        rest = onnx.export(model, inputs, path, step=True)
        run = session(path)
        assert run.inputs[-len(rest) :] == list(rest)
        assert run.outputs[-len(rest) :] == [f"{name}.next" for name in rest]
        assert all(map(torch.equal, made, stepped(run, inputs, rest)))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert [y.dtype for y in made] == [y.dtype for y in wanted]
    return made, wanted


class Beside(nn.Module):
    """Neurons, each with an input of its own, and all that they return."""

    def __init__(self, *neurons, **options):
        super().__init__()
        self.neurons, self.options = nn.ModuleList(neurons), options

    def forward(self, *inputs):
        pairs = zip(self.neurons, inputs, strict=True)
        made = [neuron(x, **self.options) for neuron, x in pairs]
        return tuple(y for one in made for y in (one if isinstance(one, tuple) else (one,)))


def operators(path):
    from onnx import load

    def of(graph):
        for node in graph.node:
            yield node.domain, node.op_type
            for attribute in node.attribute:
                yield from of(attribute.g)

    return set(of(load(path).graph))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_network(make, tmp_path, capfd):
    model, x = make()
    (y,), (wanted,) = in_onnx(model, x, path=tmp_path / "step.onnx")
    assert torch.equal(y, wanted)
    onnx.export(model, x, tmp_path / "whole.onnx")
    found = operators(tmp_path / "whole.onnx")
    assert {domain for domain, _ in found} == {""}
    names = {name for _, name in found}
    assert "Scan" in names and "BatchNormalization" not in names
    assert "Scan" not in {name for _, name in operators(tmp_path / "step.onnx")}
    assert capfd.readouterr() == ("", "")


def test_every_neuron(tmp_path):
    neurons = [snnfast.nn.Neuron(neuron(name)) for name in ROWS]
    given = [inputs(name, (9, 2, 4, 5)) for name in ROWS]
    made, wanted = in_onnx(Beside(*neurons).eval(), *given, path=tmp_path / "all.onnx")
    for name, y, w in zip(ROWS, made, wanted, strict=True):
        assert w.any() and torch.equal(y, w), name


def lif_modes():
    """A neuron for each branch of the charge, the reset and the rate."""
    nn_ = snnfast.nn
    row = torch.linspace(1.5, 3.0, 4)
    return [
        nn_.LIF(3.0),
        nn_.LIF(3.0, decay_input=False, v_reset=None),
        nn_.LIF(1.3, v_reset=-0.2, v_threshold=0.7, surrogate="rect"),
        nn_.IF(v_reset=None),
        nn_.ParametricLIF(2.3),
        nn_.ParametricLIF(2.3, channels=4, decay_input=False),
        nn_.LIF(beta=row / 4, v_threshold=row / 3, fire=">"),
        nn_.LIF(3.0, v_rest=0.1),
        nn_.LIF(v_threshold=float("inf"), return_state=True),
        nn_.LIF(3.0, return_state="all"),
        nn_.BatchNormLIF(4, tau=3.0, decay_input=False, v_reset=None),
        nn_.BatchNormLIF(4, affine=False, neuron=nn_.ParametricLIF(1.8, channels=4)),
        nn_.BatchNormNeuron(4, nn_.Synaptic(alpha=0.7, return_state="all")),
    ]


@pytest.mark.parametrize("how", ["sequence", "half", "double", "one step", "static"])
def test_every_mode_of_lif(how, tmp_path):
    steps = 1 if how == "one step" else 9
    x = [2 * torch.randn(steps, 3, 4, 5) for _ in lif_modes()]
    kind = {"half": torch.float16, "double": torch.float64}.get(how, torch.float32)
    x = [t[0] if how == "static" else t.to(kind) for t in x]
    options = {"timesteps": 5} if how == "static" else {}
    model = ready(Beside(*lif_modes(), **options))
    model = model.double() if how == "double" else model
    made, wanted = in_onnx(model, *x, path=tmp_path / "m.onnx", step=how == "sequence")
    for k, (y, w) in enumerate(zip(made, wanted, strict=True)):
        assert torch.equal(y, w), k
