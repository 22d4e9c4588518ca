"""The sums and gradients of ``distill_tssd``, for rows of more classes than one block.

A program has one row and goes through its classes in chunks of BLOCK. Logits and auxiliary logits
are read twice, logits four times with a spatial term per step, the later times mostly out of the
cache.
"""

import triton
import triton.language as tl

from .distill import (
    LOWEST,
    add_kl,
    centred,
    load,
    offsets,
    read_labels,
    rows,
    running,
    softmax,
    target_tile,
    write_line,
)
from .distill_tssd import EACH, MEAN, SIZES, objective, pulled, write_steps

_LOWEST = tl.constexpr(LOWEST)


@triton.jit
def _means(
    logits, at, inside, steps, student_steps, stride, inv_steps, inv_student, zeros
):  # fmt: skip
    """Means of a chunk over all and over the first T_s steps."""
    total, student = zeros, zeros
    for t in range(steps):
        z = load(logits + tl.cast(t, tl.int64) * stride, at, inside).to(tl.float32)
        total += z
        student += tl.where(t < student_steps, z, 0.0)
    return total * inv_steps, student * inv_student


@triton.jit(do_not_specialize=SIZES)
def tssd_chunks(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    aux,  # [T, B, C], or None
    gradient,  # [T, B, C], or None
    aux_gradient,  # [T, B, C], or None
    parts,  # [B, LINE] float32
    steps: tl.int32,
    student_steps: tl.int32,
    batch: tl.int32,
    units: tl.int32,
    step_stride: tl.int64,
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
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    b, live = rows(batch, 1)
    lane = tl.arange(0, BLOCK)[None, :]
    classes = units.to(tl.int64) * VEC
    row = (b * classes)[:, None]
    stride, w_stride = step_stride * VEC, aux_step_stride * VEC
    k_tau = k_ce if FLAGS.tau_is_ce else k_tau
    zero = tl.zeros([1], tl.float32)
    zeros = tl.zeros([1, BLOCK], tl.float32)
    lowest = zero + _LOWEST
    numbers = (ce_all, ce_student, pull_all, pull_student, pull_temporal)

    if FLAGS.soft:
        label, valid, wrong, y_sum = tl.zeros([1], tl.int32), live, zero, zero
    else:
        label, valid, wrong = read_labels(target, b, live, classes, ignore_index)
        y_sum = zero + 1.0

    m, s, s_tau = lowest, zero, zero
    m_student, s_student, s_student_tau = lowest, zero, zero
    m_w, s_w = lowest, zero
    for chunk in range(0, classes, BLOCK):
        c = tl.cast(chunk, tl.int32) + lane
        inside = c < classes
        z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
        mean, student = _means(
            logits, z_at, inside, steps, student_steps, stride, inv_steps, inv_student, zeros
        )
        _, s = running(mean, m, s, k_ce)
        m, s_tau = running(mean, m, s_tau, k_tau)
        _, s_student = running(student, m_student, s_student, k_ce)
        m_student, s_student_tau = running(student, m_student, s_student_tau, k_tau)
        if FLAGS.aux == MEAN:
            w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
            w, _ = _means(aux, w_at, inside, steps, steps, w_stride, inv_steps, inv_steps, zeros)
            m_w, s_w = running(w, m_w, s_w, k_tau)
        if FLAGS.soft:
            y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, True)
            y_sum += tl.sum(y, 1)

    sums = (s, s_student, s_tau, s_student_tau)
    task, temporal, spatial = zeros, zeros, zeros
    for chunk in range(0, classes, BLOCK):
        c = tl.cast(chunk, tl.int32) + lane
        inside = c < classes
        z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
        mean, student = _means(
            logits, z_at, inside, steps, student_steps, stride, inv_steps, inv_student, zeros
        )
        x_all = centred(mean, m, inside, far)
        x_student = centred(student, m_student, inside, far)
        y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, FLAGS.soft)
        task, temporal, early, late = objective(
            x_all, x_student, task, temporal, sums, y, y_sum, k_ce, k_tau, numbers, FLAGS
        )
        if FLAGS.aux == MEAN:
            w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
            w, _ = _means(aux, w_at, inside, steps, steps, w_stride, inv_steps, inv_steps, zeros)
            p = softmax(x_all, k_tau, s_tau)
            q = softmax(centred(w, m_w, inside, far), k_tau, s_w)
            spatial = add_kl(spatial, p, q)
            if aux_gradient is not None:
                dw = pulled(p, q, pull_spatial, FLAGS)
                write_steps(
                    aux_gradient, dw, dw, row + c, inside, valid, live, steps, steps, batch,
                    classes, 1, True, True,
                )  # fmt: skip
        if gradient is not None:
            write_steps(
                gradient, early, late, row + c, inside, valid, live, steps, student_steps, batch,
                classes, 1, True, True,
            )  # fmt: skip

    if FLAGS.aux == EACH:
        for t in range(steps):
            z_step = logits + tl.cast(t, tl.int64) * stride
            w_step = aux + tl.cast(t, tl.int64) * w_stride
            m, s, m_w, s_w = lowest, zero, lowest, zero
            for chunk in range(0, classes, BLOCK):
                c = tl.cast(chunk, tl.int32) + lane
                inside = c < classes
                z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
                w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
                m, s = running(load(z_step, z_at, inside).to(tl.float32), m, s, k_tau)
                m_w, s_w = running(load(w_step, w_at, inside).to(tl.float32), m_w, s_w, k_tau)
            for chunk in range(0, classes, BLOCK):
                c = tl.cast(chunk, tl.int32) + lane
                inside = c < classes
                z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
                w_at = offsets(b, c, aux_row_stride, aux_class_stride, VEC, DENSE)
                z = load(z_step, z_at, inside).to(tl.float32)
                w = load(w_step, w_at, inside).to(tl.float32)
                p = softmax(centred(z, m, inside, far), k_tau, s)
                q = softmax(centred(w, m_w, inside, far), k_tau, s_w)
                spatial = add_kl(spatial, p, q)
                if aux_gradient is not None:
                    dw = tl.where(valid[:, None], pulled(p, q, pull_spatial, FLAGS), 0.0)
                    dw = dw.to(aux_gradient.dtype.element_ty)
                    step = aux_gradient + tl.cast(t, tl.int64) * batch * classes
                    tl.store(step + row + c, dw, mask=inside)
    write_line(parts, tl.sum(task, 1), tl.sum(temporal, 1), tl.sum(spatial, 1), zero, valid)
