"""What a recipe trains for: its loss out of a network's output."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from snnfast import distill
from snnfast.models import is_ann
from snnfast.train.config import Config

# (output of the network, targets, teacher's logits or None) -> (loss, its terms by name)
Objective = Callable[[object, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


PLAIN = ("mean_ce", "step_ce")
"""Objectives that are a cross-entropy and nothing else."""


def wants_teacher(config: Config) -> bool:
    """Whether the objective has a term of the teacher's logits."""
    options = getattr(config, config.objective, None)  # a table of its name, or a cross-entropy
    return config.objective != "tssd" and getattr(options, "alpha", 0.0) > 0


def inference_steps(config: Config) -> int:
    """Timesteps of the trained network at work: T, and T_s for TSSD."""
    if is_ann(config.model):
        return 1
    return config.tssd.student_steps if config.objective == "tssd" else config.timesteps


def student_objective(config: Config) -> Objective:
    """The objective of a recipe. Raises ValueError where its options contradict each other."""
    smoothing = config.label_smoothing
    if is_ann(config.model) and config.objective not in PLAIN:
        raise ValueError(
            f"model {config.model} is an ANN, which has no timesteps: objective must be one of "
            f"{', '.join(PLAIN)}"
        )
    if wants_teacher(config) and config.teacher.model is None:
        raise ValueError("alpha > 0 needs a teacher: teacher.model must name one")
    if config.objective == "tssd":
        if config.tssd.student_steps > config.timesteps:
            raise ValueError(
                f"student_steps must be <= timesteps, got {config.tssd.student_steps} and "
                f"{config.timesteps}"
            )
        if config.tssd.beta > 0 and config.aux_head is None:
            raise ValueError("beta > 0 needs an auxiliary classifier: aux_head must name a stage")
    if config.objective == "mean_ce":
        criterion = distill.TSSD(student_steps=1, alpha=0.0, beta=0.0, label_smoothing=smoothing)
    elif config.objective == "step_ce":
        criterion = distill.TWKD(alpha=0.0, beta=0.0, label_smoothing=smoothing)
    else:
        options = getattr(config, config.objective).model_dump()
        criterion = getattr(distill, config.objective.upper())(**options, label_smoothing=smoothing)

    def objective(output, targets, teacher_logits):
        other = output[1] if isinstance(output, tuple) else teacher_logits
        logits = step_logits(output)
        loss, terms = criterion(logits, targets, other, return_terms=True)
        return loss, {"ce": loss.detach()} if config.objective in PLAIN else terms

    return objective


def teacher_objective(config: Config) -> Objective:
    """Cross-entropy of the ANN's logits."""
    smoothing = config.teacher.label_smoothing

    def objective(output, targets, teacher_logits):
        loss = F.cross_entropy(output.float(), targets, label_smoothing=smoothing)
        return loss, {"ce": loss.detach()}

    return objective


def step_logits(output) -> Tensor:
    """Logits [T, B, C] of what a network returned: alone, with auxiliary ones, or of an ANN."""
    logits = output[0] if isinstance(output, tuple) else output
    return logits if logits.dim() == 3 else logits[None]
