"""Cross-entropy of mean logits, KL of the mean over all steps to that over the first, KL of
auxiliary logits: sums and gradients.

For every row b, with zbar and zs the means of z_t over all T and the first T_s steps, p and q their
softmax at temperature tau, and w_t the auxiliary logits:

    task     = -sum_c y_c (ce_all log softmax(zbar)_c + ce_student log softmax(zs)_c)
    temporal = sum_c p_c (log p_c - log q_c)
    spatial  = the same of softmax(z_t / tau) and softmax(w_t / tau), summed over t, or of the means
    dz_t     = pull_all (softmax(zbar) sum y - y)                                         every step
             + pull_student (softmax(zs) sum y - y) + pull_temporal (q - p)               t < T_s
    dw_t     = pull_spatial (softmax(w_t / tau) - softmax(z_t / tau)), or of the means

Bytes per logit, b those of one: b read and b written, and the same for each auxiliary logit, at any
number of steps. Of more classes than one block, statistics have read them before.

The trick: no step's logits are needed once they are added up. The gradient is one of two tiles,
which are rounded once and written T times.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .distill import (
    SUM_CE,
    SUM_TAU,
    add_kl,
    centred,
    distribution,
    offsets,
    read_statistics,
    read_steps,
    read_target,
    rounded,
    row_and_classes,
    row_max,
    row_sum,
    softmax,
    step_at,
    write_line,
    write_step,
)

NONE = tl.constexpr(0)
EACH = tl.constexpr(1)
MEAN = tl.constexpr(2)

# Whose statistics lie where: means over all and over the first T_s steps; from AUX on auxiliary
# logits, their mean or each of T steps, and then the T steps of logits.
TARGET = tl.constexpr(0)
ALL = tl.constexpr(1)
STUDENT = tl.constexpr(2)
AUX = tl.constexpr(3)


class TssdFlags(NamedTuple):
    """What a TSSD kernel is compiled for. ``aux``: NONE, EACH step or the MEANs; ``all`` and
    ``student``: the cross-entropies there are; the last three say which terms pull."""

    aux: int
    soft: bool
    tau_is_ce: bool
    all: bool
    student: bool
    task: bool
    temporal: bool
    spatial: bool


@triton.jit
def objective(
    x_all,
    x_student,
    sums,  # sum_exp of x_all and of x_student at 1, then at tau
    y,
    y_sum,
    k_ce,
    k_tau,
    numbers,  # ce_all, ce_student, pull_all, pull_student, pull_temporal
    FLAGS: tl.constexpr,
):
    """Elementwise task and temporal, and the gradients of the first T_s steps and of the others."""
    p, q = softmax(x_all, k_tau, sums[2]), softmax(x_student, k_tau, sums[3])
    zeros = tl.zeros_like(x_all)
    task, temporal = zeros, add_kl(zeros, p, q)
    late = tl.zeros_like(x_all)
    early = tl.zeros_like(x_all)
    if FLAGS.all:
        log_q, q_ce = softmax(x_all, k_ce, sums[0])
        task = tl.fma(log_q, -numbers[0] * y, task)
        if FLAGS.task:
            late += numbers[2] * (q_ce * y_sum[:, None] - y)
    if FLAGS.student:
        log_q, q_ce = softmax(x_student, k_ce, sums[1])
        task = tl.fma(log_q, -numbers[1] * y, task)
        if FLAGS.task:
            early += numbers[3] * (q_ce * y_sum[:, None] - y)
    if FLAGS.temporal:
        early += numbers[4] * (q[1] - p[1])
    return task, temporal, late + early, late


@triton.jit
def pulled(p, q, pull, FLAGS: tl.constexpr):
    """The gradient of KL(p || q) with respect to q's logits."""
    return pull * (q[1] - p[1]) if FLAGS.spatial else tl.zeros_like(q[1])


