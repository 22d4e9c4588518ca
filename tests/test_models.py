"""Models by name: shapes, time, and the static image that runs its first layers once."""

import pytest
import torch

from snnfast.models import create_model, list_models
from snnfast.models.layers import StemBatchNorm2d
from snnfast.nn import LIF

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
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(images(16, seed=2).to(norms[0].weight.dtype))
    return model.eval()


def test_names():
    assert list_models() == ["ann_digits_cnn", "digits_cnn"]
    assert list_models("ann_*") == ["ann_digits_cnn"]
    assert list_models("resnet*") == []


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


def test_stem_counts_every_timestep():
    """With two samples a channel the unbiased factor is 2 once and 8/7 four times."""
    bn = StemBatchNorm2d(1, momentum=1.0)
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    bn(x, repeats=1)
    assert bn.running_var.item() == pytest.approx(2.0)
    bn(x, repeats=4)
    assert bn.running_var.item() == pytest.approx(8 / 7)
    assert bn.running_mean.item() == pytest.approx(1.0) and bn.num_batches_tracked == 2


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
    neurons = [m for m in build(tau=3.0).modules() if isinstance(m, LIF)]
    assert [neuron.tau for neuron in neurons] == [3.0] * 3
    assert (settle(build(**NEURON))(x) != silent.head.bias).any()


def test_the_fused_network_is_the_network_over_the_time_loop():
    """Same weights, same logits to the bit, in training and in evaluation mode."""
    fused, loop = build(**NEURON), build(**NEURON, backend="reference")
    x = images()
    assert torch.equal(fused(x), loop(x))
    z = settle(fused)(x)
    assert (z.std(1) > 0).any() and torch.equal(z, settle(loop)(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "digit_cnn"}, ValueError, "name must be one of .*did you mean 'digits_cnn'"),
        ({"name": "zzz"}, ValueError, "name must be one of ann_digits_cnn, digits_cnn, got 'zzz'$"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1, got 0"),
        ({"timesteps": 2.0}, TypeError, "timesteps must be an int, got float"),
        ({"in_channels": True}, TypeError, "in_channels must be an int, got bool"),
        ({"image_size": 7}, ValueError, "image_size must be >= 8, got 7"),
        ({"name": "ann_digits_cnn", "tau": 2.0}, TypeError, "ann_digits_cnn has no neurons, got t"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=f"create_model: {message}"):
        create_model(**{"name": "digits_cnn", "num_classes": 10} | change)


def test_bad_input_is_refused():
    model = build()
    with pytest.raises(ValueError, match=r"model: x must be \[B, C, H, W\] or .*\[28, 28\]"):
        model(torch.zeros(28, 28))
    with pytest.raises(ValueError, match="model: timesteps must be None or the sequence's 3"):
        model(torch.zeros(3, 2, 1, 28, 28), timesteps=4)
    with pytest.raises(ValueError, match="model: timesteps must be >= 1, got 0"):
        model(images(), timesteps=0)
