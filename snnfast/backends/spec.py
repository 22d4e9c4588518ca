"""What an op hands to a backend besides tensors: plain numbers, validated, the same for all."""

from typing import NamedTuple

from torch import Tensor

SEGMENT = 8
"""Steps between two kept states. Backward recomputes one segment at a time, in registers."""

INTEGRATE, DECAY_INPUT, DECAY_STATE = 0, 1, 2
"""How a step charges: H = V + X; H = V + (X - (V - r))/tau; H = V - (V - r)/tau + X."""


class LifSpec(NamedTuple):
    """One LIF layer. Sizes count elements; ``inner`` and ``channels`` place the axis of a [C] rate:
    neuron i (its offset in memory within one timestep) belongs to channel (i // inner) % channels.
    """

    steps: int
    charge: int
    rate: float
    """tau where ``divide``, else 1/tau; unused where the op was given a rate tensor."""
    divide: bool
    theta: float
    reset: float
    hard: bool
    detach_reset: bool
    surrogate: int
    a: float
    b: float
    spiking: bool
    channels: int = 1
    inner: int = 1


class Norm(NamedTuple):
    """A normalisation before the charge, X = (Y - mean) scale + bias [+ residual], unfused.

    Tensors [C] in the state's dtype; ``channels`` and ``inner`` place the channels, as in LifSpec.
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor
    channels: int
    inner: int


def segments(steps: int) -> int:
    """How many segments T steps fall into; one state fewer is kept."""
    return (steps + SEGMENT - 1) // SEGMENT


SELF_NONE, SELF_MEAN, SELF_CORRECT = 0, 1, 2
"""The student's own target: none; its mean logits; their mean over the steps that are right."""


class StepwiseSpec(NamedTuple):
    """A loss of per-step terms, means over T and the rows that count (TWKD, TSER)::

        sum_i weights[i] * terms[i],  terms = (cross-entropy, KL to the teacher,
                                               KL to the student's own target, entropy)

    A term of weight 0 is no part of the loss, not even where it is NaN.
    """

    weights: tuple[float, float, float, float]
    ce_temperature: float
    temperature: float
    entropy_temperature: float
    kl_scale: float
    """Factor of both KL terms: temperature squared, or 1."""
    self_target: int
    skip_all_wrong: bool
    """SELF_CORRECT: rows with no right step have no own target, instead of the uniform one."""
    entropy: bool
    """Whether that term is wanted; that of the teacher is where there are teacher logits."""
    label_smoothing: float
    ignore_index: int
    gradient_scale: float
    """What kept gradients are multiplied by, a power of two, so that float16 holds small ones."""


class TssdSpec(NamedTuple):
    """Temporal-spatial self-distillation::

    sum_i weights[i] * terms[i],  terms = (cross-entropy of mean logits, KL of the mean over all
                                           steps to that over the first, KL of the auxiliary
                                           logits to the logits)
    """

    weights: tuple[float, float, float]
    student_steps: int
    ce_all: float
    """Weight of the cross-entropy of the mean over all steps within the first term..."""
    ce_student: float
    """...and of that over the first student_steps."""
    per_step: bool
    """The third term step by step, or of the means over time."""
    temperature: float
    kl_scale: float
    label_smoothing: float
    ignore_index: int
    gradient_scale: float
