"""A temporal task on real data: digits read row by row, 28 timesteps of 28 numbers each.

No single row tells the digit, so the neurons have to remember: adaptive neurons, whose thresholds
are slow, beside plain ones (after Yin, Corradi and Bohte, Nature Machine Intelligence 2021).

python examples/temporal_task.py [epochs]
"""

import sys

import torch
from torch import nn

import snnfast
from snnfast.data import load_data


class Net(nn.Module):
    def __init__(self, neurons):
        super().__init__()
        self.fc1, self.neurons1 = nn.Linear(28, 128), neurons()
        self.fc2, self.neurons2 = nn.Linear(128, 128), neurons()
        self.out = nn.Linear(128, 10)
        for layer in (self.fc1, self.fc2):  # strong enough for spikes at the beginning
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        never = float("inf")  # a read-out that integrates and does not fire
        self.readout = snnfast.nn.LIF(
            tau=20.0, decay_input=False, v_threshold=never, return_state=True
        )

    def forward(self, rows):  # [28, B, 28]
        spikes = self.neurons2(self.fc2(self.neurons1(self.fc1(rows))))
        return self.readout(self.out(spikes))[1]  # the potential after the last row, [B, 10]


def main():
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    data = load_data("digits", augment=[])
    kinds = {
        "LIF": lambda: snnfast.nn.LIF(tau=2.0, decay_input=False, surrogate="atan"),
        "adaptive LIF": lambda: snnfast.nn.AdaptiveLIF(
            tau=2.0, rho=0.95, beta=0.5, theta=0.5, surrogate="atan"
        ),
    }
    for name, neurons in kinds.items():
        torch.manual_seed(0)
        model = Net(neurons)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(epochs):
            for images, target in data.train.batches(torch.randperm(len(data.train)).split(64)):
                rows = images[:, 0].transpose(0, 1).contiguous()  # rows are timesteps
                loss = nn.functional.cross_entropy(model(rows), target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        images, target = next(data.test.batches([torch.arange(len(data.test))]))
        with torch.no_grad():
            right = model(images[:, 0].transpose(0, 1).contiguous()).argmax(-1) == target
        print(f"{name}: {right.double().mean():.1%} after {epochs} epochs")


if __name__ == "__main__":
    main()
