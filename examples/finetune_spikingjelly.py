"""A SpikingJelly checkpoint, fine-tuned with snnfast's neurons, and saved for SpikingJelly again.

python examples/finetune_spikingjelly.py     # needs spikingjelly; seconds on a CPU
"""

import tempfile
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import snnfast
from snnfast.data import load_data

T = 4


def network():
    """Written for SpikingJelly: not a line of it changes."""
    net = nn.Sequential(
        layer.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Flatten(),
        layer.Linear(16 * 14 * 14, 10),
    )
    functional.set_step_mode(net, "m")
    return net


def train(net, batches):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for images, target in batches:
        functional.reset_net(net)
        logits = net(images.expand(T, *images.shape))
        loss = nn.functional.cross_entropy(logits.mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    torch.manual_seed(0)
    data = load_data("digits")
    checkpoint = Path(tempfile.mkdtemp()) / "digits.pth"
    net = network()
    order = torch.randperm(len(data.train)).split(64)
    print(f"SpikingJelly: loss {train(net, data.train.batches(order[::2])):.3f}")
    torch.save(net.state_dict(), checkpoint)

    net = network()
    net.load_state_dict(torch.load(checkpoint))
    print(snnfast.accelerate(net))
    print(f"fine-tuned:   loss {train(net, data.train.batches(order[1::2])):.3f}")
    torch.save(net.state_dict(), checkpoint)  # the same keys: SpikingJelly loads it
    network().load_state_dict(torch.load(checkpoint))


if __name__ == "__main__":
    main()