@triton.jit
def write_steps(
    gradient, early, late, at, mask, valid, steps, student_steps, size,
    STEPS: tl.constexpr, LONG: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes ``early`` to the first T_s steps, ``late`` to the others."""
    early, late = rounded(early, valid, gradient), rounded(late, valid, gradient)
    if LONG:
        for t in range(steps):
            dz = tl.where(t < student_steps, early, late)
            write_step(gradient, dz, t, steps, size, at, mask, True)
    else:
        for t in tl.static_range(STEPS):
            dz = tl.where(t < student_steps, early, late)
            write_step(gradient, dz, t, steps, size, at, mask, WHOLE)


SIZES = ["steps", "student_steps", "batch", "units", "step_stride", "row_stride", "class_stride",
          "aux_step_stride", "aux_row_stride", "aux_class_stride", "ignore_index"]  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def tssd_rows(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    aux,  # [T, B, C], or None
    gradient,  # [T, B, C], or None
    aux_gradient,  # [T, B, C], or None
    statistics,  # [3 + 0, 1 or 2 T, B, LINE] float32 where programs have chunks of rows, or None
    parts,  # [programs, LINE] float32
    steps: tl.int32,
    student_steps: tl.int32,
    batch: tl.int32,
    units: tl.int32,  # C / VEC
    step_stride: tl.int64,  # in units of VEC elements, as all strides
    row_stride: tl.int64,
    class_stride: tl.int64,
    aux_step_stride: tl.int64,
    aux_row_stride: tl.int64,
    aux_class_stride: tl.int64,
    ignore_index: tl.int64,
    far,
    k_ce,  # log2(e) over the temperatures
    k_tau,
    keep,
    base,
    inv_steps,
    inv_student,
    ce_all,
    ce_student,
    pull_all,
    pull_student,
    pull_temporal,
    pull_spatial,
    FLAGS: tl.constexpr,
    STEPS: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    b, live, c, chunk = row_and_classes(batch, units * VEC, ROWS, BLOCK, statistics is not None)
    classes = units.to(tl.int64) * VEC
    inside = c < classes
    z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
    w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
    at = (b * classes)[:, None] + c
    mask = inside & live[:, None]
    stride, w_stride = step_stride * VEC, aux_step_stride * VEC
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    k_tau = k_ce if FLAGS.tau_is_ce else k_tau
    if not LONG:
        zs = read_steps(logits, z_at, inside, 0, steps, stride, STEPS, WHOLE)
        if FLAGS.aux != NONE:
            ws = read_steps(aux, w_at, inside, 0, steps, w_stride, STEPS, WHOLE)

    known = read_statistics(statistics, TARGET, b, batch)
    _, valid, y, y_sum = read_target(
        target, known, b, c, at, inside, live, classes, ignore_index, keep, base, FLAGS.soft
    )
    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    total, student, w_total, spatial = zeros, zeros, zeros, zeros
    for k in range(segments):
        start = tl.cast(k, tl.int64) * STEPS
        if LONG:
            zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
            if FLAGS.aux != NONE:
                ws = read_steps(aux, w_at, inside, start, steps, w_stride, STEPS, WHOLE)
        for i in tl.static_range(STEPS):
            z = zs[i].to(tl.float32)
            there = start + i < steps
            total += z if WHOLE else tl.where(there, z, 0.0)
            student += tl.where(start + i < student_steps, z, 0.0)
            if FLAGS.aux == MEAN:
                w = ws[i].to(tl.float32)
                w_total += w if WHOLE else tl.where(there, w, 0.0)
            if FLAGS.aux == EACH:
                t = step_at(start + i, steps, WHOLE)
                of_z = read_statistics(statistics, t + steps + AUX, b, batch)
                of_w = read_statistics(statistics, t + AUX, b, batch)
                p = distribution(z, inside, k_tau, far, of_z)
                q = distribution(ws[i].to(tl.float32), inside, k_tau, far, of_w)
                added = add_kl(spatial, p, q)
                spatial = added if WHOLE else tl.where(there, added, spatial)
                if aux_gradient is not None:
                    dw = rounded(pulled(p, q, pull_spatial, FLAGS), valid, aux_gradient)
                    write_step(aux_gradient, dw, start + i, steps, batch * classes, at, mask, WHOLE)

    mean, student = total * inv_steps, student * inv_student
    known = read_statistics(statistics, ALL, b, batch)
    x_all = centred(mean, row_max(mean, known), inside, far)
    s_all = row_sum(x_all, k_ce, known, SUM_CE)
    s_all_tau = row_sum(x_all, k_tau, known, SUM_TAU)
    known = read_statistics(statistics, STUDENT, b, batch)
    x_student = centred(student, row_max(student, known), inside, far)
    s_student = row_sum(x_student, k_ce, known, SUM_CE)
    sums = (s_all, s_student, s_all_tau, row_sum(x_student, k_tau, known, SUM_TAU))
    numbers = (ce_all, ce_student, pull_all, pull_student, pull_temporal)
    task, temporal, early, late = objective(
        x_all, x_student, sums, y, y_sum, k_ce, k_tau, numbers, FLAGS
    )
    size = batch * classes
    if FLAGS.aux == MEAN:
        p = softmax(x_all, k_tau, s_all_tau)
        known = read_statistics(statistics, AUX, b, batch)
        q = distribution(w_total * inv_steps, inside, k_tau, far, known)
        spatial = add_kl(spatial, p, q)
        if aux_gradient is not None:
            dw = pulled(p, q, pull_spatial, FLAGS)
            write_steps(
                aux_gradient, dw, dw, at, mask, valid, steps, steps, size, STEPS, LONG, WHOLE
            )  # fmt: skip
    if gradient is not None:
        write_steps(
            gradient, early, late, at, mask, valid, steps, student_steps, size, STEPS, LONG, WHOLE
        )  # fmt: skip
    write_line(parts, chunk, task, temporal, spatial, tl.zeros([ROWS], tl.float32), valid)
