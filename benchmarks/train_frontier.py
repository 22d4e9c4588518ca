"""The contenders that trade time for memory: SpikingJelly's memopt, and snnfast.nn.plan."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import peers
import torch
from torch import nn
from train_case import Case, Contender, PeerBlock, Training, ours, spikingjelly

import snnfast

MEMOPT, PLAN, LITTLE = "memopt level 1", "plan at memopt's peak", "plan for little"
SHARE = 0.15
"""Of the bytes kept without a plan: what little is."""

TRIES = 6
"""Plans until the peak of one is low enough."""


def memopt(device: torch.device) -> list[Contender | str]:
    """SpikingJelly's network at each level that does something here: residual blocks keep their
    input as bits and run again; from level 2 on they are split where a measured peak says so, for
    which it needs a CUDA device."""
    found = peers._import("spikingjelly.activation_based.memopt")
    base = spikingjelly(device)[0]
    if isinstance(found, str) or isinstance(base, str):
        return [found if isinstance(found, str) else base]
    levels = range(1, 5 if device.type == "cuda" else 2)
    return [
        replace(base, name=f"memopt level {level}", prepare=partial(_optimized, found, level))
        for level in levels
    ]


def _optimized(found, level: int, training: Training) -> None:
    def example(model):
        with training.case.autocast():
            return model(training.images, training.case.steps)

    parts = {}
    if level >= 2:
        parts["split_fn"] = lambda m: list(m.children()) if isinstance(m, PeerBlock) else []
    if level >= 3:  # a batch norm of a part of the sequence would be another one
        norm = nn.modules.batchnorm._BatchNorm
        parts["can_chunk"] = lambda m: not any(isinstance(part, norm) for part in m.modules())
    with training.contender.around():
        found.optimize_memory(training.model, PeerBlock, example, level=level, **parts)
    training.contender.after(training.model)


def planned(backend: str, name: str, share: float) -> Contender:
    """Ours with a plan for that share of the bytes kept without one."""
    return replace(ours(backend), name=name, prepare=partial(_planned, share), context=nullcontext)


def _planned(share: float, training: Training) -> None:
    case = training.case
    with case.autocast():
        training.plan = snnfast.nn.plan(training.model, (training.images, case.steps), budget=share)


def within(limit: int, case: Case, contender: Contender, memory: Callable) -> Contender:
    """The contender of a plan, with one whose step stays within a peak of ``limit`` bytes;
    ``memory(training)`` measures it."""
    share = 1.0
    for tried in range(TRIES):
        found = replace(contender, prepare=partial(_planned, share))
        training = Training(case, found)
        training.step()  # gradients and momenta are there from then on
        above = memory(training)["peak_bytes"] - limit
        if above <= 0:
            return found
        # Where it is the kept bytes that make the peak, it falls with them.
        least = (training.plan.after - 1.02 * above) / training.plan.before
        share = max(SHARE, min(least, 0.6 * share) if tried else least)
    raise RuntimeError(f"{TRIES} plans found none within a peak of {limit} bytes")
