"""Models by name: shapes, time, and the static image that runs its first layers once."""

import pytest
import torch

from snnfast.models import create_model, exported_weights, list_models
from snnfast.nn import IF, LIF, BatchNormLIF, ParametricLIF
from snnfast.surrogate import Rect

NEURON = {"tau": 2.0, "decay_input": False}


def build(name="digits_cnn", seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = {"num_classes": 10, "in_channels": 1, "image_size": 28} | arguments
    return create_model(name, **arguments)


def images(batch=3, channels=1, size=28, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=g)


def settle(model):
    """Running statistics from one batch, so that neurons fire in evaluation mode, too."""
    norms = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, BatchNormLIF))]
    for norm in norms:
        norm.momentum = 1.0
    model(images(16, seed=2).to(norms[0].weight.dtype))
    return model.eval()


def test_names():
    spiking = [
        "digits_cnn",
        "digits_resnet",
        "preact_resnet34",
        "resnet18",
        "resnet19",
        "sew_resnet18",
    ]
    spiking += ["sew_resnet34", "vgg11", "vgg9", "vggsnn"]
    teachers = ["ann_digits_cnn", "ann_resnet18", "ann_resnet19", "ann_resnet34", "ann_vgg11"]
    teachers += ["ann_vgg9", "ann_vggsnn"]
    assert list_models() == teachers + spiking
    assert list_models("ann_*") == teachers
    assert list_models("*resnet18") == ["ann_resnet18", "resnet18", "sew_resnet18"]
    assert list_models("lstm*") == []


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 7), (2, 8, 2)])
def test_shapes(channels, size, classes):
    sizes = {"num_classes": classes, "in_channels": channels, "image_size": size}
    x = images(5, channels, size)
    snn = create_model("digits_cnn", **sizes, timesteps=3, **NEURON)
    assert snn(x).shape == (3, 5, classes)
    assert snn(x, timesteps=2).shape == (2, 5, classes)
    assert snn(x.expand(6, -1, -1, -1, -1)).shape == (6, 5, classes)
    ann = create_model("ann_digits_cnn", **sizes)
    assert ann(x).shape == (5, classes)
    count = [sum(p.numel() for p in model.parameters()) for model in (snn, ann)]
    assert count[0] == count[1]


