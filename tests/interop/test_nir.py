"""Networks as NIR graphs: ours to a file and back, and the readers and writers of SpikingJelly and
snnTorch on the same graphs."""

import copy
import itertools
import pickle
import sys

import numpy as np
import pytest
import torch
from peer_neurons import package
from torch import nn

import snnfast
from snnfast.interop.nir import from_nir, to_nir
from snnfast.models.resnet import ResNet
from snnfast.nn import (
    IF,
    LIF,
    AdEx,
    BatchNormLIF,
    BatchNormNeuron,
    CubaLIF,
    Leaky,
    OverTime,
    ParametricLIF,
    Synaptic,
)
from snnfast.reference.norm_lif import inverse_std, normalise

nir = package("nir")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def returned(model, x, tmp_path, **options):
    """``model`` by way of a file."""
    nir.write(tmp_path / "model.nir", to_nir(model, x, **options))
    return from_nir(nir.read(tmp_path / "model.nir"))


def fire_alike(model, other, x):
    with torch.no_grad():
        s = model(x)
        assert torch.equal(other(x), s)
    assert 0.02 < s.mean() < 0.9  # or they would show nothing
    return s


def settled(model, x):
    """With statistics and numbers that are those of no fresh network."""
    for name, p in model.named_parameters():
        if p.dim() == 1 and "lif" not in name:
            nn.init.uniform_(p, *((-0.2, 1.0) if name.endswith("bias") else (0.5, 1.5)))
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.6
    for _ in range(3):
        model(x)
    return model.eval()


def convolutional(neuron=LIF):
    return nn.Sequential(
        OverTime(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)), neuron(3.3, v_threshold=0.3),
        OverTime(nn.AvgPool2d(2), nn.Conv2d(6, 4, 3, padding="same", bias=False)),
        BatchNormLIF(4, neuron=ParametricLIF(2.7)), nn.Dropout(), OverTime(nn.Flatten()),
        OverTime(nn.Linear(64, 10), nn.BatchNorm1d(10)), IF(v_reset=-0.1),
    )  # fmt: skip


def in_one_dimension():
    return nn.Sequential(
        OverTime(nn.Conv1d(2, 6, 3, 2, dilation=2), nn.BatchNorm1d(6)), LIF(),
        BatchNormNeuron(6, CubaLIF(v_threshold=0.2)), nn.Flatten(2), nn.Linear(6 * 6, 8),
        BatchNormLIF(8, v_threshold=0.5),
    )  # fmt: skip


IMAGES, SIGNALS = (4, 3, 2, 8, 8), (4, 3, 2, 16)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (convolutional, IMAGES),
        (lambda: snnfast.nn.fuse(convolutional()), IMAGES),
        (in_one_dimension, SIGNALS),
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


