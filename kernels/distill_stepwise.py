"""Cross-entropy, KL to a teacher, KL to the own target, entropy of every step: sums and gradient.

For every row b and step t, with x = z_t - max z_t and q = softmax(x / tau):

    ce  = -sum_c y_c log q_c (at tau_ce)          kl = sum_c p_c (log p_c - log q_c), p the teacher
    own = the same, p from the mean of the student's logits, over all steps or those that are right
    H   = ln s - sum x exp(x / tau_h) / (tau_h s),  s = sum exp(x / tau_h)
    dz  = pull_ce (q sum y - y) + pull_kl (q - p) + pull_own (q - p) + pull_h q (log q + H)

Bytes per logit, b those of one: b read and b written where all steps of a row fit the
registers; with more steps the logits are read once more for the own target.

The trick: one program has all steps of its rows in registers, in a tuple, so the own target, which
needs all steps, is there before the first step's gradient is written. Terms are summed over classes
once, after the last step.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .distill import (
    add_kl,
    centred,
    distribution,
    first_max,
    in_flight,
    load,
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
MEAN = tl.constexpr(1)
CORRECT = tl.constexpr(2)
OTHER = tl.constexpr(0)
TAU = tl.constexpr(1)
CE = tl.constexpr(2)


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
def entropy_bits(total, weighted, k):
    """H in bits, of sum_exp and of sum x exp(x k)."""
    return tl.log2(total) - k * (weighted / total)


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


@triton.jit
def _collect(
    zs, start, steps, label, c, total, count,
    FLAGS: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Adds the steps of a segment that make up the own target, and how many they are."""
    for i in tl.static_range(STEPS):
        z = zs[i].to(tl.float32)
        taken = (label == label) & (start + i < steps)
        if FLAGS.own == CORRECT:
            _, first = first_max(z, c)
            taken = taken & (first == label)
        if FLAGS.own == CORRECT or not WHOLE:
            z = tl.where(taken[:, None], z, 0.0)
        total += z
        count += tl.where(taken, 1.0, 0.0)
    return total, count


@triton.jit
def own_scale_of(count, inv_steps, FLAGS: tl.constexpr):
    """What makes a mean of the collected steps; 0 where there is none."""
    return tl.zeros_like(count) + inv_steps if FLAGS.own == MEAN else 1.0 / tl.maximum(count, 1.0)


