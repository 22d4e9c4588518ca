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

from torch import nn
from snnfast.interop import pt2
own, row = snnfast.nn, torch.tensor([0.5, 0.75])
model = nn.Sequential(  # neurons that this process has not called yet
    own.LIF(beta=0.8), own.LIF(beta=row), own.LIF(v_rest=0.1), own.KLIF(), own.GLIF(),
    own.LIF(v_threshold=float("inf"), return_state=True),
).eval()
x = 3 * torch.rand(4, 3, 2)
pt2.export(model, x, path)
with torch.no_grad():
    assert all(map(torch.equal, pt2.load(path)(x), model(x)))
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


class Mixing(nn.Module):
    """Neurons, and something over time."""

    def __init__(self, mixes):
        super().__init__()
        self.neuron, self.mixes = snnfast.nn.LIF(), mixes

    def forward(self, x):
        return self.mixes(self.neuron(x))


@pytest.mark.parametrize(
    "mixes",
    (
        lambda s: s.mean(0, keepdim=True),
        lambda s: s.cumsum(0),
        lambda s: s - s.roll(1, 0),
        lambda s: s - s.float().mean(0),  # of one dtype alone
    ),
)
def test_a_step_of_what_mixes_timesteps_is_refused(mixes, tmp_path):
    x = torch.tensor([3.0, 0.5, 3.0, 3.0]).view(4, 1, 1).expand(4, 1, 2)
    with pytest.raises(ValueError, match=r"pt2.export: model must treat every timestep alike"):
        pt2.export(Mixing(mixes).eval(), x, tmp_path / "never.pt2", step=True)


def test_a_sum_of_another_order_is_no_mixing(tmp_path):
    class Rounded(nn.Module):
        def forward(self, x):  # an ulp from the threshold, by the batch that a layer sees
            return x * (1 if x.dtype == torch.float64 or len(x) == 1 else 1 - 2**-24)

    model = nn.Sequential(Rounded(), snnfast.nn.IF()).eval()
    x = torch.ones(2, 1, 3)
    assert not model(x).equal(torch.cat([model(x[:1]), model(x[1:])]))
    assert pt2.export(model, x, tmp_path / "step.pt2", step=True)


def test_a_model_with_a_state_of_its_own_is_left_as_it_was(tmp_path):
    class Carrying(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = torch.zeros(3)

        def forward(self, x):
            self.v = self.v + x.sum(0)
            return x + self.v

    model, x = Carrying().eval(), torch.ones(2, 3)
    with pytest.warns(UserWarning, match="was assigned during export"):
        pt2.export(model, x, tmp_path / "model.pt2")
    assert not model.v.any()
    assert torch.equal(pt2.load(tmp_path / "model.pt2")(x), model(x))


def test_any_path_will_do_and_what_is_no_archive_is_said(tmp_path, caplog):
    model, x = nn.ReLU().eval(), torch.randn(2, 3)
    for path in (tmp_path / "model", str(tmp_path / "model.zip")):
        pt2.export(model, x, path)
        assert torch.equal(pt2.load(path)(x), model(x))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    path = tmp_path / "other.pt2"
    torch.save(x, path)
    of_torch = path.read_bytes()
    for content in (b"", b"text", of_torch, of_torch[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pt2.load: path must be an archive of .*other.pt2"):
            pt2.load(path)


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
    for example in (x[:0], (x, x[:1])):
        with pytest.raises(ValueError, match=r"pt2.export: example must be \[T, ...\], T >= 1"):
            pt2.export(model, example, path, step=True)
    for step in (False, True):
        with (
            snnfast.streaming(model), torch.no_grad(),
            pytest.raises(ValueError, match=r"pt2.export: model must not be streaming already"),
        ):  # fmt: skip
            model(x)
            pt2.export(model, x, path, step=step)
    for part in (snnfast.nn.BatchNormLIF(4), nn.Dropout()):
        model[1] = part
        with pytest.raises(ValueError, match="must be in evaluation mode, got 1 in training"):
            pt2.export(model, x, path)
    with pytest.raises(ValueError, match=r"pt2.export: model must return a tensor \[T, ...\] with"):
        model, x = resnet()
        pt2.export(model, x[0], path, step=True)  # an image, which it shows for all its T
    model, x = conv_net()
    with pytest.raises(ValueError, match=r"pt2.export: dynamic_shapes must be None where step"):
        pt2.export(model, x, path, step=True, dynamic_shapes=({0: "B"},))
    assert not path.exists()