def test_an_image_stands_for_its_repetition():
    """Logits, gradients and batch norm statistics of an image are those of T copies of it."""
    once, copied = (build(**NEURON).double() for _ in range(2))
    x = images().double()
    z = once(x, timesteps=4)
    z_copied = copied(x.repeat(4, 1, 1, 1, 1))
    torch.testing.assert_close(z, z_copied, rtol=1e-9, atol=1e-9)
    for logits in (z, z_copied):
        logits.square().sum().backward()
    for ours, theirs in zip(once.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    for (name, ours), theirs in zip(once.named_buffers(), copied.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_prefixes_of_a_run_are_shorter_runs():
    model = settle(build(**NEURON).double())
    x = images().double()
    full = model(x, timesteps=6)
    assert (full.std(0) > 0).any() and (full.std(1) > 0).any()
    for steps in (1, 2, 5):
        torch.testing.assert_close(model(x, timesteps=steps), full[:steps], rtol=1e-9, atol=1e-9)


def test_neuron_arguments_reach_the_neurons():
    x = images()
    silent = settle(build(v_threshold=1e9))
    assert (silent(x) == silent.head.bias).all()
    model = build(tau=3.0, v_reset=None, surrogate=Rect(2.0), detach_reset=True)
    neurons = [m for m in model.modules() if isinstance(m, LIF)]
    assert [neuron.tau for neuron in neurons] == [3.0] * 3
    for neuron in neurons:
        assert neuron.v_reset is None and neuron.surrogate == Rect(2.0) and neuron.detach_reset
    assert (settle(build(**NEURON))(x) != silent.head.bias).any()


@pytest.mark.parametrize("name", [n for n in list_models() if not n.startswith("ann_")])
def test_the_default_neuron_is_the_papers(name):
    """Its input is not divided by tau, unless asked for; a LIF alone is SpikingJelly's."""
    with torch.device("meta"):
        for neuron, kind in (("lif", LIF), ("plif", ParametricLIF)):
            for given, expected in (({}, False), ({"decay_input": True}, True)):
                model = build(name, neuron=neuron, image_size=32, **given)
                neurons = [m for m in model.modules() if isinstance(m, kind)]
                assert neurons and all(m.decay_input is expected for m in neurons)
        assert LIF().decay_input and ParametricLIF().decay_input
        model = build(name, image_size=32, beta=0.9, fire=">")
        assert all(m.beta == 0.9 and m.fire == ">" for m in model.modules() if isinstance(m, LIF))
        with pytest.raises(TypeError, match=r"lif neurons take .*, got time_axis"):
            build(name, image_size=32, time_axis=1)


def test_other_neurons():
    """By name; a learnable tau starts at tau and gets a gradient."""
    model = build(neuron="plif", tau=3.0)
    model(images()).sum().backward()
    learnable = [m for m in model.modules() if isinstance(m, ParametricLIF)]
    assert len(learnable) == 3 and "bn1.neuron.w" in model.state_dict()
    for neuron in learnable:
        assert 1 / neuron.w.sigmoid().item() == pytest.approx(3.0) and neuron.w.grad != 0
    assert sum(isinstance(m, IF) for m in build(neuron="if").modules()) == 3


def test_the_fused_network_is_the_network_over_the_time_loop():
    """Same weights, in evaluation mode the same statistics, too: same logits to the bit."""
    fused, loop = build(**NEURON), build(**NEURON, backend="reference")
    x = images()
    torch.testing.assert_close(fused(x), loop(x), rtol=1e-4, atol=1e-4)
    settle(fused)
    loop.load_state_dict(fused.state_dict())
    z = fused(x)
    assert (z.std(1) > 0).any() and torch.equal(z, loop.eval()(x))


@pytest.mark.unpoisoned
def test_compiles_as_one_graph():
    model = build(**NEURON, aux_head="layer1")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for made, expected in zip(compiled(images()), build(**NEURON, aux_head="layer1")(images())):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_auxiliary_head():
    """A linear layer on the mean of that stage's spikes, in training only, on top of the weights
    that the model has without it."""
    plain, model = build(**NEURON), build(**NEURON, aux_head="layer2")
    x, seen = images(), []
    model.bn2.register_forward_hook(lambda module, args, s: seen.append(s))
    logits, aux_logits = model(x, timesteps=3)
    assert torch.equal(logits, plain(x, timesteps=3)) and aux_logits.shape == (3, 3, 10)
    expected = seen[0].mean((3, 4)) @ model.aux_head.weight.T + model.aux_head.bias
    torch.testing.assert_close(aux_logits, expected)
    assert model.eval()(x).shape == (4, 3, 10)
    state = exported_weights(model.state_dict())
    assert model.state_dict().keys() - state.keys() == {"aux_head.weight", "aux_head.bias"}
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(x), model(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "digit_cnn"}, ValueError, "name must be one of .*did you mean 'digits_cnn'"),
        ({"name": "zzz"}, ValueError, "name must be one of ann_digits_cnn, .*, vggsnn, got 'zzz'$"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1, got 0"),
        ({"timesteps": 2.0}, TypeError, "timesteps must be an int, got float"),
        ({"in_channels": True}, TypeError, "in_channels must be an int, got bool"),
        ({"image_size": 7}, ValueError, "image_size must be >= 8, got 7"),
        ({"name": "ann_digits_cnn", "tau": 2.0}, TypeError, "ann_digits_cnn has no neurons, got t"),
        ({"name": "ann_vgg9", "aux_head": "layer2"}, ValueError, "aux_head must be None for ann_v"),
        (
            {"aux_head": "layer4"},
            ValueError,
            "aux_head must be one of layer1, layer2, layer3 or No",
        ),
        ({"neuron": "lfi"}, ValueError, "neuron must be one of lif, if, plif, got 'lfi'"),
        ({"taus": 2.0}, TypeError, r"lif neurons take .*, got taus \(did you mean 'tau'\?\)"),
        ({"neuron": "if", "tau": 2.0}, TypeError, "if neurons take .*, got tau$"),
        ({"return_state": True}, TypeError, "lif neurons take .*, got return_state"),
        ({"name": "vgg9", "image_size": 15}, ValueError, "image_size must be >= 16, got 15"),
        ({"timesteps": 0}, ValueError, "timesteps must be >= 1, got 0"),
        ({"name": ["digits_cnn"]}, ValueError, "name must be one of"),
        ({"aux_head": ["layer1"]}, TypeError, "aux_head must be a stage's name or None, got list"),
        ({"neuron": ["lif"]}, ValueError, "neuron must be one of lif, if, plif, got .'lif'.$"),
        (
            {"surrogate_function": "atan"},
            TypeError,
            r"lif neurons take .*, got surrogate_function \(did you mean 'surrogate'\?\)",
        ),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=f"create_model: {message}"):
        create_model(**{"name": "digits_cnn", "num_classes": 10} | change)


def test_bad_arguments_of_the_neurons_are_refused():
    for change, message in (
        (
            {"v_reset": "soft"},
            r"LIF: v_reset must be a number \(hard reset\) or None \(soft",
        ),
        ({"backend": "cupy"}, "LIF: backend must be one of"),
        ({"neuron": "plif", "v_threshold": "1"}, "ParametricLIF: v_threshold must be a number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            create_model("digits_cnn", num_classes=10, **change)


def test_bad_input_is_refused():
    model = build()
    with pytest.raises(ValueError, match=r"model: x must be \[B, C, H, W\] or .*\[28, 28\]"):
        model(torch.zeros(28, 28))
    with pytest.raises(ValueError, match="model: timesteps must be None or the sequence's 3"):
        model(torch.zeros(3, 2, 1, 28, 28), timesteps=4)
    with pytest.raises(ValueError, match="model: timesteps must be >= 1, got 0"):
        model(images(), timesteps=0)
    for steps in ("4", True, 2.0):
        with pytest.raises(TypeError, match="model: timesteps must be an int, got"):
            model(images(), timesteps=steps)
    with pytest.raises(ValueError, match=r"model: x must have the image_size .*576 features"):
        model(images(size=20))
