"""What the distillation kernels share: tiles, softmax, target distributions; and the two kernels
that every objective ends with.

``finish`` turns what the programs of a loss kernel left behind, one line of sums each, into loss,
terms and unit, always in the same order. ``scale_gradient`` is backward: 2b bytes per logit, b
those of one.

Softmax of a tile is held as log2 q = x k - log2 sum 2^(x k) and q, k = log2(e) / tau, with
x = z - max z taken first: at |z| = 10^4 it is x that is exact to the last bit, not z / tau. Base 2
is the hardware's; sums of terms are in bits until ``finish``. Past the last class x is ``far``, low
enough that q is 0 and high enough that log2 q is finite, so that sums need no mask.

Calls pass ``enable_fp_fusion=False`` and fma stands where it is wanted: a product contracted on one
side of log p - log q and not on the other would keep KL(p || p) from being 0.
"""

import triton
import triton.language as tl

LINE = 8
"""Floats in a program's line of sums: up to 4 terms, and at COUNT_AT how many rows count."""
COUNT_AT = 4

_LINE = tl.constexpr(LINE)
_COUNT_AT = tl.constexpr(COUNT_AT)


@triton.jit
def rows(batch, ROWS: tl.constexpr):
    """The program's rows [ROWS] int64, and which of them exist; the others repeat the last one."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return tl.minimum(row, batch - 1).to(tl.int64), row < batch


@triton.jit
def offsets(b, c, row_stride, class_stride, VEC: tl.constexpr, DENSE: tl.constexpr):
    """Offsets [ROWS, BLOCK] within a step. Strides count VEC elements, so that the compiler knows
    how wide an access may be; ``class_stride`` is 1 where DENSE."""
    lane = c if DENSE else c.to(tl.int64) * class_stride
    return (b * row_stride * VEC)[:, None] + lane


@triton.jit
def load(pointer, at, inside):
    """A tile of logits, as it lies in memory; -inf past the last class."""
    return tl.load(pointer + at, mask=inside, other=-float("inf"))


@triton.jit
def read_steps(
    logits, at, inside, start, steps, step_stride, STEPS: tl.constexpr, WHOLE: tl.constexpr
):
    """STEPS tiles from step ``start`` on, as a tuple. A step past the end reads the last one again,
    out of the cache."""
    zs = ()
    for i in tl.static_range(STEPS):
        t = start + i if WHOLE else tl.minimum(start + i, steps - 1)
        zs += (load(logits + t * step_stride, at, inside),)
    return zs


@triton.jit
def in_flight():
    """Keeps the assembler from waiting for the first of the loads above before it issues the
    rest: a barrier, for which loads need not have arrived."""
    tl.debug_barrier()


@triton.jit
def read_labels(target, b, live, classes, ignore_index):
    """Labels [ROWS] int32, which rows count, and 0, or NaN for a label that is no class (-1)."""
    label = tl.load(target + b)
    known = (label >= 0) & (label < classes)
    valid = live & (label != ignore_index)
    wrong = tl.where(known, 0.0, float("nan"))
    return tl.where(known, label, -1).to(tl.int32), valid, wrong


@triton.jit
def target_tile(
    target, b, c, inside, classes, label, wrong, keep, base, SOFT: tl.constexpr
):  # fmt: skip
    """The target distribution y, keep = 1 - eps of the label or the given probabilities, plus
    base = eps / C; 0 past the last class."""
    if SOFT:
        y = tl.load(target + (b * classes)[:, None] + c, mask=inside, other=0.0)
        y = y.to(tl.float32) * keep + base
    else:
        y = tl.where(c == label[:, None], (wrong + keep + base)[:, None], (wrong + base)[:, None])
    return tl.where(inside, y, 0.0)


@triton.jit
def first_max(z, c):
    """The largest value of each row, and the first class that has it."""
    m = tl.max(z, 1)
    return m, tl.min(tl.where(z == m[:, None], c, 2147483647), 1)


@triton.jit
def centred(z, m, inside, far):
    """x = z - m."""
    return tl.where(inside, z - m[:, None], far)


@triton.jit
def sum_exp(x, k):
    return tl.sum(tl.exp2(x * k), 1)


@triton.jit
def softmax(x, k, total):
    """log2 q and q, with ``total`` = sum_exp(x, k)."""
    log_q = tl.fma(x, tl.zeros_like(x) + k, -tl.log2(total)[:, None])
    return log_q, tl.exp2(x * k) * (1.0 / total)[:, None]


@triton.jit
def distribution(z, inside, k, far):
    """log2 q and q of whole rows of logits."""
    x = centred(z, tl.max(z, 1), inside, far)
    return softmax(x, k, sum_exp(x, k))


@triton.jit
def add_kl(so_far, p, q):
    """Adds p (log2 p - log2 q). ``p`` and ``q`` are what ``softmax`` returns."""
    return tl.fma(p[1], p[0] - q[0], so_far)


LOWEST = -1.0e30
"""Where a running maximum starts: finite, since inf - inf is NaN."""


@triton.jit
def running(z, m, total, k):
    """Maximum and sum_exp of the rows so far, with one chunk more."""
    top = tl.maximum(m, tl.max(z, 1))
    return top, total * tl.exp2((m - top) * k) + sum_exp(z - top[:, None], k)


@triton.jit
def write_line(parts, ce, kl, own, entropy, valid):
    """The program's line of sums. Each argument is [ROWS]."""
    line = parts + tl.program_id(0).to(tl.int64) * _LINE
    tl.store(line, tl.sum(tl.where(valid, ce, 0.0)))
    tl.store(line + 1, tl.sum(tl.where(valid, kl, 0.0)))
    tl.store(line + 2, tl.sum(tl.where(valid, own, 0.0)))
    tl.store(line + 3, tl.sum(tl.where(valid, entropy, 0.0)))
    tl.store(line + _COUNT_AT, tl.sum(tl.where(valid, 1.0, 0.0)))


