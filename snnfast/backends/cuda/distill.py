"""Distillation losses on CUDA tensors in CUDA C++: two launches forward (rows, then their sum), one
backward. No value is read back, so that a CUDA graph can hold all of it.

Structs are those of ``csrc/cuda/distill_args.h``.
"""

import ctypes
import struct
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.cuda import launch as driver
from snnfast.backends.cuda.launch import DTYPES, IO, check_status, launch_compiled, pointer
from snnfast.backends.spec import SELF_NONE, StepwiseLoss, TssdLoss

_ROW = struct.Struct("=8Q4q6q2f4i")
_STEPWISE = struct.Struct("=8f5i")
_TSSD = struct.Struct("=8f2q")
_FINISH = struct.Struct("=5Q2q4d2dq")
_SCALE = struct.Struct("=4Qq")

_SCRATCH = 16
"""Numbers that a reduction over a block needs."""
_RESIDENT_BYTES = 48 * 1024
"""Shared memory that a block may have without asking."""
_FINISH_THREADS = _SCALE_THREADS = 256


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
    pointers = [pointer(t) for t in (gradient, scaled, grad_output, unit)]
    args = _SCALE.pack(*pointers, gradient.numel())
    dtype, (device, stream) = DTYPES.index(gradient.dtype), driver.place(gradient)
    module = driver.ahead_of_time()
    if module is not None:
        check_status("distill", module, module.scale_gradient(dtype, device, stream, args))
        return
    blocks = -(-gradient.numel() // (16 // gradient.element_size()) // _SCALE_THREADS)
    kernel = driver.compiled("distill", device, ("-DSNN_SCALE", f"-DSNN_IO={IO[dtype]}"))
    launch_compiled("distill", kernel, device, stream, (blocks, _SCALE_THREADS), args)


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
        self.args = _ROW.pack(
            *(pointer(t) for t in (*inputs, *gradients, workspace, self.parts)),
            *(steps, rows, classes, loss.ignore_index),
            *logits.stride(),
            *strides,
            *(1 - smoothing, smoothing / classes),
            0 if other is None else DTYPES.index(other.dtype),
            DTYPES.index(target.dtype) if probabilities else 0,
            *(other_steps, slots),
        )

    def run(self, objective, args, value, terms, unit, weights) -> None:
        """Launches the rows of the objective, then their sum."""
        pointers = [pointer(t) for t in (self.parts, self.labels, value, terms, unit)]
        rows = self.logits.shape[1]
        finish = _FINISH.pack(*pointers, rows, self.loss.ignore_index, *weights, terms.numel())
        dtype, (device, stream) = DTYPES.index(self.logits.dtype), driver.place(self.logits)
        resident, threads, shared, _ = self.plan
        module = driver.ahead_of_time()
        if module is not None:
            launch = module.stepwise_loss if objective == "stepwise" else module.tssd_loss
            status = launch(
                dtype, resident, threads, shared, device, stream, self.args, args, finish
            )
            check_status("distill", module, status)
            return
        kernel = driver.compiled("distill", device, defines(objective, dtype, resident))
        launch_compiled(
            "distill", kernel, device, stream, (rows, threads), self.args, args, shared_mem=shared
        )
        kernel = driver.compiled("distill", device, ("-DSNN_FINISH",))
        launch_compiled(
            "distill", kernel, device, stream, (1, _FINISH_THREADS), finish, shared_mem=8 * _SCRATCH
        )


def defines(objective: str, dtype: int, resident: bool) -> tuple[str, ...]:
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
    return _STEPWISE.pack(
        *_floats(1 / loss.ce_temperature, 1 / tau, 1 / loss.entropy_temperature, loss.kl_scale),
        *_floats(scale * ce / loss.ce_temperature, scale * kl * sharpness),
        *_floats(scale * own * sharpness, -scale * entropy / loss.entropy_temperature),
        *(loss.self_target, loss.skip_all_wrong, loss.entropy),
        *(loss.ce_temperature == tau, loss.entropy_temperature == tau),
    )


@lru_cache(maxsize=256)
def _tssd(loss: TssdLoss, steps: int) -> bytes:
    scale, (task, temporal, spatial) = loss.gradient_scale, loss.weights
    share, sharpness = steps / loss.student_steps, loss.kl_scale / loss.temperature
    return _TSSD.pack(
        *_floats(1 / loss.temperature, loss.kl_scale, loss.ce_all, loss.ce_student),
        *_floats(scale * task * loss.ce_all, scale * task * loss.ce_student * share),
        *_floats(scale * temporal * sharpness * share, scale * spatial * sharpness),
        *(loss.student_steps, loss.per_step),
    )
