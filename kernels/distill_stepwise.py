"""Cross-entropy, KL to a teacher, KL to the own target, entropy of every step: sums and gradient.

For every row b and step t, with x = z_t - max z_t and q = softmax(x / tau):

    ce  = -sum_c y_c log q_c (at tau_ce)          kl = sum_c p_c (log p_c - log q_c), p the teacher
    own = the same, p from the mean of the student's logits, over all steps or those that are right
    H   = ln s - sum x exp(x / tau_h) / (tau_h s),  s = sum exp(x / tau_h)
    dz  = pull_ce (q sum y - y) + pull_kl (q - p) + pull_own (q - p) + pull_h q (log q + H)

Bytes per logit, b those of one: b read and b written where all steps of a row fit the
registers; with more steps the logits are read once more for the own target. Of more classes than
one block, statistics have read them before.

The trick: one program has all steps of its rows in registers, in a tuple, so the own target, which
needs all steps, is there before the first step's gradient is written. Terms are summed over classes
once, after the last step.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .distill import (
    SUM_CE,
    SUM_H,
    SUM_TAU,
    add_kl,
    centred,
    distribution,
    in_flight,
    load,
    mean_scale,
    offsets,
    read_statistics,
    read_steps,
    read_target,
    rounded,
    row_and_classes,
    row_entropy,
    row_first,
    row_max,
    row_sum,
    softmax,
    step_at,
    write_line,
    write_step,
)

NONE = tl.constexpr(0)
MEAN = tl.constexpr(1)
CORRECT = tl.constexpr(2)
OTHER = tl.constexpr(0)
TAU = tl.constexpr(1)
CE = tl.constexpr(2)

# Whose statistics lie where; those of the steps from STEPS_AT on.
TARGET = tl.constexpr(0)
TEACHER = tl.constexpr(1)
OWN = tl.constexpr(2)
STEPS_AT = tl.constexpr(3)


class StepwiseFlags(NamedTuple):
    """What a stepwise kernel is compiled for. Of two equal temperatures one softmax is computed:
    ``tau_is_ce``, and ``entropy_is`` (OTHER, TAU or CE). The last four say which terms pull."""

    own: int
    skip: bool
    entropy: bool
    soft: bool
    tau_is_ce: bool
    entropy_is: int
    ce: bool
    kl: bool
    self_: bool
    spread: bool


@triton.jit
def rates_of(k_ce, k_tau, k_h, FLAGS: tl.constexpr):
    """log2(e) over each temperature, equal ones as one value, whose softmax the compiler shares."""
    k_tau = k_ce if FLAGS.tau_is_ce else k_tau
    if FLAGS.entropy_is == TAU:
        k_h = k_tau
    elif FLAGS.entropy_is == CE:
        k_h = k_ce
    return k_ce, k_tau, k_h


@triton.jit
def add_step(
    x,
    ce,  # elementwise sums so far
    kl,
    self_,
    sums,  # sum_exp of x at the three temperatures, and the entropy
    y,
    y_sum,
    taught,  # log2 p, p of the teacher, where there is one
    own,  # log2 p, p of the own target, where there is one
    has_own,
    rates,
    pulls,
    FLAGS: tl.constexpr,
    TEACHER: tl.constexpr,
):
    """One step: ce, kl and own with its terms added, and its gradient."""
    at_ce = softmax(x, rates[0], sums[0])
    at_tau = softmax(x, rates[1], sums[1])
    ce = tl.fma(-y, at_ce[0], ce)
    dz = tl.zeros_like(x)
    if FLAGS.ce:
        dz = pulls[0] * (at_ce[1] * y_sum[:, None] - y)
    if TEACHER:
        kl = add_kl(kl, taught, at_tau)
        if FLAGS.kl:
            dz = tl.fma(at_tau[1] - taught[1], pulls[1], dz)
    if FLAGS.own != NONE:
        added = add_kl(self_, own, at_tau)
        self_ = tl.where(has_own[:, None], added, self_) if FLAGS.skip else added
        if FLAGS.self_:
            pulled = tl.fma(at_tau[1] - own[1], pulls[2], dz)
            dz = tl.where(has_own[:, None], pulled, dz) if FLAGS.skip else pulled
    if FLAGS.spread:
        at_h = softmax(x, rates[2], sums[2])
        dz = tl.fma(at_h[1] * (at_h[0] + sums[3][:, None]), pulls[3], dz)
    return ce, kl, self_, dz


SIZES = ["steps", "batch", "units", "step_stride", "row_stride", "class_stride", "ignore_index"]


@triton.jit(do_not_specialize=SIZES)
def stepwise_rows(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    teacher,  # [B, C], or None
    gradient,  # [T, B, C], or None
    statistics,  # [3 + T, B, LINE] float32 where programs have chunks of rows, or None
    parts,  # [programs, LINE] float32
    steps: tl.int32,
    batch: tl.int32,
    units: tl.int32,  # C / VEC
    step_stride: tl.int64,  # of logits, in units of VEC elements
    row_stride: tl.int64,
    class_stride: tl.int64,
    ignore_index: tl.int64,
    far,
    k_ce,  # log2(e) over the temperatures
    k_tau,
    k_h,
    keep,
    base,
    pull_ce,
    pull_kl,
    pull_own,
    pull_h,
    inv_steps,
    FLAGS: tl.constexpr,
    STEPS: tl.constexpr,
    LONG: tl.constexpr,  # T takes several segments of STEPS steps; else one, kept in registers
    WHOLE: tl.constexpr,  # T fills its segments
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    b, live, c, chunk = row_and_classes(batch, units * VEC, ROWS, BLOCK, statistics is not None)
    classes = units.to(tl.int64) * VEC
    inside = c < classes
    z_at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
    at = (b * classes)[:, None] + c
    stride = step_stride * VEC
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    rates = rates_of(k_ce, k_tau, k_h, FLAGS)
    pulls = (pull_ce, pull_kl, pull_own, pull_h)
    if not LONG:
        zs = read_steps(logits, z_at, inside, 0, steps, stride, STEPS, WHOLE)
        in_flight()

    known = read_statistics(statistics, TARGET, b, batch)
    label, valid, y, y_sum = read_target(
        target, known, b, c, at, inside, live, classes, ignore_index, keep, base, FLAGS.soft
    )
    taught, own, has_own = (0.0, 0.0), (0.0, 0.0), live
    if teacher is not None:
        known = read_statistics(statistics, TEACHER, b, batch)
        taught = load(teacher, at, inside).to(tl.float32)
        taught = distribution(taught, inside, rates[1], far, known)
    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    row_zeros = tl.zeros([ROWS], tl.float32)
    if FLAGS.own != NONE:
        total, count = zeros, row_zeros
        for k in range(segments):
            start = tl.cast(k, tl.int64) * STEPS
            if LONG:
                zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
            for i in tl.static_range(STEPS):
                z = zs[i].to(tl.float32)
                there = start + i < steps
                if FLAGS.own == CORRECT:
                    t = step_at(start + i, steps, WHOLE)
                    of_step = read_statistics(statistics, t + STEPS_AT, b, batch)
                    right = row_first(z, c, of_step) == label
                    right = right if WHOLE else right & there
                    z = tl.where(right[:, None], z, 0.0)
                    count += tl.where(right, 1.0, 0.0)
                elif not WHOLE:
                    z = tl.where(there, z, 0.0)
                total += z
        total *= mean_scale(count, inv_steps, FLAGS.own == MEAN)[:, None]
        known = read_statistics(statistics, OWN, b, batch)
        own = distribution(tl.where(inside, total, -float("inf")), inside, rates[1], far, known)
        has_own = count > 0.0

    ce, kl, self_, entropy = zeros, zeros, zeros, row_zeros
    for k in range(segments):
        start = tl.cast(k, tl.int64) * STEPS
        if LONG:
            zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
        for i in tl.static_range(STEPS):
            z = zs[i].to(tl.float32)
            t = step_at(start + i, steps, WHOLE)
            of_step = read_statistics(statistics, t + STEPS_AT, b, batch)
            x = centred(z, row_max(z, of_step), inside, far)
            s_h, h = row_zeros, row_zeros
            if FLAGS.entropy:
                s_h = row_sum(x, rates[2], of_step, SUM_H)
                h = row_entropy(x, s_h, rates[2], of_step)
            s_ce = row_sum(x, rates[0], of_step, SUM_CE)
            sums = (s_ce, row_sum(x, rates[1], of_step, SUM_TAU), s_h, h)
            ce_t, kl_t, self_t, dz = add_step(
                x, ce, kl, self_, sums, y, y_sum, taught, own, has_own, rates, pulls,
                FLAGS, teacher is not None,
            )  # fmt: skip
            there = start + i < steps
            ce = ce_t if WHOLE else tl.where(there, ce_t, ce)
            kl = kl_t if WHOLE else tl.where(there, kl_t, kl)
            self_ = self_t if WHOLE else tl.where(there, self_t, self_)
            entropy += h if WHOLE else tl.where(there, h, 0.0)
            if gradient is not None:
                dz = rounded(dz, valid, gradient)
                mask = inside & live[:, None]
                write_step(gradient, dz, start + i, steps, batch * classes, at, mask, WHOLE)
    write_line(parts, chunk, ce, kl, self_, entropy, valid)
