"""What the distillation kernels share: tiles, softmax, target distributions; and the two kernels
that every objective ends with.

A loss kernel's program has whole rows, or of more classes than one block a chunk of a row. Maximum
and sums of such a row are ``known``: ``distill_statistics.py`` has left them in memory.

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

# The fields of a row's line of statistics, LINE floats, too.
MAX = tl.constexpr(0)
SUM_CE = tl.constexpr(1)  # sum_exp at the temperatures
SUM_TAU = tl.constexpr(2)
SUM_H = tl.constexpr(3)
ENTROPY = tl.constexpr(4)
FIRST = tl.constexpr(5)  # the first class that has the maximum; an int32's bits
TOTAL = tl.constexpr(6)


@triton.jit
def row_and_classes(batch, classes, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNKED: tl.constexpr):
    """The program's rows [ROWS] int64, and which of them exist (the others repeat the last one);
    its classes [1, BLOCK], and which of the row's chunks they are."""
    program = tl.program_id(0)
    chunk = 0
    if CHUNKED:
        chunks = tl.cdiv(classes, BLOCK)
        chunk = program % chunks
        program = program // chunks
    row = program * ROWS + tl.arange(0, ROWS)
    c = chunk * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.minimum(row, batch - 1).to(tl.int64), row < batch, c, chunk


@triton.jit
def offsets(b, c, row_stride, class_stride, VEC: tl.constexpr, DENSE: tl.constexpr):
    """Offsets [ROWS, BLOCK] within a step. Strides of rows count VEC elements, so that the compiler
    knows how wide an access may be; ``class_stride`` is 1 where DENSE."""
    lane = c if DENSE else c.to(tl.int64) * class_stride
    return (b * row_stride * VEC)[:, None] + lane


@triton.jit
def load(pointer, at, inside):
    """A tile of logits, as it lies in memory; -inf past the last class."""
    return tl.load(pointer + at, mask=inside, other=-float("inf"))


@triton.jit
def step_at(t, steps, WHOLE: tl.constexpr):
    """Step t, or instead of one past the end the last, which is read again out of the cache."""
    return t if WHOLE else tl.minimum(t, steps - 1)


@triton.jit
def read_steps(
    logits, at, inside, start, steps, step_stride, STEPS: tl.constexpr, WHOLE: tl.constexpr
):
    """STEPS tiles from step ``start`` on, as a tuple."""
    zs = ()
    for i in tl.static_range(STEPS):
        t = tl.cast(step_at(start + i, steps, WHOLE), tl.int64)
        zs += (load(logits + t * step_stride, at, inside),)
    return zs


@triton.jit
def in_flight():
    """Keeps the assembler from waiting for the first of the loads above before it issues the
    rest: a barrier, for which loads need not have arrived."""
    tl.debug_barrier()


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
def weighted_sum(x, k):
    return tl.sum(x * tl.exp2(x * k), 1)


@triton.jit
def entropy_bits(total, weighted, k):
    """H in bits, of sum_exp(x, k) and weighted_sum(x, k)."""
    return tl.log2(total) - k * (weighted / total)


@triton.jit
def mean_scale(count, inv_steps, ALL: tl.constexpr):
    """What makes a mean of the sum of ``count`` steps, or of all; 0 steps stay 0."""
    return tl.zeros_like(count) + inv_steps if ALL else 1.0 / tl.maximum(count, 1.0)


@triton.jit
def softmax(x, k, total):
    """log2 q and q, with ``total`` = sum_exp(x, k)."""
    log_q = tl.fma(x, tl.zeros_like(x) + k, -tl.log2(total)[:, None])
    return log_q, tl.exp2(x * k) * (1.0 / total)[:, None]


@triton.jit
def add_kl(so_far, p, q):
    """Adds p (log2 p - log2 q). ``p`` and ``q`` are what ``softmax`` returns."""
    return tl.fma(p[1], p[0] - q[0], so_far)


