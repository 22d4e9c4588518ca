"""The gate of the training benchmark: what a contender must pass before its speed is shown.

Rounding moves a membrane potential across the threshold once in about ten million neurons and
steps; behind that one spike a deep network with random weights goes another way: its loss differs
in the third digit, and its gradients have nothing in common. So a first step that rounding cannot
tip is compared in float32 with that of the loop over time, loss and gradients both: on small images
on which no potential of any neuron comes near the threshold. Then the loss of the real first step
must be near the loop's in float32, in half precision, too.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import measure
import torch
from torch import Tensor
from train_case import Case, Contender, LoopLIF, Training, loop

LOSS, GRADIENTS = 1e-5, 1e-3
"""Relative to the loop's loss, and to the norm of all its gradients."""

CHANGE = 0.05
"""The same for the loss of the real first step."""

MARGIN, SMALL, TRIES = 1e-5, 8, 1000
"""The least |H - theta| on the small images, of which there are two; their side."""


@dataclass(kw_only=True)
class Verdict(measure.Verdict):
    """Loss and gradients are held to the loop's on small images, off the threshold, in float32."""

    loss: float | None = None
    loss_change: float | None = None
    """Of the real first step, and relative to the loop's in float32."""
    loss_error: float | None = None


@contextmanager
def exact():
    """Convolutions and products in float32, also where a GPU would round their inputs."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, allowed in zip(places, before):
            place.allow_tf32 = allowed


@cache
def off_threshold(steps: int, device: torch.device) -> Case:
    """Two small images on which no neuron of the network comes near its threshold."""
    for seed in range(TRIES):
        case = Case(SMALL, 2, steps, torch.float32, device, seed)
        training = Training(case, loop())
        neurons = [m for m in training.model.modules() if isinstance(m, LoopLIF)]
        for neuron in neurons:
            neuron.margin = 1.0
        with torch.no_grad(), exact():
            training.forward()
        if min(neuron.margin for neuron in neurons) > MARGIN:
            return case
    raise RuntimeError(f"none of {TRIES} pairs of images keeps {steps} steps off the threshold")


class Gate:
    """The gate of one case; the loop's steps are taken once, for all contenders."""

    def __init__(self, case: Case):
        self.small = off_threshold(case.steps, case.device)
        whole = Case(case.side, case.batch, case.steps, torch.float32, case.device)
        with exact():
            self.right_loss, self.right_gradients = _first(self.small, loop())
            self.whole_loss = _first(whole, loop())[0]

    def judge(self, training: Training) -> Verdict:
        """Takes the first step of ``training``, after that of the gate."""
        contender, verdict = training.contender, Verdict()
        with exact():
            loss, gradients = _first(self.small, contender)
        right = self.right_gradients
        verdict.loss_error = abs(loss - self.right_loss) / abs(self.right_loss)
        verdict.gradient_error = ((gradients - right).norm() / right.norm()).item()
        if not verdict.loss_error <= LOSS:
            verdict.refused = f"loss {loss:.7g}, that of the loop {self.right_loss:.7g}"
        else:
            verdict.holds("gradients", verdict.gradient_error, GRADIENTS, " of their norm")
        if verdict.refused:
            return verdict
        verdict.loss = training.step().item()
        verdict.loss_change = abs(verdict.loss - self.whole_loss) / abs(self.whole_loss)
        if not verdict.loss_change <= CHANGE:
            verdict.refused = (
                f"loss of the whole batch {verdict.loss:.7g}, that of the loop "
                f"{self.whole_loss:.7g}"
            )
        return verdict


def _first(case: Case, contender: Contender) -> tuple[float, Tensor]:
    """Loss and all gradients of the first step."""
    training = Training(case, contender)
    loss = training.step()
    return loss.item(), training.gradients()
