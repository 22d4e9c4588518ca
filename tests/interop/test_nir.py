"""Networks as NIR graphs: ours to a file and back."""

import copy
import pickle

import pytest
import torch
from nir_cases import IMAGES, Odd, convolutional, fire_alike, nir, returned, settled
from torch import nn

import snnfast
from snnfast.interop.nir import from_nir, to_nir
from snnfast.models.resnet import ResNet
from snnfast.nn import IF, LIF, BatchNormLIF, BatchNormNeuron, CubaLIF, OverTime
from snnfast.reference.norm_lif import inverse_std, normalise


def in_one_dimension():
    return nn.Sequential(
        OverTime(nn.Conv1d(2, 6, 3, 2, dilation=2), nn.BatchNorm1d(6)), LIF(),
        BatchNormNeuron(6, CubaLIF(v_threshold=0.2)), nn.Flatten(2), nn.Linear(6 * 6, 8),
        BatchNormLIF(8, v_threshold=0.5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (convolutional, IMAGES),
        (lambda: snnfast.nn.fuse(convolutional()), IMAGES),
        (in_one_dimension, (4, 3, 2, 16)),
    ],
)
def test_what_was_written_comes_back(make, shape, tmp_path):
    x = torch.randn(shape)
    model = settled(make(), x)
    other = returned(model, x, tmp_path)
    fire_alike(model, other, x)
    again = returned(other, x, tmp_path)
    fire_alike(model, again, x)
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        fire_alike(model, copied, x)
    other.train()(x).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


def test_resnet18(tmp_path):
    x = torch.randn(4, 2, 3, 16, 16)
    layout = {"blocks": (2, 2, 2, 2), "widths": (8, 8, 12, 16), "stem": 8, "hidden": None}
    model = settled(ResNet(layout, 10, 3, 16, 4, None), x)
    other = returned(model, x, tmp_path)
    assert other.state_dict().keys() == model.state_dict().keys()
    seen = {}
    for which in (model, other):
        for name, module in which.named_modules():
            if isinstance(module, BatchNormLIF):
                module.register_forward_hook(
                    lambda m, args, s, at=(name, which is model): seen.__setitem__(at, (*args, s))
                )
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    names = {name for name, _ in seen}
    assert len(names) == 17
    for name in names:
        values = [[v for v in seen[name, own] if v is not None] for own in (True, False)]
        assert all(torch.equal(a, b) for a, b in zip(*values, strict=True)), name
        assert 0.01 < values[0][-1].mean() < 0.9, name


CHANNELS = 64


def normalised(y, norm):
    """As ``snnfast.norm_lif`` does."""
    scale = norm.weight * inverse_std(norm.running_var, norm.eps)
    return normalise(y, norm.running_mean, scale, norm.bias, 2)


class NormThenNeuron(nn.Module):
    """Neurons whose thresholds are ``values`` of the channels: a rounding more or less shows in
    half of them. ``view``: of what the norm gives."""

    def __init__(self, norm, values, view=None):
        super().__init__()
        self.norm, self.lif, self.view = norm, IF(v_threshold=values[0, 0, :, 0, 0].clone()), view

    def forward(self, x):
        y = self.norm(x.flatten(0, 1))
        return self.lif(y.view(x.shape if self.view is None else self.view))


@pytest.fixture
def norm():
    return settled(nn.BatchNorm2d(CHANNELS), torch.randn(99, CHANNELS, 1, 1) * 3 + 1)


@pytest.fixture
def y():
    """[1, 3, C, 4, 4], the same within a channel."""
    return torch.randn(CHANNELS, 1, 1).expand(1, 3, CHANNELS, 4, 4).contiguous()


@pytest.mark.parametrize("said", [True, False], ids=["metadata", "nodes alone"])
@pytest.mark.parametrize("view", [None, (1, 3, CHANNELS, 16)])
def test_a_fused_batch_norm_keeps_its_roundings(view, said, norm, y):
    with torch.no_grad():
        model = NormThenNeuron(norm, normalised(y, norm), view)
        assert not model(y).all()  # torch's own arithmetic
        model = snnfast.nn.fuse(model)
        assert model(y).all()
    graph = to_nir(model, y)
    for node in graph.nodes.values():
        if not said and isinstance(node, nir.Scale):
            node.metadata = {}
    other = from_nir(graph)
    assert other(y).all()
    joined = any(isinstance(m, BatchNormLIF) for m in other.modules())
    assert joined == (said and view is None)


