"""CIFAR-10 in your own loop: a spiking ResNet-18 taught by an ANN, with TWKD.

python examples/cifar10_twkd.py data       # data/cifar-10-batches-bin, as it is published
"""

import argparse

import torch

import snnfast
from snnfast.data import load_data
from snnfast.models import create_model


def teach(data, epochs, device):
    """The ANN, trained by plain cross-entropy; yours may come from a file."""
    teacher = create_model("ann_resnet18", num_classes=10).to(device)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        order = torch.randperm(len(data.train)).split(128)
        for images, target in data.train.batches(order, seed=epoch):
            loss = torch.nn.functional.cross_entropy(teacher(data.augment(images, epoch)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return teacher.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--images", type=int, default=0, help="0: all 50,000")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load_data("cifar10", root=options.root, train=options.images, device=device)
    teacher = teach(data, options.epochs, device)
    student = create_model("resnet18", num_classes=10, timesteps=4).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for epoch in range(options.epochs):
        student.train()
        order = torch.randperm(len(data.train)).split(128)
        for step, (images, target) in enumerate(data.train.batches(order, seed=epoch)):
            images = data.augment(images, seed=epoch * len(order) + step)
            with torch.no_grad():
                taught = teacher(images)  # [B, 10], no time axis
            with snnfast.packed_spikes():
                loss = snnfast.twkd_loss(student(images), target, taught, alpha=0.2, beta=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        student.eval()
        with torch.no_grad():
            images, target = next(data.test.batches([torch.arange(min(1000, len(data.test)))]))
            right = snnfast.distill.full_range(student(data.prepare(images, 0)), target)
        print(
            f"epoch {epoch + 1}: loss {loss:.3f}",
            [f"T={t + 1}: {r:.1%}" for t, r in enumerate(right)],
        )


if __name__ == "__main__":
    main()
