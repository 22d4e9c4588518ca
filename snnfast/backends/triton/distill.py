"""Distillation losses on CUDA tensors through Triton: two launches forward, one backward. Rows of
more than 4096 classes take one to five more, each of which finds the statistics of some rows.

``stepwise_calls``, ``tssd_calls``, ``finish_call`` and ``scale_call`` turn tensors into arguments
of kernels. No value is read back on the way, so that a CUDA graph can hold all of it.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast.backends.spec import SELF_CORRECT, SELF_NONE, StepwiseLoss, TssdLoss
from snnfast.backends.triton.launch import Call

_BUCKETS = (1, 2, 4, 6, 8)
"""Steps that a program holds in registers; T between two of them takes the larger."""
_WIDEST = 4096
"""The most classes of one block. Of more, a program has a chunk of _CHUNK."""
_CHUNK = 2048
_MANY = 2**18
"""Logits per step from which a program takes 1024 of them rather than 128: fewer programs would
leave multiprocessors idle."""
_LN_2 = math.log(2)
_LOG2_E = 1 / _LN_2
_FAR = -200.0
"""exp(_FAR) is 0 in float32."""


class Tile(NamedTuple):
    """How a problem is cut into programs."""

    steps: int
    long: bool
    whole: bool
    rows: int
    block: int
    warps: int
    chunks: int  # of a row


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=1024)
def tile(steps: int, batch: int, classes: int, tensors: int = 1, correct: bool = False) -> Tile:
    """The tile of so many tensors of [T, B, C] logits: 8 elements of a step a thread for one wide
    row of one tensor, otherwise 4 or 2, as far as 16 warps go.

    How many steps fit the registers, and how long segments are otherwise, is what compiles without
    spills; ``correct``, the own target of the right steps, takes more.
    """
    block = max(2, _power_of_two(classes))
    chunks = 1
    if block > _WIDEST:
        block, chunks = _CHUNK, -(-classes // _CHUNK)
    fit = (2 if correct else 4, 8, 8) if tensors == 1 else (2, 4, 6)
    most = fit[0] if block == _WIDEST else fit[1] if block == _WIDEST // 2 else fit[2]
    resident = steps <= most
    segment = next(s for s in _BUCKETS if s >= steps) if resident else 2 if block == _WIDEST else 4
    elements = 1024 if batch * block >= _MANY else 128
    rows = min(max(1, elements // block), _power_of_two(batch))
    each = 8 // tensors if rows == 1 else 2 if segment > 6 or block < 16 else 4 // tensors
    warps = min(max(1, rows * block // (each * 32)), 16)
    return Tile(segment, not resident, steps % segment == 0, rows, block, warps, chunks)


class _Access(NamedTuple):
    """How wide [T, B, C] tensors can be read: in VEC elements, of which strides are multiples."""

    vec: int
    dense: bool
    strides: tuple[tuple[int, int, int], ...]


def _access(*tensors: Tensor) -> _Access:
    """Their strides in units of VEC elements (up to 16 bytes), 0 along axes of one element."""
    classes, size = tensors[0].shape[2], tensors[0].element_size()
    strides = []
    for tensor in tensors:
        step, row, lane = (st if n > 1 else 0 for st, n in zip(tensor.stride(), tensor.shape))
        strides.append((step, row, lane if classes > 1 else 1))
    dense = all(lane == 1 for _, _, lane in strides)
    vec = 1
    if dense:
        vec = math.gcd(16 // size, classes, *(st for step, row, _ in strides for st in (step, row)))
    return _Access(
        vec, dense, tuple((step // vec, row // vec, lane) for step, row, lane in strides)
    )


# The plans of kernels: their constants are always the same dict.
@functools.lru_cache(maxsize=1024)
def _rows_plan(flags: tuple, cut: Tile, vec: int, dense: bool) -> dict:
    constants = {
        "FLAGS": flags,
        "STEPS": cut.steps,
        "LONG": cut.long,
        "WHOLE": cut.whole,
        "ROWS": cut.rows,
        "BLOCK": cut.block,
        "VEC": vec,
        "DENSE": dense,
        "num_warps": cut.warps,
        "enable_fp_fusion": False,
    }
    if cut.long or cut.rows > 1 or cut.steps > 6:
        # Left alone, the assembler spills a little to fit more programs.
        constants["maxnreg"] = min(255, 65536 // (32 * cut.warps))
    return constants


@functools.cache
def _statistics_plan(soft: bool, vec: int, dense: bool) -> dict:
    constants = {"SOFT": soft, "BLOCK": _CHUNK, "VEC": vec, "DENSE": dense}
    return {**constants, "num_warps": _CHUNK // 256, "enable_fp_fusion": False}


@functools.cache
def _finish_plan(terms: int, few: bool) -> dict:
    block = 128 if few else 1024
    return {"COUNT": terms, "BLOCK": block, "num_warps": 4, "enable_fp_fusion": False}


@functools.cache
def _scale_plan(itemsize: int) -> dict:
    return {"BLOCK": 16 // itemsize * 128, "num_warps": 4, "enable_fp_fusion": False}


def _lines(logits: Tensor, *sizes: int) -> Tensor:
    """So many lines of sums or of statistics."""
    from snnfast.kernels.distill import LINE

    return torch.empty((*sizes, LINE), dtype=torch.float32, device=logits.device)


def _parts(cut: Tile, logits: Tensor) -> tuple[int, Tensor]:
    """How many programs there are, and where they leave their sums."""
    programs = -(-logits.shape[1] // cut.rows) * cut.chunks
    return programs, _lines(logits, programs)


def _statistics_call(rows, lines, far, rates=(None,) * 3, label=None, right=None) -> Call:
    """The launch that fills ``lines`` [G, B, LINE] with the statistics of the means of G groups of
    steps of ``rows`` [T, B, C]: over all steps of a group or, with the steps' lines in ``right``,
    over those whose first largest class is the ``label``. Of ``rates``, None are not asked for."""
    from snnfast.kernels.distill_statistics import row_statistics

    access, groups = _access(rows), len(lines)
    steps, batch, classes = rows.shape
    sizes = (steps // groups, batch, classes // access.vec, *access.strides[0])
    soft = label is not None and label.is_floating_point()
    constants = _statistics_plan(soft, access.vec, access.dense)
    arguments = (rows, label, right, lines, *sizes, far, *rates, groups / steps)
    return Call(row_statistics, groups * batch, arguments, constants)


@functools.lru_cache(maxsize=1024)
def _stepwise_plan(loss: StepwiseLoss, steps: int, classes: int, soft: bool, teacher: bool):
    """Flags of the kernel, ``far``, rates, and the numbers that it takes after these."""
    from snnfast.kernels.distill_stepwise import CE, OTHER, TAU, StepwiseFlags

    ce_tau, tau, entropy_tau = loss.ce_temperature, loss.temperature, loss.entropy_temperature
    softmaxes = teacher or loss.self_target != SELF_NONE
    shared = TAU.value if entropy_tau == tau and softmaxes else OTHER.value
    shared = CE.value if entropy_tau == ce_tau else shared
    flags = StepwiseFlags(
        own=loss.self_target,
        skip=loss.skip_all_wrong and loss.self_target == SELF_CORRECT,
        entropy=loss.entropy,
        soft=soft,
        tau_is_ce=tau == ce_tau,
        entropy_is=shared if loss.entropy else OTHER.value,
        ce=loss.weights[0] != 0,
        kl=loss.weights[1] != 0,
        self_=loss.weights[2] != 0,
        spread=loss.entropy and loss.weights[3] != 0,
    )
    ce, kl, own, spread = (weight * loss.gradient_scale for weight in loss.weights)
    sharpness = loss.kl_scale / tau
    pulls = (ce / ce_tau, kl * sharpness, own * sharpness, -spread * _LN_2 / entropy_tau)
    smoothing = (1.0 - loss.label_smoothing, loss.label_smoothing / classes)
    temperatures = (ce_tau, tau, entropy_tau)
    rates = tuple(_LOG2_E / temperature for temperature in temperatures)
    return flags, _FAR * max(temperatures), rates, (*smoothing, *pulls, 1.0 / steps)


def _stepwise_statistics(loss, logits, target, teacher, far, rates):
    """Launches, and the lines that they fill: of target, teacher, own target and steps."""
    steps, batch, _ = logits.shape
    lines = _lines(logits, 3 + steps, batch)
    of_target, of_teacher, of_own, of_steps = lines.split((1, 1, 1, steps))
    at_tau = (None, rates[1], None)
    softmaxes = teacher is not None or loss.self_target != SELF_NONE
    asked = (rates[0], rates[1] if softmaxes else None, rates[2] if loss.entropy else None)
    calls = [_statistics_call(logits, of_steps, far, asked)]
    label = target
    if target.is_floating_point():
        calls.append(_statistics_call(target[None], of_target, far))
        label = of_target
    if teacher is not None:
        calls.append(_statistics_call(teacher[None], of_teacher, far, at_tau))
    if loss.self_target != SELF_NONE:
        chosen = (label, of_steps) if loss.self_target == SELF_CORRECT else (None, None)
        calls.append(_statistics_call(logits, of_own, far, at_tau, *chosen))
    return calls, lines


def stepwise_calls(
    loss: StepwiseLoss, logits, target, teacher, gradient
) -> tuple[list[Call], Tensor]:  # fmt: skip
    """The launches behind ``stepwise_loss`` but for the last, and the sums that they leave."""
    from snnfast.kernels.distill_stepwise import stepwise_rows

    steps, batch, classes = logits.shape
    cut = tile(steps, batch, classes, correct=loss.self_target == SELF_CORRECT)
    access = _access(logits)
    plan = (loss, steps, classes, target.is_floating_point(), teacher is not None)
    flags, far, rates, numbers = _stepwise_plan(*plan)
    calls, lines = [], None
    if cut.chunks > 1:
        calls, lines = _stepwise_statistics(loss, logits, target, teacher, far, rates)
    programs, parts = _parts(cut, logits)
    sizes = (steps, batch, classes // access.vec, *access.strides[0], loss.ignore_index)
    constants = _rows_plan(flags, cut, access.vec, access.dense)
    arguments = (
        logits, target, teacher, gradient, lines, parts, *sizes, far, *rates, *numbers
    )  # fmt: skip
    return [*calls, Call(stepwise_rows, programs, arguments, constants)], parts


@functools.lru_cache(maxsize=1024)
def _tssd_plan(loss: TssdLoss, steps: int, classes: int, soft: bool, aux: bool):
    """Flags of the kernel, ``far``, rates, and the numbers that it takes after these."""
    from snnfast.kernels.distill_tssd import EACH, MEAN, NONE, TssdFlags

    task, temporal, spatial = loss.weights
    flags = TssdFlags(
        aux=((EACH if loss.per_step else MEAN) if aux else NONE).value,
        soft=soft,
        tau_is_ce=loss.temperature == 1,
        all=loss.ce_all != 0,
        student=loss.ce_student != 0,
        task=task != 0,
        temporal=temporal != 0,
        spatial=spatial != 0,
    )
    sharpness = loss.kl_scale / loss.temperature
    early = steps / loss.student_steps
    pulls = (
        task * loss.ce_all, early * task * loss.ce_student,
        early * temporal * sharpness, spatial * sharpness,
    )  # fmt: skip
    rates = (_LOG2_E, _LOG2_E / loss.temperature)
    return flags, _FAR * max(1.0, loss.temperature), rates, (
        1.0 - loss.label_smoothing, loss.label_smoothing / classes,
        1.0 / steps, 1.0 / loss.student_steps,
        loss.ce_all, loss.ce_student, *(pull * loss.gradient_scale for pull in pulls),
    )  # fmt: skip


def _tssd_statistics(loss, logits, target, aux, far, rates):
    """Launches, and the lines that they fill: of target, means over all and over the first T_s
    steps, auxiliary logits (their mean, or each step) and, for a term per step, of steps."""
    steps, batch, _ = logits.shape
    each = 0 if aux is None else steps if loss.per_step else 1
    lines = _lines(logits, 3 + 2 * each, batch)
    of_target, of_all, of_student, of_aux, of_steps = lines.split((1, 1, 1, each, each))
    at_tau = (None, rates[1], None)
    calls = [
        _statistics_call(logits, of_all, far, (*rates, None)),
        _statistics_call(logits[: loss.student_steps], of_student, far, (*rates, None)),
    ]
    if target.is_floating_point():
        calls.append(_statistics_call(target[None], of_target, far))
    if aux is not None:
        calls.append(_statistics_call(aux, of_aux, far, at_tau))
        if loss.per_step:
            calls.append(_statistics_call(logits, of_steps, far, at_tau))
    return calls, lines


def tssd_calls(
    loss: TssdLoss, logits, target, aux, gradient, aux_gradient
) -> tuple[list[Call], Tensor]:  # fmt: skip
    """The launches behind ``tssd_loss`` but for the last, and the sums that they leave."""
    from snnfast.kernels.distill_tssd import tssd_rows

    steps, batch, classes = logits.shape
    cut = tile(steps, batch, classes, 1 if aux is None else 2)
    access = _access(logits) if aux is None else _access(logits, aux)
    plan = (loss, steps, classes, target.is_floating_point(), aux is not None)
    flags, far, rates, numbers = _tssd_plan(*plan)
    calls, lines = [], None
    if cut.chunks > 1:
        calls, lines = _tssd_statistics(loss, logits, target, aux, far, rates)
    programs, parts = _parts(cut, logits)
    strides = (*access.strides[0], *access.strides[-1])
    sizes = (steps, loss.student_steps, batch, classes // access.vec, *strides, loss.ignore_index)
    constants = _rows_plan(flags, cut, access.vec, access.dense)
    tensors = (logits, target, aux, gradient, aux_gradient, lines, parts)
    call = Call(tssd_rows, programs, (*tensors, *sizes, far, *rates, *numbers), constants)
    return [*calls, call], parts


def finish_call(parts, value, terms, unit, factors, weights, unit_factor: float) -> Call:
    """The launch that makes value, terms and unit of the sums. ``factors`` times a sum, over the
    rows that count, is a term."""
    from snnfast.kernels.distill import finish

    none = (0.0,) * (4 - len(weights))
    # Sums are in bits.
    factors, weights = (*(_LN_2 * factor for factor in factors), *none), (*weights, *none)
    programs = parts.shape[0]
    constants = _finish_plan(terms.numel(), programs <= 128)
    arguments = (parts, value, terms, unit, programs, *factors, *weights, unit_factor)
    return Call(finish, 1, arguments, constants)


def scale_call(gradient, grad_output, unit, scaled) -> Call:
    """The launch behind ``scale_gradient``: 16 bytes a thread."""
    from snnfast.kernels.distill import scale_gradient as kernel

    constants, n = _scale_plan(gradient.element_size()), gradient.numel()
    programs = -(-n // constants["BLOCK"])
    return Call(kernel, programs, (gradient, grad_output, unit, scaled, n), constants)


def stepwise_loss(loss, logits, target, teacher_logits, value, terms, unit, gradient) -> None:
    steps = logits.shape[0]
    calls, parts = stepwise_calls(loss, logits, target, teacher_logits, gradient)
    for call in calls:
        call.launch(logits.device)
    kl = loss.kl_scale / steps
    factors, unit_factor = (1 / steps, kl, kl, 1 / steps), 1 / (steps * loss.gradient_scale)
    last = finish_call(parts, value, terms, unit, factors, loss.weights, unit_factor)
    last.launch(logits.device)


def tssd_loss(
    loss, logits, target, aux_logits, value, terms, unit, gradient, aux_gradient
) -> None:  # fmt: skip
    steps = logits.shape[0]
    calls, parts = tssd_calls(loss, logits, target, aux_logits, gradient, aux_gradient)
    for call in calls:
        call.launch(logits.device)
    spatial = loss.kl_scale / steps if loss.per_step else loss.kl_scale
    factors, unit_factor = (1.0, loss.kl_scale, spatial), 1 / (steps * loss.gradient_scale)
    last = finish_call(parts, value, terms, unit, factors, loss.weights, unit_factor)
    last.launch(logits.device)


def scale_gradient(gradient, grad_output, unit, scaled) -> None:
    scale_call(gradient, grad_output, unit, scaled).launch(gradient.device)
