"""Distillation losses on CUDA tensors in CUDA C++: two launches forward (rows, then their sum), one
backward. No value is read back, so that a CUDA graph can hold all of it.

Structs are those of ``csrc/cuda/distill_args.h``.
"""

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import IO, Double, Float, Int, Kernel, Launch, Long, Pointer
from snnfast.backends.layout import DTYPES
from snnfast.backends.spec import SELF_NONE, StepwiseLoss, TssdLoss

_SCRATCH = 16
"""Numbers that a reduction over a block needs."""
_RESIDENT_BYTES = 48 * 1024
"""Shared memory that a block may have without asking."""
_FINISH_THREADS, _SCALE_THREADS = 1024, 256
_FINISH_BYTES = 2 * _FINISH_THREADS // 32 * 8


class RowArgs(NamedTuple):
    logits: Pointer
    other: Pointer
    labels: Pointer
    probabilities: Pointer
    gradient: Pointer
    aux_gradient: Pointer
    slots: Pointer
    parts: Pointer
    steps: Long
    rows: Long
    classes: Long
    ignore_index: Long
    step: Long
    row: Long
    column: Long
    other_step: Long
    other_row: Long
    other_column: Long
    on: Float
    off: Float
    teacher_dtype: Int
    probabilities_dtype: Int
    other_steps: Int
    slot_count: Int


class StepwiseNumbers(NamedTuple):
    inv_ce: Float
    inv_tau: Float
    inv_h: Float
    kl_scale: Float
    g_ce: Float
    g_kl: Float
    g_self: Float
    g_h: Float
    self_target: Int
    skip_all_wrong: Int
    entropy: Int
    shared_ce: Int
    shared_h: Int


class TssdNumbers(NamedTuple):
    inv_tau: Float
    kl_scale: Float
    ce_all: Float
    ce_student: Float
    g_all: Float
    g_student: Float
    g_temporal: Float
    g_spatial: Float
    student_steps: Long
    per_step: Long


class FinishArgs(NamedTuple):
    parts: Pointer
    labels: Pointer
    loss: Pointer
    terms: Pointer
    unit: Pointer
    rows: Long
    ignore_index: Long
    weights_0: Double
    weights_1: Double
    weights_2: Double
    weights_3: Double
    steps: Double
    unit_scale: Double
    term_count: Long


class ScaleArgs(NamedTuple):
    gradient: Pointer
    scaled: Pointer
    grad_output: Pointer
    unit: Pointer
    n: Long


class Plan(NamedTuple):
    """How a block holds its row."""

    resident: bool
    threads: int
    shared: int
    """Bytes of shared memory."""
    slots: int
    """Vectors of C numbers that are kept on the way."""


@lru_cache(maxsize=256)
def plan(steps: int, classes: int, other_steps: int, probabilities: bool, slots: int) -> Plan:
    """The whole row in shared memory where it fits, and some four classes for each thread."""
    threads = 32
    while threads < 256 and 4 * threads < classes:
        threads *= 2
    vectors = steps + other_steps + probabilities + slots
    shared = 4 * (_SCRATCH + vectors * classes)
    if shared <= _RESIDENT_BYTES:
        return Plan(True, threads, shared, slots)
    return Plan(False, threads, 4 * _SCRATCH, slots)


def stepwise_loss(
    loss: StepwiseLoss,
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | None,
    value: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
) -> None:
    slots = int(loss.self_target != SELF_NONE)
    steps = logits.shape[0]
    results = (value, terms, unit)
    rows = _Rows(loss, logits, target, teacher_logits, slots, (gradient, None))
    rows.run("stepwise", _stepwise(loss), *results, _weights(loss, steps, steps))


def tssd_loss(
    loss: TssdLoss,
    logits: Tensor,
    target: Tensor,
    aux_logits: Tensor | None,
    value: Tensor,
    terms: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
    aux_gradient: Tensor | None,
) -> None:
    slots = 2 if aux_logits is None or loss.per_step else 3
    steps = logits.shape[0]
    results = (value, terms, unit)
    rows = _Rows(loss, logits, target, aux_logits, slots, (gradient, aux_gradient))
    rows.run("tssd", _tssd(loss, steps), *results, _weights(loss, steps, 1))


def scale_gradient(gradient: Tensor, grad_output: Tensor, unit: Tensor, scaled: Tensor) -> None:
    pointers = [driver.pointer(t) for t in (gradient, scaled, grad_output, unit)]
    launch, rest = _scaling(gradient.numel(), gradient.dtype)
    driver.run(launch, gradient, driver.addressed(pointers, rest))


