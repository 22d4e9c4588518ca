"""A stream of events: frames come one by one, the state goes on, and the network stops looking as
soon as it is sure.

python examples/event_stream.py        # on digits that are shown as events; seconds on a CPU
"""

import torch
from torch import nn

import snnfast
from snnfast.data import encode, load_data

T = 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.conv = snnfast.nn.OverTime(conv)
        self.neurons = snnfast.nn.BatchNormLIF(16, surrogate="atan")
        self.fc = nn.Linear(16 * 14 * 14, 10)

    def forward(self, frames):  # [T, B, 1, 28, 28]; any T, one frame as well
        return self.fc(self.neurons(self.conv(frames)).flatten(2))  # [T, B, 10]


def look(model, frames, threshold):
    """The class of one stream and how many frames it took."""
    total = torch.zeros(10)
    with snnfast.streaming(model):  # neurons keep their potential from call to call
        for step, frame in enumerate(frames, start=1):
            total += model(frame[None, None])[0, 0]
            confidence, prediction = (total / step).softmax(-1).max(-1)
            if confidence >= threshold:
                break
    return prediction.item(), step


def main():
    torch.manual_seed(0)
    data, model = load_data("digits"), Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(2):
        for images, target in data.train.batches(torch.randperm(len(data.train)).split(64)):
            events = encode.rate(images, T)  # spikes [T, B, 1, 28, 28]
            loss = snnfast.twkd_loss(model(events), target, alpha=0.0)  # every step is to be right
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    images, target = next(data.test.batches([torch.arange(100)]))
    events = encode.rate(images, T)
    model.eval()
    with torch.no_grad():
        seen = [look(model, events[:, n], threshold=0.9) for n in range(len(target))]
    right = sum(found == label for (found, _), label in zip(seen, target.tolist())) / len(seen)
    frames = sum(step for _, step in seen) / len(seen)
    print(f"accuracy {right:.1%}, {frames:.1f} of {T} frames on average")


if __name__ == "__main__":
    main()
