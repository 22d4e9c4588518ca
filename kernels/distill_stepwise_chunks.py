"""The stepwise sums and gradients of ``distill_stepwise``, for rows of more classes than one block.

A program has one row and goes through its classes in chunks of BLOCK. Logits are read twice, three
times with the own target, and four where that depends on which steps are right, the later times
mostly out of the cache. The own target's logits, summed over steps, wait in ``scratch``.
"""

import triton
import triton.language as tl

from .distill import (
    LOWEST,
    centred,
    first_max,
    load,
    offsets,
    read_labels,
    rows,
    running,
    softmax,
    target_tile,
    write_line,
)
from .distill_stepwise import CORRECT, NONE, SIZES, add_step, entropy_bits, own_scale_of, rates_of

_LOWEST = tl.constexpr(LOWEST)


@triton.jit
def _running_step(z, inside, m, s_ce, s, s_h, v, rates, far, FLAGS: tl.constexpr):
    """Maximum, sums at the three temperatures, and sum x exp(x / tau_h), with one chunk more."""
    top, s_ce = running(z, m, s_ce, rates[0])
    _, s = running(z, m, s, rates[1])
    if FLAGS.entropy:
        # x = z - max moves with the maximum.
        shift = m - top
        x = centred(z, top, inside, far)
        v = tl.exp2(shift * rates[2]) * (v + shift * s_h)
        v += tl.sum(x * tl.exp2(x * rates[2]), 1)
        _, s_h = running(z, m, s_h, rates[2])
    return top, s_ce, s, s_h, v


@triton.jit(do_not_specialize=SIZES)
def stepwise_chunks(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    teacher,  # [B, C], or None
    gradient,  # [T, B, C], or None
    parts,  # [B, LINE] float32
    scratch,  # [B, C] float32 for the own target, or None
    steps: tl.int32,
    batch: tl.int32,
    units: tl.int32,
    step_stride: tl.int64,
    row_stride: tl.int64,
    class_stride: tl.int64,
    ignore_index: tl.int64,
    keep,
    base,
    k_ce,  # log2(e) over the temperatures
    k_tau,
    k_h,
    pull_ce,
    pull_kl,
    pull_own,
    pull_h,
    inv_steps,
    far,
    FLAGS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    b, live = rows(batch, 1)
    lane = tl.arange(0, BLOCK)[None, :]
    classes = units.to(tl.int64) * VEC
    row = b * classes
    stride = step_stride * VEC
    rates = rates_of(k_ce, k_tau, k_h, FLAGS)
    pulls = (pull_ce, pull_kl, pull_own, pull_h)
    zero = tl.zeros([1], tl.float32)
    lowest = zero + _LOWEST

    if FLAGS.soft:
        label, valid, wrong, y_sum = tl.zeros([1], tl.int32), live, zero, zero
        best = zero - float("inf")
        for chunk in range(0, classes, BLOCK):
            c = tl.cast(chunk, tl.int32) + lane
            inside = c < classes
            y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, True)
            y_sum += tl.sum(y, 1)
            top, first = first_max(load(target, row[:, None] + c, inside).to(tl.float32), c)
            label = tl.where(top > best, first, label)
            best = tl.maximum(top, best)
    else:
        label, valid, wrong = read_labels(target, b, live, classes, ignore_index)
        y_sum = zero + 1.0

    m_taught, s_taught = lowest, zero
    if teacher is not None:
        for chunk in range(0, classes, BLOCK):
            c = tl.cast(chunk, tl.int32) + lane
            z = load(teacher, row[:, None] + c, c < classes).to(tl.float32)
            m_taught, s_taught = running(z, m_taught, s_taught, rates[1])

    m_own, s_own, count, own_scale, has_own = lowest, zero, zero, zero, live
    if FLAGS.own != NONE:
        for t in range(steps):
            step = logits + tl.cast(t, tl.int64) * stride
            taken = live
            if FLAGS.own == CORRECT:
                m, at_max = zero - float("inf"), tl.zeros([1], tl.int32)
                for chunk in range(0, classes, BLOCK):
                    c = tl.cast(chunk, tl.int32) + lane
                    z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
                    top, first = first_max(load(step, z_at, c < classes).to(tl.float32), c)
                    at_max = tl.where(top > m, first, at_max)
                    m = tl.maximum(top, m)
                taken = at_max == label
            count += tl.where(taken, 1.0, 0.0)
            for chunk in range(0, classes, BLOCK):
                c = tl.cast(chunk, tl.int32) + lane
                inside = c < classes
                z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
                z = tl.where(taken[:, None], load(step, z_at, inside).to(tl.float32), 0.0)
                own_at = row[:, None] + c
                so_far = tl.load(scratch + own_at, mask=tl.where(t > 0, inside, False), other=0.0)
                tl.store(scratch + own_at, so_far + z, mask=inside)
            # Another thread may read what this one wrote.
            tl.debug_barrier()
        own_scale = own_scale_of(count, inv_steps, FLAGS)
        has_own = count > 0.0
        for chunk in range(0, classes, BLOCK):
            c = tl.cast(chunk, tl.int32) + lane
            z = load(scratch, row[:, None] + c, c < classes) * own_scale[:, None]
            m_own, s_own = running(z, m_own, s_own, rates[1])

    zeros = tl.zeros([1, BLOCK], tl.float32)
    ce, kl, self_, entropy = zeros, zeros, zeros, zero
    for t in range(steps):
        step = logits + tl.cast(t, tl.int64) * stride
        m, s_ce, s, s_h, v, h = lowest, zero, zero, zero, zero, zero
        for chunk in range(0, classes, BLOCK):
            c = tl.cast(chunk, tl.int32) + lane
            inside = c < classes
            z = load(step, offsets(b, c, row_stride, class_stride, VEC, DENSE), inside)
            m, s_ce, s, s_h, v = _running_step(
                z.to(tl.float32), inside, m, s_ce, s, s_h, v, rates, far, FLAGS
            )
        if FLAGS.entropy:
            h = entropy_bits(s_h, v, rates[2])
            entropy += h
        for chunk in range(0, classes, BLOCK):
            c = tl.cast(chunk, tl.int32) + lane
            inside = c < classes
            at = row[:, None] + c
            z = load(step, offsets(b, c, row_stride, class_stride, VEC, DENSE), inside)
            x = centred(z.to(tl.float32), m, inside, far)
            y = target_tile(
                target, b, c, inside, classes, label, wrong, keep, base, FLAGS.soft
            )  # fmt: skip
            taught, own = (0.0, 0.0), (0.0, 0.0)
            if teacher is not None:
                z = load(teacher, at, inside).to(tl.float32)
                taught = softmax(centred(z, m_taught, inside, far), rates[1], s_taught)
            if FLAGS.own != NONE:
                z = load(scratch, at, inside) * own_scale[:, None]
                own = softmax(centred(z, m_own, inside, far), rates[1], s_own)
            sums = (s_ce, s, s_h, h)
            ce, kl, self_, dz = add_step(
                x, ce, kl, self_, sums, y, y_sum, taught, own, has_own, rates, pulls,
                FLAGS, teacher is not None,
            )  # fmt: skip
            if gradient is not None:
                dz = tl.where(valid[:, None], dz, 0.0).to(gradient.dtype.element_ty)
                start = tl.cast(t, tl.int64) * batch * classes
                tl.store(gradient + start + at, dz, mask=inside)
    write_line(parts, tl.sum(ce, 1), tl.sum(kl, 1), tl.sum(self_, 1), entropy, valid)
