"""One node with 8 GPUs, your own loop: DistributedDataParallel, shared statistics, one batch.

torchrun --nproc-per-node=8 examples/eight_gpus.py       # without a GPU: processes on the CPU, gloo
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import snnfast
from snnfast.data import load_data

T, BATCH = 4, 512  # the batch of all ranks together


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = snnfast.nn.BatchNormLIF(16, process_group=dist.group.WORLD, surrogate="atan")
        conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.conv2 = snnfast.nn.OverTime(conv2)
        self.bn2 = snnfast.nn.BatchNormLIF(32, process_group=dist.group.WORLD, surrogate="atan")
        self.fc = nn.Linear(32 * 7 * 7, 10)

    def forward(self, images):
        s = self.bn1(self.conv1(images), timesteps=T)
        return self.fc(self.bn2(self.conv2(s)).flatten(2))


def main():
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    gpus = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpus else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    data = load_data("digits", device=device)
    torch.manual_seed(0)  # the same weights and the same order on all ranks
    model = DistributedDataParallel(Net().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        batches = torch.randperm(len(data.train)).split(BATCH)
        mine = [batch[rank::ranks] for batch in batches if len(batch) % ranks == 0]
        for images, target in data.train.batches(mine):
            loss = snnfast.twkd_loss(model(images), target, alpha=0.0)
            optimizer.zero_grad()
            loss.backward()  # DistributedDataParallel takes the mean over ranks
            optimizer.step()
        dist.all_reduce(loss.detach_(), dist.ReduceOp.SUM)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item() / ranks:.3f} on {ranks} ranks")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
