"""Models that NIR cannot say, and graphs that cannot be read."""

import itertools
import sys

import numpy as np
import pytest
import torch
from nir_cases import IMAGES, Odd, fire_alike, nir, over
from torch import nn

import snnfast
from snnfast.interop.nir import from_nir, to_nir
from snnfast.nn import LIF, AdEx, BatchNormLIF, Leaky, OverTime, Synaptic


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