@triton.jit
def _segment(
    zs, start, steps, batch, classes, gradient, at, inside, valid, live,
    ce, kl, self_, entropy, y, y_sum, taught, own, has_own, rates, pulls, far,
    FLAGS: tl.constexpr, TEACHER: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Adds the terms of a segment's steps, and writes its gradients."""
    for i in tl.static_range(STEPS):
        z = zs[i].to(tl.float32)
        x = centred(z, tl.max(z, 1), inside, far)
        h = tl.zeros_like(entropy)
        s_h = h
        if FLAGS.entropy:
            s_h = sum_exp(x, rates[2])
            h = entropy_bits(s_h, tl.sum(x * tl.exp2(x * rates[2]), 1), rates[2])
        sums = (sum_exp(x, rates[0]), sum_exp(x, rates[1]), s_h, h)
        ce_t, kl_t, self_t, dz = add_step(
            x, ce, kl, self_, sums, y, y_sum, taught, own, has_own, rates, pulls, FLAGS, TEACHER
        )
        taken = start + i < steps
        ce = ce_t if WHOLE else tl.where(taken, ce_t, ce)
        kl = kl_t if WHOLE else tl.where(taken, kl_t, kl)
        self_ = self_t if WHOLE else tl.where(taken, self_t, self_)
        entropy += h if WHOLE else tl.where(taken, h, 0.0)
        if gradient is not None:
            written = inside & live[:, None]
            written = written if WHOLE else tl.where(taken, written, False)
            dz = tl.where(valid[:, None], dz, 0.0).to(gradient.dtype.element_ty)
            step = gradient + (start + i) * batch * classes
            tl.store(step + at, dz, mask=written)
    return ce, kl, self_, entropy


SIZES = ["steps", "batch", "units", "step_stride", "row_stride", "class_stride", "ignore_index"]


@triton.jit(do_not_specialize=SIZES)
def stepwise_rows(
    logits,  # [T, B, C]
    target,  # [B] int64 or, where soft, [B, C]
    teacher,  # [B, C], or None
    gradient,  # [T, B, C], or None
    parts,  # [programs, LINE] float32
    steps: tl.int32,
    batch: tl.int32,
    units: tl.int32,  # C / VEC
    step_stride: tl.int64,  # of logits, in units of VEC elements
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
    STEPS: tl.constexpr,
    LONG: tl.constexpr,  # a loop over segments of STEPS steps; else one segment, in registers
    WHOLE: tl.constexpr,  # T fills its segments
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
    at = (b * classes)[:, None] + c
    stride = step_stride * VEC
    rates = rates_of(k_ce, k_tau, k_h, FLAGS)
    pulls = (pull_ce, pull_kl, pull_own, pull_h)
    start = tl.cast(0, tl.int64)
    if not LONG:
        zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
        in_flight()

    if FLAGS.soft:
        label, valid, wrong = tl.zeros([ROWS], tl.int32), live, tl.zeros([ROWS], tl.float32)
        y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, True)
        y_sum = tl.sum(y, 1)
        if FLAGS.own == CORRECT:
            _, label = first_max(load(target, at, inside).to(tl.float32), c)
    else:
        label, valid, wrong = read_labels(target, b, live, classes, ignore_index)
        y = target_tile(target, b, c, inside, classes, label, wrong, keep, base, False)
        y_sum = tl.full([ROWS], 1.0, tl.float32)

    taught, own, has_own = (0.0, 0.0), (0.0, 0.0), live
    if teacher is not None:
        taught = distribution(load(teacher, at, inside).to(tl.float32), inside, rates[1], far)
    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    row_zeros = tl.zeros([ROWS], tl.float32)
    if FLAGS.own != NONE:
        total, count = zeros, row_zeros
        if LONG:
            for k in range(tl.cdiv(steps, STEPS)):
                start = tl.cast(k, tl.int64) * STEPS
                zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
                total, count = _collect(
                    zs, start, steps, label, c, total, count, FLAGS, STEPS, WHOLE
                )
        else:
            total, count = _collect(zs, start, steps, label, c, total, count, FLAGS, STEPS, WHOLE)
        total = total * own_scale_of(count, inv_steps, FLAGS)[:, None]
        own = distribution(tl.where(inside, total, -float("inf")), inside, rates[1], far)
        has_own = count > 0.0

    ce, kl, self_, entropy = zeros, zeros, zeros, row_zeros
    if LONG:
        for k in range(tl.cdiv(steps, STEPS)):
            start = tl.cast(k, tl.int64) * STEPS
            zs = read_steps(logits, z_at, inside, start, steps, stride, STEPS, WHOLE)
            ce, kl, self_, entropy = _segment(
                zs, start, steps, batch, classes, gradient, at, inside, valid, live,
                ce, kl, self_, entropy, y, y_sum, taught, own, has_own, rates, pulls,
                far, FLAGS, teacher is not None, STEPS, WHOLE,
            )  # fmt: skip
    else:
        ce, kl, self_, entropy = _segment(
            zs, start, steps, batch, classes, gradient, at, inside, valid, live,
            ce, kl, self_, entropy, y, y_sum, taught, own, has_own, rates, pulls,
            far, FLAGS, teacher is not None, STEPS, WHOLE,
        )  # fmt: skip
    write_line(parts, tl.sum(ce, 1), tl.sum(kl, 1), tl.sum(self_, 1), entropy, valid)
