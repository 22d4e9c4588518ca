"""The ResNets and VGGs: sizes, the image that runs its first layers once, a step of training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_cases import one_thread

import snnfast
from snnfast.models import create_model, exported_weights
from snnfast.nn import LIF, BatchNormLIF
from snnfast.nn.batch_norm import BatchNorm2d

NEURON = {"tau": 2.0, "decay_input": False}
SPIKING = ["resnet18", "resnet19", "preact_resnet34", "sew_resnet18", "sew_resnet34", "vgg9"]
SPIKING += ["vgg11", "digits_resnet"]
TEACHERS = ["ann_resnet18", "ann_resnet19", "ann_resnet34", "ann_vgg9", "ann_vgg11"]
PARAMETERS = [
    ("resnet18", 10, 3, 11_173_962),
    ("resnet18", 100, 3, 11_220_132),
    ("resnet18", 10, 2, 11_173_386),
    ("resnet19", 10, 3, 12_697_994),
    ("resnet19", 100, 3, 12_721_124),
    ("resnet19", 10, 2, 12_696_842),
    ("ann_resnet18", 100, 3, 11_220_132),
    ("ann_resnet19", 100, 3, 12_721_124),
    ("ann_resnet34", 10, 3, 21_282_122),
    ("ann_resnet34", 100, 3, 21_328_292),
    ("sew_resnet18", 10, 3, 11_173_962),
    ("vgg9", 10, 3, 9_243_722),
    ("ann_vgg9", 10, 3, 9_243_722),
    ("digits_resnet", 10, 1, 19_810),
]


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


def build(name, size=16, channels=3, classes=10, seed=0, **more):
    torch.manual_seed(seed)
    arguments = {"num_classes": classes, "in_channels": channels, "image_size": size}
    return create_model(name, **arguments, **more)


def images(batch=2, channels=3, size=16, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=g)


def smallest(name):
    """A side that leaves something behind every stage, and keeps float64 cheap."""
    return 16 if "vgg" in name else 8


def settle(model, size):
    """Running statistics from one batch, so that neurons fire in evaluation mode, too."""
    for m in model.modules():
        if isinstance(m, (BatchNorm2d, BatchNormLIF)):
            m.momentum = 1.0
    with torch.no_grad():
        model(images(6, size=size, seed=2).to(next(model.parameters()).dtype))
    return model.eval()


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "classes", "channels", "expected"), PARAMETERS)
def test_parameters(name, classes, channels, expected):
    with torch.device("meta"):
        assert count(build(name, 32, channels, classes)) == expected


def test_parameters_at_the_size_of_imagenet():
    """torchvision's ResNets have 11,689,512 and 21,797,672 of them, the preact ResNet-34's biases
    are 8,512 more."""
    with torch.device("meta"):
        sizes = {"size": 224, "classes": 1000}
        assert count(build("preact_resnet34", **sizes)) == 21_806_184
        for depth, expected in ((18, 11_689_512), (34, 21_797_672)):
            assert count(build(f"sew_resnet{depth}", **sizes)) == expected
        assert count(build("ann_resnet34", **sizes)) == 21_797_672


def test_keys_of_a_teacher_are_those_of_its_student():
    with torch.device("meta"):
        for name in ("resnet18", "resnet19", "vgg9", "vgg11"):
            student, teacher = build(name).state_dict(), build(f"ann_{name}").state_dict()
            assert student.keys() == teacher.keys()
        state = build("ann_resnet34", 224).state_dict()
    # As torchvision names them.
    for key in ("bn1.running_var", "layer2.0.downsample.0.weight", "layer4.2.conv2.weight"):
        assert key in state


@pytest.mark.parametrize("name", SPIKING)
def test_a_step_of_training(name):
    """Every weight gets a gradient, the neurons of every layer fire, and the logits are right."""
    model = build(name, aux_head="layer2", timesteps=2, **NEURON)
    spikes = []
    for m in model.modules():
        if isinstance(m, (LIF, BatchNormLIF)):
            m.register_forward_hook(lambda module, args, s: spikes.append(s))
    with snnfast.packed_spikes():
        logits, aux_logits = model(images())
    assert logits.shape == aux_logits.shape == (2, 2, 10)
    rates = [s.mean().item() for s in spikes]
    assert all(((s == 0) | (s == 1)).all() for s in spikes) and min(rates) > 0, rates
    loss = snnfast.tssd_loss(logits, torch.tensor([3, 7]), aux_logits, student_steps=1)
    loss.backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), key
    with torch.device("meta"):
        plain = build(name)
    assert exported_weights(model.state_dict()).keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", TEACHERS)
def test_a_step_of_a_teacher(name):
    model = build(name)
    logits = model(images())
    F.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert logits.shape == (2, 10)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet34", "sew_resnet18", "vgg9"])
def test_an_image_stands_for_its_repetition(name):
    """Logits, gradients and batch norm statistics of an image are those of T copies of it, and its
    first convolution runs once."""
    size = smallest(name)
    once, copied = (build(name, size, **NEURON).double() for _ in range(2))
    x, rows = images(size=size).double(), []
    once.get_submodule("layer1.0.conv" if "vgg" in name else "conv1").register_forward_hook(
        lambda module, args, y: rows.append(len(y))
    )
    z = once(x, timesteps=3)
    z_copied = copied(x.repeat(3, 1, 1, 1, 1))
    assert rows == [2]
    torch.testing.assert_close(z, z_copied, rtol=1e-9, atol=1e-9)
    for logits in (z, z_copied):
        logits.square().sum().backward()
    for ours, theirs in zip(once.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)
    for (key, ours), theirs in zip(once.named_buffers(), copied.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", SPIKING)
def test_prefixes_of_a_run_are_shorter_runs(name):
    """To the rounding of a sum in another order, which in float64 moves no spike."""
    size = smallest(name)
    model = settle(build(name, size, **NEURON).double(), size)
    x = images(size=size).double()
    with torch.no_grad():
        full = model(x, timesteps=4)
        assert (full.std(0) > 0).any() and (full.std(1) > 0).any()
        for steps in (1, 3):
            part = model(x, timesteps=steps)
            torch.testing.assert_close(part, full[:steps], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet19", "vgg9"])
def test_events(name):
    """48x48 with two channels and a time axis."""
    model = build(name, 48, 2, 11, **NEURON)
    with torch.no_grad():
        assert model(images(2, 2, 48).expand(2, -1, -1, -1, -1)).shape == (2, 2, 11)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet34", "sew_resnet18", "ann_resnet18"])
def test_stem_of_large_images(name):
    """A quarter of the side is left for the first stage."""
    model, sides = build(name, 96), []
    first = model.layer1[0]
    (first.lif1 if name.startswith("preact") else first.conv1).register_forward_hook(
        lambda module, args, y: sides.append(y.shape[-1])
    )
    with torch.no_grad():
        assert model(images(1, size=96)).shape[-1] == 10
    assert sides == [24] and model.conv1.kernel_size == (7, 7)
    assert build(name, 95).conv1.kernel_size == (3, 3)


def test_a_block_is_what_its_docstring_says():
    """A ResNet-18's block of stride 2 from plain layers."""
    block = build("resnet18", **NEURON).layer2[0]
    s = (torch.rand(3, 2, 64, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.2).float()

    def normed(y, bn):
        return F.batch_norm(y, None, None, bn.weight, bn.bias, True)

    def neurons(y):
        return snnfast.lif(y.unflatten(0, (3, 2)), **NEURON, backend="reference").flatten(0, 1)

    flat = s.flatten(0, 1)
    out = neurons(normed(F.conv2d(flat, block.conv1.weight, None, 2, 1), block.bn1))
    out = normed(F.conv2d(out, block.conv2.weight, None, 1, 1), block.bn2)
    conv, bn = block.downsample
    out = neurons(out + normed(F.conv2d(flat, conv.weight, None, 2), bn))
    assert 0.01 < out.mean() < 0.99 and torch.equal(block(s).flatten(0, 1), out)


def test_initial_weights():
    """Kaiming's by fan-out in the networks for ImageNet, torch's own elsewhere."""
    for name, std in (
        ("preact_resnet34", (2 / (9 * 512)) ** 0.5),
        ("sew_resnet18", (2 / (9 * 512)) ** 0.5),
        ("resnet18", (1 / (3 * 9 * 512)) ** 0.5),
    ):
        weight = build(name).layer4[1].conv2.weight
        assert weight.std().item() == pytest.approx(std, rel=0.01)


def test_channels_last_runs_through_without_a_copy():
    """Every layer sees and leaves channels-last steps, and the logits are the same."""
    plain = build("resnet18", **NEURON).double()
    model = build("resnet18", **NEURON).double().to(memory_format=torch.channels_last)
    x, seen = images().double(), []
    for m in model.modules():
        if isinstance(m, (BatchNormLIF, nn.Conv2d)):
            m.register_forward_hook(lambda module, args, y: seen.extend((args[0], y)))
    with torch.no_grad():
        z = model(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(z, plain(x), rtol=1e-9, atol=1e-9)
    for t in seen:
        step = t[0] if t.dim() == 5 else t
        assert step.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "sew_resnet18"])
def test_a_training_step_copies_no_activation_into_another_layout(name, layout):
    model = build(name, timesteps=2, **NEURON).to(memory_format=layout)
    x = images().to(memory_format=layout)
    with torch.profiler.profile(record_shapes=True) as seen:
        model(x).square().sum().backward()
    copies = []
    for event in seen.events():
        if event.name == "aten::copy_" and len(event.input_shapes[0]) >= 4:
            above = [event]
            while above[-1].cpu_parent is not None:
                above.append(above[-1].cpu_parent)
            names = [e.name for e in above]
            if "aten::convolution_backward" not in names:  # torch's own
                copies.append((event.input_shapes[0], names))
    assert not copies


def test_half_precision_under_autocast():
    model = build("resnet18", timesteps=2, **NEURON)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(size=8))
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
