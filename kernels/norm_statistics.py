"""The statistics of a batch norm, and the numbers per channel that follow from them and from the
sums of backward's first pass.

Bytes per neuron and timestep, b those of one element of y: statistics read y, b. All else is [C] or
the partial sums of some hundred programs. What follows from a reduction is computed in the launch
that ends it: numbers of [C] are nothing to a GPU, and a launch of their own is 2 us and more.
"""

import triton
import triton.language as tl

from .norm_lif import DWEIGHT, INV_STD, MEAN, MOMENT, SCALE, SUM, VAR, B, C, split


@triton.jit
def along(value, inside, TILE: tl.constexpr):
    """The sum of a tile over the neurons of each channel, [rows, 1] or [1, cols]."""
    return tl.sum(tl.where(inside, value, 0.0), axis=0 if TILE.last else 1, keep_dims=True)


@triton.jit
def rows_of(item, end, row, rows, TILE: tl.constexpr):
    """Which rows of a tile the item has, [rows, 1]: none from ``end`` on."""
    there = row < TILE.rows
    if TILE.last:
        there = row < rows - tl.cast(item, rows.dtype) * TILE.rows
    return tl.where(item < end, there[:, None], False)


@triton.jit(
    do_not_specialize=["steps", "items", "per", "groups", "rows", "chunks", "channels", "width"]
)
def norm_stats(
    y,  # [T, N], time stride y_stride
    parts,  # [4, channels, parts of a channel] float32: shift, mean beyond it, M2, count
    steps: tl.int32,
    y_stride: tl.int64,
    items,  # of B; where channels are last, of tiles of TILE.rows rows
    per,  # items of a program
    groups,  # of programs; items / per, rounded up
    rows,  # C chunks, or where channels are last B and what else stands before them
    chunks,
    channels,
    width: tl.int32,
    TILE: tl.constexpr,
    EVEN: tl.constexpr,  # no item is cut short, and their number is a multiple of ITEMS
    ITEMS: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program's share of its channels: sums of Y - k and of its square, k the mean of the first
    tile, so that an offset of the data costs no digits."""
    row = tl.arange(0, TILE.rows)
    column = tl.arange(0, TILE.cols)
    width = width * TILE.align
    across = chunks if TILE.last else tl.cdiv(rows, TILE.rows)
    group = tl.program_id(0) // across
    tile = tl.program_id(0) - group * across
    if TILE.last:
        channel = tile * TILE.cols + column
        known = (channel < width)[None, :]
        slot = (channel.to(tl.int64) * groups + group)[None, :]
        lane = row[:, None] * width + channel[None, :]
        inside = known & (row >= 0)[:, None]
        step = width.to(tl.int64) * TILE.rows
        size = channels.to(tl.int64) * groups
    else:
        index = tile * TILE.rows + row
        known = (index < rows)[:, None]
        slot = (index.to(tl.int64) * groups + group)[:, None]
        channel, start = split(index, chunks, TILE)
        lane = (channel * width + start)[:, None] + column[None, :]
        inside = known & (start[:, None] + column[None, :] < width)
        step = channels.to(tl.int64) * width
        size = rows.to(tl.int64) * groups
    begin = group.to(items.dtype) * per
    end = tl.minimum(begin + per, items)

    # How many values a channel has in the first tile, and in one step of the program's share.
    if TILE.last:
        left = rows - begin.to(rows.dtype) * TILE.rows
        first_count = tl.minimum(left, TILE.rows).to(tl.float32)
        of_channel = tl.minimum(left, (end - begin) * TILE.rows).to(tl.float32)
    else:
        first_count = tl.minimum(width - start, TILE.cols).to(tl.float32)[:, None]
        of_channel = first_count * (end - begin).to(tl.float32)
    there = inside & rows_of(begin, end, row, rows, TILE)
    first_tile = tl.load(y + begin.to(tl.int64) * step + lane, mask=there).to(tl.float32)
    shift = along(first_tile, there, TILE) / first_count

    sums = tl.zeros(lane.shape, tl.float32)
    squares = tl.zeros(lane.shape, tl.float32)
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    for item in range(begin, end, ITEMS):
        for k in range(segments):
            first = tl.cast(k, tl.int64) * STEPS
            ys = ()
            for j in tl.static_range(ITEMS):
                for i in tl.static_range(STEPS):
                    there = inside
                    if not EVEN:
                        there = inside & rows_of(item + j, end, row, rows, TILE)
                    t = first + i if WHOLE else tl.minimum(first + i, steps - 1)
                    tile_at = y + t * y_stride + (tl.cast(item, tl.int64) + j) * step
                    ys += (tl.load(tile_at + lane, mask=there),)
            for j in tl.static_range(ITEMS):
                for i in tl.static_range(STEPS):
                    d = ys[j * STEPS + i].to(tl.float32) - shift
                    if not EVEN:
                        d = tl.where(rows_of(item + j, end, row, rows, TILE), d, 0.0)
                    if not WHOLE:
                        d = tl.where(first + i < steps, d, 0.0)
                    sums += d
                    squares = tl.fma(d, d, squares)

    total = along(sums, inside, TILE)
    count = tl.zeros_like(total) + steps.to(tl.float32) * of_channel
    beyond = total / count
    spread = tl.maximum(tl.fma(-total, beyond, along(squares, inside, TILE)), 0.0)
    tl.store(parts + slot, shift, mask=known)
    tl.store(parts + size + slot, beyond, mask=known)
    tl.store(parts + 2 * size + slot, spread, mask=known)
    tl.store(parts + 3 * size + slot, count, mask=known)


@triton.jit
def towards(old, new, share):
    """old + share (new - old), from the nearer end."""
    gap = new - old
    return tl.where(share < 0.5, tl.fma(share, gap, old), tl.fma(share - 1.0, gap, new))


@triton.jit(do_not_specialize=["count", "channels"])
def norm_prepare(
    parts,  # [4, channels, count] float32, as norm_stats leaves them; None: mean and var are given
    stats,  # [4, channels] float32
    weight,  # [channels] float32, as all that follow; or None: 1
    running_mean,  # or None
    running_var,
    momentum,
    unbias,
    eps,
    count,
    channels,
    BLOCK: tl.constexpr,
):
    """A channel's mean and variance from those of its parts (Chan et al. 1979), in float64: there
    are few of them. And what normalising needs of them."""
    c = tl.program_id(0)
    row = channels.to(tl.int64)
    stats += c
    if parts is None:
        middle = tl.load(stats + MEAN * row)
        variance = tl.load(stats + VAR * row)
    else:
        lane = tl.arange(0, BLOCK)
        size = row * count
        parts = parts + c.to(tl.int64) * count
        weights = tl.zeros([BLOCK], tl.float64)
        totals = tl.zeros([BLOCK], tl.float64)
        for start in range(0, count, BLOCK):
            at = parts + start + lane
            inside = start + lane < count
            n = tl.load(at + 3 * size, mask=inside, other=0.0).to(tl.float64)
            shift = tl.load(at, mask=inside, other=0.0).to(tl.float64)
            totals += n * (shift + tl.load(at + size, mask=inside, other=0.0).to(tl.float64))
            weights += n
        values = tl.sum(weights)
        centre = tl.sum(totals) / values
        spread = tl.zeros([BLOCK], tl.float64)
        for start in range(0, count, BLOCK):
            at = parts + start + lane
            inside = start + lane < count
            n = tl.load(at + 3 * size, mask=inside, other=0.0).to(tl.float64)
            shift = tl.load(at, mask=inside, other=0.0).to(tl.float64)
            off = shift + tl.load(at + size, mask=inside, other=0.0).to(tl.float64) - centre
            squares = tl.load(at + 2 * size, mask=inside, other=0.0).to(tl.float64)
            spread += squares + n * (off * off)
        middle = centre.to(tl.float32)
        variance = (tl.sum(spread) / values).to(tl.float32)
        tl.store(stats + MEAN * row, middle)
        tl.store(stats + VAR * row, variance)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    tl.store(stats + INV_STD * row, inverse)
    tl.store(stats + SCALE * row, inverse if weight is None else tl.load(weight + c) * inverse)
    if running_mean is not None:
        next_mean = towards(tl.load(running_mean + c), middle, momentum)
        next_var = towards(tl.load(running_var + c), variance * unbias, momentum)
        tl.debug_barrier()  # all threads have read them
        tl.store(running_mean + c, next_mean)
        tl.store(running_var + c, next_var)


@triton.jit
def add_up(parts, count, channel, channels, chunks, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The sums [CHANNELS] of parts [count / chunks, channels, chunks] over each channel, in float64
    and in a fixed order."""
    lane = tl.arange(0, BLOCK)[:, None]
    total = tl.zeros([BLOCK, CHANNELS], tl.float64)
    for start in range(0, count, BLOCK):
        row = (start + lane) // chunks
        at = (row.to(tl.int64) * channels + channel[None, :]) * chunks + start + lane - row * chunks
        inside = (start + lane < count) & (channel < channels)[None, :]
        total += tl.load(parts + at, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0).to(tl.float32)


@triton.jit(do_not_specialize=["count", "channels", "chunks"])
def norm_finish(
    parts,  # [2, count / chunks, channels, chunks] float32, as lif_backward leaves them; where
    # drate is wanted, 3; None: sums are given in totals
    drate,  # [channels] float32, or None
    stats,  # [4, channels] float32
    totals,  # [5, channels] float32
    values,  # of a channel, that statistics were taken of; 0: they are constants
    count,
    channels,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of the first pass of backward over each channel, and what follows from them."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    row = channels.to(tl.int64)
    stats += channel
    totals += channel
    if parts is None:
        total = tl.load(totals + SUM * row, mask=known)
        moment = tl.load(totals + MOMENT * row, mask=known)
    else:
        size = row * count
        total = add_up(parts, count, channel, channels, chunks, CHANNELS, BLOCK)
        moment = add_up(parts + size, count, channel, channels, chunks, CHANNELS, BLOCK)
        tl.store(totals + SUM * row, total, mask=known)
        tl.store(totals + MOMENT * row, moment, mask=known)
        if drate is not None:
            rates = add_up(parts + 2 * size, count, channel, channels, chunks, CHANNELS, BLOCK)
            tl.store(drate + channel, rates, mask=known)
    scale = tl.load(stats + SCALE * row, mask=known)
    inverse = tl.load(stats + INV_STD * row, mask=known)
    by = tl.where(values > 0.0, -values, 1.0)
    slope = tl.div_rn(scale * inverse * inverse * moment, by)
    shift = tl.div_rn(scale * total, by)
    tl.store(totals + DWEIGHT * row, moment * inverse, mask=known)
    tl.store(totals + B * row, tl.where(values > 0.0, slope, 0.0), mask=known)
    tl.store(totals + C * row, tl.where(values > 0.0, shift, 0.0), mask=known)
