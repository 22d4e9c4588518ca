"""ONNX: in its own runtime a model gives the spikes that it gives here."""

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from export_cases import conv_net, dyadic, ready, resnet, stepped
from family_cases import ROWS, inputs, neuron
from torch import nn
from torch.utils._pytree import tree_leaves

import snnfast
from snnfast.interop import onnx


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


def in_onnx(model, *inputs, to, step=True, **options):
    """The outputs of the file's whole sequence, which those of its steps must be; and the
    model's."""
    with torch.no_grad():
        wanted = model(*inputs)
    assert onnx.export(model, inputs, to / "whole.onnx", **options) == {}
    made = session(to / "whole.onnx")(*inputs)
    if step:
        rest = onnx.export(model, inputs, to / "step.onnx", step=True)
        run = session(to / "step.onnx")
        assert run.inputs[-len(rest) :] == list(rest)
        assert run.outputs[-len(rest) :] == [f"{name}.next" for name in rest]
        assert all(map(torch.equal, made, stepped(run, inputs, rest)))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert [y.dtype for y in made] == [y.dtype for y in wanted]
    return made, wanted


class Beside(nn.Module):
    """Neurons, each with an input of its own, and all that they return."""

    def __init__(self, *neurons):
        super().__init__()
        self.neurons = nn.ModuleList(neurons)

    def forward(self, *inputs):
        pairs = zip(self.neurons, inputs, strict=True)
        return tuple(tree_leaves([neuron(x) for neuron, x in pairs]))


class Shown(Beside):
    """Of a static input."""

    def forward(self, x):
        return tuple(tree_leaves([neuron(x, timesteps=5) for neuron in self.neurons]))


def onnx_file(path):
    from onnx import checker, load

    checker.check_model(path, full_check=True)
    return load(path)


def operators(path):
    def of(graph):
        for node in graph.node:
            yield node.domain, node.op_type
            for attribute in node.attribute:
                yield from of(attribute.g)

    return set(of(onnx_file(path).graph))


def test_a_network(tmp_path, capfd, recwarn, caplog, monkeypatch):
    model, x = conv_net()
    monkeypatch.setattr(logging.getLogger("torch.onnx"), "handlers", [caplog.handler])
    free = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    (y,), (wanted,) = in_onnx(model, x, to=tmp_path, dynamic_shapes=(free,))
    assert not [r for r in caplog.records if r.name.startswith("torch.onnx")]
    assert not recwarn.list and capfd.readouterr() == ("", "")
    assert torch.equal(y, wanted) and y.any()
    longer = torch.cat([x, -x, x])[:, :2]
    (y,) = session(tmp_path / "whole.onnx")(longer)
    with torch.no_grad():
        assert torch.equal(y, model(longer))
    found = operators(tmp_path / "whole.onnx")
    assert {domain for domain, _ in found} == {""}
    names = {name for _, name in found}
    assert "Scan" in names
    assert "Scan" not in {name for _, name in operators(tmp_path / "step.onnx")}


def test_every_neuron(tmp_path):
    neurons = [snnfast.nn.Neuron(neuron(name)) for name in ROWS]
    given = [inputs(name, (9, 2, 4, 5)) for name in ROWS]
    made, wanted = in_onnx(Beside(*neurons).eval(), *given, to=tmp_path, step=False)
    for name, y, w in zip(ROWS, made, wanted, strict=True):
        assert w.any() and torch.equal(y, w), name


def test_every_charge_reset_and_rate(tmp_path):
    own, row = snnfast.nn, torch.linspace(1.5, 3.0, 4)
    neurons = [
        own.LIF(3.0),
        own.LIF(3.0, decay_input=False, v_reset=None),
        own.LIF(1.3, v_reset=-0.2, v_threshold=0.7, surrogate="rect"),
        own.IF(v_reset=None),
        own.IF(fire=">"),
        own.ParametricLIF(2.3),
        own.ParametricLIF(2.3, channels=4, decay_input=False),
        own.LIF(beta=row / 4, v_threshold=row / 3, fire=">"),
        own.LIF(3.0, v_rest=0.1),
        own.BatchNormLIF(4, tau=3.0, decay_input=False, v_reset=None),
        own.BatchNormLIF(4, affine=False, neuron=own.ParametricLIF(1.8, channels=4)),
        own.BatchNormNeuron(4, own.Synaptic(alpha=0.7)),
    ]
    x = [dyadic(2 * torch.randn(9, 3, 4, 5), 0.25) for _ in neurons]  # at the threshold, too
    for y, w in zip(*in_onnx(ready(Beside(*neurons)), *x, to=tmp_path), strict=True):
        assert w.any() and torch.equal(y, w)


