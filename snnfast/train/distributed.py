"""Ranks of torch.distributed, as torchrun starts them; one process alone is a world of one.

    torchrun --nproc-per-node=4 -m snnfast train RECIPE

Every global batch is cut into consecutive parts, one a rank, so that the same seed trains on the
same batches for any number of ranks.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among its ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    @property
    def group(self):
        """The process group of all ranks, None where there is one rank."""
        return dist.group.WORLD if self.size > 1 else None

    def part(self, count: int) -> slice:
        """This rank's part of ``count`` things in order; sizes differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device) -> bool:
        """Whether any rank says so."""
        if self.size == 1:
            return bool(flag)
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


def join(device_type: str) -> World:
    """Join the ranks that torchrun started: NCCL for cuda, gloo for cpu. Outside of torchrun, a
    world of one."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if device_type == "cuda":
        torch.cuda.set_device(world.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return world


def leave(world: World) -> None:
    """Leave the ranks that :func:`join` joined."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