@pytest.mark.parametrize(
    "neuron",
    [
        LIF(10 / 3, decay_input=False),
        LIF(1.7, v_rest=0.2, v_reset=-0.3, fire=">"),
        LIF(beta=torch.rand(5)),
        LIF(beta=0.83, v_threshold=torch.rand(5) + 0.5),
        IF(v_threshold=0.7, v_reset=0.1),
        ParametricLIF(2.6, channels=5, decay_input=False),
        CubaLIF(tau_syn=7e-3, w_in=1.3, r=2.0, v_leak=0.1, v_reset=-0.2, v_threshold=0.4),
        CubaLIF(tau_mem=nn.Parameter(torch.rand(5) + 0.1), dt=0.07, v_threshold=torch.rand(5)),
        Leaky(beta=0.9, reset_mechanism="zero", reset_delay=False),
        Synaptic(alpha=0.7, beta=torch.rand(5), reset_mechanism="zero", reset_delay=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("dt", [1e-4, 3e-3])
def test_neurons_keep_their_numbers(neuron, dt, tmp_path):
    x = torch.randn(6, 20, 5, 3, 3) * 2
    other = returned(neuron, x, tmp_path, dt=dt)
    fire_alike(neuron, other, x)
    (same,) = other.children()
    same.return_state = "all"
    for a, b in zip(
        states(other(x)), states(type(neuron).forward(with_states(neuron), x)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dt", [1e-4, 3e-3])
def test_a_tau_is_read_as_it_was_typed(dt):
    x = torch.ones(2, 1, 3)
    for tau in (1.1, 3.3, 4.7, 10.0, 12.34):
        assert from_nir(to_nir(LIF(tau), x, dt=dt)).LIF.tau == tau


def with_states(neuron):
    neuron = copy.deepcopy(neuron)
    neuron.return_state = "all"
    return neuron


def states(result):
    """The potential first, which is last in snnTorch's."""
    _, state = result
    return sorted(state, key=lambda v: v.sum().item()) if isinstance(state, tuple) else [state]


def euler(node, x, dt):
    """NIR's equations in steps of dt, float64."""
    at = {name: torch.as_tensor(value) for name, value in vars(node).items() if name in NAMES}
    cuba, i = isinstance(node, nir.CubaLIF), 0
    v, spikes = at["v_leak" if cuba else "v_reset"], []
    for x_t in x.double():
        if cuba:
            i = i + dt / at["tau_syn"] * (at["w_in"] * x_t - i)
        drive = at["r"] * (i if cuba else x_t)
        if isinstance(node, nir.IF):
            h = v + dt * drive
        else:
            h = v + dt / at["tau_mem" if cuba else "tau"] * (at["v_leak"] - v + drive)
        spikes.append(h > at["v_threshold"])
        v = torch.where(spikes[-1], at["v_reset"], h)
    return torch.stack(spikes).float()


NAMES = "tau", "tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"


def over(*row):
    """Numbers for neurons [3, 4]: one, or one for each channel."""
    return np.array(row)[:, None] * np.ones((3, 4))


@pytest.mark.parametrize("kind", ["LIF", "IF", "CubaLIF"])
def test_others_graphs_are_their_equations(kind):
    """Dyadic numbers, on which Euler steps are exact; potentials that meet the threshold."""
    tau, r, threshold = over(1.0, 2.0, 4.0), over(1.0, 0.5, 4.0), over(0.5, 1.0, 0.75)
    node = {
        "LIF": lambda: nir.LIF(tau, r, over(0.25), threshold, over(-0.5)),
        "IF": lambda: nir.IF(r, threshold, over(0.25)),
        "CubaLIF": lambda: nir.CubaLIF(tau, 2 * tau, r, r / 4, threshold, over(0.5), over(2.0)),
    }[kind]()
    x = torch.randint(-8, 17, (8, 6, 3, 4)) / 4
    graph = nir.NIRGraph.from_list(node)
    expected = euler(node, x, 0.5)
    assert torch.equal(from_nir(graph, dt=0.5)(x), expected)
    if kind != "CubaLIF":
        assert not torch.equal(from_nir(graph, dt=0.5, fire=">=")(x), expected)


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


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.lif, self.odd = LIF(), forward

    def forward(self, x):
        return self.odd(self, x)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (OverTime(nn.MaxPool2d(2)), "MaxPool2d '0': it must be made of .*, got max_pool2d"),
        (OverTime(nn.Conv2d(2, 2, 3, groups=2)), "Conv2d '0': groups must be 1, got 2"),
        (OverTime(nn.Conv2d(2, 2, (3, 1))), r"the kernel must be square, got \[3, 1\]"),
        (OverTime(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "padding_mode must be"),
        (OverTime(nn.AvgPool2d(3, ceil_mode=True)), "ceil_mode must be False"),
        (OverTime(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "count_include_pad must"),
        (OverTime(nn.BatchNorm2d(2, track_running_stats=False)), "track_running_stats must be"),
        (LIF(v_reset=None), "LIF 'LIF': v_reset must be a number, for NIR has no soft reset"),
        (LIF(return_state=True), "return"),
        (LIF(time_axis=1), "time_axis must be 0, got 1"),
        (LIF(beta=1.0), "beta must be in 0 .. 1 and below 1, got 1"),
        (BatchNormLIF(2, v_reset=None), "BatchNormLIF 'BatchNormLIF': v_reset must be"),
        (nn.Sequential(AdEx()), "AdEx '0': neurons must be IF, LIF"),
        (Leaky(beta=0.5), "reset_mechanism must be 'zero', NIR's only reset, got 'subtract'"),
        (Synaptic(reset_mechanism="zero"), "reset_delay must be False"),
        (OverTime(nn.LPPool2d(2, 2)), "norm_type must be 1, got 2"),
        (Odd(lambda m, x: m.lif(x.flatten(0, 1))), "LIF 'lif': its input must be"),
        (nn.Conv3d(3, 3, 3, padding=1), "Conv3d 'Conv3d': it must be made of .*, got conv3d"),
        (nn.Flatten(), "Flatten 'Flatten': what it flattens must be axes of a timestep"),
        (nn.Linear(8, 3), "Linear 'Linear': a timestep must be"),
        (Odd(lambda m, x: m.lif(x, timesteps=3)), "LIF 'lif': it must be called with its input"),
        (Odd(lambda m, x: m.lif(x) + 1), "Odd 'Odd': what it adds must have one shape"),
        (Odd(lambda m, x: m.lif(x) + torch.zeros(IMAGES)), "sums must be of what the model"),
        (Odd(lambda m, x: m.lif(x.relu())), "got relu"),
        (Odd(lambda m, x: m.lif(x.transpose(-1, -2))), "got transpose"),
        (Odd(lambda m, x: x.view(4, -1)), "a reshape must fold time into the batch"),
        (Odd(lambda m, x: x.mean(0)), "means must be over the height and width"),
        (Odd(lambda m, x: (m.lif(x), x)), "model must return a tensor that it computes from x"),
    ],
)  # fmt: skip
def test_what_nir_cannot_say_is_refused(model, said):
    with pytest.raises(ValueError, match=f"^to_nir: .*{said}"):
        to_nir(model, torch.randn(IMAGES))


def test_a_tensor_seen_through_another_is_not_mistaken():
    """b shows a's numbers, which change under it."""

    def forward(model, x):
        a = model.lif(x)
        b = a.flatten(0, 1)
        a += x
        return b

    with pytest.raises(ValueError, match="must return a tensor that it computes from x"):
        to_nir(Odd(forward), torch.randn(IMAGES))


def write_into(y, to):
    y[:, :, 0:2] = to


WRITES = {
    "__setitem__": lambda y: write_into(y, 5.0),
    "copy_": lambda y: y.copy_(y),
    "fill_": lambda y: y.fill_(1.0),
    "index_put_": lambda y: y.index_put_((torch.tensor(0),), torch.tensor(1.0)),
    "mul": lambda y: torch.mul(torch.ones(IMAGES), 2.0, out=y),
    "_foreach_add_": lambda y: torch._foreach_add_([y], 1.0),
    "data.__set__": lambda y: setattr(y, "data", torch.ones(IMAGES)),
    "data": lambda y: write_into(y.data, 5.0),
    "numpy": lambda y: write_into(y.numpy(), 5.0),
    "__array__": lambda y: np.asarray(y),
    "data_ptr": lambda y: y.data_ptr(),
    "untyped_storage": lambda y: y.untyped_storage(),
    "tolist": lambda y: y.tolist(),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_writes_to_a_value_is_refused_by_name(name):
    def forward(model, x):
        y = model.lif(x)
        WRITES[name](y)
        return model.lif(y)

    x = torch.randn(IMAGES)
    with pytest.raises(ValueError, match=f"^to_nir: Odd 'Odd': it must be made of .*, got {name}$"):
        to_nir(Odd(forward), x)


def test_a_forward_may_ask_for_shapes_and_print():
    def forward(model, x):
        assert x.shape and x.size(0) == len(x) and x.ndim == x.dim() and x.dtype and x.device
        assert f"{x} {x!r}" and not x.requires_grad and x.is_contiguous() and {x: x.stride()}
        return model.lif(x)

    assert len(to_nir(Odd(forward), torch.randn(IMAGES)).nodes) == 3


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_out_of_sight_is_not_mistaken(inference):
    def forward(model, x):
        y = model.lif(x)
        with torch._C.DisableTorchFunction():
            y[0] = 5.0
        return model.lif(y)

    with torch.inference_mode(inference):
        x = torch.randn(IMAGES)
        assert len(to_nir(LIF(), x).nodes) == 3
        with pytest.raises(ValueError, match="LIF 'lif': its input must be a tensor that the mod"):
            to_nir(Odd(forward), x)


def test_a_model_of_another_precision_is_refused():
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model = nn.Sequential(nn.Linear(3, 3)).to(dtype)
        said = f"to_nir: model must be float32, got {name} in '0.weight'; write model.float"
        with pytest.raises(ValueError, match=said):
            to_nir(model, torch.ones(2, 1, 3, dtype=dtype))


def test_a_streaming_model_is_refused_and_streams_on():
    x, model = 2 * torch.randn(IMAGES), nn.Sequential(LIF())
    with torch.no_grad(), snnfast.streaming(model):
        first = model(x[:2])
        with pytest.raises(ValueError, match="to_nir: model must not be streaming"):
            to_nir(model, x)
        s = torch.cat([first, model(x[2:])])
    fire_alike(model, lambda _: s, x)


def graph_of(*nodes, edges=None):
    names = [str(i) for i in range(len(nodes))]
    edges = list(itertools.pairwise(names)) if edges is None else edges
    return nir.NIRGraph(dict(zip(names, nodes)), edges, type_check=False)


def between(node, shape=(3, 4)):
    return graph_of(nir.Input(np.array(shape)), node, nir.Output(np.array(shape)))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (lambda: between(nir.Delay(over(1.0))), "Delay '1': nodes must be Affine"),
        (
            lambda: between(nir.IF(over(1.0), np.arange(12.0).reshape(3, 4), over(0.0))),
            "IF '1': v_threshold must be the same within a channel",
        ),
        (
            lambda: between(nir.LIF(*(over(v) for v in (1.0, 1.0, 0.0, 1.0)), over(0.0, 1.0, 2.0))),
            "LIF '1': v_reset must be one number",
        ),
        (
            lambda: between(nir.LIF(*(over(v) for v in (1e-5, 1.0, 0.0, 1.0, 0.0)))),
            "LIF '1': tau must be >= dt, 0.0001 seconds, got 1e-05",
        ),
        (
            lambda: graph_of(
                nir.Input(np.array([3])), nir.Linear(np.eye(3)), nir.Linear(np.eye(3)),
                nir.Output(np.array([3])), edges=[("0", "1"), ("1", "2"), ("2", "1"), ("2", "3")],
            ),
            "graph must be without a cycle, got 1 -> 2 -> 1",
        ),
        (lambda: graph_of(nir.Linear(np.eye(3)), nir.Output(np.ones(1))), "graph must have one I"),
        (
            lambda: graph_of(
                nir.Input(np.array([3])), nir.Linear(np.eye(3)), nir.Output(np.array([3])),
                edges=[("1", "2")],
            ),
            "Linear '1': it must have an input, got none",
        ),
    ],
)  # fmt: skip
def test_graphs_that_are_refused(graph, said):
    with pytest.raises(ValueError, match=f"^from_nir: {said}"):
        from_nir(graph())


def test_names_that_no_module_can_have():
    one = np.eye(3, dtype=np.float32)
    names = ["input", "a", "a.b", "a.b.c", "for", "forward", "train.code", "a_b", "output"]
    nodes = {name: nir.Linear((i + 1) * one) for i, name in enumerate(names)}
    nodes |= {"input": nir.Input(np.array([3])), "output": nir.Output(np.array([3]))}
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)))
    module = from_nir(graph)
    assert torch.equal(module(torch.ones(2, 1, 3)), torch.full((2, 1, 3), 40320.0))


def test_arguments_are_checked():
    graph = between(nir.Linear(np.eye(3)), (3,))
    for call, error, said in [
        (lambda: to_nir(abs, torch.ones(IMAGES)), TypeError, "model must be a torch module"),
        (lambda: to_nir(LIF(), [1]), TypeError, "to_nir: example must be a tensor, got list"),
        (lambda: to_nir(LIF(), torch.ones(4, 3)), ValueError, "to_nir: example must be .T, B"),
        (lambda: to_nir(LIF(), torch.ones(IMAGES), dt=0), ValueError, "to_nir: dt must be > 0"),
        (lambda: from_nir("model.nir"), TypeError, "graph must be a nir.NIRGraph, got str"),
        (lambda: from_nir(graph, fire="<"), ValueError, "from_nir: fire must be"),
        (lambda: from_nir(graph, dt=-1.0), ValueError, "from_nir: dt must be > 0"),
    ]:  # fmt: skip
        with pytest.raises(error, match=said):
            call()


def test_nir_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: to_nir(LIF(), torch.ones(IMAGES)), lambda: from_nir(None)):
        with pytest.raises(
            ImportError, match=r'nir is not installed: pip install "snnfast\[nir\]"'
        ):
            call()