@triton.jit
def _by_term(term, a, b, c, d):
    """The one of four numbers that belongs to each term, 0 past them."""
    first = tl.where(term == 0, a, tl.where(term == 1, b, 0.0))
    return first + tl.where(term == 2, c, tl.where(term == 3, d, 0.0))


@triton.jit(do_not_specialize=["programs"])
def finish(
    parts,  # [programs, LINE] float32
    loss,  # []
    terms,  # [COUNT]
    unit,  # []
    programs: tl.int32,
    f0,  # factors of the terms: sums times factor, over n, are means
    f1,
    f2,
    f3,
    w0,  # weights of the terms in the loss
    w1,
    w2,
    w3,
    unit_factor,  # 1 / (T gradient_scale)
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    term = tl.arange(0, _LINE)
    used = (term < COUNT) | (term == _COUNT_AT)
    lines = tl.zeros([BLOCK, _LINE], tl.float32)
    for k in range(tl.cdiv(programs, BLOCK)):
        line = k * BLOCK + tl.arange(0, BLOCK)
        at = line.to(tl.int64)[:, None] * _LINE + term[None, :]
        inside = (line < programs)[:, None] & used[None, :]
        lines += tl.load(parts + at, mask=inside, other=0.0)
    # A float32 would lose count beyond 2^24 rows.
    count = tl.sum(tl.sum(tl.where(term[None, :] == _COUNT_AT, lines, 0.0).to(tl.int32), 1), 0)
    n = tl.maximum(count, 1).to(tl.float32)
    means = tl.sum(lines, 0) * _by_term(term, f0, f1, f2, f3) / n
    means = tl.where(count > 0, means, float("nan"))
    weight = _by_term(term, w0, w1, w2, w3)
    tl.store(terms + term, means, mask=term < COUNT)
    tl.store(loss, tl.sum(tl.where((term < COUNT) & (weight != 0.0), weight * means, 0.0)))
    tl.store(unit, unit_factor / n)


@triton.jit
def scale_gradient(
    gradient,  # [N]
    grad_output,  # []
    unit,  # [] float32
    scaled,  # [N]
    n: tl.int64,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(n - first, BLOCK).to(tl.int32)
    factor = tl.load(grad_output).to(tl.float32) * tl.load(unit)
    value = tl.load(gradient + first + lane, mask=inside).to(tl.float32) * factor
    tl.store(scaled + first + lane, value.to(scaled.dtype.element_ty), mask=inside)