def test_a_fused_batch_norm_that_runs_unfused_is_torch_s(norm, y):
    """The flattened channels are no channels of the norm."""
    with torch.no_grad():
        model = NormThenNeuron(norm, norm(y[0])[None], (1, 3, 16 * CHANNELS))
        model.lif.v_threshold = model.lif.v_threshold.repeat_interleave(16)
        model = snnfast.nn.fuse(model)
        with pytest.warns(UserWarning, match="runs unfused"):
            assert model(y).all()
        assert from_nir(to_nir(model, y))(y).all()


def test_a_batch_norm_of_torch_keeps_its_roundings(norm, y):
    with torch.no_grad():
        model = NormThenNeuron(norm, norm(y[0])[None])
        assert from_nir(to_nir(model, y))(y).all()
        assert not snnfast.nn.fuse(model)(y).all()


def test_a_batch_norm_that_was_changed_is_what_its_nodes_say():
    x = torch.randn(4, 3, 6, 8, 8)
    model = settled(nn.Sequential(BatchNormLIF(6)), x)
    graph, s = to_nir(model, x), model(x)
    model[0].weight.data *= 2  # of which the graph knows nothing
    assert torch.equal(from_nir(graph)(x), s)
    graph.nodes["0.scale"].scale *= 2
    fire_alike(model, from_nir(graph), x)


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (OverTime(nn.Conv2d(2, 2, 3, padding=1)) for _ in "abc")

    def forward(self, x):
        a, b, c = self.a(x), self.b(x), self.c(x)
        y = (a + b) + (c + x)
        y += torch.add(b, y)
        return y + y


def test_sums_are_added_in_the_order_of_the_model(tmp_path):
    x, model = torch.randn(5, 3, 2, 8, 8), Sums()
    assert torch.equal(returned(model, x, tmp_path)(x), model(x))
    plain = to_nir(Odd(lambda m, x: m.lif(x) + (m.lif(x) + x)), x)
    assert not any(isinstance(node, nir.Scale) for node in plain.nodes.values())


class Pools(nn.Module):
    def __init__(self, fold):
        super().__init__()
        self.lif, self.sum = LIF(v_threshold=0.5), nn.AvgPool2d(2, divisor_override=1)
        self.power, self.halved = nn.LPPool2d(1, 2), nn.AdaptiveAvgPool2d((2, None))
        self.last, self.fold = LIF(v_threshold=1.5), fold

    def forward(self, x):
        t, b = x.shape[:2]
        s = self.fold(self.lif(x))
        s = nn.functional.avg_pool2d(self.halved(self.power(self.sum(s))), (1, 2), padding=0)
        return self.last(s.mean((-2, -1)).view(t, b, -1))


@pytest.mark.parametrize(
    "fold",
    [
        lambda x: x.flatten(0, 1),
        lambda x: x.view(-1, *x.shape[2:]),
        lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]),
    ],
)
def test_pools_and_folded_time(fold):
    x = torch.randn(5, 3, 2, 16, 16)
    model, graph = Pools(fold), to_nir(Pools(fold), x)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == [
        "Input", "LIF", "SumPool2d", "SumPool2d", "AvgPool2d", "AvgPool2d", "AvgPool2d",
        "Flatten", "LIF",
        "Output",
    ]  # fmt: skip
    fire_alike(model, from_nir(graph), x)


def test_a_graph_has_numbers_of_its_own():
    model = nn.Linear(3, 3)
    graph = to_nir(model, torch.randn(2, 1, 3))
    read = from_nir(graph)
    model.weight.data.zero_()
    assert graph.nodes["Linear"].weight.all()
    graph.nodes["Linear"].weight[:] = 0
    assert read.Linear.weight.all()


def test_means_are_taken_as_they_were(tmp_path):
    model, x = (
        Odd(lambda m, x: x.mean((-2, -1), keepdim=True) + x.mean((3, 4), True)),
        torch.randn(4, 5, 3, 9, 11),
    )
    assert torch.equal(returned(model, x, tmp_path)(x), model(x))


def test_the_model_is_left_as_it_was():
    x = torch.randn(IMAGES)
    model = snnfast.nn.fuse(convolutional())
    model[0].eval()
    before = {n: (type(m), m.training, dict(vars(m))) for n, m in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    to_nir(model, x)
    with pytest.raises(ValueError):
        to_nir(nn.Sequential(model, nn.MaxPool2d(2)), x)
    for name, module in model.named_modules():
        assert (type(module), module.training) == before[name][:2]
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
