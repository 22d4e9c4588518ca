"""What an op hands to a backend besides tensors: values with named fields, checked once.

Such a value is made by the public function and goes as it is down to the pointer call. ``pack``
gives what the schema of an op can carry, ``unpack`` makes it a value again behind the dispatcher.
"""

import functools
import struct
from typing import NamedTuple

from snnfast.program.step import Step

SEGMENT = 8
"""Steps between two kept states. Backward recomputes one segment at a time, in registers."""

INTEGRATE, DECAY_INPUT, DECAY_STATE = 0, 1, 2
"""How a step charges: H = V + X; H = V + (X - (V - r))/tau; H = V - (V - r)/tau + X."""

SELF_NONE, SELF_MEAN, SELF_CORRECT = 0, 1, 2
"""The student's own target: none; its mean logits; their mean over the steps that are right."""

CHOICES = "int[] choices, float[] numbers"
"""How a packed value stands in the schema of an op."""


@functools.cache
def _struct(kind: type) -> struct.Struct:
    fields = kind.__annotations__.values()
    return struct.Struct("=" + "".join("d" if field is float else "q" for field in fields))


@functools.lru_cache(1024)
def as_bytes(value: NamedTuple) -> bytes:
    """The struct of csrc/include/args.h that ``value`` is in C++."""
    return _struct(type(value)).pack(*value)


def _all(numbers, count: int):
    """``numbers``, as many as a packed value has."""
    if len(numbers) != count:
        raise ValueError(f"backend: numbers must be {count}, got {len(numbers)}")
    return numbers


def segments(steps: int) -> int:
    """How many segments T steps fall into; one state fewer is kept."""
    return (steps + SEGMENT - 1) // SEGMENT


class LifLayer(NamedTuple):
    """One LIF layer: its choices, its numbers, then what the input says."""

    charge: int
    divide: bool
    hard: bool
    detach_reset: bool
    surrogate: int
    spiking: bool
    static: bool
    """The input has no time axis and is shown at every step."""
    rate: float
    """tau where ``divide``, else 1/tau; unused where the op was given a rate tensor."""
    theta: float
    reset: float
    a: float
    b: float
    steps: int = 0
    channels: int = 1
    inner: int = 1
    """Neuron i (its offset in memory within one timestep) belongs to channel (i // inner) %
    channels: where the axis of a [C] rate lies."""

    def pack(self) -> tuple[list[int], list[float]]:
        """The choices and the numbers."""
        return [int(choice) for choice in self[:7]], list(self[7:12])

    @classmethod
    def unpack(cls, choices: list[int], numbers: list[float]) -> "LifLayer":
        return _unpacked(tuple(choices), tuple(numbers))

    def over(self, steps: int) -> "LifLayer":
        """The same layer for T = ``steps``."""
        return tuple.__new__(LifLayer, (*self[:12], steps, *self[13:]))


@functools.lru_cache(1024)
def _unpacked(choices: tuple[int, ...], numbers: tuple[float, ...]) -> LifLayer:
    charge, divide, hard, detach_reset, surrogate, spiking, static = choices
    flags = (bool(divide), bool(hard), bool(detach_reset))
    return LifLayer(charge, *flags, surrogate, bool(spiking), bool(static), *_all(numbers, 5))


class NeuronLayer(NamedTuple):
    """One layer of neurons that a program defines."""

    step: Step
    surrogate: int
    """As in LifLayer, with its parameters a and b; unused where the step has a gradient."""
    static: bool
    a: float
    b: float
    rest: tuple[float, ...] = ()
    """Where the states start that no tensor was given for."""
    steps: int = 0
    channels: int = 1
    inner: int = 1
    """Where the axis of [C] parameters lies, as in LifLayer."""

    def over(self, steps: int) -> "NeuronLayer":
        """The same layer for T = ``steps``."""
        return self._replace(steps=steps)


class Channels(NamedTuple):
    """Where the channels of a normalisation lie, as in LifLayer."""

    count: int
    inner: int


MEAN, VAR, INV_STD, SCALE = range(4)
"""The rows [4, C] that a normalisation before the charge reads, in the state's dtype: statistics,
1 / sqrt(var + eps), root and quotient as IEEE rounds them, and weight * inv_std.

    X = (Y - mean) scale + bias [+ residual], unfused
"""

SUM, MOMENT, DWEIGHT, B, C = range(5)
"""The rows [5, C] that backward makes, of ``count`` values that the statistics were taken of: sums
over each channel of dX, which is dbias, and of dX (y - mean); that * inv_std; and for ``norm_dy``
scale * inv_std * inv_std * moment / -count and scale * sum / -count, 0 where count is 0: the
statistics are constants."""


class StepwiseLoss(NamedTuple):
    """A loss of per-step terms, means over T and the rows that count (TWKD, TSER)::

        weights . terms,  terms = (cross-entropy, KL to the teacher, KL to the student's own target,
                                   entropy)

    A term of weight 0 is no part of the loss, not even where it is NaN.
    """

    self_target: int
    skip_all_wrong: bool
    """SELF_CORRECT: rows with no right step have no own target, instead of the uniform one."""
    entropy: bool
    """Whether that term is wanted; that of the teacher is where there are teacher logits."""
    ignore_index: int
    ce_weight: float
    kl_weight: float
    self_weight: float
    entropy_weight: float
    ce_temperature: float
    temperature: float
    entropy_temperature: float
    kl_scale: float
    """Factor of both KL terms: temperature squared, or 1."""
    label_smoothing: float
    gradient_scale: float = 1.0
    """What kept gradients are multiplied by, a power of two, so that float16 holds small ones."""

    @property
    def weights(self) -> tuple[float, ...]:
        return self.ce_weight, self.kl_weight, self.self_weight, self.entropy_weight

    def pack(self) -> tuple[list[int], list[float]]:
        return [int(choice) for choice in self[:4]], list(self[4:13])

    @classmethod
    def unpack(cls, choices: list[int], numbers: list[float]) -> "StepwiseLoss":
        self_target, skip_all_wrong, entropy, ignore_index = choices
        return cls(
            self_target, bool(skip_all_wrong), bool(entropy), ignore_index, *_all(numbers, 9)
        )


class TssdLoss(NamedTuple):
    """Temporal-spatial self-distillation::

    weights . terms,  terms = (cross-entropy of mean logits, KL of the mean over all steps to
                               that over the first, KL of the auxiliary logits to the logits)
    """

    per_step: bool
    """The third term step by step, or of the means over time."""
    ignore_index: int
    task_weight: float
    temporal_weight: float
    spatial_weight: float
    ce_all: float
    """Weight of the cross-entropy of the mean over all steps within the first term..."""
    ce_student: float
    """...and of that over the first student_steps."""
    temperature: float
    kl_scale: float
    label_smoothing: float
    student_steps: int = 0
    gradient_scale: float = 1.0

    @property
    def weights(self) -> tuple[float, ...]:
        return self.task_weight, self.temporal_weight, self.spatial_weight

    def pack(self) -> tuple[list[int], list[float]]:
        return [int(choice) for choice in self[:2]], list(self[2:10])

    @classmethod
    def unpack(cls, choices: list[int], numbers: list[float], student_steps: int) -> "TssdLoss":
        per_step, ignore_index = choices
        return cls(bool(per_step), ignore_index, *_all(numbers, 8), student_steps)