def test_states_dtypes_one_step_and_static_inputs(tmp_path):
    def some():
        own = snnfast.nn
        return (
            own.LIF(1.3, v_reset=-0.2, return_state="all"),
            own.LIF(v_threshold=float("inf"), return_state=True),
            own.BatchNormLIF(
                4, neuron=own.ParametricLIF(1.8, channels=4, v_reset=None, return_state="all")
            ),
            own.BatchNormNeuron(4, own.Alpha(alpha=0.7, return_state="all")),
        )

    x = 2 * torch.randn(9, 3, 4, 5)
    double = [m.double() for m in some()]
    model = ready(Beside(*some(), *some(), *double, *some(), Shown(*some())))
    given = [t for t in (x, x.half(), x.double(), x[:1]) for _ in some()]
    made, wanted = in_onnx(model, *given, x[0], to=tmp_path, step=False)
    assert all(map(torch.equal, made, wanted))
    assert sum(bool(w.any()) for w in wanted) > 40  # of 50; under infinity nothing fires


def test_a_reset_chooses(tmp_path):
    own, huge = snnfast.nn, torch.tensor([torch.inf, 3.0, -torch.inf, 3.0]).view(4, 1, 1)
    every = (own.LIF(), own.IF(v_reset=-0.2), own.ParametricLIF(), own.LIF(v_reset=None))
    x = huge.expand(4, 2, 3)
    made, wanted = in_onnx(Beside(*every).eval(), *[x] * len(every), to=tmp_path, step=False)
    assert all(map(torch.equal, made, wanted)) and wanted[0][1].all()


def layers(model, *inputs):
    """(layer, what it is given, its spikes) of every layer of a call."""
    made, hooks = [], []
    for m in model.modules():
        if isinstance(m, snnfast.nn.BatchNormLIF):
            hooks.append(m.register_forward_hook(lambda m, given, s: made.append((m, given, s))))
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return made


class Spikes(nn.Module):
    """The spikes of every layer of ``model``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(s for _, _, s in layers(self.model, x))


def potentials(layer, y, residual=None):
    """H in float64 of the papers' neuron, which a network has by default."""
    norm = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    x = F.batch_norm(y.double().flatten(0, 1), *(t.double() for t in norm), eps=layer.eps)
    x = x.unflatten(0, y.shape[:2]) + (0 if residual is None else residual)
    v, found = torch.zeros_like(x[0]), []
    for now in x:
        found.append(v - v / layer.tau + now)
        v = found[-1] * (found[-1] < layer.v_threshold)
    return torch.stack(found)


def test_a_flip_of_resnet18_lies_on_the_threshold(tmp_path):
    model, x = resnet()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.mul_(1.1)  # sums depend on their order now
    x = torch.randn_like(x)
    made, wanted = in_onnx(Spikes(model).eval(), x, to=tmp_path, step=False)
    assert len(made) == 17
    nodes = onnx_file(tmp_path / "whole.onnx").graph.node
    assert [node.op_type for node in nodes].count("Sub") == 20  # of batch norms, none is folded
    with torch.no_grad():
        eager = layers(model, x)
    for (layer, given, s), y, w in zip(eager, made, wanted, strict=True):
        assert torch.equal(s, w)
        differs = y != s
        if differs.any():
            # Behind the first of them a neuron, and behind the first layer a network, goes its way.
            first = differs & (differs.cumsum(0) == 1)
            distance = (potentials(layer, *given)[first] - layer.v_threshold).abs()
            assert distance.max() < 1e-4
            break


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    x, path = torch.randn(3, 2, 4, 5), tmp_path / "never.onnx"
    twin = snnfast.nn.LIF(surrogate=snnfast.surrogate.ATan(spiking=False))
    for model, given, message in (
        (snnfast.nn.BatchNormLIF(4, track_running_stats=False), x, "batch norms must take running"),
        (nn.BatchNorm2d(2, track_running_stats=False), x, "batch norms must take running"),
        (twin, x.double(), "surrogates must be spiking, got one that is not"),
        (nn.BatchNorm2d(2).train(), x, "model must be in evaluation mode"),
    ):
        with pytest.raises(ValueError, match=f"onnx.export: {message}"):
            onnx.export(model.eval() if "mode" not in message else model, given, path)
    for package in ("onnxscript", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ImportError, match=rf'{package} is not .*: pip install "snnfast\[onnx\]'
        ):
            onnx.export(nn.ReLU().eval(), x, path)
    assert not path.exists()
