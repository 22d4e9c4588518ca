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
number of steps.

The trick: no step's logits are needed once they are added up. The gradient is one of two tiles,
which are rounded once and written T times.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .distill import (
    add_kl,
    centred,
    distribution,
    offsets,
    read_labels,
    read_steps,
    rows,
    softmax,
    sum_exp,
    target_tile,
    write_line,
)

NONE = tl.constexpr(0)
EACH = tl.constexpr(1)
MEAN = tl.constexpr(2)


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
    task,  # elementwise sums so far
    temporal,
    sums,  # sum_exp of x_all and of x_student at 1, then at tau
    y,
    y_sum,
    k_ce,
    k_tau,
    numbers,  # ce_all, ce_student, pull_all, pull_student, pull_temporal
    FLAGS: tl.constexpr,
):
    """task and temporal with a chunk's added, and the gradients of the first T_s steps and of the
    others."""
    p, q = softmax(x_all, k_tau, sums[2]), softmax(x_student, k_tau, sums[3])
    temporal = add_kl(temporal, p, q)
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
def _segment(
    zs, ws, start, steps, student_steps, batch, classes, aux_gradient, at, inside, valid, live,
    total, student, w_total, spatial, k_tau, pull, far,
    FLAGS: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Adds a segment's steps to the sums over time; does all there is to do for a term per step."""
    for i in tl.static_range(STEPS):
        t = start + i
        z = zs[i].to(tl.float32)
        total += z if WHOLE else tl.where(t < steps, z, 0.0)
        student += tl.where(t < student_steps, z, 0.0)
        if FLAGS.aux == MEAN:
            w = ws[i].to(tl.float32)
            w_total += w if WHOLE else tl.where(t < steps, w, 0.0)
        if FLAGS.aux == EACH:
            p = distribution(z, inside, k_tau, far)
            q = distribution(ws[i].to(tl.float32), inside, k_tau, far)
            added = add_kl(spatial, p, q)
            spatial = added if WHOLE else tl.where(t < steps, added, spatial)
            if aux_gradient is not None:
                written = inside & live[:, None]
                written = written if WHOLE else tl.where(t < steps, written, False)
                dw = tl.where(valid[:, None], pulled(p, q, pull, FLAGS), 0.0)
                dw = dw.to(aux_gradient.dtype.element_ty)
                tl.store(aux_gradient + t * batch * classes + at, dw, mask=written)
    return total, student, w_total, spatial


@triton.jit
def write_steps(
    gradient, early, late, at, inside, valid, live, steps, student_steps, batch, classes,
    STEPS: tl.constexpr, LONG: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes ``early`` to the first T_s steps, ``late`` to the others."""
    written = inside & live[:, None]
    early = tl.where(valid[:, None], early, 0.0).to(gradient.dtype.element_ty)
    late = tl.where(valid[:, None], late, 0.0).to(gradient.dtype.element_ty)
    if LONG:
        for t in range(steps):
            step = gradient + tl.cast(t, tl.int64) * batch * classes
            tl.store(step + at, tl.where(t < student_steps, early, late), mask=written)
    else:
        for t in tl.static_range(STEPS):
            step = gradient + tl.cast(t, tl.int64) * batch * classes
            there = written if WHOLE else tl.where(t < steps, written, False)
            tl.store(step + at, tl.where(t < student_steps, early, late), mask=there)


SIZES = ["steps", "student_steps", "batch", "units", "step_stride", "row_stride", "class_stride",
          "aux_step_stride", "aux_row_stride", "aux_class_stride", "ignore_index"]  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def tssd_rows(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    aux,  # [T, B, C], or None
    gradient,  # [T, B, C], or None
    aux_gradient,  # [T, B, C], or None
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
    keep,
    base,
    k_ce,  # log2(e) over the temperatures
    k_tau,
    inv_steps,
    inv_student,
    ce_all,
    ce_student,
    pull_all,
    pull_student,
    pull_temporal,
    pull_spatial,
    far,
    FLAGS: tl.constexpr,
    STEPS: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    b, live = rows(batch, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    classes = units.to(tl.int64) * VEC
    inside = c < classes
    z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
    w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
    at = (b * classes)[:, None] + c
    stride, w_stride = step_stride * VEC, aux_step_stride * VEC
    k_tau = k_ce if FLAGS.tau_is_ce else k_tau
    start = tl.cast(0, tl.int64)
    if not LONG:
        zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
        ws = zs
        if FLAGS.aux != NONE:
            ws = read_steps(aux, w_at, inside, start, steps, w_stride, STEPS, WHOLE)

    row_zeros = tl.zeros([ROWS], tl.float32)
    if FLAGS.soft:
        label, valid, wrong = tl.zeros([ROWS], tl.int32), live, row_zeros
    else:
        label, valid, wrong = read_labels(target, b, live, classes, ignore_index)
    y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, FLAGS.soft)
    y_sum = tl.sum(y, 1) if FLAGS.soft else row_zeros + 1.0

    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    total, student, w_total, spatial = zeros, zeros, zeros, zeros
    if LONG:
        for k in range(tl.cdiv(steps, STEPS)):
            start = tl.cast(k, tl.int64) * STEPS
            zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
            ws = zs
            if FLAGS.aux != NONE:
                ws = read_steps(aux, w_at, inside, start, steps, w_stride, STEPS, WHOLE)
            total, student, w_total, spatial = _segment(
                zs, ws, start, steps, student_steps, batch, classes, aux_gradient, at, inside,
                valid, live, total, student, w_total, spatial, k_tau, pull_spatial, far,
                FLAGS, STEPS, WHOLE,
            )  # fmt: skip
    else:
        total, student, w_total, spatial = _segment(
            zs, ws, start, steps, student_steps, batch, classes, aux_gradient, at, inside,
            valid, live, total, student, w_total, spatial, k_tau, pull_spatial, far,
            FLAGS, STEPS, WHOLE,
        )  # fmt: skip

    mean, student = total * inv_steps, student * inv_student
    x_all = centred(mean, tl.max(mean, 1), inside, far)
    x_student = centred(student, tl.max(student, 1), inside, far)
    sums = (sum_exp(x_all, k_ce), sum_exp(x_student, k_ce), sum_exp(x_all, k_tau),
            sum_exp(x_student, k_tau))  # fmt: skip
    numbers = (ce_all, ce_student, pull_all, pull_student, pull_temporal)
    task, temporal, early, late = objective(
        x_all, x_student, zeros, zeros, sums, y, y_sum, k_ce, k_tau, numbers, FLAGS
    )
    if FLAGS.aux == MEAN:
        p = softmax(x_all, k_tau, sums[2])
        q = distribution(w_total * inv_steps, inside, k_tau, far)
        spatial = add_kl(spatial, p, q)
        if aux_gradient is not None:
            dw = pulled(p, q, pull_spatial, FLAGS)
            write_steps(
                aux_gradient, dw, dw, at, inside, valid, live, steps, steps, batch, classes,
                STEPS, LONG, WHOLE,
            )  # fmt: skip
    if gradient is not None:
        write_steps(
            gradient, early, late, at, inside, valid, live, steps, student_steps, batch, classes,
            STEPS, LONG, WHOLE,
        )  # fmt: skip
    write_line(
        parts, tl.sum(task, 1), tl.sum(temporal, 1), tl.sum(spatial, 1), row_zeros, valid
    )  # fmt: skip
