"""Maximum and sums of rows of more classes than one block: the first pass of both objectives.

For a row of logits z, or of their mean over several steps, with x = z - max z:

    max z, its first class, sum z, sum exp(x / tau) at three temperatures,
    H = ln s - sum x exp(x / tau_h) / (tau_h s),  s = sum exp(x / tau_h)

A program has one row and goes through its classes in chunks of BLOCK. Bytes per logit: b read, b
those of one; each mean over steps reads them once more.

The trick: x is taken from the maximum so far. When that grows, the sums so far are scaled.
"""

import triton
import triton.language as tl

from .distill import (
    ENTROPY,
    FIRST,
    LINE,
    MAX,
    SUM_CE,
    SUM_H,
    SUM_TAU,
    TOTAL,
    centred,
    entropy_bits,
    first_max,
    load,
    mean_scale,
    offsets,
    read_statistics,
    sum_exp,
    weighted_sum,
)

_LINE = tl.constexpr(LINE)
# Where a maximum starts: finite, since inf - inf is NaN.
_LOWEST = tl.constexpr(-1.0e30)

SIZES = ["steps", "batch", "units", "step_stride", "row_stride", "class_stride"]


@triton.jit(do_not_specialize=SIZES)
def row_statistics(
    logits,  # [G steps, B, C]
    label,  # [B] int64 or, where soft, its statistics [B, LINE]; None where all steps count
    right,  # [steps, B, LINE], statistics of the steps, of which those count that have the label
    statistics,  # [G, B, LINE] float32, of the means of G groups of steps
    steps: tl.int32,  # of a group
    batch: tl.int32,
    units: tl.int32,  # C / VEC
    step_stride: tl.int64,  # of logits, in units of VEC elements
    row_stride: tl.int64,
    class_stride: tl.int64,
    far,
    k_ce,  # log2(e) over the temperatures; None where the sum is not asked for
    k_tau,
    k_h,
    inv_steps,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    DENSE: tl.constexpr,
):
    group = tl.program_id(0) // batch
    b = (tl.program_id(0) - group * batch).to(tl.int64) + tl.zeros([1], tl.int64)
    classes = units.to(tl.int64) * VEC
    stride = step_stride * VEC
    logits += group.to(tl.int64) * steps * stride
    zero = tl.zeros([1], tl.float32)

    count = zero
    if label is not None:
        wanted = read_statistics(label, 0, b, batch)[FIRST] if SOFT else tl.load(label + b)
        for t in range(steps):
            taken = read_statistics(right, t, b, batch)[FIRST] == wanted
            count += tl.where(taken, 1.0, 0.0)
    scale = mean_scale(count, inv_steps, label is None)

    top, first, total = zero + _LOWEST, tl.zeros([1], tl.int32), zero
    s_ce, s_tau, s_h, weighted = zero, zero, zero, zero
    for chunk in range(0, classes, BLOCK):
        c = tl.cast(chunk, tl.int32) + tl.arange(0, BLOCK)[None, :]
        inside = c < classes
        at = offsets(b, c, row_stride, class_stride, VEC, DENSE)
        z = tl.zeros([1, BLOCK], tl.float32)
        for t in range(steps):
            z_t = load(logits + tl.cast(t, tl.int64) * stride, at, inside).to(tl.float32)
            if label is not None:
                taken = read_statistics(right, t, b, batch)[FIRST] == wanted
                z_t = tl.where(taken[:, None], z_t, 0.0)
            z += z_t
        z *= scale[:, None]
        total += tl.sum(tl.where(inside, z, 0.0), 1)
        z = tl.where(inside, z, -float("inf"))
        here, first_here = first_max(z, c)
        first = tl.where(here > top, first_here, first)
        shift = top - tl.maximum(top, here)
        top = tl.maximum(top, here)
        x = centred(z, top, inside, far)
        if k_ce is not None:
            s_ce = s_ce * tl.exp2(shift * k_ce) + sum_exp(x, k_ce)
        if k_tau is not None:
            s_tau = s_tau * tl.exp2(shift * k_tau) + sum_exp(x, k_tau)
        if k_h is not None:
            # x moves with the maximum.
            weighted = (weighted + shift * s_h) * tl.exp2(shift * k_h) + weighted_sum(x, k_h)
            s_h = s_h * tl.exp2(shift * k_h) + sum_exp(x, k_h)

    line = statistics + (group.to(tl.int64) * batch + b) * _LINE
    tl.store(line + MAX, top)
    tl.store(line + FIRST, first.to(tl.float32, bitcast=True))
    tl.store(line + TOTAL, total)
    tl.store(line + SUM_CE, s_ce)
    tl.store(line + SUM_TAU, s_tau)
    tl.store(line + SUM_H, s_h)
    if k_h is not None:
        tl.store(line + ENTROPY, entropy_bits(s_h, weighted, k_h))
