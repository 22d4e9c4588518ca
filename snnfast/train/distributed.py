"""Ranks of torch.distributed, as torchrun starts them; one process alone is a world of one.

    torchrun --nproc-per-node=4 -m snnfast train RECIPE

Every global batch is cut into consecutive parts, one a rank, so that the same seed trains on the
same batches for any number of ranks.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from snnfast import __version__
from snnfast.train.peers import Peers, RankError


@dataclass(frozen=True)
class World:
    """This process among its ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    peers: Peers | None = None

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

    def agree(self, notes: Mapping[str, object]) -> None:
        """Until all ranks are here with the same ``notes``; ConfigError where they differ."""
        if self.size > 1:
            self.peers.agree(notes)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device_type: str, notes: Mapping[str, object], remedy: str) -> Iterator[World]:
    """The ranks that torchrun started, NCCL for cuda and gloo for cpu; outside of torchrun a world
    of one.

    ``notes`` must be the same on all ranks: ConfigError. A rank that ends before the others ends
    them, with RankError, or where nothing can be raised with a line that ends with ``remedy``.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    peers = Peers(remedy)
    try:
        peers.agree(notes | {"device": device_type})
        local = int(os.environ["LOCAL_RANK"])
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device_type == "cuda":
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
        yield World(peers.rank, peers.size, local, beside, peers)
    except BaseException as error:
        # Other ranks that ended show as whatever the process group raises.
        if type(error) is RuntimeError or isinstance(error, dist.DistError):
            if reason := peers.lost():
                raise RankError(reason) from error
        peers.give_up(f"rank {peers.rank} ended: {in_a_line(error)}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # should it hang, ``peers`` ends it
        peers.leave()


def code() -> str:
    """What is run: the versions, and a digest of our sources."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return f"snnfast {__version__} ({digest.hexdigest()[:12]}), torch {torch.__version__}"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The same for the same names and bits."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def in_a_line(error: BaseException) -> str:
    """What an error says, in short."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return (str(error) or type(error).__name__).splitlines()[0]
