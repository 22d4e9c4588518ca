"""Whole networks in evaluation: every backend gives the same spikes, layer by layer.

Weights and inputs are multiples of 1/256, so that convolutions and means are exact in whatever
order a library sums them, and on a GPU in TF32, too: what differs then is ours.
"""

import backends
import pytest
import torch

import snnfast
from snnfast.models import create_model

NETWORKS = [backends.REFERENCE, backends.CPU[1], backends.HOST, *backends.GPU]


def exact(model):
    """Its weights rounded, its statistics arbitrary."""
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.data = (p.data * 256).round().clamp(-255, 255) / 256
        elif "weight" in name:
            p.data = 0.5 + torch.rand_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.copy_(0.3 * torch.randn_like(b))
        elif name.endswith("running_var"):
            b.copy_(0.02 + torch.rand_like(b))
    return model.eval()


def spikes_of(model, image, backend):
    """The logits, and the spikes of every neuron layer."""
    found, hooks = [], []
    for module in model.modules():
        if isinstance(module, (snnfast.nn.LIF, snnfast.nn.BatchNormLIF)):
            note = lambda _, __, s: found.append(s.cpu())  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    with torch.no_grad(), snnfast.backend(backend):
        logits = model(image)
    for hook in hooks:
        hook.remove()
    return logits.cpu(), found


@pytest.mark.unpoisoned
@pytest.mark.backends(*NETWORKS)
@pytest.mark.parametrize("name", ["resnet18", "vgg9"])
def test_every_backend_gives_the_spikes_of_the_cpu(backend, name):
    torch.manual_seed(3)
    model = exact(create_model(name, num_classes=10, timesteps=2, tau=1.7))
    image = (torch.randn(2, 3, 32, 32) * 64).round() / 256
    logits, expected = spikes_of(model, image, "cpu")
    ours, found = spikes_of(model.to(backend.device), image.to(backend.device), backend.name)
    assert len(found) == len(expected) > 5
    rates = [s.mean().item() for s in expected]
    assert sum(0.01 < rate < 0.99 for rate in rates) > len(rates) / 2, rates
    for layer, (s, t) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(s, t), f"layer {layer}: {(s != t).sum()} spikes differ"
    assert torch.equal(ours, logits)
