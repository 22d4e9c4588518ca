"""Your own spiking network, your own loop: snnfast's fused ops in plain PyTorch.

python examples/your_own_network.py        # 3 epochs of 4,000 real digits, about a minute on a CPU
"""

import torch
from torch import nn

import snnfast
from snnfast.data import load_data

T = 4


class Net(nn.Module):
    """Two convolutional layers of spiking neurons and a linear read-out at every timestep."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = snnfast.nn.BatchNormLIF(16, surrogate="atan")
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = snnfast.nn.BatchNormLIF(32, surrogate="atan")
        self.fc = nn.Linear(32 * 7 * 7, 10)

    def forward(self, images):  # [B, 1, 28, 28]
        s = self.bn1(self.conv1(images), timesteps=T)  # [T, B, 16, 14, 14], the image read once
        y = self.conv2(s.flatten(0, 1)).unflatten(0, s.shape[:2])  # time folded into the batch
        return self.fc(self.bn2(y).flatten(2))  # logits [T, B, 10]


def main():
    torch.manual_seed(0)
    data = load_data("digits")
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        order = torch.randperm(len(data.train)).split(64)
        for images, target in data.train.batches(order):
            with snnfast.packed_spikes():  # what autograd keeps of spikes: one bit each
                logits = model(images)
                loss = snnfast.twkd_loss(logits, target, alpha=0.0)  # every step, and their mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        images, target = next(data.test.batches([torch.arange(len(data.test))]))
        with torch.no_grad():
            right = snnfast.distill.full_range(model.eval()(images), target)  # at T = 1 .. 4
        model.train()
        print(f"epoch {epoch + 1}: {loss:.3f} accuracy", [f"{100 * r:.1f}" for r in right.tolist()])


if __name__ == "__main__":
    main()