@lru_cache(maxsize=256)
def _scaling(n: int, dtype: torch.dtype) -> tuple[Launch, bytes]:
    blocks = -(-n // (16 // dtype.itemsize) // _SCALE_THREADS)
    kernel = Kernel("distill", ("-DSNN_SCALE", f"-DSNN_IO={IO[dtype]}"), blocks, _SCALE_THREADS)
    return Launch("distill", "scale_gradient", (DTYPES[dtype],), kernel), driver.behind(
        ScaleArgs, n
    )


_FINISH = Launch(
    "distill",
    "finish_loss",
    (),
    Kernel("distill", ("-DSNN_FINISH",), 1, _FINISH_THREADS, _FINISH_BYTES),
)


class _Rows:
    """The launch over the rows of a batch. ``other``: a teacher [B, C], or logits [T, B, C]."""

    def __init__(self, loss, logits, target, other, slots, gradients):
        steps, rows, classes = logits.shape
        probabilities = target.is_floating_point()
        other_steps = 0 if other is None else other.shape[0] if other.dim() == 3 else 1
        self.plan = plan(steps, classes, other_steps, probabilities, slots)
        self.logits, self.loss = logits, loss
        self.labels = None if probabilities else target
        self.parts = torch.empty(rows, 4, dtype=torch.float32, device=logits.device)
        workspace = None
        if slots and not self.plan.resident:
            shape = (rows, slots, classes)
            workspace = torch.empty(shape, dtype=torch.float32, device=logits.device)
        self.kept = workspace  # until it is launched
        strides = (0, 0, 0) if other is None else (0, *other.stride())[-3:]
        inputs = (logits, other, self.labels, target if probabilities else None)
        smoothing = loss.label_smoothing
        pointers = (*inputs, *gradients, workspace, self.parts)
        rows_args = RowArgs(
            *(driver.pointer(t) for t in pointers),
            *(steps, rows, classes, loss.ignore_index),
            *logits.stride(),
            *strides,
            on=1 - smoothing,
            off=smoothing / classes,
            teacher_dtype=0 if other is None else DTYPES[other.dtype],
            probabilities_dtype=DTYPES[target.dtype] if probabilities else 0,
            other_steps=other_steps,
            slot_count=slots,
        )
        self.args = driver.packed(rows_args)

    def run(self, objective, numbers, value, terms, unit, weights) -> None:
        """Launches the rows of the objective, then their sum."""
        dtype, rows = self.logits.dtype, self.logits.shape[1]
        resident, threads, shared, _ = self.plan
        kernel = Kernel("distill", defines(objective, dtype, resident), rows, threads, shared)
        choices = (DTYPES[dtype], resident, threads, shared)
        launch = Launch("distill", f"{objective}_rows", choices, kernel)
        driver.run(launch, self.logits, self.args, numbers)
        pointers = [driver.pointer(t) for t in (self.parts, self.labels, value, terms, unit)]
        finish = FinishArgs(*pointers, rows, self.loss.ignore_index, *weights, terms.numel())
        driver.run(_FINISH, self.logits, driver.packed(finish))


def defines(objective: str, dtype: torch.dtype, resident: bool) -> tuple[str, ...]:
    """The -D options that name one kernel over rows of csrc/cuda/distill.cuh."""
    where = "true" if resident else "false"
    return (f"-DSNN_{objective.upper()}", f"-DSNN_IO={IO[dtype]}", f"-DSNN_RESIDENT={where}")


def _floats(*values: float) -> list[float]:
    """In float32, infinite where that has nothing larger."""
    return [ctypes.c_float(value).value for value in values]


@lru_cache(maxsize=256)
def _weights(loss, steps: int, terms_per_row: int) -> tuple[float, ...]:
    """Of the struct that finishes a loss: weights [4], what terms are divided by, and the unit."""
    padded = (*loss.weights, 0.0)[:4]
    return (*padded, float(terms_per_row), steps * loss.gradient_scale)


@lru_cache(maxsize=256)
def _stepwise(loss: StepwiseLoss) -> bytes:
    scale, (ce, kl, own, entropy) = loss.gradient_scale, loss.weights
    tau, sharpness = loss.temperature, loss.kl_scale / loss.temperature
    numbers = StepwiseNumbers(
        *_floats(1 / loss.ce_temperature, 1 / tau, 1 / loss.entropy_temperature, loss.kl_scale),
        *_floats(scale * ce / loss.ce_temperature, scale * kl * sharpness),
        *_floats(scale * own * sharpness, -scale * entropy / loss.entropy_temperature),
        *(loss.self_target, loss.skip_all_wrong, loss.entropy),
        shared_ce=loss.ce_temperature == tau,
        shared_h=loss.entropy_temperature == tau,
    )
    return driver.packed(numbers)


@lru_cache(maxsize=256)
def _tssd(loss: TssdLoss, steps: int) -> bytes:
    scale, (task, temporal, spatial) = loss.gradient_scale, loss.weights
    share, sharpness = steps / loss.student_steps, loss.kl_scale / loss.temperature
    numbers = TssdNumbers(
        *_floats(1 / loss.temperature, loss.kl_scale, loss.ce_all, loss.ce_student),
        *_floats(scale * task * loss.ce_all, scale * task * loss.ce_student * share),
        *_floats(scale * temporal * sharpness * share, scale * spatial * sharpness),
        student_steps=loss.student_steps,
        per_step=loss.per_step,
    )
    return driver.packed(numbers)