@triton.jit
def read_statistics(statistics, index, b, batch):
    """The lines of statistics of rows b [ROWS] of logits number ``index``, by field; None where a
    program has whole rows."""
    known = None
    if statistics is not None:
        line = statistics + (tl.cast(index, tl.int64) * batch + b) * _LINE
        known = ()
        for field in tl.static_range(_LINE):
            value = tl.load(line + field)
            known += (value.to(tl.int32, bitcast=True) if field == FIRST else value,)
    return known


@triton.jit
def row_max(z, known):
    """The largest value of each row: of the tile, where nothing more is known."""
    return tl.max(z, 1) if known is None else known[MAX]


@triton.jit
def row_sum(x, k, known, FIELD: tl.constexpr):
    """sum_exp of each row."""
    return sum_exp(x, k) if known is None else known[FIELD]


@triton.jit
def row_entropy(x, total, k, known):
    """The entropy of each row in bits, of total = sum_exp(x, k)."""
    return entropy_bits(total, weighted_sum(x, k), k) if known is None else known[ENTROPY]


@triton.jit
def row_first(z, c, known):
    """The first class of each row that has the maximum."""
    return first_max(z, c)[1] if known is None else known[FIRST]


@triton.jit
def distribution(z, inside, k, far, known):
    """log2 q and q of rows of logits at temperature tau."""
    x = centred(z, row_max(z, known), inside, far)
    return softmax(x, k, row_sum(x, k, known, SUM_TAU))


@triton.jit
def read_target(
    target, known, b, c, at, inside, live, classes, ignore_index, keep, base, SOFT: tl.constexpr
):  # fmt: skip
    """Labels [ROWS] int32, the first of the largest where SOFT; which rows count; the target
    distribution y, which is keep = 1 - eps of the label or of the given probabilities, plus
    base = eps / C, and 0 past the last class; its sum over all classes. A label that is no class
    is -1, and makes y NaN."""
    if SOFT:
        valid = live
        given = load(target, at, inside).to(tl.float32)
        label = row_first(given, c, known)
        y = tl.where(inside, given * keep + base, 0.0)
        if known is None:
            y_sum = tl.sum(y, 1)
        else:
            y_sum = known[TOTAL] * keep + base * classes.to(tl.float32)
    else:
        label = tl.load(target + b)
        valid = live & (label != ignore_index)
        wrong = tl.where((label >= 0) & (label < classes), 0.0, float("nan"))
        label = tl.where((label >= 0) & (label < classes), label, -1).to(tl.int32)
        y = tl.where(c == label[:, None], (wrong + keep + base)[:, None], (wrong + base)[:, None])
        y = tl.where(inside, y, 0.0)
        y_sum = tl.full(label.shape, 1.0, tl.float32)
    return label, valid, y, y_sum


@triton.jit
def rounded(dz, valid, gradient):
    """A tile as the gradient holds it, 0 in rows that do not count."""
    return tl.where(valid[:, None], dz, 0.0).to(gradient.dtype.element_ty)


@triton.jit
def write_step(gradient, dz, t, steps, size, at, mask, WHOLE: tl.constexpr):
    """Writes step t of ``size`` elements, unless it is past the end."""
    mask = mask if WHOLE else tl.where(t < steps, mask, False)
    tl.store(gradient + tl.cast(t, tl.int64) * size + at, dz, mask=mask)


@triton.jit
def write_line(parts, chunk, ce, kl, own, entropy, valid):
    """The program's line of sums. Elementwise ce, kl and own are [ROWS, BLOCK]; of a whole row are
    entropy and valid, [ROWS], which its first chunk adds."""
    first = valid & (chunk == 0)
    line = parts + tl.program_id(0).to(tl.int64) * _LINE
    tl.store(line, tl.sum(tl.where(valid, tl.sum(ce, 1), 0.0)))
    tl.store(line + 1, tl.sum(tl.where(valid, tl.sum(kl, 1), 0.0)))
    tl.store(line + 2, tl.sum(tl.where(valid, tl.sum(own, 1), 0.0)))
    tl.store(line + 3, tl.sum(tl.where(first, entropy, 0.0)))
    tl.store(line + _COUNT_AT, tl.sum(tl.where(first, 1.0, 0.0)))


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
